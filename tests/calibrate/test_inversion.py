"""Images changed until batch norms see what they hold."""

from __future__ import annotations

import torch
from test_selection import HALF, KINDS, departure, trained

from factorize.calibrate import inverted
from factorize.calibrate.selection import statistics
from factorize.types import Preprocessing


def test_inverted_images_are_nearer_and_surer_of_all_classes() -> None:
    net = trained(HALF.normalise(KINDS[0]), classes=4)
    with torch.no_grad():
        net[-1].weight *= 20
    flags = [p.requires_grad for p in net.parameters()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    images = HALF.normalise(KINDS[1][:120])
    kept = images.clone()
    made = inverted(net, images, "auto")
    assert torch.equal(images, kept)
    assert made.shape == images.shape
    assert torch.equal(made, inverted(net, images, "auto"))
    plain = Preprocessing((0.0,), (1.0,))
    before, after = (statistics(net, plain, one, "values") for one in (images, made))
    assert before is not None
    assert after is not None
    assert departure(after) < departure(before) / 4
    with torch.no_grad():
        shares = [net(one).softmax(1) for one in (images, made, inverted(net, images, "values"))]
    sure = [float(one.max(1).values.mean()) for one in shares]
    even = [float(one.mean(0).max()) for one in shares]
    assert sure[1] > max(sure[0], sure[2])  # only where outputs are logits
    assert even[1] < 0.5
    assert [p.requires_grad for p in net.parameters()] == flags
    assert not net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_pixels_are_what_is_normalised() -> None:
    steps = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    images = KINDS[0][:4]
    assert torch.allclose(steps.pixels(steps.normalise(images)), images / 255, atol=1e-6)

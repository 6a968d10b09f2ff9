"""Made-up images chosen by what a model's batch norms hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from factorize.calibrate import suited
from factorize.calibrate.selection import herded, statistics
from factorize.data.drawings import drawings
from factorize.data.synthetic import made_up
from factorize.types import Preprocessing

SHAPE = (3, 16, 16)
KINDS = made_up(SHAPE, 600, seed=5), drawings(SHAPE, 600, seed=5)
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Preprocessing((0.5,), (0.5,))


def departure(rows: Tensor) -> float:
    return float(rows.mean(0).square().sum())


def trained(images: Tensor, classes: int = 0) -> nn.Module:
    """A net whose batch norms hold the statistics of images (N, C, H, W)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=1.0), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=1.0),
        *([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)] if classes else []),
    )  # fmt: skip
    with torch.no_grad():
        net.train()(images)
    return net.eval()


@pytest.mark.parametrize("classes", [0, 4])
def test_the_images_of_a_net_depart_from_it_in_nothing(classes: int) -> None:
    images = IMAGENET.normalise(KINDS[0])
    net = trained(images, classes)
    own = statistics(net, IMAGENET, KINDS[0], "auto")
    other = statistics(net, IMAGENET, KINDS[1], "auto")
    assert own is not None
    assert other is not None
    assert own.shape == (600, 2 * (12 + 8) + classes)
    assert departure(own[:, :40]) < 1e-6
    assert departure(other[:, :40]) > 0.1
    if classes:
        assert own[:, 40:].sum(1).abs().max() < 1e-5  # shares less those of even classes
    undeclared = statistics(net, IMAGENET, KINDS[0], "values")
    assert undeclared is not None
    assert undeclared.shape == (600, 40)


def test_herded_rows_are_zero_together() -> None:
    torch.manual_seed(0)
    rows = torch.randn(9000, 12) + 0.5
    taken = herded(rows, 400)
    assert len(taken) == 400
    assert int(taken.bincount().max()) <= 2
    assert departure(rows[taken]) < 1e-3 < departure(rows[:400])
    assert (taken < 4500).sum() == 200  # from all parts alike
    assert len(herded(rows[:10], 100)) == 100


@pytest.mark.parametrize("kind", [0, 1], ids=["leaves", "drawings"])
@pytest.mark.parametrize("steps", [IMAGENET, HALF], ids=["imagenet", "half"])
def test_the_kind_and_the_range_are_found(kind: int, steps: Preprocessing) -> None:
    others = made_up(SHAPE, 400, seed=8), drawings(SHAPE, 400, seed=8)
    net = trained(steps.normalise(others[kind]))
    found = suited(net, KINDS, None, 100, outputs="auto", most=10_000)
    assert found is not None
    (fitted, held), range_ = found
    assert (len(fitted), len(held)) == (80, 20)
    own = {bytes(one.numpy().tobytes()) for one in KINDS[kind]}
    chosen = [{bytes(one.numpy().tobytes()) for one in part} for part in (fitted, held)]
    assert chosen[0] | chosen[1] <= own
    assert not chosen[0] & chosen[1]  # what is held out was not fitted to
    assert range_.mean == pytest.approx([*steps.mean] * (3 // len(steps.mean)), abs=0.1) or (
        range_ == steps
    )
    assert suited(net, KINDS, IMAGENET, 100, outputs="auto", most=10_000)[1] == IMAGENET
    again = suited(net, KINDS, None, 100, outputs="auto", most=10_000)
    assert torch.equal(again[0][0], fitted)


def test_no_more_are_looked_at_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = trained(HALF.normalise(KINDS[0])), []
    net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert suited(net, KINDS, None, 100, outputs="auto", most=400) is not None
    assert sum(seen) < 1000


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),  # never trained
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_where_no_batch_norm_was_trained_none_is_chosen(net: nn.Module) -> None:
    assert suited(net.eval(), KINDS, None, 100, outputs="auto", most=10_000) is None
    assert suited(net.eval(), KINDS, HALF, 100, outputs="auto", most=10_000) is None


def test_samples_that_are_several_rows_of_a_norm_are_left_alone() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained(HALF.normalise(KINDS[0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.cat([x, x.flip(-1)]))

    assert suited(Crops().eval(), KINDS, HALF, 100, outputs="auto", most=10_000) is None

"""The original's outputs, which are computed once for all nets that are compared with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from searching import PIXELS, plain
from torch import Tensor, nn

from factorize.outputs import UNDECLARED
from factorize.search.held_out import losses_of
from factorize.tensor.layout import forward, laid_out
from factorize.tensor.reference import Reference

PARTS = list(PIXELS.split(10))


class Counting(nn.Module):
    """A net that counts its passes, and whether they kept gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes, self.with_gradient = net, 0, 0

    def forward(self, *inputs: Any) -> Any:
        self.passes += 1
        self.with_gradient += torch.is_grad_enabled() or self.training
        return self.net(*inputs)


def counted(net: nn.Module | None = None, memory: float = 1e9) -> tuple[Counting, Reference]:
    model = Counting(net or plain()).train()
    laid_out(model, PARTS[0])  # it is found out how images are to lie, once
    model.passes = 0
    return model, Reference(model, "cpu", memory)


def outputs(model: nn.Module, images: Any) -> Any:
    with torch.no_grad():
        return forward(model.eval(), images)


def test_the_same_bytes_are_looked_at_once():
    model, reference = counted()
    first = [reference(part) for part in PARTS]
    assert model.passes == len(PARTS)
    again = [reference(part.clone()) for part in PARTS]
    assert model.passes == len(PARTS)
    assert model.with_gradient == 0
    assert model.training
    net = plain()
    for one, other, part in zip(first, again, PARTS, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, outputs(net, part))


def test_batches_are_known_in_any_order_and_none_is_taken_for_another():
    model, reference = counted()
    for part in PARTS:
        reference(part)
    model.passes = 0
    order = torch.randperm(len(PARTS), generator=torch.Generator().manual_seed(1)).tolist()
    assert order != sorted(order)
    for index in order:
        assert torch.equal(reference(PARTS[index]), outputs(model.net, PARTS[index]))
    assert model.passes == 0
    rows = torch.randperm(len(PIXELS), generator=torch.Generator().manual_seed(2))
    for part in PIXELS[rows].split(10):  # the same images in other batches
        assert torch.equal(reference(part), outputs(model.net, part))
    assert model.passes == len(PARTS)


@pytest.mark.parametrize("change", ["one number", "shape", "dtype", "a second input"])
def test_what_differs_at_all_is_looked_at(change: str):
    class Sums(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return torch.stack([one.float().sum() for one in parts])

    model, reference = counted(Sums())
    one, other = torch.zeros(4, 6), torch.zeros(3)
    reference((one, other))
    changed: Any = {
        "one number": (one, other + 1e-30),
        "shape": (one.reshape(6, 4), other),
        "dtype": (one.int(), other),
        "a second input": (one, other, other[:1]),
    }[change]
    reference(changed)
    assert model.passes == 2
    reference(changed)
    assert model.passes == 2


class Two(nn.Module):
    """An output that is a view of a large one, and another."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"view": x.repeat(100, 1, 1, 1)[: len(x), 0, 0, 0], "more": [x.mean((1, 2, 3))]}


def test_as_much_is_kept_as_memory_goes():
    each = 2 * 10 * 4  # bytes of the two outputs for a batch
    model, reference = counted(Two(), memory=2.5 * each)
    for _ in range(2):
        for part in PARTS:
            found = reference(part)
            assert torch.equal(found["view"], part[:, 0, 0, 0])
            assert torch.equal(found["more"][0], part.mean((1, 2, 3)))
    assert model.passes == 2 * len(PARTS) - 2
    assert reference.left == 0.5 * each
    kept = [one["view"].untyped_storage().nbytes() for one in reference._known.values()]
    assert kept == [40, 40]


def test_without_memory_each_batch_is_looked_at_each_time():
    model, reference = counted(memory=0)
    for _ in range(2):
        reference(PARTS[0])
    assert model.passes == 2


def test_losses_are_those_of_the_original_in_any_order_of_batches():
    model, reference = counted()
    other = plain()
    with torch.no_grad():
        other[3].weight.mul_(0.8)  # type: ignore[index, operator, union-attr]
    batches = [(part,) for part in PARTS]
    straight = losses_of(other, reference, batches, UNDECLARED, "cpu")
    assert (straight > 0).all()
    turned = losses_of(other, reference, batches[::-1], UNDECLARED, "cpu")
    assert model.passes == len(batches)
    back = np.concatenate(np.split(turned, len(batches))[::-1])
    assert back == pytest.approx(straight)
    fresh = losses_of(other, Reference(plain(), "cpu", 0), batches, UNDECLARED, "cpu")
    assert straight == pytest.approx(fresh)

"""Weights to integers: within their limits, and never worse than each to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from factorize.quantize import rounding
from factorize.quantize.rounding import compensated, nearest_codes, rounded_codes, scales_of


def problem(seed: int, groups: int = 2, outputs: int = 5, length: int = 36) -> tuple[Tensor, ...]:
    """A weight, and patches of both nets: correlated, of very different sizes, and with a mean."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mix = random(groups, length, length) * 0.8 ** torch.arange(length, dtype=torch.float64)
    x = random(groups, 4 * length, length) @ mix.mT + 0.5
    rough = x + 0.05 * random(*x.shape) + 0.05 * x.roll(1, -1)
    return random(groups, outputs, length), x, rough


def centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def moments(x: Tensor, rough: Tensor) -> tuple[Tensor, Tensor]:
    """What `compensated` is given: E[(x - x') x'^T], E[x' x'^T], about the means."""
    x, rough = centred(x), centred(rough)
    return (x - rough).mT @ rough / x.shape[1], rough.mT @ rough / x.shape[1]


def error(weight: Tensor, made: Tensor, x: Tensor, rough: Tensor) -> float:
    """Of outputs, where the bias makes up for the means."""
    return float((centred(rough) @ made.mT - centred(x) @ weight.mT).square().sum())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("largest", [127, 63, 7])
def test_outputs_are_never_further_than_with_the_nearest(seed: int, largest: int) -> None:
    weight, x, rough = problem(seed)
    apart, second = moments(x, rough)
    wanted = compensated(weight, apart, second, 0.05)
    scales = scales_of(wanted, largest)
    codes = rounded_codes(wanted, scales, second, largest)
    assert bool((codes == codes.round()).all())
    assert float(codes.abs().max()) <= largest
    ours = error(weight, codes * scales[..., None], x, rough)
    own = scales_of(weight, largest)
    nearest = error(weight, nearest_codes(weight, own, largest) * own[..., None], x, rough)
    fitted = error(weight, nearest_codes(wanted, scales, largest) * scales[..., None], x, rough)
    assert ours <= fitted
    assert ours <= nearest


@pytest.mark.parametrize("block", [1, 5, 128])
def test_with_fine_scales_the_weight_comes_back(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_BLOCK", block)
    weight, x, rough = problem(0)
    _, second = moments(x, rough)
    fine = scales_of(weight, 2**20)
    made = rounded_codes(weight, fine, second, 2**20) * fine[..., None]
    assert torch.allclose(made, weight, atol=1e-4)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, rough = problem(1)
    _, second = moments(x, rough)
    scales = scales_of(weight, 127)
    whole = rounded_codes(weight, scales, second, 127)
    monkeypatch.setattr(rounding, "_BLOCK", 7)
    assert torch.equal(rounded_codes(weight, scales, second, 127), whole)


def test_groups_are_rounded_each_by_itself() -> None:
    weight, x, rough = problem(2, groups=3)
    apart, second = moments(x, rough)
    wanted, scales = compensated(weight, apart, second, 0.05), scales_of(weight, 127)
    codes = rounded_codes(wanted, scales, second, 127)
    for g in range(3):
        one = slice(g, g + 1)
        alone = compensated(weight[one], apart[one], second[one], 0.05)
        assert torch.allclose(alone, wanted[one])
        assert torch.equal(rounded_codes(alone, scales[one], second[one], 127), codes[one])


def test_inputs_that_are_the_same_leave_the_weight() -> None:
    weight, x, _ = problem(3)
    apart, second = moments(x, x)
    assert torch.equal(compensated(weight, apart, second, 0.05), weight)


def test_where_nothing_varies_weights_go_to_the_nearest() -> None:
    weight = problem(4)[0]
    second = torch.zeros(2, 36, 36, dtype=torch.float64)
    scales = scales_of(weight, 127)
    codes = rounded_codes(weight, scales, second, 127)
    assert torch.equal(codes, nearest_codes(weight, scales, 127))


def test_a_channel_of_zeros_and_one_of_one_huge_weight() -> None:
    weight, x, rough = problem(5)
    weight[0, 0] = 0
    weight[1, 2, 3] = 1e6
    _, second = moments(x, rough)
    scales = scales_of(weight, 127)
    codes = rounded_codes(weight, scales, second, 127)
    assert not codes[0, 0].any()
    assert bool((scales > 0).all())
    assert bool((scales.float() == scales).all())
    assert float(codes[1, 2, 3]) == 127

"""Ranks worth trying: conformance of every registered method."""

from __future__ import annotations

import itertools
from dataclasses import replace

import convolutions
import pytest

from factorize import methods
from factorize.spec import ConvSpec


def conv(
    inputs: int, outputs: int, kernel: int, size: int, stride: int = 1, **more: object
) -> ConvSpec:
    return ConvSpec(
        "layer", "conv2d", inputs, outputs, (kernel, kernel), (stride, stride),
        (kernel // 2, kernel // 2), (1, 1), input_sizes=((size, size),), **more,  # type: ignore[arg-type]
    )  # fmt: skip


SPECS = {
    "16": conv(16, 16, 3, 32),
    "64": conv(64, 64, 3, 56),
    "512": conv(512, 512, 3, 7),
    "strided": conv(64, 128, 3, 56, stride=2),
    "5x5": conv(48, 64, 5, 28),
    "1x1": conv(256, 64, 1, 56),
    "24-40": conv(24, 40, 3, 14),
    "narrow": conv(32, 256, 3, 14),
    "7x7": conv(3, 64, 7, 224, stride=2),
    "8": conv(8, 8, 3, 16),
    "groups": conv(128, 128, 3, 28, groups=2),
    "1x1-512": conv(512, 512, 1, 14),
    "3-D": ConvSpec(
        "layer", "conv3d", 256, 256, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1),
        input_sizes=((7, 7, 7),),
    ),
}  # fmt: skip
ALL = [
    (method, name, step)
    for method, name in itertools.product(methods.names(), SPECS)
    for step in (1, 8, 16)
    if methods.get(method).supports(SPECS[name]) is None
]


def coarse(method: str, spec: ConvSpec) -> bool:
    """Whether the rank is a multiplier of the layer's own channels, and there are but a few."""
    return max(methods.get(method).max_rank(spec)) <= 9


def widest(method: str) -> ConvSpec:
    wide = [SPECS[name] for name in ("512", "1x1-512", "3-D")]
    return next(spec for spec in wide if methods.get(method).supports(spec) is None)


def macs(method: str, spec: ConvSpec, rank: tuple[int, ...]) -> int:
    chosen = methods.get(method)
    return sum(stage.macs for stage in chosen.stages(spec, rank, chosen.variants[0]))


@pytest.mark.parametrize(("method", "name", "step"), ALL)
def test_ranks_are_valid_and_save_and_rise(method: str, name: str, step: int) -> None:
    spec, chosen = SPECS[name], methods.get(method)
    ladder = chosen.ladder(spec, step=step)
    limit = chosen.max_rank(spec)
    costs = [macs(method, spec, rank) for rank in ladder]
    assert len(set(ladder)) == len(ladder) <= 12
    assert costs == sorted(costs)
    assert all(cost < spec.macs for cost in costs)
    assert all(cost >= 0.05 * spec.macs for cost in costs) or len(costs) == 1
    for rank in ladder:
        assert len(rank) == len(limit)
        assert all(1 <= r <= top for r, top in zip(rank, limit, strict=True))
    if macs(method, spec, (1,) * len(limit)) < spec.macs and name != "7x7":
        assert ladder


@pytest.mark.parametrize("method", methods.names())
def test_ranks_are_multiples_of_the_step_in_layers_that_are_wide_enough(method: str) -> None:
    if method == "depthwise_pointwise":  # its channels are multiples of the layer's
        assert methods.get(method).ladder(SPECS["64"], step=16) == tuple((t,) for t in range(1, 8))
        return
    chosen = methods.get(method)
    wide = {"64", "512", "strided"} if method in convolutions.square() else {"1x1-512", "3-D"}
    cases = [*itertools.product(wide, (8, 16)), ("24-40", 8)]
    for name, step in cases:
        for rank in chosen.ladder(SPECS[name], step=step):
            chain = chosen.stages(SPECS[name], rank, chosen.variants[0])
            assert all(stage.out_channels % step == 0 for stage in chain[:-1])


@pytest.mark.parametrize("method", methods.names())
def test_a_ladder_spans_the_savings_evenly(method: str) -> None:
    spec = widest(method)
    ladder = methods.get(method).ladder(spec, count=60)
    costs = sorted(macs(method, spec, rank) / spec.macs for rank in ladder)
    few = coarse(method, spec)
    assert costs[0] < (0.34 if few else 0.06)
    assert costs[-1] > (0.66 if few else 0.97)
    if not few:
        assert 50 <= len(ladder) <= 60
        assert max(b / a for a, b in itertools.pairwise(costs)) < 1.25


def test_the_step_gives_way_where_it_leaves_too_few_ranks() -> None:
    for method in convolutions.square():
        least = 2 if coarse(method, SPECS["16"]) else 3
        assert len(methods.get(method).ladder(SPECS["16"], step=16)) >= least
    assert methods.get("tucker2").ladder(SPECS["16"], step=16) == ((4, 4), (8, 8), (12, 12))
    assert methods.get("tucker2").ladder(SPECS["64"], step=16) == ((16, 16), (32, 32), (48, 48))


def test_entries_move_together_and_in_share_of_their_maxima() -> None:
    for rank in methods.get("tucker2").ladder(SPECS["strided"], step=8):
        assert rank[1] in (2 * rank[0], 2 * rank[0] - 8, 2 * rank[0] + 8)


def test_block_term_offers_widths_of_two_groups_and_more() -> None:
    for name, step, widths in (
        ("512", 1, {4, 8, 16}), ("512", 8, {8, 16, 32}), ("64", 16, {16, 32}), ("512", 64, {64})
    ):  # fmt: skip
        ladder = methods.get("block_term").ladder(SPECS[name], step=step)
        assert {w for _, w in ladder} == widths
        assert all(r % w == 0 and r >= 2 * w for r, w in ladder)


@pytest.mark.parametrize("method", methods.names())
def test_nothing_is_offered_where_nothing_can_be_saved(method: str) -> None:
    chosen = methods.get(method)
    assert chosen.ladder(convolutions.spec("conv2d", 2, inputs=64)) == ()  # never called
    assert chosen.ladder(conv(1, 1, 1, 8)) == ()
    for spec in SPECS.values():
        if chosen.supports(spec):
            assert chosen.ladder(spec) == ()


def test_pairs_of_one_depthwise_stage_save_nothing_on_a_1x1() -> None:
    assert methods.get("depthwise_pointwise").ladder(SPECS["1x1"]) == ()
    assert methods.get("spatial_svd").ladder(SPECS["1x1"], step=16) == ((16,), (32,), (48,))


@pytest.mark.parametrize("method", methods.names())
def test_the_variants_of_a_layer_make_all_its_chains(method: str) -> None:
    chosen = methods.get(method)
    for spec in (one for one in SPECS.values() if chosen.supports(one) is None):
        for rank in (*chosen.ladder(spec), chosen.max_rank(spec)):
            all_, kept = (
                {chosen.stages(spec, rank, variant) for variant in variants}
                for variants in (chosen.variants, chosen.variants_of(spec))
            )
            assert kept == all_


def test_orders_that_are_one_are_tried_once() -> None:
    chosen = methods.get("channel_svd")
    assert chosen.variants_of(SPECS["64"]) == chosen.variants
    assert chosen.variants_of(SPECS["1x1"]) == ("spatial_first",)


def test_all_calls_of_a_layer_count() -> None:
    spec = SPECS["64"]
    twice = replace(spec, input_sizes=((56, 56), (28, 28)))
    assert methods.get("cp").ladder(twice) == methods.get("cp").ladder(spec)

"""The latency model measures each thing once per target, and keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factorize import methods
from factorize.measure import (
    ChainTime,
    LatencyModel,
    NumberCache,
    Target,
    latency_model,
    runtimes,
)
from factorize.measure.interleave import Chain
from factorize.measure.runtimes import base
from factorize.spec import ConvSpec, Size
from factorize.types import LayerPlan, Plan

SIZE = (12, 10)
SPEC = ConvSpec("a", "conv2d", 32, 48, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=(SIZE,))
TARGET = Target("torch-cpu", threads=1)


def chain(spec: ConvSpec, rank: int, method: str = "spatial_svd") -> Chain:
    one = methods.get(method)
    return one.stages(spec, one.rank_of(rank, spec), one.variants[0])


class Bench:
    """Stands for the timing of chains: tells made-up times, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Target, ConvSpec, list[Chain], Size]] = []
        self.refused: set[int] = set()  # ranks
        self.slowdown = 1.0

    def time_chains(
        self, target: Target, dense: Chain, chains: Sequence[Chain], size: Size
    ) -> list[ChainTime | None]:
        self.asked.append((target, dense[0], list(chains), size))
        return [self.time(dense, one, size) for one in chains]

    def time(self, dense: Chain, one: Chain, size: Size) -> ChainTime | None:
        if one[0].out_channels in self.refused:
            return None
        whole = float(dense[0].params) * size[0]
        part = self.slowdown * sum(stage.params for stage in one) * size[0]
        return ChainTime(whole, part, whole / part, 0.9 * whole / part, 1.1 * whole / part)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench()
    monkeypatch.setattr(latency_model, "time_chains", bench.time_chains)
    return bench


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latency.sqlite"


def test_each_distinct_chain_is_measured_once(bench):
    model = LatencyModel(TARGET, NumberCache(None))
    chains = [chain(SPEC, rank) for rank in (4, 8, 4)]
    found = model.times(SPEC, chains)
    assert found == [bench.time((SPEC,), one, SIZE) for one in chains]
    assert [asked[1:] for asked in bench.asked] == [(SPEC, chains[:2], SIZE)]
    assert (model.timed, model.cached) == (2, 0)
    assert model.times(SPEC, [*chains, (SPEC,)])[:3] == found  # only what is new is measured
    assert [asked[2] for asked in bench.asked[1:]] == [[(SPEC,)]]
    # A layer of another name and in another place, of the same shape and input.
    other = replace(SPEC, name="other")
    assert model.times(other, [chain(other, 8)]) == found[1:2]
    assert len(bench.asked) == 2
    assert (model.timed, model.cached) == (3, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": (1, 3), "padding": (0, 1)}, {"stride": (1, 2)}, {"dilation": (2, 1)},
        {"padding": (0, 1)}, {"padding": "same"}, {"padding_mode": "reflect"}, {"bias": False},
        {"in_channels": 33}, {"out_channels": 49}, {"groups": 2}, {"input_sizes": ((12, 11),)},
    ],
)  # fmt: skip
def test_another_shape_is_another_entry(bench, changes):
    """Of the dense layer, whatever the chain: the ratio is to it."""
    model = LatencyModel(TARGET, NumberCache(None))
    part = chain(SPEC, 4)
    model.times(SPEC, [part])
    model.times(replace(SPEC, **changes), [part])
    assert model.timed == 2


def test_a_second_model_finds_the_first_ones_times(bench, path):
    chains = [chain(SPEC, rank) for rank in (4, 8)]
    bench.refused = {8}
    with NumberCache(path) as cache:
        first = LatencyModel(TARGET, cache).times(SPEC, chains)
    assert first[1] is None
    bench.refused = set()
    with NumberCache(path) as cache:
        model = LatencyModel(TARGET, cache)
        assert model.times(SPEC, chains) == first  # the refusal too
        assert (model.timed, model.cached) == (0, 2)
    assert len(bench.asked) == 1


def test_refresh_measures_again_once_and_keeps_that(bench, path):
    chains = [chain(SPEC, 4)]
    with NumberCache(path) as cache:
        LatencyModel(TARGET, cache).times(SPEC, chains)
        bench.slowdown = 3.0
        again = LatencyModel(TARGET, cache, refresh=True)
        found = again.times(SPEC, chains)
        assert found == [bench.time((SPEC,), chains[0], SIZE)]
        assert again.times(SPEC, chains) == found
        assert (again.timed, again.cached) == (1, 0)
    assert len(bench.asked) == 2
    with NumberCache(path) as cache:
        assert LatencyModel(TARGET, cache).times(SPEC, chains) == found
    assert len(bench.asked) == 2


@pytest.mark.parametrize("what", ["threads", "batch", "runtime", "version", "device", "scheme"])
def test_times_are_of_one_target(bench, path, monkeypatch, what):
    with NumberCache(path) as cache:
        LatencyModel(TARGET, cache).times(SPEC, [chain(SPEC, 4)])
        other = TARGET
        if what == "version":
            monkeypatch.setattr(base, "package_version", lambda name: "0.1")
        elif what == "device":
            monkeypatch.setattr(base, "cpu_name", lambda: "abacus")
        elif what == "scheme":
            monkeypatch.setattr(latency_model, "SCHEME", -1)
        else:
            value = {"threads": 2, "batch": 2, "runtime": "onnxruntime"}[what]
            other = replace(TARGET, **{what: value})
        model = LatencyModel(other, cache)
        model.times(SPEC, [chain(SPEC, 4)])
    assert (model.timed, model.cached) == (1, 0)
    assert [asked[0] for asked in bench.asked] == [TARGET, other]


def test_calls_with_several_input_sizes_are_summed(bench):
    sizes = ((4, 4), (8, 8), (4, 4))
    spec = replace(SPEC, input_sizes=sizes)
    bench.refused = {8}
    model = LatencyModel(TARGET, NumberCache(None))
    one, none = model.times(spec, [chain(spec, 4), chain(spec, 8)])
    parts = [bench.time((spec,), chain(spec, 4), size) for size in sizes]
    assert one.dense == sum(part.dense for part in parts)
    assert one.chain == sum(part.chain for part in parts)
    assert one.speedup == pytest.approx(one.dense / one.chain)
    assert one.low == pytest.approx(0.9 * one.speedup)
    assert one.high == pytest.approx(1.1 * one.speedup)
    assert none is None
    assert [asked[3] for asked in bench.asked] == [(4, 4), (8, 8)]
    assert model.times(replace(spec, input_sizes=()), [chain(spec, 4)]) == [None]  # never called


def test_bounds_of_a_sum_are_weighed_by_time():
    one = ChainTime(30.0, 10.0, 3.0, 2.0, 4.0)
    two = ChainTime(30.0, 30.0, 1.0, 0.8, 1.2)
    assert one + two == ChainTime(60.0, 40.0, 1.5, pytest.approx(1.1), pytest.approx(1.9))


def test_times_of_a_plan(bench, monkeypatch):
    monkeypatch.setattr(latency_model, "reference", lambda target: lambda: 1.0)
    monkeypatch.setattr(latency_model, "in_units", lambda target, run: (1.0, 0.25))
    names = ("a", "b", "c", "d")
    a, b, c, d = (replace(SPEC, name=name, in_channels=32 + i) for i, name in enumerate(names))
    variant = methods.get("spatial_svd").variants[0]
    plan = Plan(
        (
            LayerPlan(a, "spatial_svd", (4,), variant),
            LayerPlan(b, "spatial_svd", (8,), variant),
            LayerPlan(c, skip_reason="slower"),
            LayerPlan(d, skip_reason="excluded"),
        ),
        {},
    )
    bench.refused = {8}
    model = LatencyModel(TARGET, NumberCache(None))
    found = model.of_plan(plan, {"c": chain(c, 5), "a": chain(a, 16)})
    assert found.keys() == {"a", "c"}  # of b the runtime refuses the chain
    for spec, rank in ((a, 4), (c, 5)):
        time = bench.time((spec,), chain(spec, rank), SIZE)
        assert found[spec.name] == {
            "ms_original": 0.25 * time.dense, "ms": pytest.approx(0.25 * time.chain),
            "speedup_low": time.low, "speedup_high": time.high,
        }  # fmt: skip


def test_times_of_a_layer_are_its_own_and_as_their_ratio_says(bench, monkeypatch):
    """Whatever other layers there are: that one more is replaced changes no other's time."""
    monkeypatch.setattr(latency_model, "reference", lambda target: lambda: 1.0)
    monkeypatch.setattr(latency_model, "in_units", lambda target, run: (1.0, 5.0))
    monkeypatch.setattr(bench, "time", lambda *_: ChainTime(3.0, 4.0, 2.0, 1.9, 2.1))
    a, b = (replace(SPEC, name=name, in_channels=32 + i) for i, name in enumerate("ab"))
    variant = methods.get("spatial_svd").variants[0]
    replaced = tuple(LayerPlan(one, "spatial_svd", (4,), variant) for one in (a, b))
    model = LatencyModel(TARGET, NumberCache(None))
    for layers in (replaced, replaced[:1]):
        found = model.of_plan(Plan(layers, {}))
        assert {(one["ms_original"], one["ms"]) for one in found.values()} == {(15.0, 7.5)}


def test_times_of_a_busy_machine_are_used_and_not_kept(bench, path, monkeypatch):
    """Known to a factor of two or better, they are kept."""
    steady, time = bench.time, lambda *_: ChainTime(3.0, 2.0, 1.5, 0.7, 1.5)
    monkeypatch.setattr(bench, "time", time)
    chains = [chain(SPEC, 4)]
    for asked in (1, 2):  # by a run and by the next one
        with NumberCache(path) as cache:
            model = LatencyModel(TARGET, cache)
            assert model.times(SPEC, chains) == model.times(SPEC, chains) == [time()]
            assert (model.timed, model.cached) == (1, 0)
        assert len(bench.asked) == asked
    monkeypatch.setattr(bench, "time", steady)
    for cached in (0, 1):
        with NumberCache(path) as cache:
            model = LatencyModel(TARGET, cache)
            model.times(SPEC, chains)
            assert (model.timed, model.cached) == (1 - cached, cached)


@pytest.mark.parametrize("runtime", ["torch-cpu", "onnxruntime"])
def test_a_tiny_layer_end_to_end(path, runtime):
    """Whatever the times: they are told, agree with each other, and are kept if they are steady."""
    spec = ConvSpec("a", "conv2d", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((6, 6),))
    chains = [chain(spec, 2), (spec,)]
    one = Target(runtime, threads=1, batch=2)
    with NumberCache(path) as cache:
        found = LatencyModel(one, cache).times(spec, chains)
        for time in found:
            assert time is not None
            assert 0 < time.low <= time.speedup <= time.high
            assert time.dense > 0
            assert time.chain > 0
    with NumberCache(path) as cache:
        again = LatencyModel(one, cache)
        for time, told in zip(again.times(spec, chains), found, strict=True):
            assert time == told or not told.steady
        assert again.timed == sum(not told.steady for told in found)
    assert not cache.notes


def test_torch_runs_with_the_targets_threads_and_draws_nothing():
    spec = replace(SPEC, in_channels=4, out_channels=4, padding=(0, 0))
    seen: list[int] = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    chains = [(spec,), (spec, replace(spec, in_channels=5))]
    more = replace(TARGET, threads=threads + 2)
    first, refused = runtimes.get("torch-cpu").chain_runs(more, chains, SIZE)
    assert refused is None
    assert first is not None
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    with hook:
        assert first() > 0
    assert seen == [threads + 2] * 2  # of the convolution, and of the chain of one
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)

"""Rounds of timing with clocks that tell known times; targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
import pytest
import torch
from scipy.stats import binom

from factorize.errors import DataError, DeviceError
from factorize.measure import Target, in_units, interleave
from factorize.measure.environment import cpu_name, usable_cores
from factorize.measure.interleave import REFERENCE, REFERENCE_SIZE, Chain, ChainTime, time_chains
from factorize.measure.runtimes.onnxruntime import OnnxRuntime
from factorize.measure.runtimes.running import batched
from factorize.measure.runtimes.torch_cpu import TorchCpu
from factorize.spec import ConvSpec

TARGET = Target("torch-cpu", threads=1, batch=3)  # has neither copies nor overhead to take off
SIZE = (10, 10)
DENSE = (ConvSpec("layer", "conv2d", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1)),)
UNIT = (REFERENCE,)

pytestmark = pytest.mark.clock


def chain(rank: int) -> Chain:
    one = ConvSpec("", "conv2d", 8, rank, (3, 1), (1, 1), (1, 0), (1, 1), bias=False)
    return one, ConvSpec("", "conv2d", rank, 8, (1, 3), (1, 1), (0, 1), (1, 1))


class Clock:
    """Stands for the target: chains take the times it is told, or are refused."""

    def __init__(self) -> None:
        self.times: dict[Chain, Callable[[int], float] | float | None] = {UNIT: 2.0, DENSE: 6.0}
        self.told: dict[Chain, list[float]] = {}
        self.order: list[Chain] = []
        self.groups: list[list[Chain]] = []

    def chain_runs(self, target: Target, chains: list[Chain], size: tuple[int, ...]) -> list:
        assert (target.batch, size) == ((1, REFERENCE_SIZE) if chains == [UNIT] else (3, SIZE))
        self.groups += [chains] if chains != [UNIT] else []
        return [None if self.times[one] is None else self.run(one) for one in chains]

    def run(self, one: Chain) -> Callable[[], float]:
        def run() -> float:
            told, time = self.told.setdefault(one, []), self.times[one]
            told.append(time(len(told)) if callable(time) else time)
            self.order.append(one)
            return told[-1]

        return run

    def found(self, *chains: Chain) -> list[ChainTime | None]:
        return time_chains(TARGET, DENSE, chains, SIZE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for runtime in (TorchCpu, OnnxRuntime):
        monkeypatch.setattr(runtime, "chain_runs", clock.chain_runs)
    return clock


def test_times_are_in_units_of_the_reference(clock):
    clock.times[chain(1)] = 3.0
    assert clock.found(chain(1)) == [ChainTime(3.0, 1.5, 2.0, 2.0, 2.0)]


def test_what_slows_the_machine_slows_all(clock):
    """Ratios within a round stay, whatever the machine does from one round to the next."""
    drift = np.random.default_rng(0).uniform(0.5, 3, 99)
    for one, time in ((UNIT, 2.0), (DENSE, 6.0), (chain(1), 4.0)):
        clock.times[one] = lambda call, time=time: time * drift[call]
    [found] = clock.found(chain(1))
    assert list(vars(found).values()) == pytest.approx([3.0, 2.0, 1.5, 1.5, 1.5])


def test_medians_and_bounds_of_the_rounds(clock):
    rng = np.random.default_rng(1)
    for one, time in ((UNIT, 2.0), (DENSE, 6.0), (chain(1), 5.0)):
        clock.times[one] = lambda _, time=time: time * rng.uniform(0.7, 1.3)
    [found] = clock.found(chain(1))
    unit, dense, part = (np.array(clock.told[one][3:]) for one in (UNIT, DENSE, chain(1)))
    assert len(unit) == len(dense) == len(part) == 21
    ratios = np.sort(dense / part)
    assert found == ChainTime(
        float(np.median(dense / unit)), float(np.median(part / unit)),
        float(np.median(ratios)), ratios[5], ratios[15],
    )  # fmt: skip
    assert found.faster == (ratios[5] > 1)


@pytest.mark.parametrize(("low", "faster"), [(0.99, False), (1.0, False), (1.01, True)])
def test_faster_is_by_more_than_the_noise(low, faster):
    assert ChainTime(1.0, 0.5, 2.0, low, 3.0).faster is faster


@pytest.mark.parametrize("count", range(2, 61))
def test_bounds_hold_the_median_with_the_stated_confidence(count):
    low, high = interleave.median_bounds(count)
    assert 0 <= low <= high == count - 1 - low

    def coverage(below: int) -> float:
        return 1 - 2 * binom.cdf(below, count, 0.5)

    if count < 6:
        assert low == 0  # the widest there is
    else:
        assert coverage(low) >= 0.95 > coverage(low + 1)


def test_hopeless_chains_get_no_more_rounds_than_bounds_need(clock):
    clock.times |= {chain(1): 9.1, chain(2): 8.9, chain(3): lambda call: 3.0 if call else 99.0}
    slow, borderline, warming = clock.found(chain(1), chain(2), chain(3))
    calls = {one: len(told) for one, told in clock.told.items()}
    assert calls[chain(1)] == 8
    assert calls[chain(2)] == calls[chain(3)] == calls[DENSE] == calls[UNIT] == 24
    assert slow == ChainTime(3.0, 4.55, *3 * [pytest.approx(6 / 9.1)])
    assert not slow.faster
    assert borderline.speedup == pytest.approx(6 / 8.9)
    assert warming.speedup == 2.0  # its first call is none


def test_a_disturbance_at_the_beginning_makes_no_chain_slow_with_certainty(clock):
    """Disturbed in the warm-up, it counts as hopeless: its bounds say that it may be faster."""
    clock.times[chain(1)] = lambda call: 96.0 if call < 4 else 3.0
    [found] = clock.found(chain(1))
    assert found.low == 6 / 96
    assert found.high == 2.0
    assert not found.steady


@pytest.mark.parametrize(
    ("low", "high", "steady"), [(0.9, 1.1, True), (0.7, 1.4, True), (0.7, 1.5, False),
                                (0.06, 7.83, False), (2.0, 4.1, False), (0.0, 1.0, False)],
)  # fmt: skip
def test_steady_is_known_to_a_factor_of_two(low, high, steady):
    assert ChainTime(1.0, 0.5, high, low, high).steady is steady


@pytest.mark.parametrize(("part", "expected"), [(1.0, 21), (192.0, 15), (600.0, 9)])
def test_rounds_fit_in_the_time_there_is(clock, part, expected):
    clock.times |= {DENSE: part, chain(1): min(part, 6.0)}
    clock.found(chain(1))
    assert {len(told) for told in clock.told.values()} == {3 + expected}


def test_each_round_runs_each_chain_once_in_changing_order(clock):
    clock.times |= {chain(rank): 3.0 for rank in range(1, 7)}
    clock.found(*(chain(rank) for rank in range(1, 7)))
    everyone = 8
    orders = [
        tuple(clock.order[start : start + everyone])
        for start in range(0, len(clock.order), everyone)
    ]
    assert len(orders) == 24
    assert all(set(order) == set(clock.times) for order in orders)
    assert len(set(orders)) > 20
    assert len({order[0] for order in orders}) > 4


def test_groups_fit_in_memory_and_each_has_the_dense_layer(clock, monkeypatch):
    chains = [chain(rank) for rank in (4, 5, 6, 7, 8)]
    clock.times |= {one: float(one[0].out_channels) for one in chains}
    needed = [interleave._bytes(one, SIZE, 3) for one in chains]
    monkeypatch.setattr(interleave, "_MEMORY", needed[0] + needed[1] + needed[2])
    found = clock.found(*chains)
    assert clock.groups == [[DENSE, *chains[:3]], [DENSE, *chains[3:]]]
    assert [one.chain for one in found] == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert all(one.dense == 3.0 for one in found)
    clock.groups.clear()
    monkeypatch.setattr(interleave, "_MEMORY", 1)  # not even one: it is timed all the same
    assert [one.chain for one in clock.found(*chains)] == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert clock.groups == [[DENSE, one] for one in chains]


def test_copies_take_memory(clock, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "copies", lambda *_: 2)
    chains = [chain(4), chain(4)]
    clock.times[chain(4)] = 3.0
    monkeypatch.setattr(interleave, "_MEMORY", 3 * interleave._bytes(chain(4), SIZE, 3))
    time_chains(Target(threads=1, batch=3), DENSE, chains, SIZE)
    assert clock.groups == [[DENSE, chain(4)]] * 2
    clock.groups.clear()
    time_chains(TARGET, DENSE, chains, SIZE)
    assert clock.groups == [[DENSE, *chains]]


def test_memory_of_a_chain_by_hand():
    # 8 * 3 * 2 + (2 * 3 * 8 + 8) weights, twice; 2 and 8 channels of 3 x 10 x 10 outputs
    assert interleave._bytes(chain(2), SIZE, 3) == 4 * (2 * (48 + 56) + 3 * 100 * (2 + 8))


def test_what_the_target_refuses(clock):
    clock.times |= {chain(1): 3.0, chain(2): None, chain(3): 2.0}
    one, none, three = clock.found(chain(1), chain(2), chain(3))
    assert none is None
    assert (one.speedup, three.speedup) == (2.0, 3.0)
    clock.times[DENSE] = None
    assert clock.found(chain(1), chain(2)) == [None, None]
    clock.times[UNIT] = None
    with pytest.raises(DeviceError, match=r"--target torch-cpu, 1 thread, batch 3: .*must run"):
        clock.found(chain(1))


def test_a_run_in_units(clock, monkeypatch):
    drift, noise = np.random.default_rng(0).uniform(0.5, 3, (2, 24))
    clock.times[UNIT] = lambda call: 2.0 * drift[call]
    runs = iter(10.0 * drift * noise)
    units, unit_ms = in_units(TARGET, lambda: next(runs))
    assert units == pytest.approx(np.median(5.0 * noise[3:]))  # of ratios, whatever the drift
    assert unit_ms == np.median(clock.told[UNIT][3:])
    assert len(clock.told[UNIT]) == 24
    clock.times[UNIT] = 2.0
    monkeypatch.setattr(TorchCpu, "overhead", lambda *_: 4.0)
    assert in_units(TARGET, lambda: 10.0) == (3.0, 2.0)
    assert in_units(TARGET, lambda: 3.0) == (1.0, 2.0)  # never below nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"runtime": "tpu"},
            "target must be one of cuda, onnxruntime, openvino, recorded, torch-cpu, got 'tpu'.",
        ),
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, int8, got 'int4'."),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0."),
        ({"threads": 1.5}, "threads must be an integer of at least 1, got 1.5."),
        ({"batch": -2}, "batch must be an integer of at least 1, got -2."),
        ({"dtype": "float16"}, "target onnxruntime: this dtype, and compiling, are for cuda"),
        ({"runtime": "torch-cpu", "compiled": True}, "target torch-cpu: this dtype, and compiling"),
    ],
)
def test_targets_that_are_none(changes, message):
    with pytest.raises(DeviceError) as error:
        Target(**changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_has_to_be_there():
    with pytest.raises(DeviceError, match="^target cuda needs a CUDA device .* found none"):
        Target("cuda")


def test_target_in_words_and_for_the_cache(monkeypatch):
    cores = Target("torch-cpu").threads
    assert cores is not None
    assert cores >= 1
    assert str(Target(threads=2)) == "onnxruntime, 2 threads, batch 1"
    assert str(TARGET) == "torch-cpu, 1 thread, batch 3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = Target("cuda", batch=8, dtype="bfloat16", compiled=True)
    assert str(cuda) == "cuda, bfloat16, compiled, batch 8"
    assert (cuda.device, TARGET.device) == ("cuda", "cpu")
    contexts = [Target(threads=1), Target(threads=2), Target(threads=1, batch=2), TARGET]
    texts = {json.dumps(target.context(), sort_keys=True) for target in contexts}
    assert len(texts) == 4
    assert "onnxruntime" in contexts[0].context()
    assert contexts[3].context()["torch"] == version("torch")
    assert contexts[0].context()["device"]


def test_caches_on_disk_stay_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are these, to the letter."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    used = {"threads": 2, "batch": 3}
    eager = {**used, "dtype": "float32", "compiled": False}
    machine = {"device": cpu_name(), "cores": usable_cores()}
    gpu = {"device": "a GPU", "cuda": torch.version.cuda, "cudnn": 90100}
    expected = [
        {"runtime": "onnxruntime", **eager, **machine, "onnxruntime": version("onnxruntime")},
        {"runtime": "torch-cpu", **eager, **machine, "torch": version("torch")},
        {"runtime": "cuda", **eager, **gpu, "torch": version("torch")},
    ]
    assert [Target(one["runtime"], **used).context() for one in expected] == expected
    compiled = Target("cuda", **used, dtype="float16", compiled=True).context()
    assert compiled == {**expected[2], "dtype": "float16", "compiled": True}


def test_example_repeated_to_the_batch():
    x = torch.arange(6.0).reshape(1, 2, 3)
    assert batched(x, 1) is x
    assert torch.equal(batched(x, 4), x.expand(4, 2, 3))
    one, two = batched((x, {"mask": x[:, 0]}), 2)
    assert one.shape == (2, 2, 3)
    assert two["mask"].shape == (2, 3)
    four = x.expand(4, 2, 3)
    assert batched(four, 4) is four
    with pytest.raises(DataError, match="--batch 3: .* of one sample or of that many, got 4"):
        batched(four, 3)

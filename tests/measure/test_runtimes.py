"""The contract of runtimes: whatever is registered keeps it, as far as this machine has it.

Nothing here names a runtime but where it has a property of its own, so one that is registered
tomorrow is covered. No time is asserted: only that there is one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import factorize
from factorize import export, methods
from factorize.errors import DeviceError
from factorize.graph import find
from factorize.measure import (
    LatencyModel,
    NumberCache,
    Target,
    runtimes,
    speedup,
)
from factorize.measure.runtimes import base
from factorize.search import assembled
from factorize.spec import ConvSpec, Size
from factorize.types import LayerPlan

# Of torch's exporter, about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ALL = runtimes.names()
SOURCE = Path(factorize.__file__).parent
X = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def target_of(name: str, **changes: Any) -> Target:
    """A small use of a runtime, where this machine has it."""
    if reason := runtimes.get(name).missing():
        pytest.skip(f"{name} {reason}")
    return Target(name, **{"threads": 1, "batch": 2, **changes})


def conv(inputs: int, outputs: int, kernel: Size, **changes: Any) -> ConvSpec:
    ones = (1,) * len(kernel)
    padding = tuple(k // 2 for k in kernel)
    kind = f"conv{len(kernel)}d" if kernel else "linear"
    return ConvSpec("", kind, inputs, outputs, kernel, ones, padding, ones, **changes)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not what is tested."""
    monkeypatch.setattr(assembled, "RUNS", 3)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is gone after it."""
    monkeypatch.setattr(base, "_registry", dict(base._registry))


@pytest.mark.parametrize("name", ALL)
def test_a_runtime_says_what_it_is(name: str) -> None:
    runtime = runtimes.get(name)
    assert runtime.name == name == name.strip().lower()
    assert runtime.summary
    assert runtime.summary.isprintable()
    assert runtime.reads in ("module", "onnx")
    assert runtime.device in ("cpu", "cuda")
    assert runtime.dtypes[0] == "float32"  # what a target has by default
    assert set(runtime.dtypes) <= set(runtimes.dtypes())
    assert all(coarse == 2 * fine for coarse, fine in pairwise(runtime.steps))
    assert runtime.steps[-1] >= 1


@pytest.mark.parametrize("name", ALL)
def test_what_its_times_depend_on(name: str) -> None:
    target = target_of(name)
    context = target.context()
    assert json.loads(json.dumps(context)) == context
    assert context["device"]
    assert context[runtimes.get(name).package] == version(runtimes.get(name).package)
    used = {"runtime": name, "threads": 1, "batch": 2, "dtype": "float32", "compiled": False}
    assert used.items() <= context.items()


@pytest.mark.parametrize("name", ALL)
def test_a_target_in_words(name: str) -> None:
    target = target_of(name)
    assert str(target) == f"{name}, {runtimes.get(name).describe(target)}, batch 2"
    assert target.device == runtimes.get(name).device


CHAINS = {
    "2d": ((6, 5), [(conv(4, 6, (3, 3)),), (conv(4, 2, (3, 1)), conv(2, 6, (1, 3)))]),
    "1d": ((7,), [(conv(4, 6, (3,)),), (conv(4, 2, (3,)), conv(2, 6, (1,)))]),
    "3d": ((4, 3, 5), [(conv(4, 6, (3, 3, 3)),), (conv(4, 4, (3, 1, 1), groups=4),)]),
    "linear": ((), [(conv(4, 6, ()),), (conv(4, 2, ()), conv(2, 6, ()))]),
    "reflect": ((6, 5), [(conv(4, 6, (3, 3), padding_mode="reflect"),)]),
}


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("name", ALL)
def test_chains_take_time(name: str, kind: str) -> None:
    target, (size, chains) = target_of(name), CHAINS[kind]
    runs = runtimes.get(name).chain_runs(target, chains, size)
    assert len(runs) == len(chains)
    for run in runs:
        assert run is not None
        for ms in (run(), run()):
            assert isfinite(ms)
            assert ms > 0


@pytest.mark.parametrize("name", ALL)
def test_what_cannot_be_run_is_none(name: str) -> None:
    dense, unfit = (conv(4, 6, (3, 3)),), (conv(4, 3, (3, 1)), conv(2, 6, (1, 3)))
    first, none, last = runtimes.get(name).chain_runs(
        target_of(name), [dense, unfit, dense], (6, 5)
    )
    assert none is None
    assert first is not None
    assert last is not None
    assert first() > 0
    assert last() > 0
    assert runtimes.get(name).chain_runs(target_of(name), [unfit], (6, 5)) == [None]


@pytest.mark.parametrize("name", ALL)
def test_chains_draw_nothing_and_leave_torch_as_it_was(name: str) -> None:
    target, (size, chains) = target_of(name, threads=2), CHAINS["2d"]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for run in runtimes.get(name).chain_runs(target, chains, size):
        assert run is not None
        run()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ALL)
def test_what_a_call_costs_beside_its_work(name: str) -> None:
    target, runtime = target_of(name), runtimes.get(name)
    copies = runtime.copies(target, conv(4, 6, (3, 3)), (6, 5))
    assert isinstance(copies, int)
    assert copies >= 1
    assert runtime.overhead(target) >= 0
    assert isfinite(runtime.overhead(target))


@pytest.mark.parametrize("name", ALL)
def test_a_net_beside_itself(name: str, tmp_path: Path, hurry: None) -> None:
    target, runtime, model = target_of(name), runtimes.get(name), net()
    one: Any = model
    if runtime.reads == "onnx":
        one = tmp_path / "net.onnx"
        export.export_onnx(model, X, one)
    threads = torch.get_num_threads()
    found = speedup(target, one, one, X, runs=3)
    assert (found.runtime, found.device) == (runtime.package, runtime.device)
    assert (found.dtype, found.batch, found.threads, found.runs) == ("float32", 2, 1, 3)
    assert 0 < found.speedup_p10 <= found.speedup <= found.speedup_p90
    for times in (found.original, found.compressed):
        assert 0 < times.p10_ms <= times.median_ms <= times.p90_ms
        assert isfinite(times.p90_ms)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ALL)
def test_a_net_is_told_of(name: str, tmp_path: Path) -> None:
    target, runtime, model = target_of(name), runtimes.get(name), net()
    one: Any = model
    if runtime.reads == "onnx":
        one = tmp_path / "net.onnx"
        export.export_onnx(model, X, one)
    for remark in runtime.remarks(target, one, X):
        assert remark.isprintable()


@pytest.mark.parametrize("name", ALL)
def test_a_search_can_time_layers_and_nets(name: str, hurry: None) -> None:
    target, model, method = target_of(name, batch=1), net(), methods.get("spatial_svd")
    spec = find(model, X)[1].spec
    layer = LayerPlan(spec, method.name, (2,), method.variants[0])
    [time] = LatencyModel(target, NumberCache(None)).times(spec, [methods.chain_of(layer)])
    assert time is not None
    assert 0 < time.low <= time.speedup <= time.high
    whole = assembled.Assembled(model, X, target)
    assert whole.units > 0
    assert whole.unit_ms > 0
    found = whole.speedup([layer])
    assert found.runs == 3
    assert found.speedup > 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 0}, "threads must be an integer of at least 1, got 0."),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0."),
        ({"dtype": "x"}, f"dtype must be one of {', '.join(runtimes.dtypes())}, got 'x'."),
    ],
)
def test_targets_that_are_none(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError) as error:
        Target(name, **changes)
    assert str(error.value) == message


@contextmanager
def refused_by_the_device(name: str) -> Iterator[None]:
    """What a runtime has, the machine may not have."""
    try:
        yield
    except DeviceError as error:
        if not str(error).startswith(f"target {name}"):
            raise


@pytest.mark.parametrize("name", ALL)
def test_a_target_has_what_its_runtime_has(name: str) -> None:
    runtime = runtimes.get(name)
    asked = [({"dtype": dtype}, dtype in runtime.dtypes) for dtype in runtimes.dtypes()]
    for changes, there in [*asked, ({"compiled": True}, runtime.compiles)]:
        if there:
            with refused_by_the_device(name):
                Target(name, **changes)
        else:
            with pytest.raises(DeviceError) as error:
                Target(name, **changes)
            others = str(error.value).rpartition("choose ")[2].removesuffix(".")
            assert name not in others.split(" or ")
            assert str(error.value) == (
                f"target {name}: this dtype, and compiling, are for {others}. Leave them out, or "
                f"choose {others}."
            )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("changes", [{"on": "nowhere"}, {"options": ("NO_SUCH_THING=1",)}])
def test_devices_and_options_that_are_none(name: str, changes: dict[str, Any]) -> None:
    target_of(name)
    with pytest.raises(DeviceError, match=f"^target {name}: ") as error:
        Target(name, **changes)
    assert "\n" not in str(error.value)
    if "on" in changes:
        with pytest.raises(DeviceError) as same:
            Target(f"{name}:nowhere")
        assert str(same.value) == str(error.value)


@pytest.mark.parametrize("name", ALL)
def test_options_have_a_name_and_a_value(name: str) -> None:
    target_of(name)
    with pytest.raises(DeviceError) as error:
        Target(name, options=("x",))
    assert str(error.value) == "--provider-option must be NAME=VALUE, got 'x'."


@pytest.mark.parametrize("name", ALL)
def test_a_runtime_that_is_not_here_is_no_target(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(runtimes.get(name)), "missing", lambda _: "needs luck, found none")
    with pytest.raises(DeviceError, match=f"^target {name} needs luck, found none.$"):
        Target(name)


def test_a_runtime_registered_later_is_used_by_name(registry: None) -> None:
    class Half(type(runtimes.get("torch-cpu"))):
        name = "half"
        dtypes = ("float32", "float64", "float16")

    runtimes.register(Half())
    assert runtimes.names() == (*sorted({*ALL, "half"}),)
    assert "float64" in runtimes.dtypes()
    assert Target("half", dtype="float64").runtime == "half"
    with pytest.raises(DeviceError, match="are for cuda or half.* choose cuda or half"):
        Target("torch-cpu", dtype="float16")
    later = runtimes.register(Half())
    assert runtimes.get("half") is later
    with pytest.raises(DeviceError) as error:
        Target("quarter")
    assert str(error.value) == (
        f"target must be one of {', '.join(runtimes.names())}, got 'quarter'."
    )


# The default of the command line, and the packages whose versions a report tells.
MAY_NAME = {("cli/command.py", "onnxruntime"), ("measure/environment.py", "onnxruntime")}
# Where there are targets and what was measured on them. Elsewhere, "cuda" is a device of torch's,
# and "onnxruntime" the package that checks what is exported.
KNOW_TARGETS = ("cli", "measure", "report", "search", "run/compress.py", "run/deliver.py")


def test_nothing_else_asks_which_runtime_it_is() -> None:
    named = set()
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        if file.startswith("measure/runtimes/"):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        if file.startswith(KNOW_TARGETS):
            texts = {one.value for one in nodes if isinstance(one, ast.Constant)}
            named |= {(file, name) for name in texts & {*ALL}}
        for one in nodes:
            if isinstance(one, ast.Compare):
                sides = {getattr(side, "attr", None) for side in (one.left, *one.comparators)}
                assert "runtime" not in sides, f"{file}:{one.lineno}"
    assert not named - MAY_NAME

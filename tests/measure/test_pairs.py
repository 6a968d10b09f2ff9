"""Two nets run in turn: what is run, warmed up, compiled and restored."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from factorize.measure import Target, pairs, runtimes, speedup, speedups
from factorize.measure.onnx_chain import chain_model
from factorize.measure.pairs import _interleave
from factorize.measure.runtimes import cuda
from factorize.measure.runtimes.cuda import Cuda
from factorize.measure.runtimes.onnxruntime import NOTHING
from factorize.measure.runtimes.running import wall_ms
from factorize.spec import ConvSpec
from factorize.tensor.call import onnx_session

CHAIN = (ConvSpec("", "conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1)),)
UNFIT = (*CHAIN, *CHAIN)

pytestmark = pytest.mark.clock


def test_pairs_alternate_in_order(monkeypatch):
    monkeypatch.setattr(pairs, "_WARMUP", 0.001)
    order = []

    def run(name: str, value: float):
        return lambda: order.append(name) or value

    found = _interleave(run("A", 1.0), run("B", 2.0), runs=4)
    assert "".join(order[-8:]) == "ABBAABBA"
    assert order[:-8] == ["A", "B"] * (len(order[:-8]) // 2) != []  # the warm-up
    assert found.tolist() == [[1.0, 2.0]] * 4


@pytest.mark.usefixtures("unhurried")
def test_warms_up_after_the_first_runs_that_compile(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now[0])

    def run():
        took = [30.0, 5.0, 5.0]  # compiled, recorded, replayed first

        def once() -> float:
            ms = took.pop(0) if took else 1.0
            now[0] += ms / 30
            return ms

        return once

    assert _interleave(run(), run(), runs=4).tolist() == [[1.0, 1.0]] * 4


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    ("jitter", "seconds"), [(0.0, 3), (0.02, 3), (0.5, 12)], ids=["steady", "calm", "noisy"]
)
def test_runs_go_on_until_the_median_is_known_or_patience_ends(monkeypatch, jitter, seconds):
    now, draw = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now[0])

    def run() -> float:
        now[0] += 0.02
        return float(np.exp(jitter * draw.standard_normal()))

    found = _interleave(run, run, runs=10_000)
    assert 0.04 * len(found) == pytest.approx(seconds, abs=0.1)
    middle = np.median(found[:, 0] / found[:, 1])
    assert abs(middle - 1) < 0.01 or seconds == 12


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """What is done on the GPU, done on the CPU and timed by the clock."""
    monkeypatch.setattr(Cuda, "device", "cpu")
    monkeypatch.setattr(cuda, "event_ms", wall_ms)
    monkeypatch.setattr(Cuda, "missing", lambda _: None)
    return Cuda()


def test_every_net_is_compiled_however_many_came_before(monkeypatch, cuda_on_cpu):
    target = Target("cuda", 1, compiled=True)
    real, compiled = torch.compile, []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, mode: real(model, backend=backend))
    for depth in range(1, 11):  # torch gives up after eight nets of a class
        with cuda_on_cpu.net_runs(target, [_Deep(depth)], torch.randn(1, 3, 4, 4)) as (run,):
            run()
    assert len(compiled) == 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nets_on_the_gpu_are_copies_in_the_targets_dtype_and_layout(cuda_on_cpu, dtype):
    net, x, seen = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            seen.extend((module.weight, *inputs, output))

    target = Target("cuda", threads=1, batch=2, dtype=dtype)
    with nn.modules.module.register_module_forward_hook(look):
        with cuda_on_cpu.net_runs(target, [net], x) as (run,):
            assert run() > 0
        first, refused = cuda_on_cpu.chain_runs(target, [CHAIN, UNFIT], (8, 8))
    assert first is not None
    assert refused is None
    assert len(seen) == 9  # of the net, the chain, and the first half of what cannot be run
    assert {one.dtype for one in seen} == {getattr(torch, dtype)}
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in seen)
    assert {len(batch) for batch in seen[1::3]} == {2}
    assert net.weight.dtype == torch.float32
    assert net.weight.is_contiguous()
    got = speedup(target, net, net, x, runs=3)
    assert (got.runtime, got.dtype, got.threads, got.runs) == ("torch", dtype, 1, 3)


class _Deep(nn.Module):
    """Nets of one class, each of another depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_speedup_of_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    threads = torch.get_num_threads()
    x = torch.randn(2, 3, 8, 8)
    got = speedup(Target("torch-cpu", 1, batch=2), model, copy.deepcopy(model), x, runs=5)
    assert 0 < got.speedup_p10 <= got.speedup <= got.speedup_p90
    for one in (got.original, got.compressed):
        assert 0 < one.p10_ms <= one.median_ms <= one.p90_ms
    assert (got.runtime, got.device, got.dtype) == ("torch", "cpu", "float32")
    assert (got.batch, got.threads, got.runs) == (2, 1, 5)
    assert torch.get_num_threads() == threads
    assert all(m.training for m in model.modules())


def test_threads_and_flags_are_restored_after_a_failure():
    threads = torch.get_num_threads()
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(RuntimeError):
        speedup(Target("torch-cpu", threads + 1), model, model, torch.randn(1, 5, 8, 8))
    assert torch.get_num_threads() == threads
    assert model.training


def test_onnx_threads_spin_within_runs_as_deployed_and_sleep_between_them():
    options = onnx_session(chain_model((NOTHING,), (1, 1), 1), 2).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    with pytest.raises(RuntimeError):  # left at its default, which is on
        options.get_session_config_entry("session.intra_op.allow_spinning")


def relu(path: Path) -> Path:
    """An ONNX file of one node."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def test_speedup_of_onnx_files(tmp_path):
    path = relu(tmp_path / "a.onnx")
    got = speedup(Target(threads=1, batch=2), path, path.read_bytes(), torch.randn(1, 3), runs=3)
    assert 0 < got.speedup_p10 <= got.speedup <= got.speedup_p90
    assert (got.runtime, got.dtype, got.batch, got.runs) == ("onnxruntime", "float32", 2, 3)


@pytest.mark.parametrize(
    ("dtype", "runtime", "recorded"),
    [
        (torch.float64, "torch-cpu", "float64"),
        (torch.float64, "onnxruntime", "float64"),
        (torch.int64, "torch-cpu", "float64"),
        (torch.int64, "onnxruntime", "float32"),
    ],
)
def test_the_dtype_on_record_is_what_was_run(dtype, runtime, recorded):
    """A module has it from its weights, a file from the input that it was exported with."""
    net, x = nn.Conv2d(3, 4, 1).double(), torch.zeros(1, 3, 2, 2, dtype=dtype)
    assert runtimes.get(runtime).computes_in(Target(runtime), net, x) == recorded


def test_each_target_gets_the_form_that_it_reads(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(pairs, "speedup", lambda *arguments: timed.append(arguments))
    one, two, x = nn.ReLU(), nn.ReLU(), torch.zeros(1, 3)
    targets = [Target("onnxruntime", 1), Target("torch-cpu", 1)]
    first = relu(tmp_path / "original.onnx")
    files = tmp_path / "original.onnx", tmp_path / "model.onnx"
    speedups(files, one, two, x, targets)  # only one of the files is there
    assert timed == [(targets[1], one, two, x)]
    timed.clear()
    second = relu(tmp_path / "model.onnx")
    assert len(speedups(files, one, two, x, targets)) == 2
    assert timed == [(targets[0], first, second, x), (targets[1], one, two, x)]

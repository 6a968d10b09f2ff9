"""Latencies of two nets in turn: what is run, warmed up, compiled and restored."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factorize.measure import Target, latency, onnx_speedup, torch_speedup
from factorize.measure.latency import _interleave
from factorize.measure.onnx_chain import chain_model
from factorize.measure.onnx_layers import NOTHING
from factorize.tensor.call import onnx_session


def test_pairs_alternate_in_order(monkeypatch):
    monkeypatch.setattr(latency, "_WARMUP", 0.001)
    order = []

    def run(name: str, value: float):
        return lambda: order.append(name) or value

    pairs = _interleave(run("A", 1.0), run("B", 2.0), runs=4)
    assert "".join(order[-8:]) == "ABBAABBA"
    assert order[:-8] == ["A", "B"] * (len(order[:-8]) // 2) != []  # the warm-up
    assert pairs.tolist() == [[1.0, 2.0]] * 4


def test_warms_up_after_the_first_runs_that_compile(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run():
        took = [30.0, 5.0, 5.0]  # compiled, recorded, replayed first

        def once() -> float:
            ms = took.pop(0) if took else 1.0
            now[0] += ms / 30
            return ms

        return once

    assert _interleave(run(), run(), runs=4).tolist() == [[1.0, 1.0]] * 4


@pytest.mark.parametrize(
    ("jitter", "seconds"), [(0.0, 3), (0.02, 3), (0.5, 12)], ids=["steady", "calm", "noisy"]
)
def test_runs_go_on_until_the_median_is_known_or_patience_ends(monkeypatch, jitter, seconds):
    now, draw = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run() -> float:
        now[0] += 0.02
        return float(np.exp(jitter * draw.standard_normal()))

    pairs = _interleave(run, run, runs=10_000)
    assert 0.04 * len(pairs) == pytest.approx(seconds, abs=0.1)
    middle = np.median(pairs[:, 0] / pairs[:, 1])
    assert abs(middle - 1) < 0.01 or seconds == 12


def test_every_net_is_compiled_however_many_came_before(monkeypatch):
    target = Target("torch-cpu", 1)
    object.__setattr__(target, "compiled", True)  # the GPU's way, with a compiler for the CPU
    real, compiled = torch.compile, []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, mode: real(model, backend=backend))
    for depth in range(1, 11):  # torch gives up after eight nets of a class
        with latency.torch_runs(target, [_Deep(depth)], torch.randn(1, 3, 4, 4)) as (run,):
            run()
    assert len(compiled) == 10


class _Deep(nn.Module):
    """Nets of one class, each of another depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_torch_speedup():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    threads = torch.get_num_threads()
    x = torch.randn(2, 3, 8, 8)
    got = torch_speedup(model, copy.deepcopy(model), x, Target("torch-cpu", 1, batch=2), runs=5)
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
        torch_speedup(model, model, torch.randn(1, 5, 8, 8), Target("torch-cpu", threads + 1))
    assert torch.get_num_threads() == threads
    assert model.training


def test_onnx_threads_spin_within_runs_as_deployed_and_sleep_between_them():
    options = onnx_session(chain_model((NOTHING,), (1, 1), 1), 2).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    with pytest.raises(RuntimeError):  # left at its default, which is on
        options.get_session_config_entry("session.intra_op.allow_spinning")


def test_onnx_speedup(tmp_path):
    onnx = pytest.importorskip("onnx")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = onnx.helper.make_opsetid("", 18)
    path = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    got = onnx_speedup(path, path, torch.randn(1, 3), Target(threads=1, batch=2), runs=3)
    assert 0 < got.speedup_p10 <= got.speedup <= got.speedup_p90
    assert (got.runtime, got.dtype, got.batch, got.runs) == ("onnxruntime", "float32", 2, 3)

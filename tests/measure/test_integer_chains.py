"""Chains in integers, for timing: integer kernels throughout, and only layouts are taken off."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from factorize.measure import Target, onnx_chain, runtimes
from factorize.measure.interleave import time_chains
from factorize.measure.onnx_chain import chain_model
from factorize.spec import ConvSpec


def conv(i: int, o: int, k: int = 3, **changes) -> ConvSpec:
    made = ConvSpec("", "conv2d", i, o, (k, k), (1, 1), (k // 2,) * 2, (1, 1), bias=True)
    return replace(made, **changes)


LINEAR = ConvSpec("", "linear", 24, 16, (), (), (), (), bias=True)
CP = (conv(16, 24, 1), conv(24, 24, groups=24), conv(24, 20, 1))
CHAINS = [
    (conv(16, 16),), CP, (conv(3, 8, stride=(2, 1)),), (conv(8, 12, dilation=(2, 2)),),
    (conv(8, 8, groups=4), conv(8, 6, 1)),
    (replace(conv(8, 8), kernel=(3, 1), padding=(1, 0)), replace(conv(8, 4), kernel=(1, 3),
                                                                padding=(0, 1))),
]  # fmt: skip


def session(model: bytes, *, optimized: bool = True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("stages", CHAINS)
def test_every_stage_is_an_integer_kernel_and_nothing_else_is_there(stages):
    kinds = Counter(
        node.op_type
        for node in onnx.load_from_string(chain_model(stages, (7, 6), 1, 2, int8=True)).graph.node
    )
    assert kinds == {"QLinearConv": 2 * len(stages)}


@pytest.mark.parametrize("stages", CHAINS)
def test_without_its_ends_it_is_the_same_with_the_channels_last(monkeypatch, stages):
    stripped = session(chain_model(stages, (7, 6), 2, int8=True))
    monkeypatch.setattr(onnx_chain, "_strip_channels_last", lambda graph: None)
    whole = session(chain_model(stages, (7, 6), 2, int8=True))
    shape = (2, stages[0].in_channels, 7, 6)
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    [wanted] = whole.run(None, {"x": x})
    [found] = stripped.run(None, {"x": x.transpose(0, 2, 3, 1)})
    assert wanted.dtype == np.uint8
    assert wanted.std() > 5  # not all at one end
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("stages", [*CHAINS, (LINEAR,), (LINEAR, replace(LINEAR, in_channels=16))])
def test_it_computes_what_its_codes_stand_for(monkeypatch, stages):
    monkeypatch.setattr(onnx_chain, "_strip_channels_last", lambda graph: None)
    model = chain_model(stages, (7, 6), 2, int8=True)
    channels = stages[0].in_channels
    shape = (2, channels, 7, 6) if stages[0].kernel else (2, 7, 6, channels)
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    [found] = session(model).run(None, {"x": x})
    [wanted] = session(model, optimized=False).run(None, {"x": x})
    apart = np.abs(found.astype(int) - wanted)
    assert apart.max() <= 4 ** (len(stages) - 1)  # a tie may be rounded to either side
    assert (apart > 0).mean() < 0.01


def test_a_target_in_integers_times_integer_chains():
    target = Target("onnxruntime", 1, dtype="int8")
    [dense, chain] = time_chains(target, (conv(16, 16),), [(conv(16, 16),), CP], (8, 8))
    assert dense is not None
    assert chain is not None
    assert dense.dense > 0
    assert chain.chain > 0
    assert runtimes.get("onnxruntime").computes_in(target, None, None) == "int8"
    assert "int8" in str(target.context())

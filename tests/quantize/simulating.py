"""A net's rounded form beside its file: each value of both, on what the file computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from factorize.quantize.places import places_of
from factorize.quantize.rounded_net import RoundedNet, round_net
from factorize.quantize.saturation import largest_code
from factorize.quantize.source import twin_and_batches
from factorize.quantize.write import write_rounded
from factorize.tensor.call import evaluating, onnx_session


def images_of(path: Path, count: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Inputs by name, as the twin takes them: images lean to one side, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        if sizes[-1:] == [3] and len(sizes) == 3:
            sizes = [3, *sizes[:2]]
        found[value.name] = torch.randn(count, *sizes, generator=generator) + 0.3
    return found


def rounded(path: Path, given: dict[str, Tensor] | None = None) -> tuple[RoundedNet, Any]:
    """The rounded net, and the proto of its file."""
    twin, batches = twin_and_batches(path, [images_of(path) if given is None else given])
    made = round_net(twin, places_of(twin), batches, largest=largest_code(), seed=0)
    return made, write_rounded(made)


def steps_apart(made: RoundedNet, proto: Any, given: dict[str, Tensor]) -> dict[str, float]:
    """By rounded value: steps between the file's and the simulation's, on what the file computes.

    And by output that is not rounded: the difference as a share of the largest value.
    """
    outputs = [value.name for value in proto.graph.output]
    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    codes = {
        node.output[0].rsplit("_codes", 1)[0]: node.output[0]
        for node in proto.graph.node if node.op_type == "QuantizeLinear"
    }  # fmt: skip
    assert set(codes) == set(made.grids)
    seen.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in codes.values()
    )
    twin = made.twin
    fed = {name: value.contiguous().numpy() for name, value in twin.fed(given).items()}
    session = onnx_session(seen.SerializeToString(), 1)
    wanted = [*outputs, *codes.values()]
    theirs = dict(zip(wanted, session.run(wanted, fed), strict=True))
    apart: dict[str, float] = {}

    def settle(values: dict[str, Any], names: Sequence[str]) -> None:
        for name in names:
            if name in codes:
                grid = made.grids[name]
                found = torch.from_numpy(theirs[codes[name]]).float()
                apart[name] = float((found - grid.codes(values[name])).abs().max())
                values[name] = (found - grid.zero) * grid.scale
            if name in outputs:
                found = torch.from_numpy(theirs[name])
                scale = made.grids[name].scale if name in codes else float(found.abs().max())
                apart[f"{name} as it comes out"] = float((found - values[name]).abs().max()) / scale

    with evaluating(twin):
        values = twin.begin(given)
        settle(values, [*given])
        for step in twin.onnx_steps:
            values.update(twin.compute(step, values))
            settle(values, step.makes)
    return apart

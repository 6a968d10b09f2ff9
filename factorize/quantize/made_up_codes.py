"""A net in integers whose codes mean nothing: all that timing it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from factorize.onnx_graph import make_twin, read_onnx
from factorize.quantize.grid import Grid
from factorize.quantize.places import CLIPPING, places_of
from factorize.quantize.rounded_net import RoundedLayer, RoundedNet
from factorize.quantize.write import write_rounded

_ANY = Grid(2.0**-5, 128)
_POSITIVE = Grid(2.0**-6, 0)  # up to 4: the rounding does what Relu and Clip do


def as_integers(file: Path, *, exclude: Mapping[str, str] | None = None) -> bytes:
    """The int8 form of a float file, without calibration: its time is that of a calibrated one.

    Parameters
    ----------
    exclude
        Names of layers that stay in float, each with the reason.
    """
    twin, _ = make_twin(read_onnx(file))
    made = RoundedNet(twin, places_of(twin, exclude=exclude))
    draw = torch.Generator().manual_seed(0)
    for name in made.places.layers:
        step = next(one for one in twin.onnx_steps if one.name == name)
        module: Any = twin.module_of(step)
        codes = torch.randint(-63, 64, module.weight.shape, generator=draw, dtype=torch.int8)
        bias = None if module.bias is None and step.kind == "MatMul" else torch.zeros(len(codes))
        made.layers[name] = RoundedLayer(codes, torch.full((len(codes),), 2.0**-8), bias)
    made.grids = dict.fromkeys(made.places.values, _ANY)
    for step in twin.onnx_steps:
        name, source = step.makes[0], made.places.same.get(step.makes[0])
        if name in made.grids and step.kind in CLIPPING:
            made.grids[name] = _POSITIVE
        elif source is not None:
            made.grids[name] = made.grids[source]
    return write_rounded(made).SerializeToString()

"""Which nodes of an ONNX graph compute in integers, and which values are rounded between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from factorize.onnx_graph import Twin
from factorize.onnx_graph.twin import Step
from factorize.tensor.twins import LEFT_ALONE, BatchNorm

LAYERS = ("Conv", "Gemm", "MatMul")
"""Layers that ONNX Runtime has integer kernels for."""

CLIPPING = ("Relu", "Clip")  # done by the rounding behind them, which ends where they clip
_SAME_VALUES = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout",
)  # fmt: skip
_FIRST_ONLY = (*CLIPPING, *_SAME_VALUES)  # their other inputs are shapes and limits
_OTHER = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
_KEPT_FLOAT = ("Gemm", "MatMul")  # may give floats, which the ends of a net want


@dataclass
class Places:
    """What is computed in integers.

    Attributes
    ----------
    layers
        Names of the steps whose weights are int8, in order.
    values
        Names of the values that are rounded.
    same
        Of those, the ones that have the grid of another, which they are a rearrangement of.
    left
        Layers that stay in float, each with its reason.
    folded
        By output of a convolution: that of the batch norm behind it, which it makes now.
    """

    layers: tuple[str, ...] = ()
    values: frozenset[str] = frozenset()
    same: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)


def places_of(twin: Twin, *, exclude: Mapping[str, str] | None = None) -> Places:
    """Decide it for a whole net.

    A layer computes in integers where its weight is known; what is between such layers does where
    all that it reads is rounded anyway and what it makes is read in integers again.

    Parameters
    ----------
    twin
        Batch norms behind such layers are folded into them first, in place.
    exclude
        Names of layers that stay in float, each with the reason.
    """
    places, exclude = Places(), exclude or {}
    outputs = {value.name for value in twin.onnx_file.proto.graph.output}
    places.folded = _folded(twin, outputs, exclude)
    readers = readers_of(twin)
    integer: dict[str, bool] = {}  # by step: whether it is a layer

    def clipped(name: str) -> bool:
        """Whether a value is read by a step alone that the rounding behind it does the work of."""
        after = readers[name]
        one = len(after) == 1 and name not in outputs
        return one and after[0].kind in CLIPPING and after[0].name in integer

    for step in twin.onnx_steps:
        reason = _left(twin, step, exclude)
        if reason is None:
            integer[step.name] = True
        elif reason:
            places.left[step.name] = reason
    layers = tuple(integer)
    rounded = {step.reads[0] for step in twin.onnx_steps if step.name in integer}
    for step in twin.onnx_steps:
        passing = _activations(step)
        if passing and rounded.issuperset(passing):
            integer[step.name] = False
        if step.name in integer:
            rounded.update(step.makes[:1])
    made_whole = {  # by layers that give integers in any case
        step.makes[0] for step in twin.onnx_steps
        if integer.get(step.name) and step.kind not in _KEPT_FLOAT and clipped(step.makes[0])
    }  # fmt: skip
    for step in reversed(twin.onnx_steps):  # only what leads to integers again
        followed = any(one.name in integer for one in readers[step.makes[0]])
        optional = step.name in integer and (not integer[step.name] or step.kind in _KEPT_FLOAT)
        if optional and not followed and made_whole.isdisjoint(_activations(step)):
            rounded.discard(step.makes[0])
            if not integer[step.name]:
                del integer[step.name]
    for step in twin.onnx_steps:
        if step.name not in integer:
            continue
        made = step.makes[0]
        if clipped(made):
            rounded.discard(made)
        elif step.kind in _SAME_VALUES and step.reads[0] in rounded:
            places.same[made] = step.reads[0]
    # A value that is read by no step in integers, and made by none, is none of ours.
    ends = {step.makes[0] for step in twin.onnx_steps if step.name in integer}
    starts = {
        name for step in twin.onnx_steps if step.name in integer
        for name in (_activations(step) or step.reads[:1])
    }  # fmt: skip
    places.layers, places.values = layers, frozenset(rounded & (ends | starts))
    return places


def _folded(twin: Twin, outputs: set[str], exclude: Mapping[str, str]) -> dict[str, str]:
    """Fold batch norms into the convolutions that they alone read, in place."""
    readers, folded = readers_of(twin), {}
    for step in twin.onnx_steps:
        name = step.makes[0]
        after = readers[name]
        if step.kind != "Conv" or len(after) != 1 or name in outputs:
            continue
        norm: Any = twin.module_of(after[0]) if after[0].layer else None
        if not isinstance(norm, BatchNorm) or _left(twin, step, exclude) is not None:
            continue
        module: Any = twin.module_of(step)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        module.weight, module.bias = fuse_conv_bn_weights(
            module.weight, module.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        folded[name] = after[0].makes[0]
    twin.onnx_steps = tuple(
        replace(step, makes=(folded[step.makes[0]],)) if step.makes[0] in folded else step
        for step in twin.onnx_steps
        if not (step.makes[0] in folded.values() and step.reads[0] in folded)
    )
    return folded


def readers_of(twin: Twin) -> defaultdict[str, list[Step]]:
    """By value: the steps that read it, inside of them too."""
    readers: defaultdict[str, list[Step]] = defaultdict(list)
    for step in twin.onnx_steps:
        for name in {*step.reads, *step.around}:
            readers[name].append(step)
    return readers


def _left(twin: Twin, step: Step, exclude: Mapping[str, str]) -> str | None:
    """None for a layer in integers; why it is in float, "" for what is no layer."""
    if step.layer is None:
        return ""
    module: Any = twin.module_of(step)
    if isinstance(module, BatchNorm):
        return ""
    if step.name in exclude:
        return exclude[step.name]
    if step.kind not in LAYERS:
        return f"the runtime has no integer {step.kind}"
    if step.reads[0] in twin.onnx_numbers:
        return "its input is a constant"
    dtype = module.weight.dtype
    if dtype != torch.float32:
        return f"it is {str(dtype).removeprefix('torch.')}"
    reason = getattr(module, LEFT_ALONE, None)
    return reason and str(reason)


def _activations(step: Step) -> tuple[str, ...]:
    """What a node that only passes values on reads of them; none for any other."""
    if step.layer is not None:
        return ()
    if step.kind in _FIRST_ONLY:
        return step.reads[:1]
    return step.reads if step.kind in _OTHER else ()

"""Nodes that are no layers, as functions: a few of ours, all else the converter's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorize.onnx_graph.layers import conv_attributes, same_pads
from factorize.onnx_graph.walk import attributes

Operator = Callable[..., Any]
"""Takes the values that a node reads, None for one left out; gives one output, or several."""


def operator_of(node: Any, tensors: Mapping[str, Any], opset: int) -> Operator:
    """What computes a node's outputs.

    Parameters
    ----------
    tensors
        The ``TensorProto`` of each constant among the values that it reads, data in it.

    Raises
    ------
    Exception
        Of the converter's: the operator is none that it knows, or not in that form.
    """
    ours = _OURS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if ours is not None:
        return partial(ours, {**attributes(node), "outputs": len(node.output)})
    if node.op_type in ("Identity", "Dropout") and len(node.output) == 1:
        return _same
    if node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in tensors:
        given = attributes(node)
        if not given.get("allowzero"):
            from onnx import numpy_helper

            return Reshape(tuple(numpy_helper.to_array(tensors[node.input[1]]).tolist()))
    return _converted(node, tensors, opset)


class Reshape:
    """To a shape that is known; 0 keeps an axis."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def free(self, batch: int) -> Reshape:
        """The same for any batch, where the first axis is the batch."""
        first = self.shape[:1]
        return Reshape((0, *self.shape[1:])) if first == (batch,) else self

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        """Reshape a value."""
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(self.shape)])


def _same(x: Any, *_: Any) -> Any:
    return x


def _conv(given: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    a = conv_attributes(given, axes)
    pads, auto = _flat(a["pads"]), a["auto_pad"]
    if auto.startswith("SAME"):
        pads = same_pads(auto, weight.shape[2:], a["strides"], a["dilations"])(x.shape[2:])
    function = getattr(F, f"conv{axes}d")
    x = F.pad(x, pads) if any(pads) else x
    return function(x, weight, bias, a["strides"], 0, a["dilations"], a["group"])


def _conv_transpose(
    given: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    axes = weight.ndim - 2
    a = conv_attributes(given, axes)
    function = getattr(F, f"conv_transpose{axes}d")
    y = function(x, weight, bias, a["strides"], 0, a["output_padding"], a["group"], a["dilations"])
    pads, auto = a["pads"], a["auto_pad"]
    wanted = a.get("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(x.shape[2:], a["strides"], strict=True)]
    if wanted is not None:
        total = [n - w for n, w in zip(y.shape[2:], wanted[-axes:], strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    return F.pad(y, [-pad for pad in _flat(pads)]) if any(pads) else y


def _flat(pads: Any) -> list[int]:
    """Pads before each axis, then behind, as `F.pad` takes them."""
    axes = len(pads) // 2
    return [pads[side] for axis in reversed(range(axes)) for side in (axis, axis + axes)]


def _gemm(given: dict[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if given.get("transA") else a
    b = b.T if given.get("transB") else b
    y = given.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + given.get("beta", 1.0) * c


def _matmul(given: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    del given
    return a @ b


def _batch_norm(
    given: dict[str, Any], x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    if given.get("training_mode"):
        raise NotImplementedError("training_mode=1")
    return F.batch_norm(x, mean, var, scale, bias, eps=given.get("epsilon", 1e-5))


def _split(given: dict[str, Any], x: Tensor, sections: Tensor | None = None) -> tuple[Tensor, ...]:
    """The converter's own keeps the sections of the first size that it meets."""
    axis, parts = given.get("axis", 0), given["outputs"]
    sizes = given.get("split") if sections is None else sections.tolist()
    if sizes is None:
        each = -(-x.shape[axis] // parts)
        sizes = [*[each] * (parts - 1), x.shape[axis] - each * (parts - 1)]
    return x.split(list(sizes), axis)


def _gather(given: dict[str, Any], x: Tensor, indices: Tensor) -> Tensor:
    axis = given.get("axis", 0) % x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.flatten())
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _slice(given: dict[str, Any], x: Tensor, *bounds: Tensor | None) -> Tensor:
    """Bounds are attributes in older operators."""
    names = ("starts", "ends", "axes", "steps")
    found: dict[str, Any] = {name: given.get(name) for name in names}
    for name, one in zip(names, bounds, strict=False):
        found[name] = None if one is None else one.tolist()
    axes = found["axes"] or range(len(found["starts"]))
    steps = found["steps"] or [1] * len(axes)
    for axis, start, end, step in zip(axes, found["starts"], found["ends"], steps, strict=True):
        picked = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, torch.tensor([*picked], device=x.device))
    return x


_OURS: dict[str, Any] = {
    "Split": _split, "Gather": _gather, "Slice": _slice, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "Gemm": _gemm,
    "MatMul": _matmul, "BatchNormalization": _batch_norm,
}  # fmt: skip


def _converted(node: Any, tensors: Mapping[str, Any], opset: int) -> Operator:
    """The converter's module or function, called as it wants to be."""
    import onnx
    from onnx2pytorch import constants
    from onnx2pytorch.convert.operations import convert_operations
    from onnx2pytorch.operations import Loop, SubgraphOperator

    if node.domain not in ("", "ai.onnx"):
        raise NotImplementedError(f"the domain {node.domain} is not ONNX's own")
    graph = onnx.GraphProto()
    graph.node.add().CopyFrom(node)
    for name in dict.fromkeys(node.input):
        if name in tensors:
            graph.initializer.add().CopyFrom(tensors[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)  # that it guesses
        ((_, _, op),) = list(convert_operations(graph, opset, enable_pruning=False))
    if isinstance(op, (Loop, SubgraphOperator)):
        return Nested(op, [*range(len(node.input))])
    if isinstance(op, constants.STANDARD_LAYERS):
        own = [i for i, name in enumerate(node.input) if name not in tensors]
        return Converted(op, own)
    return Converted(op, [*range(len(node.input))])


class Converted(nn.Module):
    """What the converter made of a node, called as it wants to be.

    Parameters
    ----------
    taken
        Which of the node's inputs it takes; it has the others already.
    """

    nested = False
    """Whether there are graphs inside, which read values of the graph around them."""

    def __init__(self, op: Any, taken: list[int]) -> None:
        from onnx2pytorch import constants

        super().__init__()
        self.op, self.taken = op, taken
        parts = op.modules() if isinstance(op, nn.Sequential) else [op]
        self.several = any(isinstance(one, constants.MULTIOUTPUT_LAYERS) for one in parts)
        for parameter in self.parameters():  # nobody writes them back
            parameter.requires_grad_(False)

    def forward(self, *values: Any, around: Any = None) -> tuple[Any, ...]:
        """The outputs; ``around`` are all values that there are, for graphs inside."""
        given = [values[i] for i in self.taken if i < len(values)]
        while given and given[-1] is None:
            given.pop()
        if self.nested:
            return tuple(self.op((self,), dict(around), *given))
        if isinstance(self.op, partial) and self.op.func is torch.cat:
            return (self.op(given),)
        made = self.op(*given)
        return tuple(made) if self.several else (made,)


class Nested(Converted):
    """One with graphs inside."""

    nested = True

    def __deepcopy__(self, memo: Any) -> Nested:
        """Copies of a twin share it: nobody changes it, and the converter's cannot be copied."""
        del memo
        return self

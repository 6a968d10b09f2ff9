"""A twin beside its program, and the inputs that both take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from factorize.errors import ModelLoadError
from factorize.program.twin import ProgramTwin
from factorize.system.imports import brief
from factorize.system.quiet import quiet
from factorize.tensor.call import call, evaluating
from factorize.tensor.twins import joined

_TOLERANCE = 1e-5  # of the largest value
_MOST_VALUES = 10**8  # of one input


def example_of(twin: ProgramTwin) -> tuple[dict[str, Any], int, bool]:
    """Random arguments by name, their batch (0 where there are several), and whether it is free.

    Where it is, it is one sample, or the least that the program takes.

    Raises
    ------
    ModelLoadError
        An input is too large, or its size is not known.
    """
    form, program = twin.program_form, twin.program_form.program()
    values = user_inputs(program)
    generator, leaves = torch.Generator().manual_seed(0), []
    batch, free = 0, False
    batches = {str(v.shape[0]) for v in values if isinstance(v, Tensor) and v.ndim}
    for value in values:
        if not isinstance(value, Tensor):
            leaves.append(value)
            continue
        sizes = [_size(size, twin) for size in value.shape]
        if len(batches) == 1 and sizes:
            free = not isinstance(value.shape[0], int)
            batch = sizes[0] = _least(value.shape[0]) if free else sizes[0]
        shape = torch.Size(sizes)
        if shape.numel() > _MOST_VALUES:
            raise ModelLoadError(
                f"{form.path}: an input must have up to {_MOST_VALUES:,} values, got "
                f"{tuple(shape)}. Export the model for a smaller one."
            )
        known = value.dtype.is_floating_point
        made = torch.randn(shape, generator=generator) if known else torch.zeros(shape)
        leaves.append(made.to(value.dtype))
    arguments, named = tree_unflatten(leaves, form.in_spec)
    given = dict(zip(form.names, arguments, strict=False)) | dict(named)
    return {name: value for name, value in given.items() if name not in form.frozen}, batch, free


def user_inputs(program: ExportedProgram) -> list[Any]:
    """Of each input of the model, its tensor of no values; of one that is none, what it is."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = zip(nodes, program.graph_signature.input_specs, strict=True)
    return [
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else node.meta["val"]
        for node, spec in specs
        if spec.kind is InputKind.USER_INPUT
    ]


def _size(size: Any, twin: ProgramTwin) -> int:
    if isinstance(size, int):
        return size
    if (hint := getattr(size.node, "hint", None)) is None:
        raise ModelLoadError(
            f"{twin.program_form.path}: the program does not say for which size of {size} it was "
            "made. Export the model with sizes that its input has."
        )
    return int(hint)


def _least(size: Any) -> int:
    low = size.node.shape_env.bound_sympy(size.node.expr).lower
    return int(low) if low.is_Integer and low > 2 else 1  # torch writes 2 where it has not tried 1


def check_twin(twin: ProgramTwin, example: Any) -> tuple[str, ...]:
    """Check that a twin computes what its program does; find how a batch goes through it.

    Parameters
    ----------
    example
        One sample, or the fixed batch, as the twin takes it.

    Returns
    -------
    What to tell of it.

    Raises
    ------
    ModelLoadError
        The program does not run, or twin and program differ.
    """
    form = twin.program_form
    given = _named(twin, example)
    try:
        with quiet(), torch.no_grad(), evaluating(twin):
            positional, named = form.arguments(given)
            wanted = form.program().module()(*positional, **named)
            got = call(twin, given)
    except Exception as failure:  # of whatever node
        line = brief(failure).split("  While executing")[0]
        raise ModelLoadError(
            f"{form.path}: the program must run on {_sizes(given)}, got {line}. Give the size that "
            "it takes with --input-shape, or export it for this one."
        ) from failure
    if (apart := _difference(got, wanted)) > _TOLERANCE:
        raise ModelLoadError(
            f"{form.path}: its twin must give what the program gives within {_TOLERANCE:g}, got "
            f"{apart:.3g}. Export the model again."
        )
    return _settle_batch(twin, given)


def _settle_batch(twin: ProgramTwin, given: dict[str, Any]) -> tuple[str, ...]:
    """Find whether samples may go through together, and see that they do not mix."""
    tensors = [v for v in tree_leaves(given) if isinstance(v, Tensor)]
    if {v.shape[0] if v.ndim else 0 for v in tensors} != {1}:
        return ()
    generator = torch.Generator().manual_seed(1)

    def another(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    def both(one: Any, two: Any) -> Any:
        return joined([one, two]) if isinstance(one, Tensor) else one

    other = tree_map(another, given)
    try:
        with evaluating(twin):
            alone = tree_map(both, call(twin, given), call(twin, other))
            apart = _difference(call(twin, tree_map(both, given, other)), alone)
    except Exception as failure:  # whatever the net says to another size
        reason = brief(failure)
    else:
        if apart <= _TOLERANCE:
            return ()
        reason = f"outputs differ by {apart:.3g}"
    twin.program_form = replace(twin.program_form, one_by_one=True)
    return (f"images go through one by one: a batch does not ({reason})",)


def _named(twin: ProgramTwin, example: Any) -> dict[str, Any]:
    """Arguments by name."""
    if isinstance(example, dict) and example.keys() <= {*twin.program_form.names}:
        return dict(example)
    values = example if isinstance(example, tuple) else (example,)
    form = twin.program_form
    return dict(zip((n for n in form.names if n not in form.frozen), values, strict=False))


def _difference(got: Any, wanted: Any) -> float:
    """Of all outputs, relative to the largest value of each."""
    ours, theirs = tree_leaves(got), tree_leaves(wanted)
    if len(ours) != len(theirs):
        return float("inf")
    apart = 0.0
    for one, two in zip(ours, theirs, strict=True):
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or not two.numel():
            continue
        if one.shape != two.shape:
            return float("inf")
        gap = torch.nan_to_num((one.double() - two.double()).abs()).max()
        size = torch.nan_to_num(two.double().abs()).max()
        apart = max(apart, float(gap / size.clamp(min=torch.finfo(torch.float32).tiny)))
    return apart


def _sizes(given: dict[str, Any]) -> str:
    tensors = [v for v in tree_leaves(given) if isinstance(v, Tensor)]
    return ", ".join("x".join(map(str, v.shape)) for v in tensors)

"""A method applied to a whole layer: its groups one by one, the errors measured."""

from __future__ import annotations

from math import nan, sqrt

import torch
from torch import Tensor

from factorize.errors import RankError, UnsupportedLayerError
from factorize.methods.base import Method, get
from factorize.methods.chain import chain_kernel, shaped
from factorize.spec import ConvSpec, Rank
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan


def chain_of(layer: LayerPlan) -> tuple[ConvSpec, ...]:
    """The stages of a planned layer, its method, rank and variant checked.

    Raises
    ------
    UnsupportedLayerError, RankError
        The method does not exist or does not take this layer, variant or rank.
    """
    method, spec = get(layer.method or "", layer.spec.label), layer.spec
    if reason := method.supports(spec):
        raise UnsupportedLayerError(
            f"{spec.label}: cannot be factorized by {method.name}: {reason}. "
            "Set its method to null in the plan, or choose another."
        )
    if layer.variant not in method.variants:
        raise UnsupportedLayerError(
            f"{spec.label}: variant must be one of {list(method.variants)} for {method.name}, "
            f"got {layer.variant!r}. make_plan(model, x, edited=plan) takes the better one."
        )
    check_rank(method, spec, layer.rank)
    return method.stages(spec, layer.rank, layer.variant)


def check_rank(method: Method, spec: ConvSpec, rank: Rank) -> None:
    """Raise RankError unless the rank has the right length and lies within 1..max."""
    limit = method.max_rank(spec)
    if len(rank) != len(limit):
        raise RankError(
            f"{spec.label}: {method.name} takes {len(limit)} rank(s), got {list(rank)}. "
            f"Give one per entry of the maximum, {list(limit)}."
        )
    for value, top in zip(rank, limit, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= top:
            raise RankError(
                f"{spec.label}: rank must be an integer in 1..{top} for {method.name}, "
                f"got {value!r}. Correct the rank."
            )


def factorize(
    layer: LayerPlan,
    weight: Tensor,
    *,
    norm: Norm | None = None,
    measured: bool = True,
    seed: int = 0,
) -> Factorization:
    """Factorize one kernel as planned; the error is measured on the weights that are returned.

    Parameters
    ----------
    weight
        The spec's ``kernel_shape``, any floating dtype and device; computed in float64 on the CPU.
    norm
        The norm to fit in; the identity unless given. Of a layer without groups only.
    measured
        Whether to measure the error, which takes long in a large layer; else it is not a number.

    Raises
    ------
    UnsupportedLayerError, RankError
        The method does not take this layer, variant or rank.
    """
    stages = chain_of(layer)
    method, norm = get(layer.method or ""), norm or Norm()
    alone = method.stages(layer.spec.one_group, layer.rank, layer.variant)
    # Rounding differs with the layout in memory, which is not to show in the factors.
    exact = weight.detach().to("cpu", torch.float64).contiguous()
    groups, kernels = [], []
    for part in exact.chunk(layer.spec.groups):
        found = method.fit(part, layer.rank, layer.variant, stages=alone, norm=norm, seed=seed)
        groups.append(shaped(alone, found))
        if measured:
            kernels.append(chain_kernel(alone, groups[-1]))
    weights = tuple(_joined(list(of_stage)) for of_stage in zip(*groups, strict=True))
    error = norm.relative_error(exact, _joined(kernels)) if measured else nan
    return Factorization(layer.spec, method.name, layer.rank, layer.variant, stages, weights, error)


def _joined(groups: list[Tensor]) -> Tensor:
    """One after the other; one alone is not copied."""
    return torch.cat(groups) if len(groups) > 1 else groups[0]


def predicted_error(
    method: Method, spec: ConvSpec, weight: Tensor, rank: Rank, variant: str
) -> float | None:
    """Relative error of a layer before the fit, where a closed form tells it."""
    if spec.groups == 1:
        return method.predicted_error(weight, rank, variant)
    lost = 0.0
    for part in weight.chunk(spec.groups):
        error = method.predicted_error(part, rank, variant)
        if error is None:
            return None
        lost += error**2 * float(part.square().sum())
    return sqrt(lost / (float(weight.square().sum()) or 1.0))

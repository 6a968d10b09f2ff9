"""The bare decomposition of one kernel, without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factorize.errors import DataError, UnsupportedLayerError
from factorize.methods.base import Method, get, names
from factorize.methods.chain import chain_kernel
from factorize.methods.factorize import factorize
from factorize.spec import ConvSpec, Rank
from factorize.tensor.moments import Moments, output_error, target_and_norm
from factorize.tensor.norm import Norm
from factorize.types import LayerPlan

_PLACE = "kernel"  # where errors say that they are


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Factors of one kernel, and the kernel that they compose to.

    Attributes
    ----------
    method, rank, variant
        As used; the variant is the order of the chain.
    stages
        Specs of the chain, first to last.
    factors
        float64, one per stage, each of its stage's ``kernel_shape``: (O, I/groups, *kernel).
    kernel
        (O, I, *kernel), float64: W', the factors composed.
    error
        Relative, in the norm fitted in: ``||W - W'|| / ||W||``, with moments that of the outputs.
    """

    method: str
    rank: Rank
    variant: str
    stages: tuple[ConvSpec, ...]
    factors: tuple[Tensor, ...]
    kernel: Tensor
    error: float

    def tensorly(self) -> Any:
        """The factors as tensorly's own object, float64 in tensorly's current backend.

        A ``CPTensor`` of ``cp``, (O, I, positions), and of ``cp4``, (O, I, *kernel); a
        ``TuckerTensor`` of ``tucker2``, (O, I, *kernel), with identities for the spatial axes; a
        ``TTTensor`` of ``tensor_train``, (I, *kernel, O). Other methods say in their
        `tensorly_form`.

        Raises
        ------
        UnsupportedLayerError
            tensorly has no object for this method.
        """
        form = get(self.method).tensorly_form(self.factors)
        if form is None:
            able = [n for n in names() if type(get(n)).tensorly_form is not Method.tensorly_form]
            raise UnsupportedLayerError(
                f"{_PLACE}: tensorly must have a form for the method, got {self.method}. "
                f"Use one of {', '.join(able)}, or the factors themselves."
            )
        return form


def decompose(
    kernel: Tensor | np.ndarray[Any, Any],
    method: str,
    rank: int | Rank,
    moments: Moments | None = None,
    *,
    variant: str | None = None,
    seed: int = 0,
) -> Decomposition:
    """Decompose one kernel, to its own values or to the outputs that it gives.

    Parameters
    ----------
    kernel
        (O, I, *kernel) of up to three spatial axes, any floating dtype; (O, I) for a linear layer.
        Computed in float64 on the CPU.
    method
        Name of a registered method, such as ``tucker2``.
    rank
        One entry for each that the method takes, or an integer from which it makes them: the same
        for all, or with its usual width or number of groups.
    moments
        Second moments of the layer's input patches p, of length D = I prod(kernel): the error is
        then ``sqrt(E|(W - W')p|^2 / E|W p|^2)``, and, with other outputs y wanted (``cross``),
        ``sqrt(E|y - W'p|^2 / E|y|^2)``. They count as they are; `tensor.moments.centred` makes
        those of a layer whose bias makes up for the mean. None: the Frobenius norm.
    variant
        Order of the chain, of the method's ``variants``. None: the one with the lowest error.
    seed
        Of the random starts of methods without a closed form.

    Raises
    ------
    UnsupportedLayerError
        The kernel is no kernel, or there is no such method or variant for it.
    RankError
        The rank has the wrong length, or is not in 1..max.
    DataError
        The moments are of patches of another size.

    References
    ----------
    Each method names its own at the head of its file. For the norm of the outputs: Zhang, Zou, He,
    Sun, "Accelerating very deep convolutional networks for classification and detection", TPAMI
    2016, section 3.

    Examples
    --------
    >>> import torch
    >>> from factorize import decompose
    >>> made = decompose(torch.ones(8, 4, 3, 3), "spatial_svd", 1)
    >>> [tuple(factor.shape) for factor in made.factors], round(made.error, 6)
    ([(1, 4, 3, 1), (8, 1, 1, 3)], 0.0)
    """
    weight, chosen = _weight(kernel), get(method, _PLACE)
    spec = _spec(weight)
    if reason := chosen.supports(spec):
        raise UnsupportedLayerError(
            f"{_PLACE}: cannot be decomposed by {method}: {reason}. Choose another method."
        )
    if variant is not None and variant not in chosen.variants:
        raise UnsupportedLayerError(
            f"{_PLACE}: variant must be one of {list(chosen.variants)} for {method}, got "
            f"{variant!r}. Leave it out for the best one."
        )
    variants = chosen.variants_of(spec) if variant is None else (variant,)
    layer = LayerPlan(spec, method, _rank(chosen, spec, rank))
    target, norm = weight, Norm()
    if moments is not None:
        moments = _moments(moments, weight)
        target, norm = target_and_norm(moments, weight, shrunk=0.0)
    orders = (replace(layer, variant=one) for one in variants)
    fits = (factorize(order, target, norm=norm, seed=seed) for order in orders)
    made = min(fits, key=lambda fit: fit.error)
    composed = chain_kernel(made.stages, made.weights)
    error = made.error if moments is None else output_error(moments, weight, composed)
    return Decomposition(
        method, made.rank, made.variant, made.stages, made.weights, composed, error
    )


def _weight(kernel: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """(O, I, *kernel), float64 on the CPU."""
    if isinstance(kernel, np.ndarray) and np.issubdtype(kernel.dtype, np.floating):
        weight = torch.from_numpy(kernel.astype(np.float64))
    elif isinstance(kernel, Tensor) and kernel.is_floating_point():
        weight = kernel.detach().to("cpu", torch.float64)
    else:
        got = f"{type(kernel).__name__} of {getattr(kernel, 'dtype', 'no dtype')}"
        raise UnsupportedLayerError(
            f"{_PLACE}: must be a tensor or numpy array of floating point, got {got}. Convert it."
        )
    if not 2 <= weight.ndim <= 5 or not weight.numel():
        raise UnsupportedLayerError(
            f"{_PLACE}: must be (O, I, *kernel) with up to three spatial axes, none of them empty, "
            f"got {tuple(weight.shape)}. Reshape it."
        )
    if not weight.isfinite().all():
        bad = int((~weight.isfinite()).sum())
        raise UnsupportedLayerError(
            f"{_PLACE}: its values must be finite, got {bad:,} of {weight.numel():,} that are not. "
            "Training diverged: take an earlier checkpoint."
        )
    return weight


def _spec(weight: Tensor) -> ConvSpec:
    outputs, inputs, *extents = weight.shape
    kind = f"conv{len(extents)}d" if extents else "linear"
    ones, zeros = (1,) * len(extents), (0,) * len(extents)
    return ConvSpec(_PLACE, kind, inputs, outputs, tuple(extents), ones, zeros, ones, bias=False)


def _rank(method: Method, spec: ConvSpec, rank: int | Rank) -> Rank:
    """All entries of the rank; numpy's integers are integers. `factorize` checks them."""
    if isinstance(rank, Integral):
        return method.rank_of(int(rank), spec)
    entries = rank if isinstance(rank, (tuple, list)) else (rank,)
    return tuple(int(one) if isinstance(one, Integral) else one for one in entries)


def _moments(moments: Moments, weight: Tensor) -> Moments:
    """The moments in float64, if they are of this kernel's patches."""
    outputs, inputs, *extents = weight.shape
    positions = prod(extents)
    size = inputs * positions
    got = [tuple(matrix.shape) for matrix in moments.second]
    if got not in ([(size, size)], [(inputs, inputs), (positions, positions)]):
        raise DataError(
            f"{_PLACE}: second moments must be ({size}, {size}), or ({inputs}, {inputs}) and "
            f"({positions}, {positions}), for a kernel {tuple(weight.shape)}, got "
            f"{' and '.join(map(str, got))}. Take those of the layer that the kernel is of."
        )
    cross = moments.cross
    if cross is not None and cross.shape != (outputs, size):
        raise DataError(
            f"{_PLACE}: cross moments must be ({outputs}, {size}) for a kernel "
            f"{tuple(weight.shape)}, got {tuple(cross.shape)}. "
            "Take those of the layer that the kernel is of."
        )
    return replace(
        moments, second=tuple(s.detach().to("cpu", torch.float64) for s in moments.second)
    )

"""What a decomposition is: the `Method` class, the registry, and the chain it declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from factorize.errors import RankError, UnsupportedLayerError
from factorize.tensor.norm import Norm
from factorize.types import ConvSpec, Factorization, LayerPlan, Rank, Size

_registry: dict[str, Method] = {}


class Method(ABC):
    """A way to replace one kernel by a chain of smaller ones.

    Weights are (O, I, k_h, k_w), float64. A subclass declares its chain by `stages`; the kernel
    that the chain composes to follows from it (`chain_kernel`), so the two cannot disagree.

    Attributes
    ----------
    name
        As on the command line.
    summary
        One line for ``--help``.
    variants
        Orders of the chain; the planner takes the one with the lower error.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("",)

    def supports(self, spec: ConvSpec) -> str | None:
        """None, or the reason why this layer cannot be factorized by this method."""
        if spec.kind != "conv2d":
            return f"{spec.kind}: only conv2d is factorized"
        if spec.groups != 1:
            return f"grouped convolution (groups={spec.groups}): only groups=1 is factorized"
        return None

    @abstractmethod
    def max_rank(self, spec: ConvSpec) -> Rank:
        """The smallest rank at which some variant reproduces any kernel of this shape."""

    @abstractmethod
    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:
        """The chain's specs, first to last. Shapes only: costs nothing. Built with `link`."""

    @abstractmethod
    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, norm: Norm, seed: int
    ) -> tuple[Tensor, ...]:
        """The weights of `stages`, for a valid rank."""

    @abstractmethod
    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """The smallest rank that keeps a share of the kernel's squared norm.

        Where only fits can tell, none above ``most`` is tried: the answer is one more then.
        """

    @abstractmethod
    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The rank by variational Bayes; entries may be 0 (nothing but noise)."""

    def predicted_error(self, weight: Tensor, rank: Rank, variant: str) -> float | None:
        """Relative error before the fit, where a closed form tells it."""
        del weight, rank, variant
        return None


def register(method: Method) -> Method:
    """Make a method known everywhere by its name; a later one of the same name replaces it."""
    _registry[method.name] = method
    return method


def names() -> tuple[str, ...]:
    """Names of all registered methods, sorted."""
    return tuple(sorted(_registry))


def get(name: str) -> Method:
    """The method of that name.

    Raises
    ------
    UnsupportedLayerError
        No such method.
    """
    if name not in _registry:
        raise UnsupportedLayerError(
            f"method must be one of {', '.join(names())}, got {name!r}. Correct --method."
        )
    return _registry[name]


def chain_of(layer: LayerPlan) -> tuple[ConvSpec, ...]:
    """The stages of a planned layer, its method, rank and variant checked.

    Raises
    ------
    UnsupportedLayerError, RankError
        The method does not exist or does not take this layer, variant or rank.
    """
    method, spec = get(layer.method or ""), layer.spec
    if reason := method.supports(spec):
        raise UnsupportedLayerError(
            f"{spec.label}: cannot be factorized by {method.name}: {reason}. "
            "Set its method to null in the plan, or choose another."
        )
    if layer.variant not in method.variants:
        raise UnsupportedLayerError(
            f"{spec.label}: variant must be one of {list(method.variants)} for {method.name}, "
            f"got {layer.variant!r}. factorize.plan(model, x, edited=plan) takes the better one."
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
                f"got {value!r}. Lower the rank or use --energy."
            )


def factorize(
    layer: LayerPlan, weight: Tensor, *, norm: Norm | None = None, seed: int = 0
) -> Factorization:
    """Factorize one kernel as planned; the error is measured on the weights that are returned.

    Parameters
    ----------
    weight
        (O, I, k_h, k_w), any floating dtype and device; computed in float64 on the CPU.
    norm
        The norm to fit in; the identity unless given.

    Raises
    ------
    UnsupportedLayerError, RankError
        The method does not take this layer, variant or rank.
    """
    stages = chain_of(layer)
    method, norm = get(layer.method or ""), norm or Norm()
    exact = weight.detach().to("cpu", torch.float64)
    weights = method.decompose(exact, layer.rank, layer.variant, norm=norm, seed=seed)
    weights = tuple(
        w.reshape(stage.weight_shape).contiguous() for w, stage in zip(weights, stages, strict=True)
    )
    error = norm.relative_error(exact, chain_kernel(stages, weights))
    return Factorization(layer.spec, method.name, layer.rank, layer.variant, stages, weights, error)


def stage(
    spec: ConvSpec, axes: tuple[int, ...], in_channels: int, out_channels: int, groups: int = 1
) -> ConvSpec:
    """One stage that takes over the kernel, stride, padding and dilation of some axes.

    The other axes get extent 1. A stage that pads keeps the padding mode; none has a bias yet.
    """

    def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if axis in axes else neutral for axis, v in enumerate(values))

    padding = spec.padding
    if padding == "same":
        padding = "same" if axes else (0,) * len(spec.kernel)
    else:
        padding = pick(padding, 0)
    return replace(
        spec,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=pick(spec.kernel, 1),
        stride=pick(spec.stride, 1),
        dilation=pick(spec.dilation, 1),
        padding=padding,
        padding_mode=spec.padding_mode if padding == "same" or any(padding) else "zeros",
        groups=groups,
        bias=False,
    )


def link(spec: ConvSpec, *stages: ConvSpec) -> tuple[ConvSpec, ...]:
    """Number the stages, hand the sizes on from one to the next, put the bias on the last."""
    linked: list[ConvSpec] = []
    sizes = spec.input_sizes
    for index, one in enumerate(stages):
        last = index == len(stages) - 1
        one = replace(
            one, name=f"{spec.name}.{index}".lstrip("."), input_sizes=sizes,
            bias=spec.bias and last,
        )  # fmt: skip
        linked.append(one)
        sizes = one.output_sizes
    return tuple(linked)


def chain_kernel(stages: tuple[ConvSpec, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """The one kernel that a chain of convolutions is equal to.

    On each axis at most one stage has an extent above 1, so the extents multiply. The chain is
    folded from an end that is not grouped, where there is one: a grouped weight in between then
    costs its own size, not that of the dense weight it stands for.

    Returns
    -------
    (O, I, *kernel)
    """
    if stages[-1].groups == 1:
        kernel = weights[-1]  # (O, C, *k)
        for spec, weight in zip(stages[-2::-1], weights[-2::-1], strict=True):
            groups = spec.groups
            outer = kernel.reshape(len(kernel), groups, kernel.shape[1] // groups, -1)
            inner = weight.reshape(groups, -1, weight.shape[1], prod(spec.kernel))
            product = torch.einsum("ogck,gcim->ogikm", outer, inner)
            kernel = _merged(product, len(kernel), spec.in_channels, kernel.shape[2:], spec.kernel)
        return kernel
    first = stages[0]
    kernel = torch.eye(first.in_channels, dtype=weights[0].dtype)
    kernel = kernel.reshape(*kernel.shape, *(1,) * len(first.kernel))  # (C, I, *k)
    if first.groups == 1:
        kernel, stages, weights = weights[0], stages[1:], weights[1:]
    for spec, weight in zip(stages, weights, strict=True):
        groups = spec.groups
        inner = kernel.reshape(groups, len(kernel) // groups, kernel.shape[1], -1)
        outer = weight.reshape(groups, -1, weight.shape[1], prod(spec.kernel))
        product = torch.einsum("gcik,gocm->goikm", inner, outer)
        kernel = _merged(product, spec.out_channels, kernel.shape[1], kernel.shape[2:], spec.kernel)
    return kernel


def _merged(product: Tensor, outputs: int, inputs: int, one: Size, two: Size) -> Tensor:
    """(O, I, prod(k), prod(k')) with axes of extents k k': one of each pair of extents is 1."""
    axes = len(one)
    product = product.reshape(outputs, inputs, *one, *two)
    order = [axis for pair in zip(range(axes), range(axes, 2 * axes), strict=True) for axis in pair]
    extents = [a * b for a, b in zip(one, two, strict=True)]
    return product.permute(0, 1, *(2 + axis for axis in order)).reshape(outputs, inputs, *extents)

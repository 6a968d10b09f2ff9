"""What a decomposition is: the `Method` class, the registry, and the chain it declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from factorize.errors import RankError, UnsupportedLayerError
from factorize.methods.chain import chain_kernel
from factorize.methods.refine import refine
from factorize.tensor.norm import Norm
from factorize.types import ConvSpec, Factorization, LayerPlan, Rank

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

    def rank_of(self, value: int, spec: ConvSpec) -> Rank:
        """The rank where one number is given for all of it; not yet clamped to the maximum."""
        return (value,) * len(self.max_rank(spec))

    @abstractmethod
    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:
        """The chain's specs, first to last. Shapes only: costs nothing. Built with `link`."""

    @abstractmethod
    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        """The weights of `stages`, for a valid rank, in the identity norm."""

    def fit(
        self,
        weight: Tensor,
        rank: Rank,
        variant: str,
        *,
        stages: tuple[ConvSpec, ...],
        norm: Norm,
        seed: int,
    ) -> tuple[Tensor, ...]:
        """The weights of `stages` in a norm: the plain form, refined where the norm is not plain.

        A method overrides this where it has a closed form.
        """
        start = self.decompose(weight, rank, variant, seed=seed)
        if not norm.second:
            return start
        return refine(stages, shaped(stages, start), weight, norm)

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
    weights = method.fit(exact, layer.rank, layer.variant, stages=stages, norm=norm, seed=seed)
    weights = shaped(stages, weights)
    error = norm.relative_error(exact, chain_kernel(stages, weights))
    return Factorization(layer.spec, method.name, layer.rank, layer.variant, stages, weights, error)


def shaped(stages: tuple[ConvSpec, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Weights as their stages hold them."""
    return tuple(
        w.reshape(stage.weight_shape).contiguous() for w, stage in zip(weights, stages, strict=True)
    )

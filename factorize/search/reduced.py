"""A small stand-in for a large layer, on which fits cost a thousandth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log

import torch
from torch import Tensor

from factorize.methods import Method, chain_kernel, factorize
from factorize.spec import ConvSpec, Rank
from factorize.tensor.norm import Norm
from factorize.types import LayerPlan

LARGEST = 64
"""Channels on either side; layers of no more are fitted themselves."""

Mixing = tuple[bool, bool]
"""Whether a chain can absorb any mixing of the output channels, and of the input's."""

_TAILS = (0.25, 0.5, 0.75)  # shares of the directions, beyond which energies are compared


@dataclass(frozen=True)
class Reduced:
    """Every so-many-th principal direction of a layer's channels, so that their spectrum stays.

    A chain that starts with an ungrouped stage can absorb any mixing of the input channels, one
    that ends with such a stage any of the output's: those directions are the singular vectors of
    the higher-order SVD, of the input in coordinates in which it is white. A side whose stage is
    grouped keeps single channels.

    Attributes
    ----------
    norm, inputs
        That it is fitted in, and that of the inputs as they are, in which errors are measured.
    exponent
        Of an error here that gives the layer's. A part of a tensor has spectra of its own, more
        spread than those it was taken from; by how much is told by the tails of both.
    """

    spec: ConvSpec
    weight: Tensor
    norm: Norm
    inputs: Norm
    exponent: float

    def smaller(self, mixed: Mixing, most: int) -> Reduced:
        """The stand-in of this stand-in."""
        made = reduced(self.spec, self.weight, self.norm, self.inputs, [mixed], most)[mixed]
        return replace(made, exponent=self.exponent * made.exponent)

    def error(self, of: ConvSpec, method: Method, rank: Rank, variant: str, *, seed: int) -> float:
        """Relative squared error of the layer `of` at a rank, from a fit at the same share of it.

        Without data 0.9 to 1.2 times that of a fit; with data 0.7 to 1.3 times at 0.3 of the MACs
        and 0.8 to 2.3 times at 0.6 of them, where little is lost (64 channels taken for large).
        """
        scaled = method.rank_on(rank, of, self.spec)
        layer = LayerPlan(self.spec, method.name, scaled, variant)
        made = factorize(layer, self.weight, norm=self.norm, seed=seed)
        kernel = chain_kernel(made.stages, made.weights)
        return self.inputs.relative_error(self.weight, kernel) ** (2 * self.exponent)


def is_large(spec: ConvSpec) -> bool:
    """Whether a layer's errors are estimated on a stand-in."""
    return max(spec.in_channels, spec.out_channels) > LARGEST


def mixing_of(stages: Sequence[ConvSpec]) -> Mixing:
    """What a chain can absorb: whether its last stage and its first one are ungrouped."""
    return stages[-1].groups == 1, stages[0].groups == 1


def reduced(
    spec: ConvSpec,
    weight: Tensor,
    norm: Norm,
    inputs: Norm,
    mixings: Iterable[Mixing],
    most: int = LARGEST,
) -> dict[Mixing, Reduced]:
    """The stand-ins of a layer for some kinds of chains.

    Parameters
    ----------
    weight
        (O, I, *kernel), float64.
    norm, inputs
        As in `Reduced`, of the layer.
    most
        Channels of a stand-in, about, on either side.
    """
    mixings = list(mixings)
    if not mixings:
        return {}
    by_output, by_input = weight.flatten(1), weight.transpose(0, 1).flatten(1)
    before = inputs.times(by_output) @ by_output.T  # energy of the output channels (O, O)
    wide = by_input.shape[0] > by_input.shape[1]
    side = (_Wide if wide else _White)(_covariance(inputs, weight), by_input)
    # Each once for all kinds of chains, as they cost most here.
    lefts = {one: _directions(before, one, most) for one in {mixed[0] for mixed in mixings}}
    rights = {one: side.directions(one, most) for one in {mixed[1] for mixed in mixings}}
    tails = _tails(before) if True in lefts else 0.0, _tails(side.gram) if True in rights else 0.0

    def stand_in(mixed: Mixing) -> Reduced:
        left, (into, onto) = lefts[mixed[0]], rights[mixed[1]]
        small = torch.einsum("oi...,oa,ib->ab...", weight, left, into).contiguous()
        within = _restricted(inputs, onto)
        rows = small.flatten(1)
        white = _White(_covariance(within, small), small.transpose(0, 1).flatten(1))
        now = _tails(within.times(rows) @ rows.T), _tails(white.gram)
        spread = [
            sum(x for x, mixes in zip(of, mixed, strict=True) if mixes) for of in (tails, now)
        ]
        exponent = spread[0] / spread[1] if spread[1] < 0 else 1.0
        exponent = min(max(exponent, 0.5), 2.0)
        of_small = replace(spec, in_channels=small.shape[1], out_channels=small.shape[0])
        return Reduced(of_small, small, _restricted(norm, onto), within, exponent)

    return {mixed: stand_in(mixed) for mixed in mixings}


def _covariance(norm: Norm, weight: Tensor) -> Tensor | None:
    """Of the input channels (I, I), up to a factor; None: the identity."""
    if not norm.second:
        return None
    covariance = norm.second[0]
    if len(norm.second) == 1:
        inputs = weight.shape[1]
        by_pair = covariance.reshape(inputs, -1, inputs, covariance.shape[1] // inputs)
        covariance = torch.einsum("ikjk->ij", by_pair)
    return covariance


class _White:
    """Directions of the input channels, once these are white.

    Attributes
    ----------
    gram
        Energy of the channels (I, I), once white.
    """

    def __init__(self, covariance: Tensor | None, weight: Tensor) -> None:
        self.root = self.inverse = torch.eye(len(weight), dtype=weight.dtype)
        if covariance is not None:
            values, vectors = torch.linalg.eigh(covariance)
            # What hardly varies must not be blown up to count as much as the rest.
            scales = values.clamp_min(1e-6 * max(float(values[-1]), 0.0) + 1e-30).sqrt()
            self.root, self.inverse = (vectors * scales) @ vectors.T, (vectors / scales) @ vectors.T
        turned = self.root @ weight
        self.gram = turned @ turned.T

    def directions(self, mixes: bool, most: int) -> tuple[Tensor, Tensor]:
        """What the weight is multiplied by (I, I'), and what the inputs are seen along."""
        right = _directions(self.gram, mixes, most)
        return (self.root @ right, self.inverse @ right) if mixes else (right, right)


class _Wide:
    """The same of a weight (I, O K) with more input channels than all else, from its other side.

    An eigendecomposition of (I, I) takes I^3, and a linear layer may have 25,088 channels. The
    directions that carry anything are ``C^1/2 W v``, for the eigenvectors v of ``W^T C W``.
    """

    def __init__(self, covariance: Tensor | None, weight: Tensor) -> None:
        self.weight = weight
        self.seen = weight if covariance is None else covariance @ weight
        self.gram = weight.T @ self.seen

    def directions(self, mixes: bool, most: int) -> tuple[Tensor, Tensor]:
        """As `_White` has them; single channels in the order of their energy as they are."""
        if not mixes:
            right = _directions((self.weight * self.seen).sum(1), mixes, most)
            return right, right
        along = _directions(self.gram, mixes, most)
        scales = (along * (self.gram @ along)).sum(0).clamp_min(1e-30).sqrt()
        return self.seen @ along / scales, self.weight @ along / scales


def _directions(gram: Tensor, mixes: bool, most: int) -> Tensor:
    """(n, n'): evenly spaced among all directions, or all channels, in the order of energy.

    Parameters
    ----------
    gram
        (n, n), or its diagonal where single channels are asked for.
    """
    count = len(gram)
    step = ceil(count / most)
    if mixes:
        vectors = torch.linalg.eigh(gram)[1].flip(1)
        return vectors[:, (step - 1) // 2 :: step]
    energies = gram if gram.ndim == 1 else gram.diagonal()
    chosen = energies.argsort(descending=True)[(step - 1) // 2 :: step]
    return torch.nn.functional.one_hot(chosen, count).T.to(gram.dtype)


def _restricted(norm: Norm, onto: Tensor) -> Norm:
    """The norm of inputs that are seen along some directions (I, I') only."""
    if len(norm.second) == 2:
        return Norm((onto.T @ norm.second[0] @ onto, norm.second[1]))
    if not norm.second:
        return norm
    second = norm.second[0]
    inputs, kept = onto.shape
    positions = len(second) // inputs
    half = (onto.T @ second.reshape(inputs, -1)).reshape(kept * positions, inputs, positions)
    whole = (onto.T @ half).reshape(kept * positions, kept * positions)
    return Norm(((whole + whole.T) / 2,))


def _tails(gram: Tensor) -> float:
    """Sum of the logarithms of the shares of energy that lie beyond some ranks."""
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    total = float(values.sum()) or 1.0
    tails = [float(values[round(share * len(values)) :].sum()) / total for share in _TAILS]
    return sum(log(min(max(tail, 1e-9), 1.0)) for tail in tails)

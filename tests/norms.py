"""What the tests of norms share: a layer, norms of its patches, and chains for every method."""

from __future__ import annotations

import math
from dataclasses import replace
from math import ceil, prod

import convolutions
import pytest
import torch
from torch import Tensor

from factorize import methods
from factorize.methods.chain import chain_kernel
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan

SPEC = ConvSpec("c", "conv2d", 6, 7, (3, 2), (1, 1), (0, 0), (1, 1))
D = 36
CHAINS = [(n, variant) for n in convolutions.square() for variant in methods.get(n).variants]
CLOSED = [chain for chain in CHAINS if isinstance(methods.get(chain[0]), SvdMethod)]
every_chain = pytest.mark.parametrize("method, variant", CHAINS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int = 0, rank: int = D) -> Tensor:
    """A covariance with falling eigenvalues."""
    vectors = torch.linalg.qr(random(size, size, seed=seed))[0]
    values = 0.8 ** torch.arange(size, dtype=torch.float64)
    values[rank:] = 0
    return vectors * values @ vectors.T


NORMS = {
    "full": lambda seed: Norm((covariance(D, seed),)),
    "singular": lambda seed: Norm((covariance(D, seed, rank=24),)),
    "separable": lambda seed: Norm((covariance(6, seed), covariance(6, seed + 1))),
}
every_norm = pytest.mark.parametrize("kind", NORMS)


def planned(method: str, variant: str) -> LayerPlan:
    """The largest of twenty ranks that takes at most 0.6 of the parameters."""
    layer = full(method, variant)
    ranks = (tuple(ceil(share * top / 20) for top in layer.rank) for share in range(20, 0, -1))
    layers = (replace(layer, rank=rank) for rank in ranks)
    return next(one for one in layers if params(one) <= 0.6 * 7 * D)


def params(layer: LayerPlan) -> int:
    return sum(prod(stage.weight_shape) for stage in methods.chain_of(layer))


def full(method: str, variant: str) -> LayerPlan:
    return LayerPlan(SPEC, method, methods.get(method).max_rank(SPEC), variant)


def fitted(layer: LayerPlan, weight: Tensor, norm: Norm) -> tuple[Factorization, float]:
    """The fit, and the error of its kernel in the norm by brute force."""
    made = methods.factorize(layer, weight, norm=norm)
    return made, in_norm(weight - chain_kernel(made.stages, made.weights), norm) / in_norm(
        weight, norm
    )


def in_norm(kernel: Tensor, norm: Norm) -> float:
    second = torch.eye(D, dtype=torch.float64)
    for index, matrix in enumerate(norm.second):
        second = matrix if index == 0 else torch.kron(second, matrix)
    rows = kernel.flatten(1)
    return math.sqrt(max(float((rows @ second @ rows.T).trace()), 0.0))

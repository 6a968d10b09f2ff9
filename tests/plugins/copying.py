"""A method from outside of the package, in one file: the layer's first R filters are copied.

Equation     W[o,i,y,x] = sum_r M[o,r] W[r,i,y,x]      M[r,r] = 1 for the copied
Chain        k_h x k_w: I -> R, 1x1: R -> O, which hands on the copies and mixes the others of them
Rank         R in 1..O; at O nothing is left to mix
"""

from __future__ import annotations

import torch
from torch import Tensor

from factorize.methods import Method, register
from factorize.methods.chain import link, stage
from factorize.spec import ConvSpec, Rank


class Copying(Method):
    """The others are mixed by least squares."""

    name = "copying"
    summary = "the first R filters, copied, then 1x1"

    def max_rank(self, spec: ConvSpec) -> Rank:
        return (spec.group_outputs,)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:
        return link(
            spec,
            stage(spec, spec.axes, spec.group_inputs, rank[0]),
            stage(spec, (), rank[0], spec.group_outputs),
        )

    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        copied, others = weight.flatten(1).tensor_split([rank[0]])  # (R, D), (O - R, D)
        mixed = torch.linalg.lstsq(copied.T, others.T).solution.T  # (O - R, R)
        return copied, torch.cat([torch.eye(rank[0], dtype=weight.dtype), mixed])

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        return (min(most[0] + 1, len(weight)),)

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        return (len(weight),)


register(Copying())

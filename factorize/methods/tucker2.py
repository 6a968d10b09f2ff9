"""Tucker-2: channels reduced by a 1x1 on either side of a small k_h x k_w core.

Equation     W[o,i,y,x] = sum_qp B[o,q] G[q,p,y,x] A[p,i]
Chain        1x1: I -> R_in, k_h x k_w: R_in -> R_out, 1x1: R_out -> O
Rank         (R_in, R_out), at most (min(I, O k_h k_w), min(O, I k_h k_w))
MACs         I R_in H W + (R_in R_out k_h k_w + R_out O) H' W'
Parameters   I R_in + R_in R_out k_h k_w + R_out O
Wins         layers with many channels on both sides: the core stays one dense, small convolution
Limits       three layers deep: small maps may gain little time
Source       Kim et al., ICLR 2016; solved by HOOI (De Lathauwer 2000)
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from factorize.methods.base import Method, register
from factorize.methods.chain import link, stage
from factorize.spec import ConvSpec, Rank
from factorize.tensor.ranks import energy_rank, unfolding_vbmf_rank
from factorize.tensor.svd import singular_values
from factorize.tensor.tensorly_form import tucker_tensor
from factorize.tensor.tucker import tucker2


class Tucker2(Method):
    """Ranks are read off the two channel unfoldings, as Kim et al. do."""

    name = "tucker2"
    closed = True
    summary = "1x1, small k x k core, 1x1 (two ranks: in, out)"

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        inputs, outputs, area = spec.group_inputs, spec.group_outputs, prod(spec.kernel)
        return min(inputs, outputs * area), min(outputs, inputs * area)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        return link(
            spec,
            stage(spec, (), spec.group_inputs, rank[0]),
            stage(spec, spec.axes, rank[0], rank[1]),
            stage(spec, (), rank[1], spec.group_outputs),
        )

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        core, left, right = tucker2(weight.flatten(2), (rank[1], rank[0]))
        return right.T, core.contiguous(), left

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """Each unfolding keeps the share by itself; the chain errs by at most both losses."""
        by_input, by_output = weight.transpose(0, 1).flatten(1), weight.flatten(1)
        return (
            energy_rank(singular_values(by_input), energy),
            energy_rank(singular_values(by_output), energy),
        )

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:  # noqa: D102
        return unfolding_vbmf_rank(weight, 1), unfolding_vbmf_rank(weight, 0)

    def tensorly_form(self, weights: tuple[Tensor, ...]) -> Any:
        """A ``TuckerTensor`` of the kernel (O, I, *kernel), each spatial axis left as it is."""
        first, core, last = weights  # (R_in, I, ..), (R_out, R_in, *kernel), (O, R_out, ..)
        spatial = (torch.eye(extent, dtype=core.dtype) for extent in core.shape[2:])
        return tucker_tensor(core, (last.flatten(1), first.flatten(1).T, *spatial))


register(Tucker2())

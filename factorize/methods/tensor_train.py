"""Tensor train over the input channels, each spatial axis, and the output channels.

Equation     W[o,i,y,x] = sum_pqr A[i,p] C[p,y,q] D[q,x,r] B[r,o]
Chain        1x1: I -> R1, k_h x 1: R1 -> R2, 1 x k_w: R2 -> R3, 1x1: R3 -> O
Rank         (R1, R2, R3), one more than spatial axes; at most those of the unfoldings,
             (min(I, O k_h k_w), min(I k_h, O k_w), min(I k_h k_w, O))
MACs         R1 I H W + R1 R2 k_h H' W + (R2 R3 k_w + R3 O) H' W'
Parameters   R1 I + R1 R2 k_h + R2 R3 k_w + R3 O
Wins         large kernels, where both the channels and the axes are redundant
Limits       four layers deep; large where neither the channels nor the axes are redundant
Source       Oseledets, SIAM J. Sci. Comput. 33 (2011); Garipov et al., 2016, for convolutions
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from factorize.methods.base import Method, register
from factorize.methods.chain import link, stage
from factorize.spec import ConvSpec, Rank
from factorize.tensor.ranks import energy_rank, matrix_vbmf_rank
from factorize.tensor.svd import singular_values
from factorize.tensor.tensorly_form import tt_tensor
from factorize.tensor.tt import tensor_train, unfoldings


class TensorTrain(Method):
    """One mode per stage: the channels by 1x1 convolutions, each axis by one of its own."""

    name = "tensor_train"
    closed = True
    summary = "1x1, k x 1, 1 x k, 1x1 (three ranks, by tensor-train SVD)"

    def modes(self, weight: Tensor) -> Tensor:
        """The kernel as the tensor that is decomposed: (I, *kernel, O)."""
        return weight.movedim(0, -1)

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        sizes = (spec.group_inputs, *spec.kernel, spec.group_outputs)
        return tuple(min(prod(sizes[:cut]), prod(sizes[cut:])) for cut in range(1, len(sizes)))

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        channels = (spec.group_inputs, *rank, spec.group_outputs)
        axes = ((), *((axis,) for axis in spec.axes), ())
        ends = zip(axes, channels[:-1], channels[1:], strict=True)
        return link(spec, *(stage(spec, *one) for one in ends))

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        first, *middle, last = tensor_train(self.modes(weight), rank)
        return first.T, *(core.permute(2, 0, 1) for core in middle), last.T

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """Each unfolding keeps the share by itself; the chain loses at most the sum."""
        matrices = unfoldings(self.modes(weight))
        return tuple(energy_rank(singular_values(matrix), energy) for matrix in matrices)

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:  # noqa: D102
        return tuple(matrix_vbmf_rank(matrix) for matrix in unfoldings(self.modes(weight)))

    def tensorly_form(self, weights: tuple[Tensor, ...]) -> Any:
        """A ``TTTensor`` of `modes`: (I, *kernel, O); in `spatial_tt` (I k_t, k_h, k_w O)."""
        first, *middle, last = (w.flatten(2) for w in weights)  # (out, in, positions) each
        cores = (core.permute(1, 2, 0) for core in middle)
        ends = first.flatten(1).T[None], last.permute(1, 2, 0).flatten(1)[..., None]
        return tt_tensor((ends[0], *cores, ends[1]))


register(TensorTrain())

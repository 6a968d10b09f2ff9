"""Three 1-D convolutions for a 3-D one, by tensor train.

Equation     W[o,i,z,y,x] = sum_qr P[i,z,q] C[q,y,r] Q[r,x,o]
Chain        k_t x 1 x 1: I -> R1, 1 x k_h x 1: R1 -> R2, 1 x 1 x k_w: R2 -> O
Rank         (R1, R2), at most (min(I k_t, O k_h k_w), min(I k_t k_h, O k_w))
MACs         R1 I k_t T' H W + R1 R2 k_h T' H' W + R2 O k_w T' H' W'
Parameters   R1 I k_t + R1 R2 k_h + R2 O k_w
Wins         3-D kernels: one stage for each axis
Limits       3-D only: on two axes this is `spatial_svd`, which has the better order
Source       Oseledets, SIAM J. Sci. Comput. 33 (2011); Rigamonti et al., CVPR 2013, for the form
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.tensor_train import TensorTrain
from factorize.spec import ConvSpec, Rank


class SpatialTt(TensorTrain):
    """A tensor train whose ends carry an axis each."""

    name = "spatial_tt"
    summary = "3-D: k x 1 x 1, 1 x k x 1, 1 x 1 x k (two ranks, by tensor-train SVD)"
    min_axes = 3

    def modes(self, weight: Tensor) -> Tensor:
        """(I k_t, k_h, k_w O)."""
        return weight.movedim(0, -1).flatten(3).flatten(0, 1)

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        time, height, width = spec.kernel
        sizes = (spec.group_inputs * time, height, width * spec.group_outputs)
        return tuple(min(prod(sizes[:cut]), prod(sizes[cut:])) for cut in (1, 2))

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        return link(
            spec,
            stage(spec, (0,), spec.group_inputs, rank[0]),
            stage(spec, (1,), rank[0], rank[1]),
            stage(spec, (2,), rank[1], spec.group_outputs),
        )

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        outputs = len(weight)
        first, middle, last = super().decompose(weight, rank, variant, seed=seed)
        last = last.T.unflatten(1, (-1, outputs)).permute(2, 0, 1)  # (O, R2, k_w)
        return first, middle, last  # (R1, I k_t), (R2, R1, k_h)


register(SpatialTt())

"""Spatially separable pair by SVD.

Equation     W[o,i,y,x] = sum_r P[r,i,y] Q[o,r,x]
Chain        k_h x 1: I -> R, then 1 x k_w: R -> O; or 1 x k_w first, whichever errs less
Rank         R in 1..min(I, O) min(k_h, k_w)
MACs         R (I k_h H' W + O k_w H' W')   for a (H, W) input and a (H', W') output
Parameters   R (I k_h + O k_w)
In 3-D       k_t x 1 x 1 and 1 x k_h x k_w: the pseudo-3D pair, R in 1..min(I, O) min(k_t, k_h k_w)
Wins         the default: two plain stages, which runtimes run at nearly the speed that the MACs
             promise
Limits       nothing is won on k x 1 kernels beyond a low channel rank
Source       Jaderberg, Vedaldi, Zisserman, BMVC 2014, scheme 2; Tai et al., ICLR 2016
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec, Rank


class SpatialSvd(SvdMethod):
    """``vertical_first`` or ``horizontal_first``: which 1-D convolution reads the input."""

    name = "spatial_svd"
    min_axes = 2
    summary = "k x 1 then 1 x k (or the other order), by SVD"
    variants = ("vertical_first", "horizontal_first")

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        first, others = spec.kernel[0], prod(spec.kernel[1:])
        return (min(spec.group_inputs, spec.group_outputs) * min(first, others),)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        vertical, horizontal = spec.axes[:1], spec.axes[1:]
        one, two = vertical, horizontal
        if variant == "horizontal_first":
            one, two = two, one
        return link(
            spec,
            stage(spec, one, spec.group_inputs, rank[0]),
            stage(spec, two, rank[0], spec.group_outputs),
        )

    def matrix(self, weight: Tensor, variant: str) -> Tensor:  # noqa: D102
        weight = weight.flatten(3)  # (O, I, k_h, k_w)
        if variant == "vertical_first":
            return weight.permute(1, 2, 0, 3).flatten(2, 3).flatten(0, 1)  # (I k_h, O k_w)
        return weight.permute(1, 3, 0, 2).flatten(2, 3).flatten(0, 1)  # (I k_w, O k_h)

    def fold(  # noqa: D102
        self, left: Tensor, right: Tensor, weight: Tensor, variant: str
    ) -> tuple[Tensor, Tensor]:
        outputs, inputs = weight.shape[:2]
        first = left.T.reshape(left.shape[1], inputs, -1)  # (R, I, k)
        second = right.reshape(right.shape[0], outputs, -1).transpose(0, 1)  # (O, R, k)
        return first, second  # as flat as the stages' kernels are


register(SpatialSvd())

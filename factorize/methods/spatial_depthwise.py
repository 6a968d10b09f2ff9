"""A 1-D convolution of all channels and a depthwise 1-D one, by one small SVD per channel.

Equation     W[o,i,y,x] = sum_r P[o,r,i,y] Q[o,r,x]      (dense_first)
             W[o,i,y,x] = sum_r P[i,r,y] Q[o,i,r,x]      (depthwise_first)
Chain        k_h x 1: I -> O R, 1 x k_w in O groups: O R -> O;
             or k_h x 1 in I groups: I -> I R, 1 x k_w: I R -> O
Rank         R in 1..min(I k_h, k_w, k_h, O k_w)
MACs         O R (I k_h H' W + k_w H' W');   I R (k_h H' W + O k_w H' W')
Parameters   O R (I k_h + k_w);              I R (k_h + O k_w)
In 3-D       k_t x 1 x 1 and 1 x k_h x k_w
Wins         about 1 / k of the cost in two stages, without an iterative fit
Limits       the rank is coarse: R = 1 is about 1 / k of the cost, R = 2 twice that
Source       Mamalet & Garcia, "Simplifying ConvNets for fast learning", ICANN 2012, for filters of
             rank 1; the closed form is one SVD per filter
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec, Rank


class SpatialDepthwise(SvdMethod):
    """``dense_first`` or ``depthwise_first``: whether outputs or inputs have 1-D kernels each."""

    name = "spatial_depthwise"
    summary = "k x 1 of all channels, depthwise 1 x k (or depthwise k x 1 first), by SVD"
    variants = ("dense_first", "depthwise_first")
    min_axes = 2

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        one, two = spec.kernel[0], prod(spec.kernel[1:])
        by_output = min(spec.group_inputs * one, two)
        return (min(by_output, one, spec.group_outputs * two),)

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """All R: the hardware sees I R or O R channels, whose steps are the layer's own."""
        return super().rank_lines(spec, 1)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        inputs, outputs = spec.group_inputs, spec.group_outputs
        vertical, horizontal = spec.axes[:1], spec.axes[1:]
        if variant == "dense_first":
            return link(
                spec,
                stage(spec, vertical, inputs, outputs * rank[0]),
                stage(spec, horizontal, outputs * rank[0], outputs, groups=outputs),
            )
        return link(
            spec,
            stage(spec, vertical, inputs, inputs * rank[0], groups=inputs),
            stage(spec, horizontal, inputs * rank[0], outputs),
        )

    def matrix(self, weight: Tensor, variant: str) -> Tensor:  # noqa: D102
        weight = weight.flatten(3)  # (O, I, k_h, k_w)
        if variant == "dense_first":
            return weight.flatten(1, 2)  # (O, I k_h, k_w)
        return weight.permute(1, 2, 0, 3).flatten(2)  # (I, k_h, O k_w)

    def fold(  # noqa: D102
        self, left: Tensor, right: Tensor, weight: Tensor, variant: str
    ) -> tuple[Tensor, Tensor]:
        first = left.transpose(1, 2).flatten(0, 1)  # (O R, I k_h), (I R, k_h)
        if variant == "dense_first":
            return first, right  # (O, R, k_w)
        second = right.unflatten(2, (len(weight), -1))  # (I, R, O, k_w)
        return first, second.permute(2, 0, 1, 3).flatten(1, 2)


register(SpatialDepthwise())

"""Sum of T depthwise + pointwise pairs, as one depthwise and one pointwise convolution.

Equation     W[o,i,y,x] = sum_t P[o,i,t] D[i,t,y,x]    (depthwise_first)
             W[o,i,y,x] = sum_t D[o,t,y,x] P[o,t,i]    (pointwise_first)
Chain        k_h x k_w depthwise with multiplier T: I -> I T, 1x1: I T -> O;
             or 1x1: I -> O T, k_h x k_w in O groups: O T -> O
Rank         T in 1..min(I, O, k_h k_w)
MACs         I T (k_h k_w + O) H' W';   O T (I H W + k_h k_w H' W')
Parameters   I T (k_h k_w + O);         O T (I + k_h k_w)
Wins         very small shares of wide layers, without an iterative fit
Limits       the rank is coarse: T = 1 is about 1 / (k_h k_w) of the cost, T = 2 twice that
Source       Guo, Li, Lin, Chen, Li, "Network decoupling", BMVC 2018
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec, Rank


class DepthwisePointwise(SvdMethod):
    """``depthwise_first`` or ``pointwise_first``: one small SVD per input or output channel."""

    name = "depthwise_pointwise"
    summary = "T depthwise + pointwise pairs, as one of each (the rank is the multiplier T)"
    variants = ("depthwise_first", "pointwise_first")

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        return (min(spec.group_inputs, spec.group_outputs, prod(spec.kernel)),)

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """All T: the hardware sees I T or O T channels, whose steps are the layer's own."""
        return super().rank_lines(spec, 1)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        inputs, outputs = spec.group_inputs, spec.group_outputs
        if variant == "depthwise_first":
            wide = inputs * rank[0]
            return link(
                spec,
                stage(spec, spec.axes, inputs, wide, groups=inputs),
                stage(spec, (), wide, outputs),
            )
        wide = outputs * rank[0]
        return link(
            spec,
            stage(spec, (), inputs, wide),
            stage(spec, spec.axes, wide, outputs, groups=outputs),
        )

    def matrix(self, weight: Tensor, variant: str) -> Tensor:  # noqa: D102
        by_position = weight.flatten(2)  # (O, I, k_h k_w)
        if variant == "pointwise_first":
            return by_position
        return by_position.transpose(0, 1).contiguous()  # a batch that is strided takes three times

    def fold(  # noqa: D102
        self, left: Tensor, right: Tensor, weight: Tensor, variant: str
    ) -> tuple[Tensor, Tensor]:
        # One matrix per channel c: left (c, other, T), right (c, T, k_h k_w).
        if variant == "depthwise_first":
            return right, left.transpose(0, 1).flatten(1)  # (I T, 1, k), (O, I T)
        return left.transpose(1, 2).flatten(0, 1), right  # (O T, I), (O, T, k)


register(DepthwisePointwise())

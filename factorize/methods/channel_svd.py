"""Channel pair by SVD: a k_h x k_w convolution of few channels and a 1x1.

Equation     W[o,i,y,x] = sum_r B[o,r] C[r,i,y,x]      (spatial_first)
             W[o,i,y,x] = sum_r C[o,r,y,x] A[r,i]      (pointwise_first)
Chain        k_h x k_w: I -> R, 1x1: R -> O; or 1x1: I -> R, k_h x k_w: R -> O
Rank         R in 1..min(I, O)
MACs         R (I k_h k_w + O) H' W';   R I H W + R O k_h k_w H' W'
Parameters   R (I k_h k_w + O);         R (I + O k_h k_w)
Wins         linear and 1-D layers; a closed form also in the norm of the outputs
Limits       keeps the spatial cost: wins little where R must stay near the channel count
Source       Zhang, Zou, He, Sun, TPAMI 2016, section 3.1
"""

from __future__ import annotations

import torch
from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.svd import SvdMethod
from factorize.spec import ConvSpec, Rank
from factorize.tensor.norm import Norm


class ChannelSvd(SvdMethod):
    """``spatial_first`` or ``pointwise_first``: where the k_h x k_w convolution stands."""

    name = "channel_svd"
    min_axes = 0
    summary = "k x k to R channels then 1x1 (or the other order), by SVD"
    variants = ("spatial_first", "pointwise_first")

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        return (min(spec.group_inputs, spec.group_outputs),)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        axes = spec.axes
        first, second = (axes, ()) if variant == "spatial_first" else ((), axes)
        return link(
            spec,
            stage(spec, first, spec.group_inputs, rank[0]),
            stage(spec, second, rank[0], spec.group_outputs),
        )

    def fit(  # noqa: D102
        self,
        weight: Tensor,
        rank: Rank,
        variant: str,
        *,
        stages: tuple[ConvSpec, ...],
        norm: Norm,
        seed: int,
    ) -> tuple[Tensor, ...]:
        pointwise = weight[0, 0].numel() == 1  # then both orders are one
        if not norm.second or (variant == "pointwise_first" and not pointwise):
            return super().fit(weight, rank, variant, stages=stages, norm=norm, seed=seed)
        # The best W' of rank R projects the outputs on the leading eigenvectors of W S W^T.
        rows = weight.flatten(1)
        basis = torch.linalg.eigh(norm.times(rows) @ rows.T)[1][:, -rank[0] :]  # (O, R)
        return basis.T @ rows, basis

    def matrix(self, weight: Tensor, variant: str) -> Tensor:  # noqa: D102
        if variant == "spatial_first":
            return weight.flatten(1)  # (O, I k_h k_w)
        return weight.movedim(1, -1).flatten(0, -2)  # (O k_h k_w, I)

    def fold(  # noqa: D102
        self, left: Tensor, right: Tensor, weight: Tensor, variant: str
    ) -> tuple[Tensor, Tensor]:
        outputs, _, *kernel = weight.shape
        if variant == "spatial_first":
            return right, left  # (R, I k_h k_w), (O, R)
        return right, left.reshape(outputs, *kernel, -1).movedim(-1, 1)  # (R, I), (O, R, k_h, k_w)


register(ChannelSvd())

"""CP over four modes (flattened convolution): 1x1 and two one-dimensional depthwise stages.

Equation     W[o,i,y,x] = sum_r B[o,r] C[r,y] D[r,x] A[r,i]
Chain        1x1: I -> R, k_h x 1 depthwise: R, 1 x k_w depthwise: R, 1x1: R -> O
Rank         R in 1..(O I k_h k_w) / max(O, I, k_h, k_w), where the exact form is known
MACs         R I H W + R k_h H' W + R (k_w + O) H' W'
Parameters   R (I + k_h + k_w + O)
Wins         as accurate as `cp`, and cheaper where kernels are large
Limits       as `cp`; four layers deep, worth it for large kernels
Source       Lebedev et al., ICLR 2015; Jin, Dundar, Culurciello 2014
"""

from __future__ import annotations

from torch import Tensor

from factorize.methods.base import register
from factorize.methods.chain import link, stage
from factorize.methods.cp import Cp
from factorize.spec import ConvSpec, Rank
from factorize.tensor.cp import exact_rank


class Cp4(Cp):
    """Four modes: the spatial kernel of each component is separable too."""

    name = "cp4"
    min_axes = 2
    summary = "1x1, depthwise k x 1, depthwise 1 x k, 1x1 (four-way CP by ALS)"

    def modes(self, weight: Tensor) -> Tensor:
        """The kernel as it is: (O, I, *kernel)."""
        return weight

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        return (exact_rank((spec.group_outputs, spec.group_inputs, *spec.kernel)),)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        return link(
            spec,
            stage(spec, (), spec.group_inputs, rank[0]),
            *(stage(spec, (axis,), rank[0], rank[0], groups=rank[0]) for axis in spec.axes),
            stage(spec, (), rank[0], spec.group_outputs),
        )


register(Cp4())

"""CP over (output, input, position): 1x1, depthwise k_h x k_w, 1x1.

Equation     W[o,i,y,x] = sum_r B[o,r] C[r,y,x] A[r,i]
Chain        1x1: I -> R, k_h x k_w depthwise: R, 1x1: R -> O
Rank         R in 1..(O I k_h k_w) / max(O, I, k_h k_w), where the exact form is known
MACs         R I H W + R (k_h k_w + O) H' W'
Parameters   R (I + k_h k_w + O)
Wins         keeps most accuracy at a share of the MACs; fast where channels are many and maps small
Limits       no closed form: ALS may stop in a local minimum
Source       Lebedev et al., ICLR 2015, over three modes as in Astrid & Lee 2017
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from factorize.methods.base import Method, register
from factorize.methods.chain import link, stage
from factorize.spec import ConvSpec, Rank
from factorize.tensor import ranks
from factorize.tensor.cp import cp, energy_rank, exact_rank
from factorize.tensor.tensorly_form import cp_tensor


class Cp(Method):
    """Three modes: the spatial kernel of each component is free."""

    name = "cp"
    summary = "1x1, depthwise k x k, 1x1 (three-way CP by ALS)"

    def modes(self, weight: Tensor) -> Tensor:
        """The kernel as the tensor that is decomposed: (O, I, k_h k_w)."""
        return weight.flatten(2)

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        return (exact_rank((spec.group_outputs, spec.group_inputs, prod(spec.kernel))),)

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        return link(
            spec,
            stage(spec, (), spec.group_inputs, rank[0]),
            stage(spec, spec.axes, rank[0], rank[0], groups=rank[0]),
            stage(spec, (), rank[0], spec.group_outputs),
        )

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        outputs, inputs, *spatial = cp(self.modes(weight), rank[0], seed=seed)
        return inputs.T, *(factor.T for factor in spatial), outputs

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """By bisection over fits: there is no spectrum to read the rank off."""
        return (energy_rank(self.modes(weight), energy, most=most[0], seed=seed),)

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The largest VBMF rank of the unfoldings: no CP form of a lower rank can hold it."""
        tensor = self.modes(weight)
        return (max(ranks.unfolding_vbmf_rank(tensor, mode) for mode in range(tensor.ndim)),)

    def tensorly_form(self, weights: tuple[Tensor, ...]) -> Any:
        """A ``CPTensor`` of `modes`: (O, I, positions), in `cp4` (O, I, *kernel)."""
        first, *spatial, last = weights  # (R, I, ..), (R, 1, ..), (O, R, ..)
        return cp_tensor((last.flatten(1), *(w.flatten(1).T for w in (first, *spatial))))


register(Cp())

"""A k_h x k_w convolution in G groups and a 1x1, by one SVD per group.

Equation     W[o,(g,i),y,x] = sum_r B[o,g,r] C[g,r,i,y,x]      (spatial_first)
             W[(g,o),i,y,x] = sum_r C[g,o,r,y,x] A[g,r,i]      (pointwise_first)
Chain        k_h x k_w in G groups: I -> R, 1x1: R -> O; or 1x1: I -> R, k_h x k_w in G: R -> O
Rank         (R, G): R rounded up to a multiple of G, G down to a divisor of I (of O);
             R in 1..min(I min(O, k_h k_w), O min(I, k_h k_w)), G in 1..max(I, O)
MACs         R (I k_h k_w / G + O) H' W';   R I H W + R O k_h k_w / G H' W'
Parameters   R (I k_h k_w / G + O);         R (I + O k_h k_w / G)
Wins         costs between those of `channel_svd` and `depthwise_pointwise`, in two stages
Limits       G = 1 is `channel_svd`, G = I (O) `depthwise_pointwise`
Source       Liebenwein et al., "Compressing neural networks: towards determining the optimal
             layer-wise decomposition" (ALDS), NeurIPS 2021
"""

from __future__ import annotations

from math import ceil, prod

from torch import Tensor
from torch.nn.functional import pad

from factorize.methods.base import Method, register
from factorize.methods.chain import link, stage
from factorize.spec import ConvSpec, Rank
from factorize.tensor.ranks import discarded_share, energy_rank, matrix_vbmf_rank
from factorize.tensor.svd import singular_values, split

GROUPS = 4
"""Where only R is given."""

GROUPS_TRIED = (2, 4, 8)
"""In a search."""


class Grouped(Method):
    """``spatial_first`` or ``pointwise_first``: where the grouped convolution stands."""

    name = "grouped"
    summary = "k x k in G groups then 1x1 (or the other order), by SVD (ranks: R, G)"
    variants = ("spatial_first", "pointwise_first")
    closed = True

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        inputs, outputs, area = spec.group_inputs, spec.group_outputs, prod(spec.kernel)
        most = min(inputs * min(outputs, area), outputs * min(inputs, area))
        return most, max(inputs, outputs)

    def rank_of(self, value: int, spec: ConvSpec) -> Rank:
        """R, and the usual number of groups."""
        return value, min(GROUPS, value, self.max_rank(spec)[1])

    def rank_on(self, rank: Rank, of: ConvSpec, small: ConvSpec) -> Rank:
        """In as many groups."""
        return super().rank_on(rank, of, small)[0], min(rank[1], self.max_rank(small)[1])

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """One line per number of groups."""
        most, limit = self.max_rank(spec)
        tried = [g for g in GROUPS_TRIED if g <= limit]
        return [
            [(r, g) for r in range(multiple, most + 1, multiple)]
            for g in tried
            if (multiple := g * max(step // g, 1))
        ]

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        inputs, outputs = spec.group_inputs, spec.group_outputs
        if variant == "spatial_first":
            groups = divisor(inputs, rank[1])
            wide = groups * ceil(rank[0] / groups)
            return link(
                spec,
                stage(spec, spec.axes, inputs, wide, groups),
                stage(spec, (), wide, outputs),
            )
        groups = divisor(outputs, rank[1])
        wide = groups * ceil(rank[0] / groups)
        return link(
            spec,
            stage(spec, (), inputs, wide),
            stage(spec, spec.axes, wide, outputs, groups),
        )

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        matrices = _matrices(weight, rank[1], variant)
        each = ceil(rank[0] / len(matrices))
        left, right = split(matrices, min(each, *matrices.shape[1:]))
        missing = each - left.shape[2]
        left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
        if variant == "spatial_first":  # (G, O, r), (G, r, I/G k)
            return right.flatten(0, 1), left.movedim(0, 1).flatten(1)
        core = left.unflatten(1, (len(weight) // len(matrices), -1))  # (G, O/G, k, r)
        return right.flatten(0, 1), core.transpose(2, 3).flatten(0, 1)

    def predicted_error(self, weight: Tensor, rank: Rank, variant: str) -> float | None:
        """Root of the discarded squared singular values, relative to all."""
        matrices = _matrices(weight, rank[1], variant)
        return discarded_share(singular_values(matrices), ceil(rank[0] / len(matrices)))

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """In the usual number of groups, which share one rank."""
        matrices = _matrices(weight, GROUPS, variant)
        rank = energy_rank(singular_values(matrices), energy)
        return rank * len(matrices), len(matrices)

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The largest among the groups, in the usual number of them."""
        matrices = _matrices(weight, GROUPS, variant)
        return max(map(matrix_vbmf_rank, matrices)) * len(matrices), len(matrices)


def divisor(channels: int, most: int) -> int:
    """The largest divisor of a number of channels up to a limit."""
    return next(groups for groups in range(min(most, channels), 0, -1) if channels % groups == 0)


def _matrices(weight: Tensor, groups: int, variant: str) -> Tensor:
    """(G, O, I/G k), or (G, O/G k, I)."""
    outputs, inputs = weight.shape[:2]
    if variant == "spatial_first":
        groups = divisor(inputs, groups)
        return weight.unflatten(1, (groups, -1)).movedim(1, 0).flatten(2)
    groups = divisor(outputs, groups)
    return weight.movedim(1, -1).flatten(1, -2).unflatten(0, (groups, -1)).flatten(1, 2)


register(Grouped())

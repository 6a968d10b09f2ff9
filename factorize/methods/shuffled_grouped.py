"""Two grouped 1x1 convolutions around a channel shuffle.

Equation     W[(h,o),(g,i)] = sum_q B[h,o,q,g] A[g,h,q,i]
Chain        1x1 in G groups: I -> R, shuffle, 1x1 in G groups: R -> O
Rank         (R, G): G down to divisors g of I and h of O, R up to a multiple of g h;
             R in 1..the exact one at the most groups, G in 1..the root of min(I, O)
MACs         R I / g H' W' + R O / h H' W'
Parameters   R I / g + R O / h
Wins         1x1 layers, which have no spatial axis to factorize
Limits       1x1 layers only; each of the g h blocks of W has the same rank
Source       Zhang et al., "ShuffleNet", CVPR 2018, for the chain; Dao et al., "Monarch", ICML 2022,
             for the closed form: one SVD per block
"""

from __future__ import annotations

from math import ceil, isqrt, prod

from torch import Tensor
from torch.nn.functional import pad

from factorize.methods.base import Method, register
from factorize.methods.chain import link, shuffle, stage
from factorize.methods.grouped import GROUPS, GROUPS_TRIED, divisor
from factorize.spec import ConvSpec, Rank
from factorize.tensor.ranks import discarded_share, energy_rank, matrix_vbmf_rank
from factorize.tensor.svd import singular_values, split


class ShuffledGrouped(Method):
    """Every output still depends on every input, through few weights."""

    name = "shuffled_grouped"
    searched = False
    batched = True  # torch shuffles axis 1, whatever that is
    closed = True
    summary = "for 1x1: 1x1 in groups, channel shuffle, 1x1 in groups (ranks: R, G)"

    def supports(self, spec: ConvSpec) -> str | None:  # noqa: D102
        if prod(spec.kernel) != 1:
            return "shuffled_grouped is for 1x1 convolutions"
        if spec.groups > 1:
            return f"grouped convolution (groups={spec.groups}): its groups cannot be shuffled"
        return super().supports(spec)

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        inputs, outputs = spec.in_channels, spec.out_channels
        most = isqrt(min(inputs, outputs))
        exact = [
            min(inputs * divisor(outputs, groups), outputs * divisor(inputs, groups))
            for groups in range(1, most + 1)
        ]
        return max(exact), most

    def rank_of(self, value: int, spec: ConvSpec) -> Rank:
        """R, and the usual number of groups."""
        return value, min(GROUPS, value, self.max_rank(spec)[1])

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """One line per number of groups."""
        most, limit = self.max_rank(spec)
        lines = []
        for groups in (g for g in GROUPS_TRIED if g <= limit):
            both = divisor(spec.in_channels, groups) * divisor(spec.out_channels, groups)
            multiple = both * max(step // both, 1)
            lines.append([(r, groups) for r in range(multiple, most + 1, multiple)])
        return lines

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        inputs, outputs = spec.in_channels, spec.out_channels
        first, last = divisor(inputs, rank[1]), divisor(outputs, rank[1])
        wide = first * last * ceil(rank[0] / (first * last))
        return link(
            spec,
            stage(spec, spec.axes, inputs, wide, first),  # the stride first: fewer positions
            shuffle(spec, wide, first),
            stage(spec, (), wide, outputs, last),
        )

    def decompose(  # noqa: D102
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        blocks = _blocks(weight, rank[1])  # (h, g, O/h, I/g)
        each = ceil(rank[0] / prod(blocks.shape[:2]))
        left, right = split(blocks, min(each, *blocks.shape[2:]))
        missing = each - left.shape[3]
        left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
        first = right.transpose(0, 1).flatten(0, 2)  # ((g, h, q), I/g)
        last = left.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)  # ((h, o), (q, g))
        return first, weight.new_zeros(0), last

    def predicted_error(self, weight: Tensor, rank: Rank, variant: str) -> float | None:
        """Root of the discarded squared singular values, relative to all."""
        blocks = _blocks(weight, rank[1]).flatten(0, 1)
        return discarded_share(singular_values(blocks), ceil(rank[0] / len(blocks)))

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """In the usual number of groups, whose blocks share one rank."""
        groups = min(GROUPS, isqrt(min(weight.shape[:2])))
        blocks = _blocks(weight, groups).flatten(0, 1)
        return energy_rank(singular_values(blocks), energy) * len(blocks), groups

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The largest among the blocks of the usual number of groups."""
        groups = min(GROUPS, isqrt(min(weight.shape[:2])))
        blocks = _blocks(weight, groups).flatten(0, 1)
        return max(map(matrix_vbmf_rank, blocks)) * len(blocks), groups


def _blocks(weight: Tensor, groups: int) -> Tensor:
    """(h, g, O/h, I/g)."""
    outputs, inputs = weight.shape[:2]
    rows, columns = divisor(outputs, groups), divisor(inputs, groups)
    matrix = weight.flatten(1)  # (O, I)
    return matrix.unflatten(1, (columns, -1)).unflatten(0, (rows, -1)).transpose(1, 2)


register(ShuffledGrouped())

"""Block-term decomposition: a k_h x k_w core in groups of width w between two 1x1.

Equation     W[o,i,y,x] = sum_g sum_vu B[o,g,v] G[g,v,u,y,x] A[g,u,i]
Chain        1x1: I -> R, k_h x k_w in R / w groups of width w: R -> R, 1x1: R -> O
Rank         (R, w), R rounded up to a multiple of w; at most (the exact rank of `cp`, max(I, O))
MACs         R I H W + R (w k_h k_w + O) H' W'
Parameters   R (I + w k_h k_w + O)
Wins         where `cp` is accurate and slow: groups as wide as the hardware's vectors
Limits       no closed form; w = 1 is `cp`, w = R is Tucker-2 with equal ranks, which do them better
Source       De Lathauwer, SIAM J. Matrix Anal. Appl. 30 (2008); Chen et al., "Sharing residual
             units through collective tensor factorization", IJCAI 2018
"""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor

from factorize.methods.base import Method, register
from factorize.methods.chain import chain_kernel, link, shaped, stage
from factorize.methods.refine import refine
from factorize.spec import ConvSpec, Rank
from factorize.tensor.cp import exact_rank
from factorize.tensor.norm import Norm
from factorize.tensor.ranks import unfolding_vbmf_rank
from factorize.tensor.tucker import tucker2

WIDTH = 16
"""Of the groups where only R is given: the shape that vector units like."""

WIDTHS = (4, 8, 16, 32)
"""Tried in a search, the first three that the hardware's step allows."""

ROUGH = 0.03
"""Share of the squared error: blocks are not swept for less, which `refine` finds faster."""


class BlockTerm(Method):
    """Groups as wide as the hardware likes, at nearly the error of `cp`."""

    name = "block_term"
    summary = "1x1, k x k in groups of width w, 1x1 (ranks: R, w; between cp and tucker2)"

    def max_rank(self, spec: ConvSpec) -> Rank:  # noqa: D102
        outputs, inputs = spec.group_outputs, spec.group_inputs
        return exact_rank((outputs, inputs, prod(spec.kernel))), max(outputs, inputs)

    def rank_of(self, value: int, spec: ConvSpec) -> Rank:
        """R, and the usual width."""
        return value, min(WIDTH, value, self.max_rank(spec)[1])

    def rank_lines(self, spec: ConvSpec, step: int) -> list[list[Rank]]:
        """One line per width, of two groups and more."""
        most = self.max_rank(spec)[0]
        widths = [w for w in WIDTHS if w % step == 0][:3] or [step]
        return [[(r, w) for r in range(2 * w, most + 1, w)] for w in widths]

    def stages(self, spec: ConvSpec, rank: Rank, variant: str) -> tuple[ConvSpec, ...]:  # noqa: D102
        groups = ceil(rank[0] / rank[1])
        wide = groups * rank[1]
        return link(
            spec,
            stage(spec, (), spec.group_inputs, wide),
            stage(spec, spec.axes, wide, wide, groups=groups),
            stage(spec, (), wide, spec.group_outputs),
        )

    def decompose(
        self, weight: Tensor, rank: Rank, variant: str, *, seed: int
    ) -> tuple[Tensor, ...]:
        """Block after block: the best Tucker-2 term of width w of what is left of the kernel."""
        del seed
        width, rest = rank[1], weight.flatten(2)  # (O, I, K)
        outputs, inputs, positions = rest.shape
        ranks = min(width, outputs, inputs * positions), min(width, inputs, outputs * positions)
        first, cores, last = [], [], []
        for _ in range(ceil(rank[0] / width)):
            core, left, right = tucker2(rest, ranks, tolerance=ROUGH)
            rest = rest - torch.einsum("ov,vuk,iu->oik", left, core, right)
            # A core narrower than its group leaves zeros.
            core = _padded(_padded(core, 0, width), 1, width)
            first.append(_padded(right.T, 0, width))
            cores.append(core)
            last.append(_padded(left, 1, width))
        return torch.cat(first), torch.cat(cores), torch.cat(last, 1)

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
        start = shaped(stages, self.decompose(weight, rank, variant, seed=seed))
        return refine(stages, start, weight, norm)  # the blocks are not orthogonal to each other

    def rank_for_energy(
        self, weight: Tensor, energy: float, variant: str, *, most: Rank, seed: int
    ) -> Rank:
        """By bisection over fits at the usual width."""
        outputs, inputs, *kernel = weight.shape
        ones = (1,) * len(kernel)
        spec = ConvSpec("", f"conv{len(kernel)}d", inputs, outputs, tuple(kernel), ones, ones, ones)
        limit = self.max_rank(spec)
        width = min(WIDTH, limit[1])
        allowed = (1 - energy) ** 0.5
        low, high = 1, ceil(min(most[0] + 1, limit[0]) / width)  # blocks
        while low < high:
            middle = (low + high) // 2
            rank = (min(middle * width, limit[0]), width)
            stages = self.stages(spec, rank, variant)
            made = self.fit(weight, rank, variant, stages=stages, norm=Norm(), seed=seed)
            error = Norm().relative_error(weight, chain_kernel(stages, shaped(stages, made)))
            if error <= allowed:
                high = middle
            else:
                low = middle + 1
        return min(low * width, limit[0]), width

    def rank_by_vbmf(self, weight: Tensor, variant: str) -> Rank:
        """The larger VBMF rank of the channel unfoldings, at the usual width."""
        largest = max(unfolding_vbmf_rank(weight, mode) for mode in (0, 1))
        return largest, min(WIDTH, largest)


def _padded(matrix: Tensor, axis: int, size: int) -> Tensor:
    """Zeros appended to an axis up to a size."""
    missing = list(matrix.shape)
    missing[axis] = size - missing[axis]
    return torch.cat((matrix, matrix.new_zeros(missing)), axis)


register(BlockTerm())

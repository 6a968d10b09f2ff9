"""The squared error of a chain as a function of its weights: variable projection."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from factorize.methods.chain import chain_kernel
from factorize.spec import ConvSpec
from factorize.tensor.noise import noise
from factorize.tensor.norm import Norm

Weights = tuple[Tensor, ...]


class Joint:
    """The squared error as a function of the weights of all stages."""

    def __init__(
        self,
        stages: tuple[ConvSpec, ...],
        target: Tensor,
        norm: Norm,
        product: Tensor,
        scale: float,
    ) -> None:
        self.stages, self.target, self.norm = stages, target, norm
        self.product, self.scale = product, scale  # T S, tr(T S T^T)

    def to(self, dtype: torch.dtype) -> Joint:
        """The same in another dtype."""
        target, norm, product = self.target.to(dtype), self.norm.to(dtype), self.product.to(dtype)
        return type(self)(self.stages, target, norm, product, self.scale)

    def free(self, weights: Weights) -> Weights:
        """The weights that are moved."""
        return weights

    def weights(self, free: list[Tensor]) -> Weights:
        """The weights of all stages."""
        return tuple(free)

    def objective(self, free: list[Tensor], *, backward: bool = False) -> float:
        """``||T - W'||^2 / ||T||^2``; its gradients are added to those of the weights, if asked."""
        kernel = chain_kernel(self.stages, tuple(free)).flatten(1)
        with torch.no_grad():
            difference = kernel - self.target
            gradient = self.norm.times(difference)
            value = float((gradient * difference).sum()) / self.scale
        if backward:
            kernel.backward(2 / self.scale * gradient)
        return value


class Projected(Joint):
    """The squared error with the best last stage, as a function of the weights of the others.

    With the features F, the kernel from an input patch to a patch of the last stage, W' = B F and
    B = T S F^T (F S F^T)^-1. At the best B its own change does not count: the gradient is that
    with B held fixed. Independent noise on the features, a share n of each one's own square, adds
    n sum_r |b_r|^2 (F S F^T)_rr to the error, and n (F S F^T)_rr to the diagonal that is inverted.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.noise = noise()
        # Only one stage has an extent on an axis, so that each position of the last one reads
        # columns of its own: features are one block, at K places. All that follows is in the order
        # of positions, then of channels.
        self.columns = _by_position(self.stages, self.target.shape[1])  # (K, D / K)
        self.wanted = self._sorted(self.product)  # (O, K, D / K)

    def free(self, weights: Weights) -> Weights:
        """The weights of all stages but the last."""
        return weights[:-1]

    def weights(self, free: list[Tensor]) -> Weights:
        """The weights of all stages, the best last one among them."""
        with torch.no_grad():
            last, _, _, _ = self._last(self._block(free))
        kernel = last.unflatten(1, (len(self.columns), -1)).transpose(1, 2)
        return (*free, kernel.reshape(self.stages[-1].kernel_shape))

    def objective(self, free: list[Tensor], *, backward: bool = False) -> float:
        """As in `Joint`, with the best last stage, and what noise is expected to add."""
        block = self._block(free)
        with torch.no_grad():
            last, weighted, gram, inner = self._last(block)
            misfit = last @ gram - 2 * inner
            value = 1 + float((misfit * last).sum(dtype=torch.float64)) / self.scale
            gains = self.noise * last.square().sum(0)
            if self.noise:
                value += float((gains * gram.diagonal()).sum(dtype=torch.float64)) / self.scale
        if backward and block.requires_grad:
            with torch.no_grad():
                gradient = self._gradient(last, weighted)
                if self.noise:
                    own = weighted.unflatten(0, (len(self.columns), -1)).diagonal(dim1=0, dim2=2)
                    gradient += (gains.view(len(self.columns), -1, 1) * own.movedim(2, 0)).sum(0)
            block.backward(2 / self.scale * gradient)
        return value

    def _gradient(self, last: Tensor, weighted: Tensor) -> Tensor:
        """In the block, with the last stage held fixed: the sum of that at each of its places."""
        places = last.unflatten(1, (len(self.columns), -1))  # (O, K, C)
        if len(weighted) > len(last):  # the order that costs less
            misfit = (last @ weighted.flatten(1)).view_as(self.wanted) - self.wanted
            return places.flatten(0, 1).T @ misfit.flatten(0, 1)
        mixed = (last.T @ last).view(len(self.columns), -1, len(weighted))  # (K, C, K C)
        gradient = (mixed @ weighted.transpose(0, 1)).sum(0)
        return gradient - places.flatten(0, 1).T @ self.wanted.flatten(0, 1)

    def _block(self, free: list[Tensor]) -> Tensor:
        """The features (C, D / K) of the last stage at each of its positions."""
        if not free:  # a chain of one stage
            size = self.columns.shape[1]
            return torch.eye(size, dtype=self.target.dtype, device=self.target.device)
        return chain_kernel(self.stages[:-1], tuple(free)).flatten(1)

    def _last(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best last stage B (O, K C), and F S (K C, K, D / K), F S F^T, T S F^T."""
        block = block.detach()
        weighted = self._times(block)
        gram = (weighted @ block.T).flatten(1)
        inner = (self.wanted @ block.T).flatten(1)
        double = gram.dtype == torch.float64
        ridge = (1e-10 if double else 1e-6) * float(gram.diagonal().mean()) + 1e-30
        gram_ = gram + (ridge + self.noise * gram.diagonal()).diag()
        root, failed = torch.linalg.cholesky_ex(gram_)
        if int(failed):
            values, vectors = torch.linalg.eigh(gram_.double())
            inverse = torch.where(values > ridge, 1 / values, 0.0)
            last = (inner.double() @ vectors * inverse @ vectors.T).to(gram.dtype)
        else:
            last = torch.cholesky_solve(inner.T, root).T
        return last, weighted, gram, inner

    def _times(self, block: Tensor) -> Tensor:
        """``F S``, (K C, K, D / K)."""
        count = len(self.columns)
        if len(self.norm.second) == 1:
            return (block @ self._rows).flatten(0, 1).unflatten(1, (count, -1))
        features = block.new_zeros(count, len(block), self.target.shape[1])
        for place, columns in zip(features, self.columns, strict=True):
            place[:, columns] = block
        return self._sorted(self.norm.times(features.flatten(0, 1)))

    @cached_property
    def _rows(self) -> Tensor:
        """S (K, D / K, D)."""
        (second,), order = self.norm.second, self.columns.flatten()
        if len(self.columns) > 1:
            second = second[order][:, order]
        return second.unflatten(0, (len(self.columns), -1))

    def _sorted(self, rows: Tensor) -> Tensor:
        if len(self.columns) > 1:
            rows = rows[:, self.columns.flatten()]
        return rows.unflatten(1, (len(self.columns), -1))


def _by_position(stages: tuple[ConvSpec, ...], length: int) -> Tensor:
    """The columns (K, D / K) of a row of the weight that each position of the last stage reads."""
    last, axes = stages[-1].kernel, range(len(stages[-1].kernel))
    others = [prod(one.kernel[axis] for one in stages[:-1] if one.kernel) for axis in axes]
    extents = [extent for pair in zip(last, others, strict=True) for extent in pair]
    index = torch.arange(length).reshape(-1, *extents)
    order = (*(1 + 2 * axis for axis in axes), 0, *(2 + 2 * axis for axis in axes))
    return index.permute(order).reshape(prod(last), -1)

"""Chains made even before they are tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from factorize import methods
from factorize.graph.rewrite import kernel_of, swapped
from factorize.spec import ConvSpec
from factorize.types import Plan

SWEEPS = 30
EVEN = 1e-3  # relative


def balance_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give the two weights at each inner channel of each chain the same norm, in place.

    What the chain computes stays the same. Gradients are as large as the other factors of a
    product: where one factor is large and the next small, no learning rate fits both.
    """
    seen: set[int] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in plan.factorized:
        chain: Any = modules[layer.spec.name]
        stages = methods.chain_of(layer)
        if id(chain) in seen or any(id(s.weight) in seen for s in chain if hasattr(s, "weight")):
            continue  # a module or a weight that several layers share
        seen |= {id(chain), *(id(s.weight) for s in chain if hasattr(s, "weight"))}
        kernels = [kernel_of(module, spec) for module, spec in zip(chain, stages, strict=True)]
        even = _balanced(kernels, stages)
        with torch.no_grad():
            for module, spec, kernel in zip(chain, stages, even, strict=True):
                if kernel.numel():
                    module.weight.copy_(swapped(kernel, spec) if spec.transposed else kernel)
    return model


def _balanced(kernels: list[Tensor], stages: tuple[ConvSpec, ...]) -> list[Tensor]:
    """The same for kernels (O, I/groups, *k); a channel shuffle is one without entries."""
    for _ in range(SWEEPS):
        change = 0.0
        for at in range(len(kernels) - 1):
            one, two = kernels[at : at + 2]
            if not (one.numel() and two.numel()):
                continue
            parts = two.unflatten(0, (stages[at + 1].groups, -1))  # (g, O/g, I/g, *k)
            given = one.flatten(1).norm(dim=1)
            taken = parts.movedim(2, 1).flatten(2).norm(dim=2).flatten()
            scale = (taken / given).sqrt()
            scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
            kernels[at] = one * scale.view(-1, *(1,) * (one.ndim - 1))
            back = (1 / scale).view(len(parts), 1, -1, *(1,) * (two.ndim - 2))
            kernels[at + 1] = (parts * back).flatten(0, 1)
            change = max(change, float((scale - 1).abs().max()))
        if change < EVEN:
            break
    return kernels

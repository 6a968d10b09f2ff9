"""Chains as they stand in a model: made even before they are tuned, and multiplied out again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from factorize import methods
from factorize.graph.rewrite import dense_module, exchanged_, swapped
from factorize.methods.chain import chain_kernel
from factorize.spec import ConvSpec
from factorize.types import LayerPlan, Plan

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
        kernels = [_kernel(module, spec) for module, spec in zip(chain, stages, strict=True)]
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


def collapse_(model: nn.Module, plan: Plan) -> nn.Module:
    """Put one dense convolution in the place of each chain, in place; returns the model.

    Raises
    ------
    UnsupportedLayerError, RankError
        The plan is not that of the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    dense: dict[int, nn.Module] = {}
    weights: dict[tuple[int, ...], Any] = {}
    for layer in plan.factorized:
        chain: Any = modules[layer.spec.name]
        if id(chain) in dense:
            continue
        dense[id(chain)] = made = _collapsed(layer, chain)
        factors = tuple(id(stage.weight) for stage in chain if hasattr(stage, "weight"))
        made.weight = weights.setdefault(factors, made.weight)  # shared factors, shared weight
    return exchanged_(model, dense)


def _collapsed(layer: LayerPlan, chain: Any) -> nn.Module:
    spec, stages = layer.spec, methods.chain_of(layer)
    method = methods.get(layer.method or "")
    alone = method.stages(spec.one_group, layer.rank, layer.variant)
    kernels = [_kernel(module, one) for module, one in zip(chain, stages, strict=True)]
    groups = zip(*(kernel.chunk(spec.groups) if kernel.numel() else [kernel] * spec.groups
                   for kernel in kernels), strict=True)  # fmt: skip
    kernel = torch.cat([chain_kernel(alone, group) for group in groups])
    first, last = next(m for m in chain if hasattr(m, "weight")), chain[-1]
    module = dense_module(spec, device=first.weight.device, dtype=first.weight.dtype)
    with torch.no_grad():
        module.weight.copy_(swapped(kernel, spec) if spec.transposed else kernel)
        if spec.bias:
            module.bias.copy_(last.bias)
            module.bias.requires_grad_(last.bias.requires_grad)
    module.weight.requires_grad_(first.weight.requires_grad)
    return module.train(chain.training)


def _kernel(module: Any, spec: ConvSpec) -> Tensor:
    """(O, I/groups, *k) in float64; empty for a channel shuffle."""
    if not hasattr(module, "weight"):
        return torch.empty(0, dtype=torch.float64)
    weight = module.weight.detach().double()
    return swapped(weight, spec) if spec.transposed else weight

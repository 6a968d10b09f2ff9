"""Chains multiplied out again, to be cut anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from factorize import methods
from factorize.graph.carry import carry_, layout_of
from factorize.graph.rewrite import dense_module, exchanged_, kernel_of, swapped
from factorize.methods.chain import chain_kernel
from factorize.types import LayerPlan, Plan


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
    kernels = [kernel_of(module, one) for module, one in zip(chain, stages, strict=True)]
    groups = zip(*(kernel.chunk(spec.groups) if kernel.numel() else [kernel] * spec.groups
                   for kernel in kernels), strict=True)  # fmt: skip
    kernel = torch.cat([chain_kernel(alone, group) for group in groups])
    first, last = next(m for m in chain if hasattr(m, "weight")), chain[-1]
    module = dense_module(spec, device=first.weight.device, dtype=first.weight.dtype)
    with torch.no_grad():
        module.weight.copy_(swapped(kernel, spec) if spec.transposed else kernel)
        layout = layout_of(*(one.weight for one in chain if hasattr(one, "weight")))
        module.weight.data = module.weight.data.contiguous(memory_format=layout)
        if spec.bias:
            module.bias.copy_(last.bias)
            module.bias.requires_grad_(last.bias.requires_grad)
    module.weight.requires_grad_(first.weight.requires_grad)
    return carry_(chain, module.train(chain.training), leaving=True)

"""Put chains of plain convolutions where convolutions were."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from factorize.errors import PlanError
from factorize.graph.carry import carry_, layout_of
from factorize.graph.spec_of import KINDS, spec_of, weight_hooks
from factorize.spec import ConvSpec
from factorize.tensor.call import evaluating
from factorize.types import Factorization

_CLASSES: dict[str, Any] = {kind: cls for cls, kind in KINDS.items()}


def effective_weight(module: nn.Module) -> Tensor:
    """The weight that the module convolves with: parametrisations and weight hooks applied.

    Returns
    -------
    (O, I/groups, *kernel), of a transposed convolution too.
    """
    weight = stored_weight(module)
    return swapped(weight, spec_of(module, "")) if getattr(module, "transposed", False) else weight


def stored_weight(module: nn.Module) -> Tensor:
    """As `effective_weight`, but of a transposed convolution as it is, (I, O/groups, *kernel).

    Evaluated in eval mode: spectral norm would otherwise take a power step.
    """
    with evaluating(module):
        if hooks := weight_hooks(module):
            module = copy.copy(module)  # they set its weight
            for hook in hooks:
                hook(module, ())
        return module.weight.detach()  # type: ignore[union-attr]


def swapped(weight: Tensor, spec: ConvSpec) -> Tensor:
    """(I, O/groups, *kernel) from (O, I/groups, *kernel), and back: each group's channels."""
    return weight.unflatten(0, (spec.groups, -1)).transpose(1, 2).flatten(0, 1)


def rewrite_(model: nn.Module, factorizations: Mapping[str, Factorization]) -> nn.Module:
    """Replace the named convolutions in place; returns the model, or the chain of a root.

    A module used in several places is replaced once and stays shared. Modules that share a weight
    share the factors, where they are factorized alike. Mode, requires_grad, dtype, device, memory
    format, hooks and a user's own attributes are those of the replaced module.

    Parameters
    ----------
    factorizations
        By module name. The last stage's bias is the module's unless another was fitted.

    Raises
    ------
    PlanError
        A name is not a convolution of the model, or not the one that was factorized. Nothing has
        been changed then.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, made in factorizations.items():
        check_layer(modules.get(name), made.spec)

    shared: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    chains: dict[int, nn.Sequential] = {}
    for name, made in factorizations.items():
        module = modules[name]
        chain = build_chain(made, module)
        carry_(module, chain, leaving=True)
        key = (id(module._parameters.get("weight", module)), made.method, made.rank, made.variant)
        stages: list[Any] = [stage for stage in chain if hasattr(stage, "weight")]
        mates = shared.setdefault(key, [stage.weight for stage in stages])
        pairs = list(zip(stages, mates, strict=True))
        if all(torch.equal(stage.weight, mate) for stage, mate in pairs):
            for stage, mate in pairs:
                stage.weight = mate
        chains[id(module)] = chain
    return exchanged_(model, chains)


def exchanged_(model: nn.Module, others: Mapping[int, nn.Module]) -> nn.Module:
    """Put modules in the place of those of an ``id``, under each of their names, in place.

    Returns the model, or what takes its own place.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if id(module) in others and name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, others[id(module)])
    return others.get(id(model), model)


def build_chain(made: Factorization, module: Any) -> nn.Sequential:
    """The chain as modules, in all else like the convolution that it replaces.

    Hooks and attributes of a user's are not on it: who fits a layer runs it in the layer's place,
    with the layer's own hooks around it.
    """
    weight = effective_weight(module)
    trainable = any(p.requires_grad for n, p in module.named_parameters() if n != "bias")
    layers, layout = [], layout_of(*module.parameters())
    for stage, values in zip(made.stages, made.weights, strict=True):
        layer = dense_module(stage, device=weight.device, dtype=weight.dtype)
        layers.append(layer)
        if not values.numel():
            continue
        with torch.no_grad():
            layer.weight.copy_(swapped(values, stage) if stage.transposed else values)
            if stage.bias:
                layer.bias.copy_(module.bias if made.bias is None else made.bias)
                layer.bias.requires_grad_(module.bias.requires_grad)
            layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
        layer.weight.requires_grad_(trainable)
    return nn.Sequential(*layers).train(module.training)


def dense_module(stage: ConvSpec, **factory: Any) -> Any:
    """A module whose weights are not initialised: random numbers are the user's."""
    if stage.kind == "channel_shuffle":
        return nn.ChannelShuffle(stage.groups)
    made = {"bias": stage.bias, **factory}
    if stage.kernel:
        made |= {
            "kernel_size": stage.kernel, "stride": stage.stride, "padding": stage.padding,
            "dilation": stage.dilation, "groups": stage.groups, "padding_mode": stage.padding_mode,
        }  # fmt: skip
    if stage.transposed:
        made["output_padding"] = stage.output_padding
    return skip_init(_CLASSES[stage.kind], stage.in_channels, stage.out_channels, **made)


def check_layer(module: nn.Module | None, spec: ConvSpec) -> None:
    """Raise PlanError unless the module is the convolution that was planned for."""
    if not isinstance(module, tuple(KINDS)):
        found = "no such module" if module is None else type(module).__name__
        raise PlanError(
            f"{spec.label}: the plan must name convolutions of this model, got {found}. "
            "Make the plan from this model."
        )
    if difference := spec_of(module, spec.name).difference(spec):
        raise PlanError(f"{spec.label}: {difference}. Make the plan from this model.")


def kernel_of(module: Any, spec: ConvSpec) -> Tensor:
    """(O, I/groups, *k) in float64; empty for a channel shuffle."""
    if not hasattr(module, "weight"):
        return torch.empty(0, dtype=torch.float64)
    weight = module.weight.detach().double()
    return swapped(weight, spec) if spec.transposed else weight

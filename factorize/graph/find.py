"""Find every convolution of a model, its attributes, its sizes, and what forbids replacing it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from factorize.errors import DataError, NoConvolutionError, UnsupportedLayerError
from factorize.graph import stand_ins
from factorize.graph.carry import hooks_of
from factorize.graph.rewrite import dense_module
from factorize.graph.spec_of import KINDS, is_convolution, is_quantized, spec_of, weight_hooks
from factorize.graph.watch import Run, Seen, undisturbed, watched
from factorize.spec import ConvSpec
from factorize.tensor.call import batch_size, evaluating
from factorize.tensor.twins import LEFT_ALONE
from factorize.types import ConvSite


def find(model: nn.Module, example_input: Any) -> tuple[ConvSite, ...]:
    """Every convolution and linear layer, in the order of execution, uncalled ones last.

    The model is run on the example, in eval mode and without gradients; its own mode, its buffers
    and the random state are as before. It is run once to see what is called and how, and twice to
    see that chains may stand in for the layers (more often, to find those for which none may).

    Parameters
    ----------
    model
        Any module.
    example_input
        A tuple is passed as positional arguments, a dict as keyword arguments, anything else as
        the single argument.

    Raises
    ------
    NoConvolutionError
        The model has no convolution.
    UnsupportedLayerError
        The model does not run on the example.
    """
    names: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_convolution(module) or isinstance(module, nn.Linear):
            names[id(module)].append(name)
            modules[id(module)] = module
    if not any(map(is_convolution, modules.values())):
        raise NoConvolutionError(
            f"{type(model).__name__}: the model must have at least one convolution, found none "
            f"among {sum(1 for _ in model.modules())} modules."
        )

    with watched(list(modules.values()), _samples(example_input)) as run:
        try:
            undisturbed(model, example_input)
        except Exception as error:
            raise UnsupportedLayerError(
                f"{type(model).__name__}: the model must run on the example input, got "
                f"{type(error).__name__}: {_one_line(error)}. Give one of the "
                "shape that it takes (--input-shape)."
            ) from error

    owners = _parameter_owners(model)
    order = sorted(modules, key=lambda key: run.seen[key].order)
    with evaluating(model):  # reading a spectral norm's weight in train mode changes it
        sites = tuple(
            _site(names[key], modules[key], run.seen[key], owners, names, modules) for key in order
        )
    found = zip(order, sites, strict=True)
    free = {key: (modules[key], site.spec) for key, site in found if site.blocked is None}
    reasons = stand_ins.refused(model, free, example_input)
    sites = tuple(
        replace(site, blocked=reasons.get(key, site.blocked))
        for key, site in zip(order, sites, strict=True)
    )
    return _with_parallel(sites, run, names)


def _with_parallel(
    sites: Sequence[ConvSite], run: Run, names: dict[int, list[str]]
) -> tuple[ConvSite, ...]:
    """Tell of equal convolutions whose outputs are concatenated: one could do them all."""
    by_name = {site.spec.name: site for site in sites}
    for joined in run.joined:
        members = [names[key][0] for key in joined]
        specs = [replace(by_name[name].spec, name="") for name in members]
        called_once = all(len(spec.input_sizes) == 1 for spec in specs)
        if called_once and specs[0].kernel and all(spec == specs[0] for spec in specs):
            for name in members:
                others = tuple(other for other in members if other != name)
                by_name[name] = replace(by_name[name], parallel=others)
    return tuple(by_name[site.spec.name] for site in sites)


def _samples(example_input: Any) -> int:
    try:
        return max(batch_size(example_input), 1)
    except DataError:  # nothing that has a batch axis
        return 1


def _site(
    names: list[str],
    module: Any,
    seen: Seen,
    owners: dict[int, list[tuple[str, nn.Module]]],
    all_names: dict[int, list[str]],
    modules: dict[int, Any],
) -> ConvSite:
    spec = spec_of(module, names[0], tuple(seen.sizes))
    tied, foreign = [], []
    for name, owner in owners.get(id(module._parameters.get("weight")), []):
        if owner is module:
            continue
        if id(owner) in modules and _alike(spec_of(owner, ""), spec):
            tied.append(all_names[id(owner)][0])
        else:
            foreign.append(name)
    return ConvSite(
        spec=spec,
        aliases=tuple(names[1:]),
        tied=tuple(dict.fromkeys(tied)),
        blocked=_blocked(module, seen, foreign),
        notes=tuple(_notes(module)),
        unbatched=seen.unbatched,
    )


def _alike(one: ConvSpec, two: ConvSpec) -> bool:
    """Whether one weight means the same in both: a transposed convolution reads it backwards."""
    return (one.kind, one.groups) == (two.kind, two.groups)


def _blocked(module: Any, seen: Seen, foreign: list[str]) -> str | None:
    """Why the module must stay as it is, whatever the method."""
    if reason := forbidden(module):
        return reason
    if foreign:
        return f"its weight is also used by {', '.join(foreign)}, which is no layer of its kind"
    if seen.read_outside:
        what = ", ".join(sorted(seen.read_outside))
        return f"the model reads its {what} outside of the layer's own call"
    if seen.told_more:
        return "the model calls it with more than its input, such as an output_size"
    if not seen.sizes:
        return "never called by the example input"
    if not torch.isfinite(module.weight).all():
        return "its weight is not finite"
    return None


def forbidden(module: Any) -> str | None:
    """Why a module is not a convolution, or linear layer, that another could stand in for."""
    cls: Any = type(module)
    if reason := vars(module).get(LEFT_ALONE):
        return reason
    if is_quantized(module):
        return f"{cls.__name__} is quantized: factorize the float model, then quantize"
    plain = next((base for base in KINDS if isinstance(module, base)), None)
    if parametrize.is_parametrized(module):
        cls = cls.__mro__[1]  # torch makes a subclass for each parametrised module
        if parametrize.is_parametrized(module, "bias"):
            return "its bias is parametrised"
    if plain is None:
        return f"{cls.__name__} is not one of torch's convolutions"
    if isinstance(module, LazyModuleMixin):
        return "lazy module whose shape is not known yet"
    for method in ("forward", "_conv_forward", "__call__"):
        own = getattr(cls, method, None) is not getattr(plain, method, None)
        if own or method in vars(module):
            return f"{cls.__name__} has a {method} of its own: it computes more than {KINDS[plain]}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        fresh = dense_module(spec_of(module, ""), device="meta")
        sides = [list(vars(one)["_reversed_padding_repeated_twice"]) for one in (fresh, module)]
        if sides[0] != sides[1]:
            return "its padding was changed since it was made: torch pads by what it was"
    weight: Any = module.weight
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.is_complex() or not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not a real floating type"
    return "its weight is sparse" if weight.layout != torch.strided else None


def _notes(module: Any) -> Iterator[str]:
    if parametrize.is_parametrized(module, "weight") or weight_hooks(module):
        yield "weight parametrisation folded into the weights"
    kept, dropped = hooks_of(module)
    if kept:
        yield f"{kept} hook(s) on the layer are on its chain"
    if dropped:
        yield f"{dropped} hook(s) by register_backward_hook, which cannot see a chain, dropped"


def _parameter_owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append((name, module))
    return owners


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")

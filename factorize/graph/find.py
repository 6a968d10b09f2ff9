"""Find every convolution of a model, its attributes, its sizes, and what forbids replacing it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from factorize.errors import NoConvolutionError, UnsupportedLayerError
from factorize.tensor.call import call, evaluating
from factorize.types import ConvSite, ConvSpec, Size

_KINDS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}

# What a chain that stands in for a convolution no longer has.
_OWN_ATTRIBUTES = frozenset(
    [
        "weight",
        "bias",
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "transposed",
        "output_padding",
        "groups",
        "padding_mode",
        "_conv_forward",
    ]
)


def find(model: nn.Module, example_input: Any) -> tuple[ConvSite, ...]:
    """Every convolution in the module tree, in the order of execution, uncalled ones last.

    The model is run once on the example, in eval mode and without gradients; its own mode, its
    buffers and the random state are as before.

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
    modules: dict[int, _ConvNd] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvNd):
            names[id(module)].append(name)
            modules[id(module)] = module
    if not modules:
        raise NoConvolutionError(
            f"{type(model).__name__}: the model must have at least one convolution, found none "
            f"among {sum(1 for _ in model.modules())} modules."
        )

    with _watched(list(modules.values())) as seen:
        try:
            with evaluating(model), torch.random.fork_rng(devices=_cuda_devices(model)):
                call(model, example_input)
        except Exception as error:
            raise UnsupportedLayerError(
                f"{type(model).__name__}: the model must run on the example input, got "
                f"{type(error).__name__}: {_one_line(error)}. Correct the input shape."
            ) from error

    owners = _parameter_owners(model)
    order = sorted(modules, key=lambda key: seen[key].order)
    with evaluating(model):  # reading a spectral norm's weight in train mode changes it
        return tuple(
            _site(names[key], modules[key], seen[key], owners, names, modules) for key in order
        )


@dataclass
class _Seen:
    """What one run told about one module."""

    order: float = float("inf")
    sizes: list[Size] = field(default_factory=list)
    inside: int = 0
    read_outside: set[str] = field(default_factory=set)


@contextmanager
def _watched(modules: list[_ConvNd]) -> Iterator[dict[int, _Seen]]:
    """Record each module's calls, and reads of its attributes from outside of its own call.

    A model that computes with ``self.conv.weight`` breaks when the convolution is replaced. Hooks
    cannot see that, so each instance gets, for the time of one run, a subclass that looks.
    """
    seen = {id(module): _Seen() for module in modules}
    classes = {id(module): module.__class__ for module in modules}
    calls = 0

    def spy(original: Any) -> type:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            nonlocal calls
            calls += 1
            record = seen[id(self)]
            record.order = min(record.order, calls)
            given = args[0] if args else kwargs.get("input")
            axes = len(object.__getattribute__(self, "kernel_size"))
            if isinstance(given, torch.Tensor):
                record.sizes.append(tuple(given.shape[-axes:]))
            record.inside += 1
            try:
                return original.__call__(self, *args, **kwargs)
            finally:
                record.inside -= 1

        def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807
            if name in _OWN_ATTRIBUTES and not seen[id(self)].inside:
                seen[id(self)].read_outside.add(name)
            return original.__getattribute__(self, name)

        namespace = {"__call__": __call__, "__getattribute__": __getattribute__}
        return type(original.__name__, (original,), namespace)

    spies = {cls: spy(cls) for cls in set(classes.values())}
    try:
        for module in modules:
            module.__class__ = spies[module.__class__]
        yield seen
    finally:
        for module in modules:
            module.__class__ = classes[id(module)]


def _site(
    names: list[str],
    module: _ConvNd,
    seen: _Seen,
    owners: dict[int, list[tuple[str, nn.Module]]],
    all_names: dict[int, list[str]],
    modules: dict[int, _ConvNd],
) -> ConvSite:
    spec = spec_of(module, names[0], tuple(seen.sizes))
    tied, foreign = [], []
    for name, owner in owners.get(id(module._parameters.get("weight")), []):
        if owner is module:
            continue
        if id(owner) in modules:
            tied.append(all_names[id(owner)][0])
        else:
            foreign.append(name)
    return ConvSite(
        spec=spec,
        aliases=tuple(names[1:]),
        tied=tuple(dict.fromkeys(tied)),
        blocked=_blocked(module, spec, seen, foreign),
        notes=tuple(_notes(module)),
    )


def spec_of(module: _ConvNd, name: str, input_sizes: tuple[Size, ...] = ()) -> ConvSpec:
    """All attributes of a convolution module."""
    kind = next((k for cls, k in _KINDS.items() if isinstance(module, cls)), type(module).__name__)
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    return ConvSpec(
        name=name,
        kind=kind,
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding="same" if padding == "same" else tuple(int(p) for p in padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
        bias=module.bias is not None,
        output_padding=tuple(module.output_padding) if module.transposed else (),
        input_sizes=input_sizes,
    )


def _blocked(module: _ConvNd, spec: ConvSpec, seen: _Seen, foreign: list[str]) -> str | None:
    """Why the module must stay as it is, whatever the method."""
    cls = type(module)
    plain = next((base for base in _KINDS if isinstance(module, base)), None)
    if parametrize.is_parametrized(module):
        cls = cls.__mro__[1]  # torch makes a subclass for each parametrised module
        if parametrize.is_parametrized(module, "bias"):
            return "its bias is parametrised"
    if plain is None:
        return f"{cls.__name__} is not one of torch's convolutions"
    if isinstance(module, LazyModuleMixin):
        return "lazy module whose shape is not known yet"
    for method in ("forward", "_conv_forward", "__call__"):
        if getattr(cls, method) is not getattr(plain, method) or method in vars(module):
            return f"{cls.__name__} has a {method} of its own: it computes more than a convolution"
    weight = module.weight
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.is_complex() or not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not a real floating type"
    if weight.layout != torch.strided:
        return "its weight is sparse"
    if foreign:
        return f"its weight is also used by {', '.join(foreign)}, which is not a convolution"
    if seen.read_outside:
        what = ", ".join(sorted(seen.read_outside))
        return f"the model reads its {what} outside of the layer's own call"
    if not seen.sizes:
        return "never called by the example input"
    if not torch.isfinite(weight).all():
        return "its weight is not finite"
    return None


def _notes(module: _ConvNd) -> Iterator[str]:
    if parametrize.is_parametrized(module, "weight") or _weight_hooks(module):
        yield "weight parametrisation folded into the weights"
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    count = sum(len(getattr(module, kind)) for kind in kinds) - len(_weight_hooks(module))
    if count:
        yield f"{count} hook(s) on the layer dropped"


def _weight_hooks(module: nn.Module) -> list[Any]:
    """Pre-forward hooks by which torch computes the weight (weight_norm, spectral_norm, prune)."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils")]


def _parameter_owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append((name, module))
    return owners


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(d.index or 0 for d in devices)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")

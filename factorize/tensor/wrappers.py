"""A model as the caller has it, taken out of all that stands around its layers, or refused."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from factorize.errors import ModelLoadError, UnsupportedLayerError

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_COMPILED = "_compiled_call_impl"  # where `Module.compile` keeps what it made


def unwrap(module: nn.Module) -> nn.Module:
    """Take a module out of DataParallel, DistributedDataParallel and torch.compile."""
    return [module, *(inner for _, inner in _wrappers(module))][-1]


def _wrappers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each wrapper around a module with what is in it, from outside to inside."""
    for _ in range(4):  # a crafted file may hold a wrapper of itself
        inner = module
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        elif type(module).__name__ == "OptimizedModule":
            inner = module.get_submodule("_orig_mod")
        if inner is module:
            return
        yield module, inner
        module = inner


def prepared(model: Any, *, in_place: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
    """The model to work on, in which every layer stands by itself, and what to tell of it.

    Parameters
    ----------
    model
        A model with nothing around its layers is returned as it is.
    in_place
        Whether to unwrap submodules in the model itself; without, in a copy that has the same
        parameters and buffers.

    Raises
    ------
    ModelLoadError
        It is no module, or one whose layers are not to be had: the message says what it is.
    UnsupportedLayerError
        It has wrappers inside, and cannot be copied.
    """
    check_module(model)
    inner = unwrap(model)
    check_module(inner)
    wrappers = [module for module in inner.modules() if unwrap(module) is not module]
    compiled = any(vars(module).get(_COMPILED) for module in inner.modules())
    around = [wrapper for wrapper, _ in _wrappers(model)]
    notes = tuple(_notes({type(wrapper).__name__ for wrapper in (*around, *wrappers)}, compiled))
    if not (wrappers or compiled):
        return inner, notes
    if in_place:
        for module in list(inner.modules()):
            vars(module).pop(_COMPILED, None)
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = unwrap(child)
        return inner, notes
    try:
        return _unwrapped_copy(inner, wrappers), notes
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(inner).__name__}: a model with compiled or parallel modules in it must be one "
            f"that copy.deepcopy can copy, got {type(error).__name__}: {error}. Give the model as "
            "it was before."
        ) from error


def _unwrapped_copy(model: nn.Module, wrappers: list[nn.Module]) -> nn.Module:
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    for wrapper in reversed(wrappers):  # those inside of others first
        memo[id(wrapper)] = copy.deepcopy(unwrap(wrapper), memo)
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        vars(module).pop(_COMPILED, None)
    return made


def _notes(kinds: set[str], compiled: bool) -> Iterator[str]:
    if compiled or "OptimizedModule" in kinds:
        yield "the result is not compiled, as the model was: compile it again"
    for kind in sorted(kinds - {"OptimizedModule"}):
        yield f"the result is not in a {kind}, as the model was: wrap it again"


def check_module(model: Any) -> None:
    """Raise ModelLoadError unless this is a module whose layers can be reached.

    Its message is one line: what it is, and what to do.
    """
    if told := _refusal(model):
        raise ModelLoadError(f"model: must be an nn.Module, got {told}")


def _refusal(model: Any) -> str | None:
    name, place = type(model).__name__, type(model).__module__
    if isinstance(model, (str, os.PathLike)):
        return (
            f"a path or name, {os.fspath(model)!r}. Load the module first; the command line takes "
            "files and names: factorize MODEL."
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        return (
            f"TorchScript ({name}), whose layers cannot be replaced. Give the nn.Module that it "
            "was made of, with its state_dict() loaded."
        )
    if (name == "ExportedProgram" and place.startswith("torch.export")) or _is_exported(model):
        return (
            "an exported program (torch.export), in which convolutions are no modules. Give the "
            "nn.Module that was exported, with its state_dict loaded. The command line takes "
            "files of torch.export.save."
        )
    if isinstance(model, type):
        return f"the class {model.__name__}. Give an instance of it."
    if isinstance(model, nn.Module):
        if sharded := next(filter(None, map(_sharded, model.modules())), None):
            return (
                f"one that is sharded ({sharded}): no process has its weights. Factorize it before "
                "it is sharded, or load its full state dict into the plain nn.Module."
            )
        return None
    if isinstance(model, Mapping):
        return f"a {name}. A state dict has weights and no net: load it into its nn.Module."
    if isinstance(model, MethodType) and isinstance(model.__self__, nn.Module):
        return f"the method {model.__name__} of one. Give the module itself."
    if callable(model):
        return (
            f"a function ({getattr(model, '__name__', name)}), whose layers cannot be seen. Give "
            "the nn.Module that it calls, or make it the forward of one."
        )
    return f"a {place}.{name}. Give a PyTorch module."


def _is_exported(model: Any) -> bool:
    """Whether this is what `ExportedProgram.module` gives: operators, and no layers."""
    if not isinstance(model, torch.fx.GraphModule):
        return False
    if any(isinstance(module, _ConvNd) for module in model.modules()):
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)


def _sharded(module: nn.Module) -> str | None:
    return next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _SHARDED), None)


def interpreted() -> AbstractContextManager[None]:
    """Run without compiling, whatever in a model is decorated with torch.compile."""
    if "torch._dynamo" not in sys.modules:  # nothing can be, and importing it takes long
        return nullcontext()
    return torch.compiler.set_stance("force_eager")

"""Checks of a run: of what is asked for, before any work, and of what came out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize.errors import DeviceError, NoConvolutionError, UnsupportedLayerError
from factorize.tensor.call import call, evaluating
from factorize.types import Data, Plan


def resolve_device(device: str) -> str:
    """``auto`` as what is there; checks that what is asked for is there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise DeviceError(f"--device must be auto, cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda needs a CUDA device that torch can use, found none.")
    return device


def check_not_empty(plan: Plan) -> None:
    """Raise NoConvolutionError where a plan changes nothing."""
    if not plan.factorized:
        largest = max(plan.layers, key=lambda layer: layer.spec.macs)
        exact = plan.settings.get("rank") == "lossless"
        fix = "Allow a loss with --rank" if exact else "Lower the rank"
        raise NoConvolutionError(
            f"all {len(plan.layers)} convolutions stay dense: there is nothing to do (the largest, "
            f"{largest.spec.label}: {largest.skip_reason}). {fix}, see --dry-run for each."
        )


def check_runs(model: nn.Module, plan: Plan, example_input: Any) -> Any:
    """The output: a model may use its convolutions in ways that no walk can see."""
    modules = dict(model.named_modules(remove_duplicate=False))
    called: set[str] = set()
    hooks = [
        modules[name].register_forward_hook(lambda *_, name=name: called.add(name))
        for name in (layer.spec.name for layer in plan.factorized)
    ]
    try:
        with evaluating(model):
            output = call(model, example_input)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__}: the rewritten model does not run, {type(error).__name__}: "
            f"{' '.join(str(error).split())}. Leave the layer that it needs alone with --exclude."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for layer in plan.factorized:
        if layer.spec.name not in called:
            raise UnsupportedLayerError(
                f"{layer.spec.label}: the model still calls the convolution that was replaced: it "
                "holds it in a list, a closure or a cache. Leave it alone with --exclude."
            )
    return output


def class_remark(output: Any, data: Data | None) -> list[str]:
    """Folders of ten classes are no test of a net of a thousand: their numbers differ."""
    if data is None or not data.classes or not isinstance(output, torch.Tensor):
        return []
    if output.ndim != 2 or output.shape[1] == data.classes:
        return []
    return [
        f"the model has {output.shape[1]} outputs, {data.source} {data.classes} classes: top-1 "
        "means something only if both number them alike, and labels are not used to tune"
    ]


def exists(path: Path) -> bool:
    """Whether a file is there; what can have no file, such as a name without end, has none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

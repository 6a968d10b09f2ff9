"""Checks of a run: of what is asked for, before any work, and of what came out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize.errors import (
    BudgetError,
    DataError,
    DeviceError,
    ExportError,
    FactorizeError,
    NoConvolutionError,
    PlanError,
    UnsupportedLayerError,
)
from factorize.export import OnnxConfig
from factorize.fit import FitConfig
from factorize.measure import Recorded, Target, runtimes
from factorize.onnx_graph import Twin
from factorize.outputs import UNDECLARED, Outputs
from factorize.plan import Budget
from factorize.quantize.source import OPSET, unsuited
from factorize.search import SearchConfig
from factorize.tensor.call import call, evaluating, model_dtype, rows_of, to_model
from factorize.tensor.output_kinds import guess, kind_of, named_floats
from factorize.tune import FinetuneConfig
from factorize.types import Data, LayerPlan, Plan

GUESSED_FROM = 32  # images
REASONS = 3  # that a message names
_OWN_NAMES = ("model.onnx", "model.safetensors", "plan.json", "report.json", "report.html")


_CONFIGS: dict[str, tuple[tuple[type, ...], type[FactorizeError], str]] = {
    "plan": ((Plan,), PlanError, 'load_plan("plan.json")'),
    "edited": ((Plan,), PlanError, 'load_plan("plan.json")'),
    "budget": ((Budget,), BudgetError, "Budget(speedup=2)"),
    "search": ((SearchConfig,), BudgetError, 'SearchConfig(sweep="auto")'),
    "fit": ((FitConfig,), DataError, 'FitConfig("sequential")'),
    "onnx": ((OnnxConfig,), ExportError, "OnnxConfig(opset=17)"),
    "finetune": ((int, FinetuneConfig), DataError, "an integer, or FinetuneConfig(2)"),
}


def check_configs(**given: Any) -> None:
    """Raise where an argument is of another class than its name says."""
    for name, value in given.items():
        classes, error, example = _CONFIGS[name]
        if value is not None and (not isinstance(value, classes) or isinstance(value, bool)):
            wanted = " or ".join(one.__name__ for one in classes)
            raise error(f"{name}: must be {wanted}, got {value!r}. Give {example}.")


def check_twins(twin: Twin, onnx: OnnxConfig | None, target: Target | None) -> None:
    """Raise ExportError for what an ONNX file, which is written as it was, has no room for."""
    file = twin.onnx_file
    if onnx not in (None, OnnxConfig()):
        raise ExportError(
            f"{file.path}: --opset, --input-names, --output-names and --onnx-float16 are for "
            "PyTorch models: an ONNX file keeps its own. Leave them out."
        )
    reads_files = target is not None and runtimes.get(target.runtime).reads == "onnx"
    if target and reads_files and twin.onnx_form.batch not in (0, target.batch):
        raise ExportError(
            f"{file.path}: --batch must be that of the file, {twin.onnx_form.batch}, got "
            f"{target.batch}. Export it with a free batch."
        )
    if taken := [name for name in file.external if "/" not in name and name in _OWN_NAMES]:
        raise ExportError(
            f"{file.path}: its data must be in a file of another name than {taken[0]}, which is "
            "one of ours. Save it with another location."
        )


def check_int8(model: nn.Module, data: Any, onnx: OnnxConfig | None) -> None:
    """Raise where int8 is asked for and cannot be, before any work."""
    if data is None:
        raise DataError("--int8: needs images to find the ranges of, got none. Give --data.")
    if onnx and (onnx.half or (onnx.opset or OPSET) < OPSET):
        raise ExportError(
            f"--int8: model.onnx must be float32 of opset {OPSET} or later to become int8, got "
            f"{'--onnx-float16' if onnx.half else f'--opset {onnx.opset}'}. Leave it out."
        )
    what = unsuited(model.onnx_file) if isinstance(model, Twin) else None
    if what is None and (dtype := model_dtype(model)) != torch.float32:
        what = str(dtype).removeprefix("torch.")
    if what is not None:
        name = model.onnx_file.path if isinstance(model, Twin) else type(model).__name__
        raise ExportError(
            f"--int8: {name} must be float32, of opset {OPSET} or later where it is an ONNX file, "
            f"got {what}. Give it so, or leave --int8 out."
        )


def check_recorded(
    target: Target | None,
    budget: Budget | None,
    search: SearchConfig | None,
    also: Sequence[Target | None] = (),
) -> None:
    """Raise DataError where times from far away are given to a run that asks for none, or others.

    Parameters
    ----------
    also
        Further targets.
    """
    if also and any(isinstance(one, Recorded) for one in (target, *also)):
        raise DataError(
            "--times: cannot be combined with times of another target, got --also. Leave it out, "
            "and search for each of them."
        )
    timed = (budget is not None and budget.timed) or (search is not None and bool(search.sweep))
    if isinstance(target, Recorded) and not timed:
        raise DataError(
            "--times: are for a search by time, got none. Give --speedup, --max-drop or --sweep."
        )


def resolve_device(device: Any) -> str:
    """``auto`` as what is there; checks that what is asked for is there."""
    device = str(device)  # a torch.device too
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = {"cuda:0": "cuda", "cpu:0": "cpu"}.get(device, device)
    if device.startswith("cuda:"):
        raise DeviceError(
            f"--device {device}: the first GPU that torch sees is used. Set CUDA_VISIBLE_DEVICES="
            f"{device.removeprefix('cuda:')} and give --device cuda."
        )
    if device not in ("cpu", "cuda"):
        raise DeviceError(f"--device must be auto, cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda needs a CUDA device that torch can use, found none.")
    return device


def resolved_outputs(
    model: nn.Module,
    data: Data | None,
    kind: str | None,
    loss: Callable[..., Any] | None,
    score: Callable[..., Any] | None,
) -> tuple[Outputs, list[str]]:
    """What the model's outputs mean, said or guessed from some images, and what to tell of it."""
    said = data.outputs if data else UNDECLARED
    outputs = Outputs(kind or said.kind, loss or said.loss, score or said.score)
    batch: Any = next(iter(data.holdout), None) if data and outputs.kind == "auto" else None
    if not batch:
        return outputs, []
    images = rows_of(batch[0], slice(GUESSED_FROM))
    labels = batch[1] if len(batch) > 1 and isinstance(batch[1], torch.Tensor) else None
    try:
        with evaluating(model):
            output = call(model, to_model(images, model))
    except Exception:  # the fit tells in which way images and model do not go together
        return outputs, []
    found, note = guess(output, labels if labels is None else labels[:GUESSED_FROM])
    return replace(outputs, kind=found), [note] if note else []


def half_remark(model: nn.Module) -> list[str]:
    """Times of half precision on a CPU are others than those of float32, which one may expect."""
    dtype = model_dtype(model)
    if dtype not in (torch.float16, torch.bfloat16):
        return []
    name = str(dtype).removeprefix("torch.")
    return [
        f"the model is {name}: so are its ONNX file and its times on the CPU. Give model.float() "
        "for float32"
    ]


def check_not_empty(plan: Plan) -> None:
    """Raise NoConvolutionError where a plan changes nothing, with the reasons and their counts."""
    if plan.factorized:
        return
    reasons: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers:  # numbers apart, the same reason
        reasons.setdefault(re.sub(r"\d[\d,.]*", "#", str(layer.skip_reason)), []).append(layer)
    told = []
    for alike in sorted(reasons.values(), key=len, reverse=True)[:REASONS]:
        largest = max(alike, key=lambda layer: layer.spec.macs)
        told.append(f"{len(alike)} such as {largest.spec.label}: {largest.skip_reason}")
    more = f"; {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
    costly = any("MACs" in str(layer.skip_reason) for layer in plan.layers)
    fix = "Lower the rank" if costly else "Choose another --method, or name layers with --include"
    if plan.settings.get("rank") == "lossless":
        fix = "Allow a loss with --rank"
    raise NoConvolutionError(
        f"all {len(plan.layers)} convolutions stay dense: there is nothing to do "
        f"({'; '.join(told)}{more}). {fix}, see --dry-run for each."
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
    """Labels that cannot be used, and why: folders of ten classes are no test of a thousand."""
    if data is None or not data.labelled:
        return []
    first = next(iter(named_floats(output).values()), None)
    if first is None or first.ndim != 2 or kind_of(first, data.outputs.kind) != "logits":
        return ["labels are not used: the model's outputs are no logits of classes"]
    if data.classes in (None, first.shape[1]):
        return []
    return [
        f"the model has {first.shape[1]} outputs, {data.source} {data.classes} classes, which it "
        "numbers in its own order: labels are not used"
    ]


def exists(path: Path) -> bool:
    """Whether a file is there; what can have no file, such as a name without end, has none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

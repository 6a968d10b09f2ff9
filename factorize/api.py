"""The whole program: `compress`, its stages in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize import export, tune
from factorize import measure as measuring
from factorize import plan as planning
from factorize.errors import DataError, DeviceError, NoConvolutionError, UnsupportedLayerError
from factorize.fit import FitConfig, apply_, as_fitted, fit_remarks
from factorize.fit import fit as fit_layers
from factorize.report import Report, layer_reports
from factorize.stages import beside, copied, make_plan, measure
from factorize.tensor.call import call, evaluating
from factorize.types import Data, Metric, Plan, Progress

OUTPUTS = ("model.safetensors", "plan.json", "model.onnx", "model.pt2", "report.json")
CHECKPOINT = "finetune.ckpt"
UNSTEADY = 1.5  # a spread of speedups above this is told


@dataclass(frozen=True)
class Result:
    """A compressed model, how it was made, and what that cost and won."""

    model: nn.Module
    plan: Plan
    report: Report


def compress(
    model: nn.Module,
    example_input: Any,
    *,
    plan: Plan | None = None,
    data: Data | None = None,
    evaluate: Metric | Callable[[nn.Module], Any] | None = None,
    fit: FitConfig | None = None,
    finetune: int | tune.FinetuneConfig = 0,
    out: str | Path | None = None,
    force: bool = False,
    latency: bool = True,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    name: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
    **choice: Any,
) -> Result:
    """Make a smaller, faster copy of a trained model, and measure what that cost and won.

    Parameters
    ----------
    model
        Is not changed. The copy has its mode, dtype and device.
    example_input
        See `find`.
    plan
        To apply; without one it is made by `make_plan` with ``**choice``: ``method``, ``rank``,
        ``energy``, ``include``, ``exclude``, ``allow_costlier``.
    data
        The chains are fitted to what the layers put out for images of its train split, batch norms
        recalibrated and the copy fine-tuned on it; the report is on its test split.
    evaluate
        ``model -> float`` or ``{name: float}``: a measure of your own, for the report; set the
        function's attribute ``higher_is_better = False`` where that is so. It chooses nothing,
        as it may well read test images.
    fit
        What the chains are fitted to, if not the default: with `data` in sequence to the original's
        outputs, without to the weights.
    finetune
        Epochs of distillation from the original on `data`, or all settings.
    out
        Folder for weights, plan, ONNX, ``.pt2`` and report. Nothing is written without.
    force
        Whether such files may be there already.
    latency
        Whether to measure time in ONNX Runtime (both models are exported for it) and torch.
    device
        Where to tune and evaluate: ``auto``, ``cpu`` or ``cuda``.
    name, notes
        For the report.

    Raises
    ------
    FactorizeError
        One of its kinds; nothing is written then. An export that fails does not lose the rest:
        it is told in ``result.report.failures``.
    """
    device = resolve_device(device)
    metric = measuring.as_metric(evaluate)
    config = tune.FinetuneConfig(finetune, seed=seed) if isinstance(finetune, int) else finetune
    fit = fit or FitConfig()
    how = fit.resolved(data)
    if config.epochs and data is None:
        raise DataError("finetune: must have images to tune on, got none. Give --data.")
    if config.resume and not config.epochs:
        raise DataError("resume: goes on with a fine-tuning, got 0 epochs. Give --finetune EPOCHS.")
    if out is not None and config.epochs and config.checkpoint is None:
        config = replace(config, checkpoint=Path(out, CHECKPOINT))
    overwrite = force or (config.resume and config.checkpoint and config.checkpoint.exists())
    example_input = beside(model, example_input)
    seconds: dict[str, float] = {}
    remarks = [*notes, *(data.notes if data else ())]

    with export.output_folder(out, (*OUTPUTS, CHECKPOINT), bool(overwrite)) as (
        folder,
        publish,
    ):
        fit.check_free(bool(overwrite))
        with _timed(seconds, "plan"):
            ordered = plan is not None
            plan = make_plan(
                model, example_input, edited=plan, seed=seed, progress=progress, **choice
            )
            check_not_empty(plan)
        with _timed(seconds, "factorize"):
            fitted = fit_layers(
                model, plan, fit, data=data, any_order=not ordered, device=device, seed=seed,
                progress=progress,
            )  # fmt: skip
            plan = as_fitted(plan, fitted)
            remarks += fit_remarks(how, fitted, reconstructed=fit.reconstruct)
            compressed = apply_(copied(model), fitted)
            output = _check_runs(compressed, plan, example_input)
            remarks += _class_remark(output, data)

        quality: dict[str, dict[str, float]] = {}

        def rate(stage: str, one: nn.Module) -> None:
            if progress:
                progress(f"evaluate {stage}", 0, 0, {})
            with _timed(seconds, "evaluate"):
                quality[stage] = measure(
                    model, one, example_input, data=data, evaluate=metric, device=device, seed=seed
                )

        rate("original", model)
        rate("rewritten", compressed)

        recalibration = tuning = None
        if data is not None:
            with _timed(seconds, "recalibrate"):
                recalibration = tune.recalibrate(
                    compressed, model, data, device=device, progress=progress
                )
            remarks.append(f"batch-norm recalibration: {recalibration.reason}")
            if recalibration.applied:
                rate("recalibrated", compressed)
        if data is not None and config.epochs:
            with _timed(seconds, "finetune"):
                tuning = tune.finetune(
                    compressed, model, data, config, device=device, progress=progress
                )
            rate("finetuned", compressed)
            if tuning.interrupted:
                done = f"{tuning.epochs_done:.2f} of {config.epochs}"
                remarks.append(f"fine-tuning interrupted after {done} epochs; --resume goes on")
            if tuning.stopped:
                remarks.append(f"fine-tuning stopped early: {tuning.stopped}")

        onnx, sizes, failures, speed = None, {}, [], ()
        if latency or out is not None:
            if progress:
                progress("export", 0, 0, {})
            with _timed(seconds, "export"):
                onnx, sizes, failures = export.export_all(
                    folder, model, compressed, plan, example_input
                )
        if latency:
            if progress:
                progress("measure latency", 0, 0, {})
            with _timed(seconds, "latency"):
                speed = measuring.speedups(
                    folder, model, compressed, example_input, device=device, threads=threads
                )
            remarks += [
                f"{one.runtime} on {one.device}: the speedup varied from {one.speedup_p10:.2f} to "
                f"{one.speedup_p90:.2f}, as on a busy machine; measure again on a quiet one"
                for one in speed
                if one.speedup_p90 > UNSTEADY * one.speedup_p10
            ]
        (params, macs), (new_params, new_macs) = (
            measuring.count(one, example_input) for one in (model, compressed)
        )
        report = Report(
            model=name or type(model).__name__,
            settings={
                **plan.settings,
                "fit": {**asdict(fit), "how": how},
                "finetune": asdict(config) if config.epochs else None,
                "device": device,
                "seed": seed,
            },
            environment=measuring.environment(),
            layers=layer_reports(plan, fitted.layers),
            params={"original": params, "compressed": new_params},
            macs={"original": macs, "compressed": new_macs},
            bytes=sizes,
            quality=quality,
            quality_of=measuring.measured_on(data, metric),
            speed=tuple(speed),
            recalibration=asdict(recalibration) if recalibration else None,
            finetuning=asdict(tuning) if tuning else None,
            onnx=asdict(onnx) if onnx else None,
            seconds=seconds,
            failures=tuple(failures),
            notes=tuple(remarks),
        )
        if out is not None:
            planning.save_plan(plan, folder / "plan.json")
            report.save(folder / "report.json")
            publish(keep=[CHECKPOINT] if tuning and tuning.interrupted else [])
    return Result(compressed, plan, report)


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
        raise NoConvolutionError(
            f"all {len(plan.layers)} convolutions stay dense: there is nothing to do (the largest, "
            f"{largest.spec.label}: {largest.skip_reason}). Lower the rank, see --dry-run for each."
        )


def _check_runs(model: nn.Module, plan: Plan, example_input: Any) -> Any:
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


def _class_remark(output: Any, data: Data | None) -> list[str]:
    """Folders of ten classes are no test of a net of a thousand: their numbers differ."""
    if data is None or not data.classes or not isinstance(output, torch.Tensor):
        return []
    if output.ndim != 2 or output.shape[1] == data.classes:
        return []
    return [
        f"the model has {output.shape[1]} outputs, {data.source} {data.classes} classes: top-1 "
        "means something only if both number them alike, and labels are not used to tune"
    ]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

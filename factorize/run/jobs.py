"""Fine-tuning as a part of a run: by all processes of the job, with the control beside it.

The main process runs the whole pipeline and hands out tasks; the others do nothing but take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize import graph, tune
from factorize.errors import ProcessError
from factorize.run.rebuild import unfitted
from factorize.run.steps import copied
from factorize.system import processes
from factorize.types import Data, Plan, Progress


@dataclass(frozen=True)
class _Task:
    """One fine-tuning that all processes do; without a plan it is that of the original."""

    plan: Plan | None
    config: tune.FinetuneConfig
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class _End:
    """How the main process ended: plan, report and weights of its result, or why it failed."""

    value: Any
    failure: str | None = None


def tuned(
    model: nn.Module,
    original: nn.Module,
    plan: Plan | None,
    data: Data,
    config: tune.FinetuneConfig,
    *,
    device: str,
    origin: Mapping[str, Any],
    name: str,
    progress: Progress | None,
) -> tune.FinetuneResult:
    """Fine-tune `model`, which `plan` made of `original`, with the help of all processes."""
    processes.share(_Task(plan, config, origin))
    try:
        return tune.finetune(
            model, original, data, config, device=device, progress=progress, origin=origin,
            name=name,
        )  # fmt: skip
    except BaseException as failure:
        # The others failed alike, or wait in a step: they hear of it when this process ends.
        failure.__dict__["in_step"] = True
        raise


def assist(model: nn.Module, data: Data | None, device: str) -> tuple[nn.Module, Plan, Any]:
    """Help the main process until it is done.

    Returns
    -------
    Its result: the compressed model, the plan and the report.

    Raises
    ------
    ProcessError
        The main process failed, and says why.
    """
    while True:
        task: Any = processes.share(None)
        if isinstance(task, _Task):
            assert data is not None
            student = copied(model)
            if task.plan is not None:  # the main one's weights come with the first step
                student = graph.rewrite_(student, unfitted(student, task.plan))
            tune.finetune(
                student, model, data, task.config, device=device, origin=task.origin
            )  # fmt: skip
        elif task.failure is not None:
            raise ProcessError(f"the main process ended: {task.failure}")
        else:
            plan, report, state = task.value
            compressed = copied(model)
            compressed = graph.rewrite_(compressed, unfitted(compressed, plan))
            compressed.load_state_dict(state)
            return compressed, plan, report


def dismiss(value: Any = None, failure: BaseException | None = None) -> None:
    """Tell the other processes that the main one is done."""
    if processes.count() == 1 or vars(failure or Exception()).get("in_step"):
        return
    told = failure and (str(failure) or type(failure).__name__)
    with suppress(ProcessError):  # there is nobody to tell
        processes.share(_End(value, told))


def control(
    original: nn.Module,
    data: Data,
    config: tune.FinetuneConfig,
    *,
    device: str,
    progress: Progress | None,
) -> tuple[nn.Module, tune.FinetuneResult]:
    """The original given the same epochs, recipe and data: what they gain without factorization.

    It has no replaced layers, so that features do not count; of its epochs, not counting the start,
    the best is taken.
    """
    path = control_checkpoint(config)
    resume = config.resume and path is not None and path.exists()
    config = replace(config, feature_weight=0.0, may_stay=False, checkpoint=path, resume=resume)
    model = copied(original)
    result = tuned(
        model, original, None, data, config, device=device, origin={"control": True},
        name="tuning the original", progress=progress,
    )  # fmt: skip
    return model, result


def control_checkpoint(config: tune.FinetuneConfig) -> Path | None:
    """Where the control's checkpoint is."""
    return config.checkpoint and config.checkpoint.with_name(f"control-{config.checkpoint.name}")

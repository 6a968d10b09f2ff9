"""What a compressed model is worth beside its original: one table of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from factorize.errors import DataError
from factorize.measure.quality import accuracy, agreement_on_random_input, is_ours
from factorize.outputs import UNDECLARED, Outputs
from factorize.tensor.call import evaluating
from factorize.tensor.reference import Reference
from factorize.types import Data, Metric

RANDOM_SAMPLES = 32


def as_metric(evaluate: Metric | Callable[[nn.Module], Any] | None) -> Metric | None:
    """A user's function as a `Metric`: its name, and ``higher_is_better`` if it has that."""
    if evaluate is None or isinstance(evaluate, Metric):
        return evaluate
    name = getattr(evaluate, "__name__", type(evaluate).__name__)
    return Metric(evaluate, name, bool(getattr(evaluate, "higher_is_better", True)))


def metric_values(metric: Metric, model: nn.Module) -> dict[str, float]:
    """The metric's values for a model, by name.

    Raises
    ------
    DataError
        The function failed, or did not return a number or numbers by name.
    """
    try:
        with evaluating(model):
            found = metric.function(model)
        values = found if isinstance(found, dict) else {metric.name: found}
        if not values:
            raise ValueError("an empty dict")
        return {str(key): float(value) for key, value in values.items()}
    except DataError:
        raise
    except Exception as error:
        said = str(error).strip().rstrip(".")
        raise DataError(
            f"--evaluate {metric.name}: must return a number or a dict of numbers, got "
            f"{type(error).__name__}: {said}. Correct the function."
        ) from error


def worth(
    original: nn.Module | Reference,
    model: nn.Module,
    example_input: Any,
    *,
    data: Data | None,
    metric: Metric | None,
    device: str,
    seed: int,
    outputs: Outputs = UNDECLARED,
) -> dict[str, float]:
    """The user's metric, and accuracy and agreement with the original on data.

    On the test split, or the held-out images where there is none. Without metric and data the
    agreement of outputs on random input, which is said to be just that.

    Parameters
    ----------
    example_input
        On the device of the models.
    outputs
        What the models' outputs mean, where there is no data to say so.
    """
    values = metric_values(metric, model) if metric else {}
    if data is not None:
        batches = data.holdout if data.test is None else data.test
        values |= accuracy(
            model,
            batches,
            device=device,
            reference=original,
            labelled=data.labelled,
            classes=data.classes,
            outputs=data.outputs,
        )
    elif metric is None:
        values |= agreement_on_random_input(
            model,
            original if isinstance(original, nn.Module) else original.model,
            example_input,
            seed=seed,
            samples=RANDOM_SAMPLES,
            outputs=outputs,
        )
    return values


def measured_on(data: Data | None, metric: Metric | None) -> str:
    """What the values of `worth` were measured on, for the report; a metric knows it itself."""
    if data is not None:
        split = "test split" if data.test is not None else f"{data.holdout_of}, no test split"
        return f"{data.source}, {split}"
    return "your own measure" if metric else "outputs on random input, not real data"


def own_names(
    values: Mapping[str, float], metric: Metric | None, outputs: Outputs
) -> dict[str, bool]:
    """Which values of `worth` are the user's own, a metric's first, and whether higher is better.

    A metric is of all images, a score the mean of the batches'.
    """
    score = outputs.score_name if outputs.score is not None else ""
    own = {} if metric is None else {
        name: metric.higher_is_better for name in values if name != score and not is_ours(name)
    }  # fmt: skip
    return own | ({score: outputs.sign > 0} if score in values else {})

"""Each step of the library by itself; `run.compress` joins them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from factorize import graph, tune
from factorize.data.as_data import as_data
from factorize.errors import UnsupportedLayerError
from factorize.fit import FitConfig, apply_, fit
from factorize.measure import as_metric, worth
from factorize.outputs import UNDECLARED, Outputs
from factorize.tensor.call import input_on
from factorize.tensor.wrappers import prepared
from factorize.types import ConvSite, Metric, Plan


def find(model: nn.Module, example_input: Any) -> tuple[ConvSite, ...]:
    """Every convolution of a model, its attributes and sizes, and what forbids replacing it.

    Parameters
    ----------
    example_input
        A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever else
        the model takes as its one argument. The model is run on it three times, or more where a
        layer cannot be replaced.

    Raises
    ------
    NoConvolutionError, UnsupportedLayerError, ModelLoadError
        The model has none, does not run on the example, or is none whose layers can be seen.
    """
    model, _ = prepared(model)
    return graph.find(model, beside(model, example_input))


def rewrite(
    model: nn.Module,
    plan: Plan,
    *,
    data: Any = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the model with its planned layers replaced by chains; the model is untouched.

    Parameters
    ----------
    data
        Images to fit the chains to, see `data.as_data`; without, they are fitted to the weights.
    config
        What to fit to, how many images, how much memory.

    Raises
    ------
    PlanError, UnsupportedLayerError, RankError, DataError
        The plan or the data do not fit the model.
    OutputError
        The calibration cannot be saved where that was asked for.
    """
    model, _ = prepared(model)
    return rewrite_(copied(model), plan, data=data, config=config, seed=seed)


def rewrite_(
    model: nn.Module,
    plan: Plan,
    *,
    data: Any = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> nn.Module:
    """As `rewrite`, in place; returns the model.

    A model that is itself a planned convolution cannot change in place: its chain is returned. Of
    a compiled or parallel model, the one inside is changed and returned.
    """
    model, _ = prepared(model, in_place=True)
    config, device = config or FitConfig(), str(_device(model))
    config.check_free(overwrite=False)
    if data is not None and (config.calibration is None or config.reconstruct):
        data = as_data(data, seed=seed)
    return apply_(model, fit(model, plan, config, data=data, device=device, seed=seed))


@wraps(tune.finetune)
def finetune(
    model: nn.Module, original: nn.Module, data: Any, config: tune.FinetuneConfig, **how: Any
) -> tune.FinetuneResult:
    """As `tune.finetune`, with images in any form."""
    (model, _), (original, _) = prepared(model), prepared(original)  # their parameters are the same
    return tune.finetune(model, original, as_data(data, seed=config.seed), config, **how)


def measure_quality(
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    *,
    data: Any = None,
    evaluate: Metric | Callable[[nn.Module], Any] | None = None,
    outputs: Outputs = UNDECLARED,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """What a compressed model is worth: metric, accuracy, agreement with the original.

    Parameters
    ----------
    data
        Images, see `data.as_data`.
    outputs
        What the models' outputs mean, where there is no data to say so.

    Returns
    -------
    The metric's own values; ``top1``, ``top5``, ``agreement`` in percent, ``kl`` in nats, or
    ``relative_difference``, on data's test split, else on its held-out images, else (without
    data and metric) on random input.
    """
    (original, _), (compressed, _) = prepared(original), prepared(compressed)
    data = None if data is None else as_data(data, example_input, seed=seed)
    return worth(
        original, compressed, beside(original, example_input), data=data,
        metric=as_metric(evaluate), device=device, seed=seed, outputs=outputs,
    )  # fmt: skip


def beside(model: nn.Module, example_input: Any) -> Any:
    """The example input on the model's device."""
    return input_on(example_input, _device(model))


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter((*model.parameters(), *model.buffers())), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, or a clear error."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__}: the model must be one that copy.deepcopy can copy, got "
            f"{type(error).__name__}: {error}. Use rewrite_ to change it in place."
        ) from error

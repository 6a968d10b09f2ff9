"""Fit every layer of a plan, to weights, outputs or in sequence."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from factorize import calibrate, tune
from factorize.fit.config import FitConfig
from factorize.fit.layer import Fitted
from factorize.fit.layerwise import fit_outputs, fit_weights
from factorize.fit.reconstruct import reconstruct
from factorize.fit.sequential import fit_sequential
from factorize.tensor.call import FEWEST, batch_size, forward_batch, rows_of, to_model
from factorize.types import Data, Plan, Progress


def fit(
    model: nn.Module,
    plan: Plan,
    config: FitConfig,
    *,
    data: Data | None = None,
    any_order: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    known: dict[Hashable, Any] | None = None,
) -> Fitted:
    """Fit every planned layer; the model is not changed.

    Parameters
    ----------
    any_order
        Where the order of a chain was chosen without data, fit each order that saves MACs and
        keep the best.
    known
        As in `fit_sequential`.

    Raises
    ------
    DataError
        There are no images where some are needed, or they do not fit the model.
    PlanError, UnsupportedLayerError, RankError
        The plan does not fit the model.
    """
    how = config.resolved(data)
    if how == "weights":
        fitted = fit_weights(model, plan, seed=seed, progress=progress)
        if data is None or not (config.reconstruct or config.save_calibration):
            return fitted
    with tune.placed(device, model):
        images: list[Any] = []
        if data is not None and (not config.calibration or config.reconstruct):
            images = calibration_images(model, data, config.images, seed)
        specs = {one.spec.name: one.spec for one in plan.factorized if one.spec.groups == 1}
        options: dict[str, Any] = {"memory": config.memory, "seed": seed, "progress": progress}
        if config.calibration:
            moments = calibrate.load_calibration(config.calibration)
        elif config.save_calibration:
            source = data.source if data else ""
            moments = calibrate.collect(model, specs, images, source=source, **options)
            calibrate.save_calibration(moments, config.save_calibration)
        else:  # layer by layer, as it is asked for
            moments = calibrate.collect_each(model, specs, images, **options)
        if how == "outputs":
            fitted = fit_outputs(
                model, plan, moments, any_order=any_order, seed=seed, progress=progress
            )
        elif how == "sequential":
            fitted = fit_sequential(
                model, plan, images, any_order=any_order, known=known, **options
            )
        if config.reconstruct:
            fitted = reconstruct(model, fitted, images, **options)
    return fitted


def reconstructed(
    model: nn.Module, fitted: Fitted, config: FitConfig, data: Data, *, device: str, seed: int,
    progress: Progress | None,
) -> Fitted:  # fmt: skip
    """A fit with its blocks tuned together, as `fit` does where it is asked to."""
    with tune.placed(device, model):
        images = calibration_images(model, data, config.images, seed)
        return reconstruct(
            model, fitted, images, memory=config.memory, seed=seed, progress=progress
        )


def calibration_images(model: nn.Module, data: Data, count: int, seed: int) -> list[Any]:
    """Images of the training split, picked by the seed alone, as the model takes them."""
    batches: list[Any] = []
    with torch.random.fork_rng([]), tune.ordered(data.train, seed=seed):
        torch.manual_seed(seed)
        missing = count
        for batch in data.train:
            images = to_model(rows_of(batch[0], slice(missing)), model)
            missing -= batch_size(images)
            batches += _parts(images)
            if missing <= 0:
                break
    return batches


def _parts(images: Any) -> list[Any]:
    """A batch in parts that are quick to run, of which fits have each image twice."""
    if not isinstance(images, Tensor) or images.ndim < 3:
        return [images]
    return list(images.split(max(forward_batch(images[0], images.device) // 2, FEWEST)))

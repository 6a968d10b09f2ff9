"""How to fit, and the fit that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from factorize import calibrate, tune
from factorize.errors import DataError, OutputError
from factorize.fit.layer import Fitted
from factorize.fit.layerwise import fit_outputs, fit_weights
from factorize.fit.reconstruct import reconstruct
from factorize.fit.sequential import fit_sequential
from factorize.tensor.call import batch_size, rows_of, to_model
from factorize.types import Data, Plan, Progress

HOW = ("weights", "outputs", "sequential")


@dataclass(frozen=True)
class FitConfig:
    """What the layers are fitted to.

    Attributes
    ----------
    how
        ``weights``, ``outputs`` (each layer's, on the original's inputs) or ``sequential`` (on the
        inputs that the layers fitted before give). None: sequential where there are images,
        outputs where there is a calibration file, else weights.
    images
        How many to take of the training images at most; labels are not used. Every fifth is held
        out.
    memory
        Bytes for moments and activations; where they need more, there are more passes.
    calibration
        A file of moments, in place of images.
    save_calibration
        Where to write such a file; none may be there.
    reconstruct
        Whether to tune the factors of each block together afterwards.
    """

    how: Literal["weights", "outputs", "sequential"] | None = None
    images: int = 1000
    memory: float = 2e9
    calibration: str | Path | None = None
    save_calibration: str | Path | None = None
    reconstruct: bool = False

    def resolved(self, data: Data | None) -> str:
        """What the layers are fitted to, given the data there is.

        Raises
        ------
        DataError
            What is asked for needs images that there are not.
        """
        if self.how not in (None, *HOW):
            raise DataError(f"--fit must be one of {', '.join(HOW)}, got {self.how!r}.")
        if self.images < 2 or not self.memory > 0:
            raise DataError(
                "calibration: needs at least 2 images and some memory, got "
                f"{self.images} images and {self.memory:g} bytes. "
                "See --calibration-images and --calibration-memory."
            )
        how = self.how or (
            "outputs" if self.calibration else "sequential" if data is not None else "weights"
        )
        if self.calibration and how != "outputs":
            raise DataError(
                f"--calibration is for --fit outputs, got --fit {how}. Leave one of them out."
            )
        if self.calibration and self.save_calibration:
            raise DataError(
                "--save-calibration writes what is calibrated anew, got --calibration too. "
                "Leave one of them out."
            )
        for wish, option in (
            (how == "sequential", "--fit sequential"),
            (how == "outputs" and not self.calibration, "--fit outputs"),
            (self.reconstruct, "--reconstruct"),
            (self.save_calibration is not None, "--save-calibration"),
        ):
            if wish and data is None:
                raise DataError(f"{option} needs images, got none. Give --data.")
        return how

    def check_free(self, overwrite: bool) -> None:
        """Raise OutputError where `save_calibration` cannot be written, before any work is done."""
        if self.save_calibration is None:
            return
        path = Path(self.save_calibration)
        if path.is_dir() or (path.exists() and not overwrite):
            raise OutputError(
                f"{path}: exists already, and nothing is overwritten unasked. Pass --force for a "
                "file, or another --save-calibration."
            )
        if not path.parent.is_dir():
            raise OutputError(
                f"{path}: the folder of the calibration must exist, and does not. Make it, or "
                "give another --save-calibration."
            )


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
) -> Fitted:
    """Fit every planned layer; the model is not changed.

    Parameters
    ----------
    any_order
        Where the order of a chain was chosen without data, fit each order that saves MACs and
        keep the best.

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
            fitted = fit_sequential(model, plan, images, any_order=any_order, **options)
        if config.reconstruct:
            fitted = reconstruct(model, fitted, images, **options)
    return fitted


def calibration_images(model: nn.Module, data: Data, count: int, seed: int) -> list[Any]:
    """Images of the training split, picked by the seed alone, as the model takes them."""
    batches: list[Any] = []
    with torch.random.fork_rng([]), tune.ordered(data.train, seed=seed):
        torch.manual_seed(seed)
        missing = count
        for batch in data.train:
            batches.append(to_model(rows_of(batch[0], slice(missing)), model))
            missing -= batch_size(batches[-1])
            if missing <= 0:
                break
    return batches

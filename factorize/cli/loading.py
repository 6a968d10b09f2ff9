"""The model and its images: of the options that say them, each command has these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from factorize.cli.parse import (
    example,
    image_shape,
    json_object,
    preprocessing_of,
    shape_of,
    shapes_of,
)
from factorize.data.load_data import load_data
from factorize.data.synthetic import MadeUp, is_synthetic
from factorize.models.load_model import LoadedModel, load_model
from factorize.types import Data, Preprocessing


@dataclass(frozen=True)
class Loaded:
    """What a command works on.

    Attributes
    ----------
    source
        Of the images, as given; the example brings its own.
    images
        None where none are given, or they are not read.
    sample
        One random input.
    notes
        What there is to tell of the model.
    """

    model: LoadedModel
    source: str | None
    images: Data | MadeUp | None
    preprocessing: Preprocessing | None
    sample: Any
    notes: tuple[str, ...]


def load(given: Mapping[str, Any], *, reading: bool) -> Loaded:
    """Load what a command is given.

    Parameters
    ----------
    given
        Its parameters by name.
    reading
        Whether images are to be read even where the shape of an input is known without.
    """
    model = load_model(
        given["model"], arch=given["arch"], arch_args=json_object(given["arch_args"]),
        weights=given["weights"], key=given["key"], trust_pickle=given["trust_pickle"],
        shapes=shapes_of(given["input_shape"]),
    )  # fmt: skip
    shape = shape_of(given["input_shape"]) or model.input_shape
    steps = (given[name] for name in ("mean", "std", "scale", "resize", "crop"))
    preprocessing = preprocessing_of(model, *steps)
    source = given["data"] or ("digits" if given["model"] == "digits" else None)
    images: Data | MadeUp | None = None
    if is_synthetic(source):
        images = MadeUp(preprocessing, given["batch_size"])
    elif source is not None and (reading or shape is None):
        images = load_data(
            source, preprocessing=preprocessing,
            input_shape=image_shape(source, shape) or _grey(model.model),
            batch_size=given["batch_size"], seed=given["seed"], workers=given.get("workers"),
            skip_bad=given.get("skip_bad", 0),
        )  # fmt: skip
    sample = example(model, shape, images if isinstance(images, Data) else None, given["seed"])
    notes = (*model.notes, *(model.check(sample) if model.check else ()))
    return Loaded(model, source, images, preprocessing, sample, notes)


def _grey(model: nn.Module) -> tuple[int] | None:
    """One channel, where the first convolution takes no more; sizes are those of the images."""
    first = next((one for one in model.modules() if isinstance(one, nn.Conv2d)), None)
    return (1,) if first is not None and first.in_channels == 1 else None

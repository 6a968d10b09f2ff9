"""``torchvision:NAME``: an entry of torchvision's registry, with random or trained weights."""

from __future__ import annotations

from factorize.models import architectures
from factorize.models.architectures import PREFIX
from factorize.models.door import LoadedModel, Source

OPTIONS: tuple[str, ...] = ("arch_args", "weights")


def takes(source: Source) -> bool:
    """Whether the name has torchvision's prefix."""
    return source.name.startswith(PREFIX)


def load(source: Source) -> LoadedModel:
    """Build the entry; its weights are downloaded where they are asked for."""
    entry, arguments, weights = source.name.removeprefix(PREFIX), source.arch_args, source.weights
    arguments = arguments or {}
    architectures.check_name(entry)
    model = architectures.build(entry, arguments, weights)
    shape, preprocessing = architectures.input_of(entry, weights, arguments.get("image_size"))
    note = f"weights {weights}" if weights else "random weights: pass --weights DEFAULT or a file"
    return LoadedModel(model, source.name, shape, preprocessing, (note,))

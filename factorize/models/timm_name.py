"""``timm:NAME``: a model of timm's registry, with random weights or timm's own trained ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from factorize.errors import ModelLoadError
from factorize.models.door import LoadedModel, Source
from factorize.system.imports import brief, import_extra
from factorize.types import Preprocessing

OPTIONS: tuple[str, ...] = ("arch_args", "weights")

_OWN = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip

PREFIX = "timm:"
"""Of a model's name, where a user gives it."""


def takes(source: Source) -> bool:
    """Whether the name has timm's prefix."""
    return source.name.startswith(PREFIX)


def load(source: Source) -> LoadedModel:
    """Build the model; timm downloads its weights where they are asked for."""
    name, arguments = source.name.removeprefix(PREFIX), source.arch_args or {}
    tag = name.partition(".")[2] or None if source.weights else None
    if source.weights and source.weights != "DEFAULT":
        tag = source.weights
    model = build(name, arguments, source.weights and (tag or "DEFAULT"))
    shape, preprocessing, notes = input_of(model, arguments)
    stored = model.pretrained_cfg.get("num_classes")
    if source.weights and arguments.get("num_classes", stored) != stored:
        notes = (*notes, f"its head is random: the weights are for {stored} classes")
    told = (
        f"weights {model.pretrained_cfg.get('tag') or 'DEFAULT'}"
        if source.weights
        else "random weights: pass --weights DEFAULT or a file"
    )
    return LoadedModel(model, source.name, shape, preprocessing, (told, *notes))


def build(name: str, arguments: Mapping[str, Any], weights: str | None = None) -> Any:
    """Build a model of the registry.

    Parameters
    ----------
    weights
        A tag such as ``a1_in1k``, or ``DEFAULT``; timm downloads them. None: random ones.

    Raises
    ------
    ModelLoadError
        timm is not installed, does not know the name, cannot download, or does not take the
        arguments.
    """
    timm = import_extra("timm", f"{PREFIX}{name}", extra="timm")
    _check_name(timm, name)
    if own := sorted(_OWN & arguments.keys()):
        raise ModelLoadError(
            f"{PREFIX}{name}: --arch-args are the architecture's, {own[0]} says where weights come "
            "from. Use --weights, or pass the file with the weights, and --arch."
        )
    entry = name
    if weights is not None and weights != "DEFAULT":
        entry = f"{name.partition('.')[0]}.{weights}"
    if weights is not None:
        _check_weights(timm, name, entry)
    try:
        return timm.create_model(entry, pretrained=weights is not None, **arguments)
    except OSError as failure:
        raise ModelLoadError(
            f"{PREFIX}{name}: cannot download the weights {weights}: {brief(failure).rstrip('.')}. "
            "Download them elsewhere and pass the file, with --arch."
        ) from failure
    except Exception as failure:  # timm raises what its architectures do
        raise ModelLoadError(
            f"{PREFIX}{name}: cannot be built: {brief(failure).rstrip('.')}. Check --arch-args "
            "and --weights."
        ) from failure


def fitted_arguments(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The number of classes that a state dict of such shapes has, where its head shows it."""
    timm = import_extra("timm", f"{PREFIX}{name}", extra="timm")
    _check_name(timm, name)
    settings = timm.get_pretrained_cfg(name.partition(".")[0])
    heads = settings.classifier if settings else ()
    for head in (heads,) if isinstance(heads, str) else heads or ():
        if shape := shapes.get(f"{head}.weight"):
            return {"num_classes": shape[0]}
    return {}


def input_of(
    model: nn.Module, arguments: Mapping[str, Any]
) -> tuple[tuple[int, ...], Preprocessing, tuple[str, ...]]:
    """The input (C, H, W) and preprocessing that timm gives a model, and what differs here."""
    config = import_extra("timm.data.config", "the model's input", extra="timm")
    # An img_size of two numbers is none that timm's own function takes.
    given = {key: arguments[key] for key in ("img_size", "in_chans") if key in arguments}
    if not isinstance(given.get("img_size", 0), int):
        given["input_size"] = (given.get("in_chans", 3), *given.pop("img_size"))
    found = config.resolve_data_config(given, model=model)
    channels, height, width = shape = tuple(found["input_size"])
    mean, std = (_per_channel(found[key], channels) for key in ("mean", "std"))
    steps, notes = Preprocessing(mean, std), ()
    if height == width:
        steps = Preprocessing(mean, std, math.floor(height / found["crop_pct"]), height)
        if found["crop_mode"] != "center":
            notes = (
                f"timm's own preprocessing is of crop mode {found['crop_mode']}: here the shorter "
                "side is resized and the centre cropped",
            )
    return shape, steps, notes


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """As many numbers as channels: timm averages RGB weights where there are others than three."""
    values = tuple(map(float, values))
    return values if len(values) in (1, channels) else (sum(values) / len(values),)


def _check_name(timm: Any, name: str) -> None:
    if timm.is_model(name.partition(".")[0]):
        return
    known = timm.list_models()
    close = difflib.get_close_matches(name.partition(".")[0], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()."
    raise ModelLoadError(f"{PREFIX}{name}: timm has no such model; {hint}")


def _check_weights(timm: Any, name: str, entry: str) -> None:
    base, _, tag = entry.partition(".")
    tags = [one.partition(".")[2] for one in timm.list_models(f"{base}.*", pretrained=True)]
    tags += [""] if timm.models.is_model_pretrained(base) else []
    if tag not in (*tags, "") or not tags:
        raise ModelLoadError(
            f"{PREFIX}{name}: has no weights {tag or 'DEFAULT'}; it has "
            f"{', '.join(filter(None, tags)) or 'none'}."
        )

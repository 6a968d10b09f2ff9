"""Which entry of torchvision's registry a state dict belongs to.

Nothing here knows a model's layers: entries are built without storage, and compared.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from factorize.models.architectures import (
    PREFIX,
    Shapes,
    build_empty,
    family,
    names,
    structure,
)


def find_fitting(shapes: Shapes) -> list[tuple[str, dict[str, Any]]]:
    """Entries that load tensors of these shapes, each with the arguments it takes for that."""
    families: dict[str, list[str]] = {}
    for name in names():
        families.setdefault(family(name), []).append(name)
    # The members of a family name their layers alike up to numbers, so one of them tells how near
    # the family is. Nearness is only an order to search in: the best families are searched whole,
    # the others until one fits.
    layers = _layers(shapes)
    near = {
        members[0]: _jaccard(layers, _layers(structure(members[0])))
        for members in families.values()
    }
    fitting: list[tuple[str, dict[str, Any]]] = []
    for members in sorted(families.values(), key=lambda members: -near[members[0]]):
        if fitting and near[members[0]] < 0.5 * max(near.values()):
            break
        for name in members:
            arguments = fit(name, shapes)
            if arguments is not None:
                fitting.append((name, arguments))
    return sorted(fitting, key=lambda entry: entry[0])


def fit(name: str, shapes: Shapes) -> dict[str, Any] | None:
    """Arguments under which an entry loads tensors of these shapes; None if there are none.

    Tried are auxiliary heads present or not, any number of classes and a transformer's image size.
    """
    default = structure(name)
    common = default.keys() & shapes.keys()
    differing = {key for key in default.keys() ^ shapes.keys() if not _counter(key)}
    changed = sum(default[key] != shapes[key] for key in common)
    if len(common) < 0.6 * max(len(shapes), len(default)) or changed > 0.25 * len(common):
        return None  # neither old names nor another head explain that much
    options: list[dict[str, Any]] = [{}]
    if differing and all("aux" in key.lower() for key in differing):
        has = any("aux" in key.lower() for key in shapes)
        options = [{"aux_logits": has}, {"aux_loss": has}]
    for given in options:
        arguments = _completed(name, shapes, given)
        if arguments is not None:
            return arguments
    return None


def nearest(shapes: Shapes) -> str | None:
    """Say which entry has names, and then shapes, most like these; None where none has any."""

    def shared(name: str) -> tuple[float, float]:
        own = structure(name)
        in_names = _jaccard(set(own), set(shapes))
        return in_names, _jaccard(set(own.items()), set(shapes.items()))

    name = max(names(), key=shared)
    if not shared(name)[0]:
        return None
    return f"nearest is {name}: {differences(shapes, structure(name))}"


def described(entry: str, arguments: dict[str, Any]) -> str:
    """Name an architecture and what it was built with."""
    classes = arguments.get("num_classes")
    others = [f"{key}={value}" for key, value in arguments.items() if key != "num_classes"]
    parts = ([f"{classes} classes"] if classes else []) + others
    return f"{PREFIX}{entry}" + (f" with {', '.join(parts)}" if parts else "")


def differences(got: Shapes, expected: Shapes, most: int = 3) -> str:
    """Say in one line how tensors differ from the expected ones; empty if they do not."""
    missing = [key for key in expected if key not in got and not _counter(key)]
    unexpected = [key for key in got if key not in expected]
    other = [
        f"{key} is {tuple(got[key])}, expected {tuple(expected[key])}"
        for key in expected
        if key in got and tuple(got[key]) != tuple(expected[key])
    ]

    def some(what: str, items: list[str], join: str = ", ") -> list[str]:
        more = f" and {len(items) - most} more" if len(items) > most else ""
        return [f"{what}{join.join(items[:most])}{more}"] if items else []

    return "; ".join(
        some("missing ", missing) + some("unexpected ", unexpected) + some("", other, "; ")
    )


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what torchvision's own loading code renames: the DenseNets of 2017 (``norm.1``)."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", key): tensor for key, tensor in state.items()}


def _completed(name: str, shapes: Shapes, given: dict[str, Any]) -> dict[str, Any] | None:
    """Add the sizes under which an entry loads the shapes to the given arguments."""
    try:
        if _loads(name, shapes, given):
            return given
        arguments = given | _sizes(name, shapes, given)
        return arguments if _loads(name, shapes, arguments) else None
    except (
        Exception
    ):  # it takes no such argument, or no such size: a constructor may raise anything
        return None


def _loads(name: str, shapes: Shapes, arguments: dict[str, Any]) -> bool:
    expected = structure(name, **arguments)
    if not differences(shapes, expected):
        return True
    if any(expected.get(key, shape) != shape for key, shape in shapes.items()):
        return False
    # Only names differ. torchvision renamed layers over the years, and its modules know the old
    # names when they load: ask them.
    model = build_empty(name, arguments, device="meta")
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on copies between meta tensors, which do nothing
        try:
            model.load_state_dict(state)
        except RuntimeError:
            return False
    return True


def _sizes(name: str, shapes: Shapes, arguments: dict[str, Any]) -> dict[str, Any]:
    """Find the number of classes and the image size that would explain the shapes."""
    sizes: dict[str, Any] = {}
    position = shapes.get("encoder.pos_embedding", ())
    if position and position != structure(name)["encoder.pos_embedding"]:
        side = math.isqrt(position[1] - 1)  # (1, patches + 1, width)
        sizes["image_size"] = side * shapes["conv_proj.weight"][-1]
    two = structure(name, num_classes=2, **arguments)
    three = structure(name, num_classes=3, **arguments)
    for key in two.keys() & shapes.keys():
        for at_two, at_three, here in zip(two[key], three[key], shapes[key], strict=False):
            slope = at_three - at_two
            if slope:
                classes, rest = divmod(here - at_two, slope)
                if not rest and classes + 2 > 0:
                    return sizes | {"num_classes": classes + 2}
    return sizes


def _layers(shapes: Shapes) -> set[str]:
    return {re.sub(r"\d+", "#", key) for key in shapes if not _counter(key)}


def _jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _counter(key: str) -> bool:
    """Whether a tensor counts a batch norm's batches: old files have none, and it is not needed."""
    return key.endswith("num_batches_tracked")

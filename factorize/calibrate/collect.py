"""Runs a model on a few hundred images and gathers the moments of its layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from factorize.calibrate.moment_sums import MomentSums
from factorize.errors import DataError, FactorizeError
from factorize.spec import ConvSpec
from factorize.tensor.call import batch_size, call, evaluating, input_on, rows_of
from factorize.tensor.effort import Effort, effort
from factorize.tensor.layout import laid_out
from factorize.tensor.moments import Calibration, LayerCalibration
from factorize.types import Progress

HELD_OUT = 5
"""Every so many-th image is held out: the fit is measured on it."""

PATCHES, PATCHES_PER_ENTRY = 40_000, 64
"""Patches for one layer's fit: so many, or so many times their length D, whichever is more.

Half as many do for ResNet-20 (`experiments/search`), and not for the digits on made-up images."""

QUICKER = 4
"""Times fewer patches where fits are quick."""


def collect(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    images: Sequence[Any],
    *,
    memory: float = 2e9,
    per_image: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    source: str = "",
) -> Calibration:
    """Gather the moments of layers' inputs from images; every fifth image is held out.

    The model runs in eval mode without gradients on the device where it is. Layers whose sums
    do not fit in `memory` together are gathered in further passes over the images; a pass runs
    the model no further than its last layer. The result does not depend on the passes.

    Parameters
    ----------
    specs
        The layers, with groups=1, in the order of execution (so that the first passes are
        short). Names of one module in several places each get the moments of all its calls.
    images
        Batches (n, C, ...) as the model takes them, see `tensor.call`.
    memory
        Bytes for the sums of one pass. A layer that needs more has a pass of its own.
    per_image
        Output positions drawn at each call from each image; by default what `positions_per_image`
        says.
    progress
        Called as ``progress("calibrate", images done, images in all passes, {})``.
    source
        Where the images came from, in words.

    Raises
    ------
    DataError
        There are fewer than two images, the model does not take them or does not reach a layer,
        or a layer's input is not finite.
    UnsupportedLayerError
        A layer is grouped.
    """
    layers = dict(
        collect_each(
            model, specs, images, memory=memory, per_image=per_image, seed=seed, progress=progress
        )
    )
    return Calibration({name: layers[name] for name in specs}, dict(specs), source)


def collect_each(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    images: Sequence[Any],
    *,
    memory: float = 2e9,
    per_image: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, LayerCalibration]]:
    """As `collect`, layer by layer, so that no more than one pass is held at a time."""
    fit, held_out = ([laid_out(model, one) for one in part] for part in split(images))
    modules = {name: model.get_submodule(name) for name in specs}
    names: dict[int, list[str]] = {}  # several names may be of one module
    for name, module in modules.items():
        names.setdefault(id(module), []).append(name)
    unique = {min(same): specs[min(same)] for same in names.values()}

    groups = list(_groups(unique, memory))
    total, done = len(groups) * (_count(fit) + _count(held_out)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("calibrate", done, total, {})

    for group in groups:
        parts: list[tuple[dict[str, MomentSums], int]] = []
        # As many from each image that is held out: what the two differ in tells the fit's error.
        drawn = {n: per_image or positions_per_image(s, _count(fit)) for n, s in group.items()}
        for part in (fit, held_out):
            count = _count(part)
            sums = {
                name: MomentSums(spec, per_image=drawn[name], seed=seed)
                for name, spec in group.items()
            }
            _run(model, {name: modules[name] for name in group}, sums, part, seed, advance)
            parts.append((sums, count))
        for name in group:  # half of each matrix is held until its turn comes
            both = LayerCalibration(*(sums.pop(name).finish(count) for sums, count in parts))
            for alias in names[id(modules[name])]:
                yield alias, both


def split(images: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to fit to, and batches of every fifth image, of the last one where there are few.

    Raises
    ------
    DataError
        There are fewer than two images.
    """
    total = _count(images)
    if total < 2:
        raise DataError(
            f"calibration images: there must be at least 2, one of them held out, got {total}. "
            "A few hundred are better."
        )
    held = torch.arange(total) % HELD_OUT == min(HELD_OUT, total) - 1
    masks = held.split([batch_size(batch) for batch in images])
    fit, held_out = (
        [rows_of(batch, mask) for batch, mask in zip(images, wanted, strict=True) if mask.any()]
        for wanted in ([~mask for mask in masks], masks)
    )
    return fit, held_out


def positions_per_image(spec: ConvSpec, images: int) -> int:
    """How many output positions to draw from each of `images`, at each call of the layer.

    For `PATCHES` patches, or `PATCHES_PER_ENTRY` times their length where that is more. A layer
    with fewer positions gives them all.
    """
    length = spec.in_channels * prod(spec.kernel)
    patches = max(PATCHES, PATCHES_PER_ENTRY * length) / (QUICKER if effort() < Effort.WHOLE else 1)
    return ceil(patches / (images * max(len(spec.input_sizes), 1)))


class _Stop(BaseException):
    """Ends a forward pass with nothing left to tell; no model's ``except Exception`` sees it."""


def _run(
    model: nn.Module,
    modules: dict[str, nn.Module],
    sums: dict[str, MomentSums],
    images: list[Any],
    seed: int,
    advance: Any,
) -> None:
    """One pass: add the inputs of every call of the modules to their sums."""
    expected = {name: len(sums[name].spec.input_sizes) for name in modules}
    stops = all(expected.values())
    calls: dict[str, int] = {}

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            sums[name].add(x if x.ndim > len(sums[name].spec.kernel) + 1 else x[None])
            calls[name] = calls.get(name, 0) + 1
            if stops and all(calls.get(key, 0) >= wanted for key, wanted in expected.items()):
                raise _Stop

        return add

    device = next((t.device for t in chain(model.parameters(), model.buffers())), "cpu")
    hooks = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        # A model that draws at random draws the same in each pass.
        cuda = [device] if torch.device(device).type == "cuda" else []
        with evaluating(model), torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            for batch in images:
                calls.clear()
                try:
                    call(model, input_on(batch, device))
                except _Stop:
                    pass
                except (FactorizeError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
                    parts = [v for v in tree_leaves(batch) if isinstance(v, Tensor)]
                    shapes = " and ".join(f"{tuple(v.shape)} {v.dtype}" for v in parts[:2])
                    raise DataError(
                        f"calibration images: the model must take a batch of them, "
                        f"{shapes}, got {type(error).__name__}: {line}. "
                        "Give images as the model takes them."
                    ) from error
                advance(batch_size(batch))
    finally:
        for handle in hooks:
            handle.remove()
    for layer in sums.values():
        layer.flush()


def _groups(specs: Mapping[str, ConvSpec], memory: float) -> Iterator[dict[str, ConvSpec]]:
    """Layers in order, as many to a pass as fit; both sums, fit and held out, are counted."""
    group: dict[str, ConvSpec] = {}
    needed = 0
    for name, spec in specs.items():
        size = 2 * MomentSums.memory(spec)
        if group and needed + size > memory:
            yield group
            group, needed = {}, 0
        group[name] = spec
        needed += size
    if group:
        yield group


def _count(images: Sequence[Any]) -> int:
    return sum(map(batch_size, images))

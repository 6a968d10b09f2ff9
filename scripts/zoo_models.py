"""The zoo's models: which ones, how each is built, and the smallest input it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize.models import architectures

CHOSEN = Path(__file__).parents[1] / "experiments" / "zoo" / "timm.json"

# Below 64, nets that halve the image five times have maps of one pixel, where a 3x3 kernel is no
# more than its middle value. 70 suits patches of 14.
SIDES = (64, 70, 80, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 336, 384, 448, 512)
CLIPS = ((4, 64), (8, 64), (8, 112), (16, 112), (16, 224))  # frames, side
BATCH = 2  # batch norms of pooled values need two samples to train


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes
    ----------
    family
        The module of its package that defines it, such as ``detection.faster_rcnn``.
    """

    suite: str
    name: str
    family: str


def entries(suite: str) -> list[Entry]:
    """All models of a suite, the quantized ones included."""
    if suite == "torchvision":
        from torchvision.models import list_models

        return [
            Entry(suite, name, architectures.family(name).removeprefix("torchvision.models."))
            for name in list_models()
        ]
    import timm

    stored = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
    if stored.get("timm") != timm.__version__:
        stored = {"timm": timm.__version__, **_choose_timm()}
        CHOSEN.write_text(json.dumps(stored, indent=1) + "\n")
    return [Entry(suite, one["name"], one["module"]) for one in stored["chosen"]]


def _choose_timm() -> dict[str, Any]:
    """The model of fewest parameters of each family that has a convolution.

    A family is one module of timm and the letters that its names begin with. Names in ``test_`` are
    no architectures, and ``tf_`` ones are others' again.
    """
    import timm

    families: dict[tuple[str, str], list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if not name.startswith(("test_", "tf_")):
                letters = re.match("[a-z]*", name)
                families.setdefault((module, letters[0] if letters else ""), []).append(name)
    chosen, without = [], []
    for (module, letters), names in sorted(families.items()):
        sized = []
        for name in names:
            with torch.device("meta"):
                model = timm.create_model(name)
            sized.append((sum(p.numel() for p in model.parameters()), name, model))
        params, name, model = min(sized, key=lambda one: one[:2])
        if any(isinstance(one, nn.modules.conv._ConvNd) for one in model.modules()):
            chosen.append({"module": module, "name": name, "params": params, "of": len(names)})
        else:
            without.append(f"{module}: {letters}")
    return {"chosen": chosen, "without_convolution": without}


def build(entry: Entry, arguments: dict[str, Any]) -> nn.Module:
    """The model with seeded random weights, none of which hides a layer."""
    torch.manual_seed(0)
    if entry.suite == "timm":
        import timm

        model = timm.create_model(entry.name, **arguments)
    else:
        model = architectures.build(entry.name, arguments)
    enliven(model)
    return model.eval()


def enliven(model: nn.Module) -> None:
    """Redraw constant weights near 0, as of layer scale or a last batch norm: they hide layers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not p.is_floating_point() or p.numel() == 0 or p.min() != p.max() or p.max() > 0.1:
                continue
            if max(p.shape, default=1) == p.numel():
                p.uniform_(0.2, 0.5, generator=generator)
            else:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)


def smallest(
    entry: Entry, runs: Callable[[nn.Module, Any], None]
) -> tuple[dict[str, Any], nn.Module, Any]:
    """Arguments, model and input of the smallest size at which it runs.

    Raises
    ------
    Exception
        What the model said at the largest.
    """
    failure: Exception | None = None
    made: tuple[Any, nn.Module] | None = None
    for arguments, x in _candidates(entry):
        try:
            if made is None or made[0] != arguments:
                made = arguments, build(entry, arguments)
            resize(made[1], x)
            runs(made[1], x)
        except Exception as error:
            failure = error
        else:
            return arguments, made[1], x
    assert failure is not None
    raise failure


def resize(model: nn.Module, x: Any) -> None:
    """Have a detector take images as they are; SSDs keep the size that they are made for."""
    transform = getattr(model, "transform", None)
    if isinstance(x, list) and getattr(transform, "fixed_size", None) is None:
        transform.min_size, transform.max_size = (x[0].shape[-1],), x[0].shape[-1]  # type: ignore[union-attr]


def _candidates(entry: Entry) -> Iterator[tuple[dict[str, Any], Any]]:
    """Arguments and inputs, smallest first."""
    generator = torch.Generator().manual_seed(1)

    def images(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if entry.suite == "timm":
        yield from _timm_candidates(entry, images)
    elif entry.family.startswith("video."):
        yield from (({}, images(BATCH, 3, frames, side, side)) for frames, side in CLIPS)
    elif entry.family.startswith("optical_flow."):
        pairs = ((images(BATCH, 3, s, s), images(BATCH, 3, s, s)) for s in SIDES)
        yield from (({}, pair) for pair in pairs)
    elif entry.family.startswith("detection."):
        pairs = (images(BATCH, 3, s, s).sigmoid() for s in SIDES)
        yield from (({}, list(pair)) for pair in pairs)
    else:
        fixed = entry.family == "vision_transformer"
        for side in SIDES:
            yield {"image_size": side} if fixed else {}, images(BATCH, 3, side, side)


def _timm_candidates(
    entry: Entry, images: Callable[..., Tensor]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Sizes from the smallest; a model of fixed size is built for each, where it can be."""
    import timm

    settings = timm.get_pretrained_cfg(entry.name)
    channels, *whole = settings.input_size if settings else (3, 224, 224)
    fixed = settings is not None and settings.fixed_input_size
    for side in SIDES:
        if side < max(whole):
            yield {"img_size": side} if fixed else {}, images(BATCH, channels, side, side)
    yield {}, images(BATCH, channels, *whole)

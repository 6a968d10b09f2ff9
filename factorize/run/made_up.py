"""Runs without a real image: made-up ones in their place, suited to the model."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from factorize import calibrate, tune
from factorize.data.as_data import as_data
from factorize.data.synthetic import (
    SYNTHETIC,
    MadeUp,
    Suit,
    count_for,
    is_made_up_like,
    is_synthetic,
    synthetic_data,
)
from factorize.errors import DataError
from factorize.fit import PASSES, FitConfig, Fitted, apply_, rebased
from factorize.graph.spec_of import is_convolution
from factorize.measure import count
from factorize.plan import Budget
from factorize.run.steps import copied, find
from factorize.tensor.call import to_model
from factorize.types import Data, Preprocessing, Progress

MACS = 6e12
"""What choosing made-up images, and changing them, may each cost: a minute or so on two cores."""
VALUE = 100
"""MACs that take about as long as one value that a layer hands on: memory bounds what depthwise
and narrow layers take."""
PASS_MACS, FEWEST = 1.7e12, 64
"""What a pass of all images through the model may cost, in which a search makes several; of so many
images at least."""
MANY, FEWER = 10_000, 5
"""Of nets in which each layer has so many positions in every image, so many times fewer will do."""
_PLAIN = Preprocessing((0.0,), (1.0,))


def data_of(example_input: Any, data: Any, fit: FitConfig, *, seed: int) -> Data | MadeUp | None:
    """The data of a run: what is given, else made-up images where the model takes such.

    None where chains are to be fitted to the weights, or to a calibration file, or the model takes
    something else.
    """
    if data is None and fit.wants_images and is_made_up_like(example_input):
        return MadeUp()
    if is_synthetic(data):
        return MadeUp()
    if data is None or isinstance(data, MadeUp):
        return data
    return as_data(data, example_input, seed=seed)


def make_up(
    wish: MadeUp,
    model: nn.Module,
    example_input: Any,
    *,
    outputs: str | None,
    device: str,
    seed: int,
    progress: Progress | None,
) -> Data:
    """Make the images up.

    Raises
    ------
    DataError
        The model's input is nothing that can be made up.
    """
    if not isinstance(example_input, Tensor):
        raise DataError(
            f"{SYNTHETIC}: the model must take one tensor of images, video or sound, got "
            f"{type(example_input).__name__}. Give data of your own with --data."
        )
    if progress:
        progress("make images up", 0, 0, {})
    shape = example_input.shape[1:]
    positions = [
        prod(size) for site in find(model, example_input) for size in site.spec.output_sizes
    ]
    cost = PASS_MACS / (FEWER if min(positions, default=0) >= MANY else 1)
    most = max(int(cost / max(work(model, example_input), 1)), FEWEST)
    return synthetic_data(
        shape, preprocessing=wish.preprocessing, batch_size=wish.batch_size,
        suit=suiting(model, outputs, device, seed), count=min(count_for(shape), most), seed=seed,
    )  # fmt: skip


def work(model: nn.Module, example_input: Tensor) -> float:
    """What a sample costs: its MACs, and `VALUE` more for each value that a convolution makes."""
    values = 0

    def note(module: nn.Module, given: Any, made: Any) -> None:
        nonlocal values
        values += made.numel()

    hooks = [one.register_forward_hook(note) for one in model.modules() if is_convolution(one)]
    try:
        macs = count(model, example_input).macs
    finally:
        for hook in hooks:
            hook.remove()
    return macs + VALUE * values / len(example_input)


def suiting(model: nn.Module, outputs: str | None, device: str, seed: int) -> Suit:
    """What chooses, of many made-up images, those that are like the model's own.

    Where the model is small, every second one is then changed to be more so.
    """
    kind = outputs or "auto"

    def suit(
        kinds: Sequence[Tensor], preprocessing: Preprocessing | None, wanted: int
    ) -> tuple[list[Tensor], Preprocessing] | None:
        try:
            with tune.placed(device, model):
                one = to_model(_PLAIN.normalise(kinds[0][:1]), model)
                most = int(MACS / max(work(model, one), 1))
                found = calibrate.suited(
                    model, kinds, preprocessing, wanted, outputs=kind, most=most, seed=seed
                )
                # A step back takes twice as long as one forward, and half of them are changed.
                if found and 3 * calibrate.STEPS * wanted // 2 <= most:
                    splits, steps = found
                    found = [_half_inverted(model, one, steps, kind) for one in splits], steps
                return found
        except Exception:  # whoever runs it next tells in which way images and model differ
            return None

    return suit


def _half_inverted(model: nn.Module, images: Tensor, steps: Preprocessing, kind: str) -> Tensor:
    """Where the model has a gradient that leads anywhere; else as they are."""
    inputs = steps.normalise(images)
    try:
        inputs[::2] = calibrate.inverted(model, inputs[::2], kind)
    except RuntimeError:
        return images
    return steps.pixels(inputs) if bool(inputs.isfinite().all()) else images


def check_real(data: Data | MadeUp | None, *, epochs: float, budget: Budget | None) -> None:
    """Raise DataError where made-up images are not good enough for what is asked."""
    dropping = budget is not None and budget.max_drop is not None
    real = isinstance(data, Data) and not data.made_up
    if dropping and not real:
        raise DataError("--max-drop: needs real images to judge by, got none. Give --data.")
    if epochs and not real:
        raise DataError(
            "finetune: must have real images to tune on, got none. Give --data, or leave "
            "--finetune out."
        )


def is_reconstructed(model: nn.Module, example_input: Any, config: FitConfig, how: str) -> bool:
    """Whether blocks fitted to made-up images are tuned together, though nobody asked for that.

    Where it takes two minutes or so on two cores at most.
    """
    unasked = config.reconstruct is None and how == "sequential"
    return unasked and PASSES * work(model, example_input) <= 2 * MACS


def delivered(model: nn.Module, fitted: Fitted, seen: nn.Module) -> nn.Module:
    """A copy of the model with chains that were fitted for what `seen_by` made of it."""
    return apply_(copied(model), fitted if seen is model else rebased(fitted, seen, model))


def seen_by(model: nn.Module, data: Data | None, *, device: str) -> nn.Module:
    """The model that chains are fitted for.

    For made-up images a copy whose batch norms normalise them as the model's own normalise those
    that it was trained on: all layers behind get what they are used to.
    """
    if data is None or not data.made_up:
        return model
    return tune.renormalised_(copied(model), data, device=device)

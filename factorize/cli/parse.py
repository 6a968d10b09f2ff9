"""What the texts of the command line mean."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import typer

from factorize.cli.numbers import number
from factorize.errors import BudgetError, DataError, ModelLoadError, PlanError, RankError
from factorize.models.load_model import LoadedModel
from factorize.plan import Budget
from factorize.run.checks import exists
from factorize.tensor.call import model_dtype
from factorize.types import Data, Preprocessing

_MOST_VALUES = 10**8  # of one input

LONGEST = 900  # characters of a message: a value in it may be of any length


def rank_of(text: str | None) -> int | float | str | None:
    """An integer, a share, or a word."""
    if text is None or text == "vbmf":
        return text
    try:
        whole = not any(c in text.lower() for c in ".e%")
        return int(text) if whole else number(text)
    except ValueError:
        return text  # refused where the rule is read, with the rule


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def json_object(text: str | None) -> dict[str, Any] | None:
    """Keyword arguments as a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"--arch-args must be JSON, got {text!r}: {error}.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f'--arch-args must be an object such as {{"n": 10}}, got {text!r}.')
    return value


def shapes_of(text: str | None) -> dict[str, tuple[int, ...]] | None:
    """Shapes by name, as in image=1x3x480x640,mask=1x1x480x640; None where there are no names."""
    if text is None or "=" not in text:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, _, sizes = part.rpartition("=")
        try:
            shapes[name.strip()] = tuple(int(size) for size in sizes.split("x"))
        except ValueError:
            name = ""
        if not name or min(shapes[name.strip()]) < 1:
            raise DataError(
                "--input-shape by name must be such as image=1x3x480x640,mask=1x1x480x640, got "
                f"{text!r}."
            )
        if math.prod(shapes[name.strip()]) > _MOST_VALUES:
            raise DataError(f"--input-shape must have up to {_MOST_VALUES:,} values, got {part!r}.")
    return shapes


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """Channels and one to three sizes: C,L or C,H,W or C,D,H,W."""
    if text is None or "=" in text:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError(
            "--input-shape must be channels and one to three sizes such as 1,1024 or 3,224,224 or "
            f"3,16,112,112, got {text!r}."
        )
    if math.prod(shape) > _MOST_VALUES:
        raise DataError(f"--input-shape must have up to {_MOST_VALUES:,} values, got {text!r}.")
    return shape


def image_shape(data: str, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape for `load_data`: files have images; a function's loaders know their own shape."""
    if shape is None or len(shape) == 3:
        return shape
    if ":" in data and not exists(Path(data)):
        return None
    sizes = "x".join(map(str, shape))
    raise DataError(
        f"{data}: files of images have (C, H, W), the model takes {sizes}. Give --data "
        f"module:function, whose loaders yield batches of (N, {', '.join(map(str, shape))})."
    )


def preprocessing_of(
    loaded: LoadedModel,
    mean: str | None,
    std: str | None,
    scale: float | None,
    resize: int | None,
    crop: int | None,
) -> Preprocessing | None:
    """What the options say, over what the architecture's own weights were trained with."""

    def numbers(option: str, text: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise DataError(
                f"{option} must be numbers such as 0.485,0.456,0.406, got {text!r}."
            ) from None

    if (mean is None) != (std is None):
        raise DataError("--mean and --std go together: give both.")
    base = loaded.preprocessing
    if all(one is None for one in (mean, scale, resize, crop)):
        return base
    white = 1.0 if scale is None else scale
    if not (math.isfinite(white) and white > 0):
        raise DataError(f"--scale must be a finite number above 0 such as 255, got {scale}.")
    if mean is not None and std is not None:
        means, stds = numbers("--mean", mean), numbers("--std", std)
        finite = all(map(math.isfinite, (*means, *stds)))
        if len(means) != len(stds) or min(stds) <= 0 or not finite:
            raise DataError(
                "--mean and --std must have one finite number per channel, std above 0, got "
                f"{mean} and {std}."
            )
        means, stds = (tuple(one / white for one in values) for values in (means, stds))
    elif scale is not None:
        means, stds = (0.0,), (1 / white,)
    else:
        means, stds = (base.mean, base.std) if base else ((0.0,), (1.0,))
    return Preprocessing(
        means, stds,
        resize if resize is not None else base.resize if base else None,
        crop if crop is not None else base.crop if base else None,
    )  # fmt: skip


def example(
    loaded: LoadedModel, shape: tuple[int, ...] | None, data: Data | None, seed: int
) -> Any:
    """One random input of the model's dtype; its shape from the option, the model or the data."""
    if loaded.example is not None:
        if shape is not None:
            raise DataError(
                f"{loaded.arch}: --input-shape C,H,W is for one image with any batch, this takes "
                f"{sizes_of(loaded.example, whole=True)}. Leave it out; of an ONNX file give sizes "
                "by name."
            )
        return loaded.example
    if shape is None and data is not None:
        shape = tuple(next(iter(data.holdout))[0].shape[1:])
    if shape is None:
        raise DataError(
            f"{loaded.arch}: the shape of an input is not known. Give --input-shape C,H,W, or C,L "
            "or C,D,H,W."
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator).to(model_dtype(loaded.model))


def sizes_of(sample: Any, *, whole: bool = False) -> str:
    """The shape of an input, without the batch unless ``whole``; or of each by name."""
    if isinstance(sample, dict):
        return ", ".join(f"{name} {sizes_of(one, whole=whole)}" for name, one in sample.items())
    if isinstance(sample, (list, tuple)):
        return " and ".join(sizes_of(one, whole=whole) for one in sample)
    if not isinstance(sample, torch.Tensor):
        return str(sample)
    return "x".join(map(str, sample.shape[0 if whole else 1 :]))


def budget_of(**limits: float | None) -> Budget | None:
    """The budget; None where no limit is given."""
    return Budget(**limits) if any(limit is not None for limit in limits.values()) else None


@contextmanager
def usage() -> Iterator[None]:
    """A budget with a wrong value is a wrong command, not one that cannot be kept."""
    try:
        yield
    except BudgetError as error:
        raise typer.BadParameter(str(error)) from error


def sweep_of(text: str | None) -> tuple[float, ...] | Literal["auto"]:
    """Speedups with commas between them, or ``auto``."""
    if text is None or text == "auto":
        return "auto" if text else ()
    try:
        speedups = tuple(number(part) for part in text.split(","))
    except ValueError:
        speedups = ()
    if not speedups:
        raise BudgetError(f"sweep must be speedups above 1 such as 1.5,2,3 or auto, got {text!r}.")
    return speedups


def macs_of(text: str | None) -> tuple[float | None, tuple[float, ...]]:
    """One share of the MACs for a budget, or several for a sweep."""
    if text is None:
        return None, ()
    try:
        shares = tuple(number(part) for part in text.split(","))
    except ValueError:
        raise BudgetError(
            f"--macs must be a share in (0, 1] such as 0.5 or 50%, or several such as 0.5,0.3, got "
            f"{text!r}."
        ) from None
    return (shares[0], ()) if len(shares) == 1 else (None, shares)


def pick_of(text: str | None) -> float | Literal["knee"]:
    """A speedup or share, or ``knee``."""
    if text is None or text == "knee":
        return "knee"
    try:
        return number(text)
    except ValueError:
        raise BudgetError(
            f"--pick must be knee or one of --sweep or of several --macs, got {text!r}."
        ) from None


def default_out(model: str) -> Path:
    """A folder named after the model, beside it; in the current folder for a name."""
    path = Path(model)
    if path.is_file():
        return path.parent / f"{path.stem}-factorized"
    if (path / "config.json").is_file():
        path = path.resolve()  # of . too
        return path.parent / f"{path.name}-factorized"
    return Path(f"{model.rpartition(':')[2].rpartition('/')[2]}-factorized")


def check_wish(
    *, rank: str | None, energy: float | None, lossless: bool, planned: bool, searching: bool,
    sweeping: bool, pick: str | None, sensitivity: str,
) -> None:  # fmt: skip
    """Refuse options that contradict each other, or a command without a wish.

    Raises
    ------
    RankError, PlanError, typer.BadParameter
        Which, and what to leave out.
    """
    if planned and searching:
        raise PlanError("--plan: a plan has its ranks already. Leave the budget out.")
    if pick is not None and not sweeping:
        raise typer.BadParameter(
            "--pick chooses a point of a sweep. Give --sweep or several --macs, or leave it out."
        )
    if not searching and sensitivity != "error":
        raise typer.BadParameter("--sensitivity is for a search. Give a budget, or leave it out.")
    if lossless and (rank is not None or planned or searching):
        raise RankError("--lossless chooses all itself. Drop --rank, --plan and budgets.")
    if not (planned or lossless or searching) and rank is None and energy is None:
        raise RankError(
            "one of --rank, --energy, --lossless, --plan and a budget (--speedup, --macs, "
            "--params, --max-drop, --sweep) is needed, for example --speedup 2."
        )


def one_line(message: str) -> str:
    """A message as it is shown; its place is at the start, the fix at the end."""
    # A worker that reads images hands its error on as the end of a traceback.
    line = " ".join(message.rpartition("\nfactorize.errors.DataError: ")[2].split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"

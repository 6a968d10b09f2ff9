"""The frozen dataclasses that flow between the steps.

``model -> ConvSpec -> Plan -> model' -> Report``. Numbers, never strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from factorize.errors import DataError
from factorize.outputs import UNDECLARED, Outputs
from factorize.preprocessing import Preprocessing
from factorize.spec import ConvSpec, Rank

Batch = tuple[Any, ...]
"""(images,) or (images, labels): images (N, C, ...) float, labels (N,) int64.

Images may also be a list of (C, H, W), as detectors take them, or a tuple of several inputs; labels
may be of any kind where no class is to be told by them."""


@dataclass(frozen=True)
class ConvSite:
    """One convolution as the walker found it.

    Attributes
    ----------
    aliases
        Other names of the same module object (one module used in several places).
    tied
        Names of other modules that share this weight tensor.
    blocked
        Why it must be left alone, or None.
    notes
        What a user should know when it is replaced (a parametrisation is folded).
    parallel
        Names of convolutions of the same shape whose outputs are concatenated with this one's: one
        grouped convolution could do them all (`merge_parallel`).
    unbatched
        Whether it is called without a batch axis, where torch cannot shuffle channels.
    """

    spec: ConvSpec
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    blocked: str | None = None
    notes: tuple[str, ...] = ()
    parallel: tuple[str, ...] = ()
    unbatched: bool = False


@dataclass(frozen=True)
class Factorization:
    """The chain that replaces one convolution.

    Attributes
    ----------
    spec
        Of the convolution that is replaced.
    stages
        Specs of the chain, first to last; only the last may have a bias.
    weights
        float64, one per stage, each of its stage's ``kernel_shape``.
    error
        Of these very weights: relative output error on the images fitted to, or, fitted without
        images, ``||W - W'|| / ||W||``.
    held_out_error
        The output error on images that were not fitted to.
    bias
        (O,) float64 of the last stage; None: that of the convolution.
    """

    spec: ConvSpec
    method: str
    rank: Rank
    variant: str
    stages: tuple[ConvSpec, ...]
    weights: tuple[Tensor, ...]
    error: float
    held_out_error: float | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerPlan:
    """What is to happen to one convolution: a method and a rank, or a reason to leave it alone.

    Attributes
    ----------
    variant
        Order of the chain, where the method has more than one.
    macs, params
        Of the chain; of the dense layer where it stays dense.
    error
        Predicted relative error; None where only the fit can tell.
    """

    spec: ConvSpec
    method: str | None = None
    rank: Rank = ()
    variant: str = ""
    macs: int = 0
    params: int = 0
    error: float | None = None
    skip_reason: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str | None, Rank, str]:
        """The layer, and what tells its chain from others."""
        return self.spec.name, self.method, self.rank, self.variant


@dataclass(frozen=True)
class Data:
    """A dataset, its use fixed: tune on ``train``, choose on ``holdout``, report on ``test``.

    Each can be read more than once and yields batches; ``outputs`` says how models are compared on
    them.

    Attributes
    ----------
    holdout
        Comes from the training split and is never trained on, unless ``holdout_of``, what its
        images are in words, says otherwise. Where it is not given, images are held out of `train`.
    labelled
        Whether labels that are class numbers are to be used.
    classes
        How many classes there are where their numbers are those of folders: they are the model's
        only if it has as many outputs. None: the numbers are the model's own.
    source
        Of the images, in words.
    preprocessing
        What the images went through; None where only their source knows that.
    made_up
        Whether no image is a real one.

    Raises
    ------
    DataError
        A split can be read only once.
    """

    train: Iterable[Batch]
    holdout: Iterable[Batch] = ()
    test: Iterable[Batch] | None = None
    labelled: bool = True
    classes: int | None = None
    source: str = "data"
    notes: tuple[str, ...] = ()
    holdout_of: str = "held-out images, also used to choose"
    outputs: Outputs = UNDECLARED
    preprocessing: Preprocessing | None = None
    made_up: bool = False

    def __post_init__(self) -> None:
        for split in ("train", "holdout", "test"):
            batches = getattr(self, split)
            if isinstance(batches, Iterator):
                raise DataError(
                    f"{split}: must be readable more than once, got {type(batches).__name__}, "
                    "which is empty after one pass. Give a DataLoader or a list of batches."
                )


@runtime_checkable
class Resident(Protocol):
    """A dataset that lies in memory as pixels, and can lie on another device instead."""

    @property
    def nbytes(self) -> int:
        """Memory that its pixels take."""
        ...

    def on(self, device: torch.device) -> Resident:
        """The same, on a device."""
        ...

    def batch(self, indices: Tensor) -> Batch:
        """(N,) indices on the CPU -> one batch, ready for the model, where the pixels are."""
        ...


@dataclass(frozen=True)
class Metric:
    """A user's own measure of a model: ``function(model) -> float`` or ``{name: float}``.

    For the report; nothing is chosen by it, as it may well read test images.
    """

    function: Callable[[Any], float | dict[str, float]]
    name: str = "metric"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Latency:
    """Time of one model: milliseconds per batch over ``runs`` interleaved runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Speedup:
    """Original against compressed, run alternately in one process.

    ``speedup`` is the median over pairs of original/compressed time; p10 and p90 its spread.
    ``net`` says what was timed in place of the compressed net, where it is another one.
    ``taken_from`` names the files of a device far away that the times are from; without runs they
    are predicted from those of layers.
    """

    runtime: str
    device: str
    dtype: str
    batch: int
    threads: int
    runs: int
    original: Latency
    compressed: Latency
    speedup: float
    speedup_p10: float
    speedup_p90: float
    net: str = ""
    taken_from: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to happen to every convolution of a model, in the order of execution. No tensors.

    Attributes
    ----------
    settings
        How the plan was made (method, rank, ...), for the record.
    """

    layers: tuple[LayerPlan, ...]
    settings: dict[str, Any]

    @property
    def factorized(self) -> tuple[LayerPlan, ...]:
        """The layers that are to be replaced."""
        return tuple(layer for layer in self.layers if layer.method)

    def __str__(self) -> str:
        lines = []
        for layer in self.layers:
            what = layer.skip_reason or f"{layer.method} {','.join(map(str, layer.rank))}"
            lines.append(
                f"{layer.spec.label:32} {layer.spec.macs:>14,} -> {layer.macs:>14,} MACs  {what}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = ("".join(f"<td>{escape(one)}</td>" for one in (
            layer.spec.label,
            layer.skip_reason or f"{layer.method} {', '.join(map(str, layer.rank))}",
            f"{layer.spec.macs:,}", f"{layer.macs:,}",
        )) for layer in self.layers)  # fmt: skip
        head = "".join(f"<th>{one}</th>" for one in ("layer", "method, rank", "MACs", "then"))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called as progress(step, done, total, values): how long work tells where it stands."""

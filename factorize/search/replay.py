"""The rest of a net, run again with one layer's kernel replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from factorize.errors import DataError
from factorize.tensor.call import batch_size, call, evaluating, to_model
from factorize.tensor.layout import laid_out
from factorize.tensor.output_kinds import kind_of

Forward = Callable[..., Tensor]


class IncomparableError(DataError):
    """The model's outputs cannot be compared image by image."""


class Replay:
    """Runs a model on some images with one convolution's kernel replaced.

    Outputs of the convolutions and linear layers called before that one are what they were in the
    first run: they are kept, in the order of their calls, and only the rest of the net is
    computed. The model is left as it was. It has to compute the same in every run.

    Parameters
    ----------
    model
        Runs in eval mode, where it is.
    images
        Batches, as the model takes them, see `tensor.call`.
    memory
        Bytes of outputs to keep; those of later calls are computed again.
    kind
        Of the outputs, see `tensor.output_kinds`.

    Attributes
    ----------
    outputs
        Of the model as it is, for each batch (n, values): all floating tensors in what it returns
        that have a row for each image.
    logits
        Whether these are one (n, classes) tensor.
    energy
        Their squared deviation from the mean over images, of all images.

    Raises
    ------
    IncomparableError
        The model's output has no such tensor, or is a list of dicts, as detectors return.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[Any],
        *,
        memory: float = 1e9,
        kind: str = "auto",
    ) -> None:
        self.model = model
        self.images = [laid_out(model, to_model(batch, model)) for batch in images]
        self.modules = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
        self.calls: list[list[tuple[nn.Module, Tensor | None]]] = []  # of each batch, in order
        self.outputs, self.logits, self.left = list[Tensor](), True, memory
        for batch in self.images:
            self.calls.append([])
            with self._patched(self._recording(self.calls[-1])):
                returned = self._run(batch)
            flat = _rows(returned, batch)
            self.outputs.append(flat)
            self.logits = (
                self.logits and isinstance(returned, Tensor) and returned.ndim == 2
                and kind_of(returned, kind) == "logits"
            )  # fmt: skip
        every = torch.cat(self.outputs)
        deviation = every - every.mean(0) if len(every) > 1 else every
        self.count = len(every)
        self.energy = float(deviation.square().sum()) or 1.0

    def run(self, name: str, kernel: Tensor, bias: Tensor | None = None) -> Iterator[Tensor]:
        """Outputs for each batch with a convolution's kernel replaced, and its bias if given."""
        module: Any = self.model.get_submodule(name)
        like = next((t for t in (*module.parameters(), *module.buffers())), kernel)
        bias = module.bias if bias is None else bias.to(like)
        for batch, calls in zip(self.images, self.calls, strict=True):
            # Strides of a kernel become those of the output, which the model may want to view.
            # `contiguous` leaves those of axes of length 1, which cuDNN and oneDNN look at.
            made = kernel.to(like).clone(memory_format=torch.contiguous_format)
            with self._patched(self._replaying(calls, module, made, bias)):
                returned = self._run(batch)
            yield _rows(returned, batch)

    def change(self, name: str, kernel: Tensor, bias: Tensor | None = None) -> float:
        """Squared change of the outputs, relative to their deviation from the mean over images."""
        moved = sum(
            float((got - wanted).square().sum())
            for got, wanted in zip(self.run(name, kernel, bias), self.outputs, strict=True)
        )
        return moved / self.energy

    def divergence(self, name: str, kernel: Tensor, bias: Tensor | None = None) -> float:
        """KL divergence of the classes' probabilities from the original's, the mean over images.

        Of a model that does not return logits, `change`.
        """
        if not self.logits:
            return self.change(name, kernel, bias)
        total = 0.0
        for got, wanted in zip(self.run(name, kernel, bias), self.outputs, strict=True):
            ours, theirs = got.log_softmax(1), wanted.log_softmax(1)
            total += float(((theirs - ours) * theirs.exp()).sum())
        return max(total / self.count, 0.0)

    def _run(self, batch: Any) -> object:
        with evaluating(self.model):
            return call(self.model, batch)

    def _recording(
        self, calls: list[tuple[nn.Module, Tensor | None]]
    ) -> Callable[[nn.Module, Forward], Forward]:
        def make(module: nn.Module, forward: Forward) -> Forward:
            def record(*args: object, **kwargs: object) -> Tensor:
                output = forward(*args, **kwargs)
                size = output.numel() * output.element_size()
                keep = size <= self.left
                self.left -= size if keep else 0
                # A copy: what comes next may change the output in place.
                calls.append((module, output.clone() if keep else None))
                return output

            return record

        return make

    def _replaying(
        self,
        calls: list[tuple[nn.Module, Tensor | None]],
        replaced: nn.Module,
        kernel: Tensor,
        bias: Tensor | None,
    ) -> Callable[[nn.Module, Forward], Forward]:
        first = next((i for i, (m, _) in enumerate(calls) if m is replaced), len(calls))
        done = 0

        def make(module: nn.Module, forward: Forward) -> Forward:
            def replay(*args: object, **kwargs: object) -> Tensor:
                nonlocal done
                done += 1
                if done <= first:
                    kept = calls[done - 1][1]
                    return forward(*args, **kwargs) if kept is None else kept.clone()
                if module is replaced:
                    x = args[0] if args else kwargs["input"]
                    return _computed(replaced, x, kernel, bias)
                return forward(*args, **kwargs)

            return replay

        return make

    @contextmanager
    def _patched(self, make: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
        """Each module's forward wrapped, on the instance; hooks stay outside of it."""
        before = [m.__dict__.get("forward") for m in self.modules]
        try:
            for module in self.modules:
                module.forward = make(module, module.forward)
            yield
        finally:
            for module, own in zip(self.modules, before, strict=True):
                module.__dict__.pop("forward", None)
                if own is not None:
                    module.forward = own


def _computed(module: Any, x: Any, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer gives with another kernel (O, I, *kernel) and bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, kernel, bias)
    if not module.transposed:
        return module._conv_forward(x, kernel, bias)
    convolve = getattr(F, f"conv_transpose{kernel.ndim - 2}d")
    return convolve(
        x, kernel.transpose(0, 1), bias, module.stride, module.padding, module.output_padding,
        module.groups, module.dilation,
    )  # fmt: skip


def _rows(returned: object, batch: Any) -> Tensor:
    """All floating tensors with a row for each image, (n, values), float64."""
    leaves = [
        leaf.detach().flatten(1) if leaf.ndim > 1 else leaf.detach()[:, None]
        for leaf in tree_leaves(returned)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim
        and len(leaf) == batch_size(batch)
    ]  # fmt: skip
    each = isinstance(returned, list) and any(isinstance(one, Mapping) for one in returned)
    if each or not leaves:  # what a detector finds in each image is of any length
        raise IncomparableError(
            "sensitivity: the model must return a floating tensor with a row for each image, got "
            f"{type(returned).__name__} without one. Leave --sensitivity kl out."
        )
    return torch.cat([leaf.double() for leaf in leaves], 1)

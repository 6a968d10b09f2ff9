"""Tune the factors of a block together, on what the block puts out in the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from factorize import calibrate, graph
from factorize.fit.layer import Fitted, apply_
from factorize.fit.lockstep import Arrival, Decision, Lockstep, refusing
from factorize.onnx_graph import Part, Twin, spans_of
from factorize.tensor.call import batch_size, call, evaluating, rows_of
from factorize.types import Factorization, Progress

STEPS = 300
BATCH, POSITIONS = 64, 2**14  # images in a step: at most, and as many as have so many outputs
RATE = 0.002  # peak step of a weight, relative to the root mean square of its tensor
MOST = 4  # fitted layers in a block
PASSES = 3 * STEPS * BATCH  # of an image through the model, at most: a step back takes two


def reconstruct(
    model: nn.Module,
    fitted: Fitted,
    images: Sequence[Any],
    *,
    memory: float = 2e9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Tune fitted layers block by block; labels and whole-net training are not needed.

    A block is the module that holds up to `MOST` fitted layers, called once with one tensor, for
    one; of an ``nn.Sequential`` with more, so many at a time with what follows them; of an ONNX
    file's twin, what leads from one value to another, see `spans_of`. Its factors are tuned by Adam
    so that its output, given what the blocks before it hand on, comes close to its output in the
    original: past its nonlinearities, which no layer's own fit sees. A block keeps its fit where
    that is no better on the held-out images, and so does a layer that is in no block.

    Parameters
    ----------
    model
        The original; it is not changed.
    images
        As for `fit_sequential`.
    memory
        Bytes that paused batches may hold, and as many for what a block is tuned on.
    progress
        Called as ``progress("reconstruct", blocks done, blocks, {})``.

    Returns
    -------
    The fit with other weights and biases; errors are those of before.
    """
    modules = dict(model.named_modules())
    fit, held_out = calibrate.split(images)
    blocks = list(_blocks(model, modules, fitted))
    called = {name: modules[name] for block in blocks for name in block.called}
    calls = _calls(model, called, fit[0])
    starts = {block.start: block for block in blocks if block.is_plain(calls)}
    whole = [name for name in starts if name not in fitted.layers]
    alone = [n for n in (*fitted.layers, *fitted.means) if not any(_within(n, b) for b in whole)]
    tuned, done = dict(fitted.layers), 0
    room = memory / 2 / sum(map(batch_size, images))  # twice while batches are joined
    generator = torch.Generator().manual_seed(seed)
    stops = {name: modules[name] for name in (*whole, *alone)}
    with evaluating(model), Lockstep(model, stops, [*fit, *held_out], memory) as lockstep:
        while (name := lockstep.next()) is not None:
            now = replace(fitted, layers=tuned)
            if name not in starts:
                lockstep.decide(_as_fitted(name, modules[name], now))
                continue
            block = starts[name]
            part = block.apply(now)
            _tune(part, block, lockstep.arrivals, len(fit), room, generator)
            for layer in block.layers:
                tuned[layer] = _with_weights(tuned[layer], _inside(part, block, layer))
            # Of a run its first layer stands here; the others are decided when they are reached.
            lockstep.decide(part if name in whole else _inside(part, block, name))
            done += 1
            if progress:
                progress("reconstruct", done, len(starts), {})
    return replace(fitted, layers=tuned, blocks=done)


@dataclass(frozen=True)
class _Block:
    """A part of the original that makes one tensor of one, and the fitted layers in it.

    Attributes
    ----------
    start
        The module that its input arrives at.
    holder
        What names in `module` are relative to.
    called
        What has to be called with one tensor for one; the first once.
    """

    start: str
    holder: str
    module: nn.Module
    layers: list[str]
    called: tuple[str, ...]

    @property
    def inside(self) -> dict[str, str]:
        """Names of modules in `module` by those in the model."""
        names = (name for name, _ in self.module.named_modules() if name)
        return {f"{self.holder}.{name}".lstrip("."): name for name in names}

    def is_plain(self, calls: Mapping[str, list[bool]]) -> bool:
        """Whether it is called so."""
        return len(calls[self.called[0]]) == 1 and all(all(calls[name]) for name in self.called)

    def apply(self, fitted: Fitted) -> nn.Module:
        """A copy with the fit."""
        layers, inside = {}, self.inside
        for name in self.layers:
            made = fitted.layers[name]
            layers[inside[name]] = replace(made, spec=replace(made.spec, name=inside[name]))
        means = {inside[name]: mean for name, mean in fitted.means.items() if name in inside}
        return apply_(copy.deepcopy(self.module), Fitted(layers, means))

    def wanted(self, arrival: Arrival, dtype: torch.dtype) -> Tensor:
        """What the original makes of its input."""
        if self.start == self.holder:
            return arrival.output.to(dtype)
        with torch.no_grad():  # a run: what arrives is its first layer's
            return self.module(arrival.original.to(dtype))


def _inside(part: nn.Module, block: _Block, layer: str) -> nn.Sequential:
    """The chain of a layer in a block with its fit."""
    chain = dict(part.named_modules())[block.inside[layer]]
    assert isinstance(chain, nn.Sequential)
    return chain


def _blocks(model: nn.Module, modules: Mapping[str, nn.Module], fitted: Fitted) -> Iterator[_Block]:
    """Modules that hold a few fitted layers and no other block, and runs of other sequences."""
    if isinstance(model, Twin):
        for span in spans_of(model, fitted.layers, MOST):
            first = span.layers[0]
            yield _Block(first, "", Part(model, span), list(span.layers), (first,))
        return
    held: dict[str, list[str]] = {}
    for name, made in fitted.layers.items():
        if name in modules and len(made.spec.input_sizes) == 1:
            held.setdefault(name.rpartition(".")[0], []).append(name)
    for holder, layers in held.items():
        nested = any(_within(other, holder) for other in held)
        if holder and len(layers) <= MOST and not nested:
            yield _Block(holder, holder, modules[holder], layers, (holder,))
        elif type(modules[holder]).forward is nn.Sequential.forward:
            for run in _runs(holder, list(modules[holder]._modules), layers, fitted):
                parts = OrderedDict((name.rpartition(".")[2], modules[name]) for name in run)
                few = [name for name in run if name in layers]
                yield _Block(run[0], holder, nn.Sequential(parts), few, (holder, run[-1]))


def _runs(
    holder: str, children: Sequence[str], layers: Sequence[str], fitted: Fitted
) -> list[list[str]]:
    """Names that follow each other from a fitted layer on, up to `MOST` of those at a time."""
    runs: list[list[str]] = []
    left = 0  # fitted layers that the last run has room for; -1: it has ended
    for child in children:
        name = f"{holder}.{child}".lstrip(".")
        if name in layers:
            if left <= 0:
                runs.append([])
                left = MOST
            left -= 1
        elif name in fitted.layers or any(_within(layer, name) for layer in fitted.layers):
            left = -1
        if runs and left >= 0:
            runs[-1].append(name)
    return runs


def _calls(model: nn.Module, called: Mapping[str, nn.Module], images: Any) -> dict[str, list[bool]]:
    """For each call of the modules whether it takes one tensor, nothing else, and gives one."""
    calls: dict[str, list[bool]] = {name: [] for name in called}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            plain = [isinstance(value, Tensor) for value in (*args, *kwargs.values(), output)]
            calls[name].append(plain == [True, True] and bool(args))

        return note

    hooks = [m.register_forward_hook(hook(n), with_kwargs=True) for n, m in called.items()]
    try:
        with refusing(model), evaluating(model):
            call(model, rows_of(images, slice(1)))
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def _within(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _as_fitted(name: str, module: nn.Module, fitted: Fitted) -> Decision:
    """A layer outside of all blocks."""
    if name in fitted.layers:
        return graph.build_chain(fitted.layers[name], module)
    norm = copy.deepcopy(module)
    norm.running_mean.copy_(fitted.means[name])  # type: ignore[union-attr, operator]
    return norm


def _tune(
    part: nn.Module,
    block: _Block,
    arrivals: Callable[[], Iterator[Arrival]],
    fits: int,
    room: float,
    generator: torch.Generator,
) -> None:
    """Tune the chains of a fitted block in place, or leave them as they are.

    Parameters
    ----------
    fits
        Batches to fit to; the others are held out.
    room
        Bytes per image; where an image takes more, fewer of each batch are looked at.
    """
    chains = [_inside(part, block, name) for name in block.layers]
    weights = [w for chain in chains for w in chain.parameters()]
    inputs, outputs, held = [], [], []
    for arrival in arrivals():
        # In the block's own precision: autocast around it in the model is off here.
        x = arrival.compressed.to(weights[0].dtype)
        y = block.wanted(arrival, x.dtype)
        if not (isinstance(y, Tensor) and y.is_floating_point() and y.shape[:1] == x.shape[:1]):
            return  # nothing for each image
        kept = max(int(len(x) * min(room / (x[0].nbytes + y[0].nbytes), 1)), 1)
        x, y = x[:kept].clone(), y[:kept].clone()
        if arrival.batch < fits:
            inputs.append(x)
            outputs.append(y)
        else:
            held.append((x, y))
    x, y = torch.cat(inputs), torch.cat(outputs)
    scale = y.square().mean().clamp_min(torch.finfo(y.dtype).tiny)
    before, saved = _distance(part, held), [w.detach().clone() for w in weights]
    for weight in weights:  # frozen ones too: the part is a copy
        weight.requires_grad_()
    batch = min(BATCH, ceil(POSITIONS / prod(y.shape[2:])))
    optimizer = torch.optim.Adam(
        [{"params": [w], "lr": RATE * float(w.detach().square().mean().sqrt())} for w in weights]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            some = torch.randint(len(x), (batch,), generator=generator).to(x.device)
            loss = (part(x[some]) - y[some]).square().mean() / scale
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            schedule.step()
    if not _distance(part, held) < before:
        for weight, value in zip(weights, saved, strict=True):
            weight.data.copy_(value)


def _distance(block: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Squared distance of the block's outputs to those wanted."""
    return sum(float((block(x) - y).square().sum()) for x, y in batches)


def _with_weights(made: Factorization, chain: nn.Sequential) -> Factorization:
    stages = list(chain)
    weights = tuple(
        graph.effective_weight(stage).to("cpu", torch.float64) if old.numel() else old
        for stage, old in zip(stages, made.weights, strict=True)
    )
    bias = stages[-1].bias
    if isinstance(bias, Tensor):
        return replace(made, weights=weights, bias=bias.detach().to("cpu", torch.float64))
    return replace(made, weights=weights)

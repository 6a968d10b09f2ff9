"""Tune the factors of a block together, on what the block puts out in the original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from factorize import calibrate, graph
from factorize.fit.layer import Fitted, apply_
from factorize.fit.lockstep import Arrival, Decision, Lockstep, refusing
from factorize.tensor.call import evaluating
from factorize.types import Factorization, Progress

STEPS, BATCH = 300, 64
RATE = 0.002  # peak step of a weight, relative to the root mean square of its tensor
MOST = 4  # planned layers in a block; larger ones are no blocks but nets


def reconstruct(
    model: nn.Module,
    fitted: Fitted,
    images: Sequence[Tensor],
    *,
    memory: float = 2e9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Tune fitted layers block by block; labels and whole-net training are not needed.

    A block is the module that holds a fitted layer, called once with one tensor, for one. Its
    factors are tuned by Adam so that its output, given what the blocks before it hand on, comes
    close to its output in the original: past its nonlinearities, which no layer's own fit sees. A
    block keeps its fit where that is no better on the held-out images, and so does a layer that is
    in no block.

    Parameters
    ----------
    model
        The original; it is not changed.
    images
        As for `fit_sequential`.

    Returns
    -------
    The fit with other weights and biases; errors are those of before.
    """
    modules = dict(model.named_modules())
    fit, held_out = calibrate.split(images)
    blocks = _blocks(modules, fitted)
    blocks = {n: blocks[n] for n in _called_once(model, {n: modules[n] for n in blocks}, fit[0])}
    inside = {name for names in blocks.values() for name in names}
    norms = [n for n in fitted.means if not any(_within(n, block) for block in blocks)]
    alone = [n for n in fitted.layers if n not in inside]
    stops = {name: modules[name] for name in (*blocks, *alone, *norms)}
    tuned, done = dict(fitted.layers), 0
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), Lockstep(model, stops, [*fit, *held_out], memory) as lockstep:
        while (name := lockstep.next()) is not None:
            if name not in blocks:
                lockstep.decide(_as_fitted(name, modules[name], fitted))
                continue
            part = Fitted(
                {_inner(n, name): _renamed(fitted.layers[n], n, name) for n in blocks[name]},
                {_inner(n, name): m for n, m in fitted.means.items() if _within(n, name)},
            )
            block = apply_(copy.deepcopy(modules[name]), part)
            _tune(block, list(part.layers), lockstep.arrivals, len(fit), generator)
            lockstep.decide(block)
            for layer in blocks[name]:
                chain = block.get_submodule(_inner(layer, name))
                assert isinstance(chain, nn.Sequential)
                tuned[layer] = _with_weights(tuned[layer], chain)
            done += 1
            if progress:
                progress("reconstruct", done, len(blocks), {})
    return replace(fitted, layers=tuned)


def _blocks(modules: dict[str, nn.Module], fitted: Fitted) -> dict[str, list[str]]:
    """Names of fitted layers by the name of the module that holds them."""
    blocks: dict[str, list[str]] = {}
    for name, made in fitted.layers.items():
        if name in modules and len(made.spec.input_sizes) == 1:
            blocks.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        block: names
        for block, names in blocks.items()
        if block and len(names) <= MOST and not any(_within(b, block) for b in blocks if b != block)
    }


def _called_once(
    model: nn.Module, blocks: Mapping[str, nn.Module], images: Tensor
) -> Iterator[str]:
    """The blocks that are called once, with one tensor and nothing else, and give one back."""
    calls: dict[str, list[bool]] = {name: [] for name in blocks}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            plain = [isinstance(value, Tensor) for value in (*args, *kwargs.values(), output)]
            calls[name].append(plain == [True, True] and bool(args))

        return note

    hooks = [m.register_forward_hook(hook(n), with_kwargs=True) for n, m in blocks.items()]
    try:
        with refusing(model), evaluating(model):
            model(images[:1])
    finally:
        for handle in hooks:
            handle.remove()
    return (name for name, plain in calls.items() if plain == [True])


def _within(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _inner(name: str, block: str) -> str:
    return name[len(block) + 1 :]


def _renamed(made: Factorization, name: str, block: str) -> Factorization:
    return replace(made, spec=replace(made.spec, name=_inner(name, block)))


def _as_fitted(name: str, module: nn.Module, fitted: Fitted) -> Decision:
    """A layer outside of all blocks."""
    if name in fitted.layers:
        return graph.build_chain(fitted.layers[name], module)
    norm = copy.deepcopy(module)
    norm.running_mean.copy_(fitted.means[name])  # type: ignore[union-attr, operator]
    return norm


def _tune(
    block: nn.Module,
    layers: Sequence[str],
    arrivals: Callable[[], Iterator[Arrival]],
    fits: int,
    generator: torch.Generator,
) -> None:
    """Tune the chains of a block in place, or leave them as they are."""
    weights = [w for name in layers for w in block.get_submodule(name).parameters()]
    inputs, outputs, held = [], [], []
    for arrival in arrivals():
        # In the block's own precision: autocast around it in the model is off here.
        x, y = (t.to(weights[0].dtype) for t in (arrival.compressed, arrival.output))
        if arrival.batch < fits:
            inputs.append(x)
            outputs.append(y)
        else:
            held.append((x, y))
    x, y = torch.cat(inputs), torch.cat(outputs)
    scale = y.square().mean().clamp_min(torch.finfo(y.dtype).tiny)
    before, saved = _distance(block, held), [w.detach().clone() for w in weights]
    for weight in weights:  # frozen ones too: the block is a copy
        weight.requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": [w], "lr": RATE * float(w.detach().square().mean().sqrt())} for w in weights]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            some = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
            loss = (block(x[some]) - y[some]).square().mean() / scale
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            schedule.step()
    if not _distance(block, held) < before:
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

"""Tune the factors of a block together, on what the block puts out in the original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from factorize import calibrate, graph
from factorize.fit.layer import Fitted, apply_
from factorize.fit.lockstep import Arrival, Decision, Lockstep
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

    A block is the module that holds a fitted layer, called once with a tensor. Its factors are
    tuned by Adam so that its output, given what the blocks before it hand on, comes close to its
    output in the original: past nonlinearities and shortcuts, which no layer's own fit sees. A
    block keeps its fit where that is no better on the held-out images.

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
    blocks = _blocks(modules, fitted)
    inside = {name for names in blocks.values() for name in names}
    norms = [n for n in fitted.means if not any(_within(n, block) for block in blocks)]
    alone = [n for n in fitted.layers if n not in inside]
    stops = {name: modules[name] for name in (*blocks, *alone, *norms)}
    fit, held_out = calibrate.split(images)
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
    inputs, outputs, held = [], [], []
    for arrival in arrivals():
        if arrival.batch < fits:
            inputs.append(arrival.compressed)
            outputs.append(arrival.output)
        else:
            held.append((arrival.compressed, arrival.output))
    x, y = torch.cat(inputs), torch.cat(outputs)
    scale = y.square().mean().clamp_min(torch.finfo(y.dtype).tiny)
    weights = [w for name in layers for w in block.get_submodule(name).parameters()]
    before, saved = _distance(block, held), [w.detach().clone() for w in weights]
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
    weights = tuple(s.weight.detach().to("cpu", torch.float64) for s in stages)  # type: ignore[union-attr, operator]
    bias = stages[-1].bias
    if isinstance(bias, Tensor):
        return replace(made, weights=weights, bias=bias.detach().to("cpu", torch.float64))
    return replace(made, weights=weights)

"""Does weighting a layer's output by its Fisher information help? Sequential fits with and without.

    python experiments/fit/fisher.py resnet20 --data FOLDER --methods cp --shares 0.3,0.2 --seeds 0

The output error tr((W - W') S (W - W')^T) gets a left weight, F = E[g g^T]: g is the gradient of
log p(y|x) with respect to the layer's output, y sampled from the model itself, no labels. With F
damped, F + damping tr(F)/O I, the loss is the second-order estimate of the KL divergence
(Kronecker-factored: Martens & Grosse 2015). F^1/2 W is fitted, and the last stage, a 1x1 that is
not grouped, takes F^-1/2. The same F also serves as the planner's loss, in place of the measured
sensitivity. Results are added to fisher.json.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from budget import curves, plan_for, sensitivities, specs_of
from run import SENSITIVITY_IMAGES, add_row, macs_left, read_rows
from tasks import task
from torch import Tensor, nn

from factorize import calibrate, methods
from factorize.fit import apply_, fit_sequential
from factorize.fit import layer as fitting
from factorize.measure.environment import environment
from factorize.spec import ConvSpec
from factorize.tensor.norm import Norm
from factorize.types import Factorization, LayerPlan

HERE = Path(__file__).parent
SAMPLES = 4  # labels drawn per image


def fisher(model: nn.Module, names: list[str], images: Tensor, seed: int) -> dict[str, Tensor]:
    """F (O, O) of each layer's output, summed over positions, per image."""
    generator = torch.Generator().manual_seed(seed)
    found = {n: torch.zeros(1, dtype=torch.float64) for n in names}
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def hook(module: nn.Module, args: Any, output: Tensor, name: str = name) -> Tensor:
            outputs[name] = output.requires_grad_() if output.is_leaf else output
            return outputs[name]

        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    for batch in images.split(100):
        logits = model(batch.requires_grad_())
        for _ in range(SAMPLES):
            drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
            loss = nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum")
            gradients = torch.autograd.grad(loss, [outputs[n] for n in names], retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                rows = gradient.double().transpose(0, 1).flatten(1)  # (O, n H W)
                found[name] = found[name] + rows @ rows.T / (len(images) * SAMPLES)
    for handle in hooks:
        handle.remove()
    return found


@contextmanager
def weighted(left: dict[str, Tensor], damping: float) -> Iterator[None]:
    """Fits in the norm tr(F A S A^T)."""
    plain = methods.factorize

    def factorize(layer: LayerPlan, weight: Tensor, *, norm: Norm, seed: int) -> Factorization:
        f = left[layer.spec.name]
        f = f + damping * f.diagonal().mean() * torch.eye(len(f), dtype=f.dtype)
        values, vectors = torch.linalg.eigh(f)
        root = vectors * values.sqrt() @ vectors.T
        turned = (root @ weight.flatten(1)).reshape(weight.shape)
        made = plain(layer, turned, norm=norm, seed=seed)
        assert made.stages[-1].groups == 1
        last = made.weights[-1]
        inverse = vectors * values.rsqrt() @ vectors.T
        last = (inverse @ last.flatten(1)).reshape(last.shape)
        return replace(made, weights=(*made.weights[:-1], last))

    with patch.object(fitting.methods, "factorize", factorize):
        yield


def main() -> None:
    """Read the arguments, do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=("resnet20", "resnet56"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", default="cp")
    parser.add_argument("--shares", default="0.3,0.2")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--dampings", default="0.01,0.1,1.0")
    parser.add_argument("--out", type=Path, default=HERE / "fisher.json")
    options = parser.parse_args()
    chosen = task(options.net, options.data)
    model = chosen.model
    for seed in map(int, options.seeds.split(",")):
        images = chosen.calibration(1000, seed)
        batches = images.split(chosen.batch)
        specs, total = specs_of(model, images[:1])
        moments = calibrate.collect(model, specs, batches, seed=seed)
        left = fisher(model, list(specs), images[:SENSITIVITY_IMAGES].clone(), seed)
        measured = sensitivities(model, specs, moments, images[:SENSITIVITY_IMAGES], seed=seed)
        # The same loss as a number per relative squared error: tr(F) E|y|^2 / O.
        estimated = {
            n: float(left[n].diagonal().mean()) * _energy(model, n, specs[n], moments)
            for n in specs
        }
        for method in options.methods.split(","):
            found = curves(model, specs, moments, method, seed=seed)
            for share in map(float, options.shares.split(",")):
                for plan_by, sensitivity in (("measured", measured), ("fisher", estimated)):
                    plan = plan_for(specs, found, sensitivity, total, share, method)
                    for damping in (
                        (None, *map(float, options.dampings.split(",")))
                        if plan_by == "measured"
                        else (None,)
                    ):
                        key = {"net": options.net, "method": method, "share": share, "seed": seed,
                               "plan_by": plan_by, "damping": damping}  # fmt: skip
                        if any(key.items() <= row.items() for row in read_rows(options.out)):
                            continue
                        if damping is None:
                            fitted = fit_sequential(model, plan, batches, seed=seed)
                        else:
                            with weighted(left, damping):
                                fitted = fit_sequential(model, plan, batches, seed=seed)
                        score = chosen.score(apply_(copy.deepcopy(model), fitted))
                        row = {**key, "score": round(score, 3), "macs_left": macs_left(plan, total),
                               "environment": environment()}  # fmt: skip
                        add_row(options.out, row)
                        print({k: row[k] for k in (*key, "score")}, flush=True)


def _energy(model: nn.Module, name: str, spec: ConvSpec, moments: Any) -> float:
    weight = model.get_submodule(name).weight.detach().double()  # type: ignore[union-attr, operator]
    area = spec.output_sizes[0][0] * spec.output_sizes[0][1]
    return area * Norm(moments.layers[name].fit.second).energy(weight)


if __name__ == "__main__":
    main()

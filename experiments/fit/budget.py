"""Ranks for a share of a net's convolution MACs, by the layers' output errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorize import methods
from factorize.fit.layer import fit_layer
from factorize.graph import find
from factorize.methods import chain_kernel
from factorize.plan.allocate import Candidate, allocate
from factorize.spec import ConvSpec, Rank
from factorize.tensor.call import evaluating
from factorize.tensor.moments import Calibration
from factorize.types import LayerPlan, Plan

SHARES = (0.15, 0.3, 0.5, 0.75)  # of a layer's MACs, at which a method's error is computed
STEPS = 60  # ranks offered between the first and the last of these
SENSITIVITY_SHARE = 0.3


@dataclass(frozen=True)
class Curve:
    """Relative squared output error of a layer against its MACs, log-linear between points."""

    variant: str
    macs: tuple[float, ...]
    error: tuple[float, ...]

    def at(self, macs: float) -> float:
        """The error at some MACs within the range."""
        for (x0, y0), (x1, y1) in zip(
            zip(self.macs, self.error, strict=True),
            zip(self.macs[1:], self.error[1:], strict=True),
            strict=False,
        ):
            if macs <= x1:
                share = (macs - x0) / (x1 - x0) if x1 > x0 else 1.0
                return math.exp((1 - share) * math.log(y0) + share * math.log(y1))
        return self.error[-1]


def specs_of(model: nn.Module, example: Tensor) -> tuple[dict[str, ConvSpec], int]:
    """Convolutions to factorize, by name (not 1x1, not from or to an image), and all MACs."""
    sites = [site.spec for site in find(model, example)]
    chosen = {
        s.name: s
        for s in sites
        if min(s.in_channels, s.out_channels) > 4 and s.groups == 1 and max(s.kernel, default=1) > 1
    }
    return chosen, sum(s.macs for s in sites)


def rank_for(spec: ConvSpec, method: str, variant: str, share: float, width: int = 0) -> Rank:
    """The largest rank whose chain costs at most a share of the layer's MACs; else the least."""
    chosen = methods.get(method)
    limit = chosen.max_rank(spec)

    def rank(value: int) -> Rank:
        if width:
            return (min(value * width, limit[0]), min(width, limit[1]))
        return tuple(min(value, top) for top in limit)

    low, high = 1, math.ceil(max(limit) / (width or 1))
    while low < high:
        middle = (low + high + 1) // 2
        macs = sum(stage.macs for stage in chosen.stages(spec, rank(middle), variant))
        low, high = (middle, high) if macs <= share * spec.macs else (low, middle - 1)
    return rank(low)


def cost(spec: ConvSpec, method: str, rank: Rank, variant: str) -> int:
    """MACs of the chain."""
    return sum(stage.macs for stage in methods.get(method).stages(spec, rank, variant))


def curves(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    calibration: Calibration,
    method: str,
    *,
    width: int = 0,
    seed: int = 0,
) -> dict[str, list[Curve]]:
    """For each layer, a curve per order of the chain, from fits in the output norm."""
    found: dict[str, list[Curve]] = {}
    for name, spec in specs.items():
        for variant in methods.get(method).variants:
            points: dict[int, float] = {}
            for share in SHARES:
                rank = rank_for(spec, method, variant, share, width)
                macs = cost(spec, method, rank, variant)
                if macs < spec.macs and macs not in points:
                    layer = LayerPlan(spec, method, rank, variant)
                    module = model.get_submodule(name)
                    made = fit_layer(layer, module, calibration.layers[name], seed=seed)
                    points[macs] = max(made.error**2, 1e-9)
            if points:
                curve = Curve(
                    variant, *(tuple(v) for v in zip(*sorted(points.items()), strict=True))
                )
                found.setdefault(name, []).append(curve)
    return found


def sensitivities(
    model: nn.Module,
    specs: Mapping[str, ConvSpec],
    calibration: Calibration,
    images: Tensor,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """How much of a layer's relative squared error comes out at the end of the net; label-free.

    Measured with one layer at a time replaced: by spatial SVD at 0.3 of its MACs.
    """
    found, method = {}, "spatial_svd"
    variant = methods.get(method).variants[0]
    with evaluating(model):
        wanted = model(images)
        energy = (wanted - wanted.mean(0)).square().sum()
        for name, spec in specs.items():
            rank = rank_for(spec, method, variant, SENSITIVITY_SHARE)
            module = model.get_submodule(name)
            layer = LayerPlan(spec, method, rank, variant)
            made = fit_layer(layer, module, calibration.layers[name], seed=seed)
            other = copy.deepcopy(model)
            kernel = chain_kernel(made.stages, made.weights)
            other.get_submodule(name).weight.copy_(kernel)  # type: ignore[union-attr, operator]
            moved = (other(images) - wanted).square().sum() / energy
            found[name] = float(moved) / max(made.error**2, 1e-12)
    return found


def plan_for(
    specs: Mapping[str, ConvSpec],
    curves_: Mapping[str, Sequence[Curve]],
    sensitivity: Mapping[str, float],
    total: int,
    share: float,
    method: str,
    *,
    width: int = 0,
    settings: dict[str, Any] | None = None,
) -> Plan:
    """The plan of least predicted loss whose net has at most a share of the convolution MACs.

    The loss is the negative logarithm of the product of what the layers keep of their outputs'
    energy (Zhang et al., TPAMI 2016, section 3.4), each layer to the power of its sensitivity.
    """
    options: dict[str, list[Candidate]] = {}
    for name, spec in specs.items():
        options[name] = [Candidate({"macs": spec.macs}, 0.0)]
        for curve in curves_.get(name, ()):
            for step in range(STEPS):
                macs = curve.macs[0] + (curve.macs[-1] - curve.macs[0]) * step / (STEPS - 1)
                rank = rank_for(spec, method, curve.variant, macs / spec.macs, width)
                exact = cost(spec, method, rank, curve.variant)
                error = curve.at(min(max(exact, curve.macs[0]), curve.macs[-1]))
                loss = -sensitivity[name] * math.log(max(1 - error, 1e-9))
                options[name].append(Candidate({"macs": exact}, loss, (rank, curve.variant)))
    dense = total - sum(spec.macs for spec in specs.values())
    chosen = allocate(options, {"macs": share * total - dense})
    layers = []
    for name, spec in specs.items():
        if chosen[name].choice is None:
            layers.append(LayerPlan(spec, macs=spec.macs, skip_reason="dense within the budget"))
        else:
            rank, variant = chosen[name].choice
            layers.append(LayerPlan(spec, method, rank, variant, int(chosen[name].costs["macs"])))
    return Plan(tuple(layers), settings or {})


def images_of(batches: Sequence[Tensor], count: int) -> Tensor:
    """The first so many images."""
    return torch.cat(list(batches))[:count]

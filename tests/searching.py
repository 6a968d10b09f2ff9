"""What the tests of searches share: a machine whose times are known, small nets, and searches.

A convolution takes its MACs and `CALL` besides, so that chains of many stages are not faster; a
net takes the times of its convolutions and `REST` besides. Of the time that chains save by
themselves a whole net saves the share `Machine.gain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import compress, find, methods
from factorize.measure import Chain, ChainTime, LatencyModel, NumberCache, Target, count
from factorize.plan import Budget
from factorize.run.compress import Result
from factorize.search.prepare import prepare
from factorize.search.within_budget import Search
from factorize.spec import ConvSpec, Size
from factorize.types import Data, Latency, LayerPlan, Speedup

UNIT_MS = 1e-4
REST = 1e6
NOISE = 1.02
QUICK = "spatial_svd,channel_svd"
TARGET = Target("onnxruntime", threads=1)
PIXELS = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(7))


class Machine:
    """Times on it follow from shapes alone."""

    def __init__(self) -> None:
        self.call = 2000.0
        self.gain = 1.0
        self.in_integers = 1.0  # how many times as fast a net is in them
        self.timed: Counter[tuple[Chain, Size, Chain]] = Counter()
        self.nets = 0

    def at_size(self, chain: Sequence[ConvSpec], size: Size) -> float:
        total = 0.0
        for stage in chain:
            size = stage.output_size(size)
            total += prod(stage.weight_shape) * prod(size) + self.call
        return total

    def of(self, spec: ConvSpec, chain: Sequence[ConvSpec]) -> float:
        return sum(self.at_size(chain, size) for size in spec.input_sizes)

    def chains(
        self, target: Target, dense: Chain, chains: Sequence[Chain], size: Size
    ) -> list[ChainTime | None]:
        self.timed.update((dense, size, chain) for chain in chains)
        before = self.at_size(dense, size)
        times = [self.at_size(chain, size) for chain in chains]
        return [ChainTime(before, t, before / t, before / t / NOISE, before / t * NOISE)
                for t in times]  # fmt: skip

    def net(self, model: nn.Module, example_input: Any) -> float:
        sites = find(model, example_input)
        return REST + sum(self.of(site.spec, (site.spec,)) for site in sites)

    def speedup(self, before: float, after: float) -> Speedup:
        self.nets += 1
        ratio = before / after
        ms = [Latency(t * UNIT_MS, 0.99 * t * UNIT_MS, 1.01 * t * UNIT_MS) for t in (before, after)]
        return Speedup("onnxruntime", "cpu", "float32", 1, 1, 9, *ms, ratio, 0.99 * ratio,
                       1.01 * ratio)  # fmt: skip

    def speedups(
        self, files: Any, original: nn.Module, compressed: nn.Module, example_input: Any,
        targets: list[Target],
    ) -> list[Speedup]:  # fmt: skip
        """In place of `measure.speedups`: of the real nets, their convolutions as they are."""
        before, after = (self.net(model, example_input) for model in (original, compressed))
        return [self.speedup(before, before - self.gain * (before - after))]

    def latency(self) -> LatencyModel:
        return LatencyModel(TARGET, NumberCache(None))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        machine = self

        class Assembled:
            def __init__(self, model: nn.Module, example_input: Any, target: Target) -> None:
                self.units = machine.net(model, example_input)
                self.unit_ms, self.target = UNIT_MS, target
                self.gained = machine.in_integers

            def speedup(self, layers: Sequence[LayerPlan]) -> Speedup:
                saved = sum(
                    machine.of(layer.spec, (layer.spec,))
                    - machine.of(layer.spec, methods.chain_of(layer))
                    for layer in layers
                )
                return machine.speedup(self.gained * self.units, self.units - machine.gain * saved)

        patch.setattr("factorize.search.prepare.Assembled", Assembled)
        layers = import_module("factorize.measure.latency_model")
        patch.setattr(layers, "time_chains", self.chains)
        patch.setattr(layers, "reference", lambda target: None)
        patch.setattr(layers, "in_units", lambda target, run: (1.0, UNIT_MS))
        patch.setattr("factorize.run.deliver.speedups", self.speedups)


def installed(patch: pytest.MonkeyPatch, cache: Path) -> Machine:
    """A machine with a cache of its own; what is exported is other tests' matter."""
    machine = Machine()
    machine.install(patch)
    patch.setenv("FACTORIZE_CACHE", str(cache))
    export = import_module("factorize.export")
    patch.setattr(export, "export_all", lambda *_: None)
    return machine


def compressible(weight: Tensor) -> Tensor:
    """Of as fast decaying singular values as those of a trained kernel, rows and columns apart."""
    rows, columns = weight.shape[1] * weight.shape[2], weight.shape[0] * weight.shape[3]
    u, s, v = torch.linalg.svd(weight.permute(1, 2, 0, 3).reshape(rows, columns).detach())
    s = s[0] * 0.9 ** torch.arange(len(s))
    low = (u[:, : len(s)] * s) @ v[: len(s)]
    i, o, h, w = weight.shape[1], weight.shape[0], *weight.shape[2:]
    return low.reshape(i, h, o, w).permute(2, 0, 1, 3)


def plain() -> nn.Module:
    """Its classes differ from image to image, none is much more frequent than the others."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    ).eval()  # fmt: skip
    head = nn.Linear(128, 5)
    with torch.no_grad():
        for conv in (body[0], body[3], body[5]):
            conv.weight.copy_(compressible(conv.weight))
        found = body(PIXELS)
        head.weight.mul_(2 / (found - found.mean(0)).matmul(head.weight.T).std())
        head.bias.copy_(-(head.weight @ found.mean(0)))
    return nn.Sequential(*body, head).eval()


class Residual(nn.Module):
    """1x1 convolutions around a 3x3 one, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.reduce = nn.Conv2d(24, 16, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.expand = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.expand(F.relu(self.conv(F.relu(self.reduce(x))))))
        return self.head(x.mean((2, 3)))


class Twice(nn.Module):
    """One convolution is called twice, at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.stem(x))))
        x = F.relu(self.again(F.max_pool2d(x, 2)))
        return self.last(x).mean((2, 3))


class Tied(nn.Module):
    """Two convolutions share their weight and differ in bias; the second sees smaller inputs."""

    def __init__(self, pool: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.b.weight = self.a.weight
        self.last = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.last(F.relu(self.b(F.max_pool2d(x, self.pool)))).mean((2, 3))


NETS = {
    "plain": plain,
    "residual": lambda: Residual().eval(),
    "twice": lambda: Twice().eval(),
    "tied": lambda: Tied(1).eval(),
    "tied at two sizes": lambda: Tied(2).eval(),
}

EXAMPLE = torch.zeros(1, 3, 12, 12)


def images(labelled: bool = False, model: nn.Module | None = None) -> Data:
    """Few random images; labelled, by what a model makes of them."""
    batches: list[tuple[Tensor, ...]] = [(part,) for part in PIXELS.split(10)]
    if labelled:
        assert model is not None
        with torch.no_grad():
            batches = [(x, model(x).argmax(1)) for (x,) in batches]
    return Data(batches[:4], batches[4:], None, labelled, 5 if labelled else None, "made up")


def searched(model: nn.Module, budget: Budget | None, **options: Any) -> Result:
    return compress(
        model, EXAMPLE, budget=budget, **{"method": QUICK, "target": TARGET, **options}
    )  # fmt: skip


def prepared(machine: Machine, model: nn.Module, **options: Any) -> Search:
    options = {"names": QUICK.split(","), "never_slower": True, **options}
    return prepare(model, EXAMPLE, latency=machine.latency(), **options)


def shares(before: nn.Module, after: nn.Module) -> tuple[float, float]:
    """Of MACs and parameters that are left in a real net."""
    (params, macs, _), (left, cheaper, _) = count(before, EXAMPLE), count(after, EXAMPLE)
    return cheaper / macs, left / params

"""A net and its rounded copy, taken through their nodes side by side.

Each layer is fitted to what the rounded layers before it really put out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from factorize.calibrate.patches import area_of, padded, positions, windows_at
from factorize.errors import ExportError
from factorize.graph.spec_of import spec_of
from factorize.onnx_graph import Twin
from factorize.onnx_graph.layers import Layer
from factorize.onnx_graph.twin import Step
from factorize.quantize.balance import balance_
from factorize.quantize.grid import Grid, grid_of
from factorize.quantize.places import Places, readers_of
from factorize.quantize.rounding import compensated, nearest_codes, rounded_codes, scales_of
from factorize.tensor.call import evaluating

LONGEST = 8000
"""Patch length up to which rounding looks at second moments: (D, D) float64 is 0.5 GB there."""

_FEWEST, _MOST = 4096, 16384  # patches of a layer
_RIDGE = 0.05
_RESOLVED = 1e-6  # of second moments, which sums of float32 numbers tell nothing below
_MOST_VALUE = 1e15  # sums of squares are float32
_MOST_BIAS = 2.0**30  # codes of a bias are int32


@dataclass(frozen=True)
class RoundedLayer:
    """A layer's integers.

    Attributes
    ----------
    codes
        int8, in the shape of the module's weight.
    scales
        (O,) float32.
    bias
        (O,) float32, or None.
    loss
        Squared difference of its outputs from the float net's, as a share of their variance.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    loss: float = 0.0

    @property
    def weight(self) -> Tensor:
        """What the codes stand for."""
        return self.codes * self.scales.view(-1, *(1,) * (self.codes.ndim - 1))


@dataclass
class RoundedNet:
    """The rounded copy.

    Attributes
    ----------
    twin
        Its layers have the weights that their codes stand for.
    grids
        By value.
    exact
        The float net, with the same scales between its layers.
    """

    twin: Twin
    places: Places
    layers: dict[str, RoundedLayer] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    exact: Twin | None = None

    def values(self, given: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        """Some values of the graph, rounded where the file rounds them."""
        values = self.twin.begin(given)
        self.round_(values, [*given])
        for step in self.twin.onnx_steps:
            values.update(self.twin.compute(step, values))
            self.round_(values, step.makes)
        return {name: values[name] for name in wanted}

    def round_(self, values: dict[str, Any], names: Sequence[str]) -> None:
        """Round those of some values that are to be."""
        for name in names:
            if name in self.grids:
                values[name] = self.grids[name].rounded(values[name])


def round_net(
    twin: Twin,
    places: Places,
    batches: Sequence[dict[str, Any]],
    *,
    largest: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> RoundedNet:
    """Round the layers of a net one after the other, as its nodes come.

    Parameters
    ----------
    twin
        Is not changed.
    batches
        Inputs by name.
    largest
        Of the weights' codes: 127, or 63 where sums of products of larger ones saturate.
    progress
        Called with the number of each layer, from 1.
    """
    exact = copy.deepcopy(twin)
    made = RoundedNet(copy.deepcopy(twin), places, exact=exact)
    readers = readers_of(twin)
    outputs = {value.name for value in twin.onnx_file.proto.graph.output}
    generator = torch.Generator().manual_seed(seed)
    with evaluating(exact, made.twin):
        pairs = [(exact.begin(one), made.twin.begin(one)) for one in batches]
        _settle(made, pairs, list(batches[0]))
        for step in twin.onnx_steps:
            for true, _ in pairs:
                true.update(exact.compute(step, true))
            if step.name in places.layers:
                if progress:
                    progress(len(made.layers) + 1)
                name = step.makes[0]
                after = readers[name]
                if len(after) == 1 and after[0].name in places.layers and name not in outputs:
                    reader = exact.module_of(after[0])
                    between = [true[name] for true, _ in pairs]
                    if balance_(exact.module_of(step), reader, between) is not None:
                        made.twin.module_of(after[0]).load_state_dict(reader.state_dict())
                _round_layer(made, exact, step, pairs, largest, generator)
            else:
                for _, rough in pairs:
                    rough.update(made.twin.compute(step, rough))
            _settle(made, pairs, step.makes)
            for pair in pairs:
                for values in pair:
                    for name in step.last:
                        values.pop(name, None)
    return made


Pairs = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""By batch: the values of the float net, and of the rounded one."""


def _settle(made: RoundedNet, pairs: Pairs, names: Sequence[str]) -> None:
    """Choose the grids of some values, and round these."""
    for name in names:
        if name in made.places.values:
            same = made.places.same.get(name)
            rough = [values[name] for _, values in pairs]
            largest = float(torch.stack([v.abs().max() for v in rough]).max())
            if not largest < _MOST_VALUE:  # so that NaN is found too
                raise ExportError(
                    f"{name}: must be numbers below {_MOST_VALUE:g} to become int8, got {largest} "
                    "for the images. Check the images and the model."
                )
            made.grids[name] = made.grids[same] if same else grid_of(rough)
    for _, values in pairs:
        made.round_(values, names)


def _round_layer(
    made: RoundedNet, exact: Twin, step: Step, pairs: Pairs, largest: int, generator: Any
) -> None:
    """Give a layer of the rounded net its integers, and compute its outputs."""
    module: Any = made.twin.module_of(step)
    true: Any = exact.module_of(step)
    assert step.layer is not None
    read, wrote = step.reads[0], step.makes[0]
    grid = made.grids[read]
    sums = _Sums(true, step.layer, sum(len(rough[read]) for _, rough in pairs))
    for one, rough in pairs:
        sums.add(one[read], rough[read], generator)
    has_bias = true.bias is not None or step.kind != "MatMul"
    sums.finish(centred=has_bias)
    layer = _integers(true, sums, grid, largest, has_bias)
    module.weight.data = layer.weight.to(module.weight.dtype)
    if layer.bias is not None:
        module.bias = nn.Parameter(_on_grid(layer.bias, layer.scales, grid))
    apart, whole = 0.0, torch.finfo(torch.float32).tiny
    for one, rough in pairs:
        rough.update(made.twin.compute(step, rough))
        apart += float((rough[wrote] - one[wrote]).double().square().sum())
        whole += float((one[wrote] - one[wrote].mean()).double().square().sum())
    made.layers[step.name] = replace(layer, loss=apart / whole)


def _integers(true: Any, sums: _Sums, grid: Grid, largest: int, has_bias: bool) -> RoundedLayer:
    """The integers of a layer of the float net, for inputs on a grid."""
    weight = wanted = sums.rows(true.weight.detach())
    if sums.second is not None and sums.apart is not None:
        wanted = compensated(weight, sums.apart, sums.second, _RIDGE)
    scales = _with_room(scales_of(wanted, largest), true.bias, grid)
    if sums.second is None:
        codes = nearest_codes(wanted, scales, largest)
    else:
        codes = rounded_codes(wanted, scales, sums.second, largest)
    bias = None
    if has_bias:
        rounded = codes * scales[..., None]
        moved = (weight * sums.mean_true[:, None]).sum(-1) - (rounded * sums.mean[:, None]).sum(-1)
        start = 0.0 if true.bias is None else true.bias.detach().double()
        bias = (start + moved.flatten()).float()
    codes = codes.reshape(true.weight.shape).to(torch.int8)
    return RoundedLayer(codes, scales.flatten().float(), bias)


def _with_room(scales: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    """Scales with which the codes of the biases are int32."""
    if bias is None:
        return scales
    least = bias.detach().double().abs().view_as(scales) / (_MOST_BIAS * grid.scale)
    return torch.maximum(scales, least)


def _on_grid(bias: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """A bias as its int32 codes stand for it."""
    steps = scales.double() * grid.scale
    return ((bias.double() / steps).round() * steps).float()


class _Sums:
    """Moments of a layer's patches, in the rounded net and of what sets the float net apart."""

    def __init__(self, module: Any, layer: Layer, images: int) -> None:
        self.spec, self.layer = spec_of(module, ""), layer
        self.groups = self.spec.groups
        self.length = module.weight[0].numel()
        self.per_image = -(-min(max(4 * self.length, _FEWEST), _MOST) // images)
        size = (self.groups, self.length)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.mean_true = torch.zeros_like(self.mean)
        self.second = self.apart = None
        if self.length <= LONGEST:
            self.second = torch.zeros((*size, self.length), dtype=torch.float64)
            self.apart = torch.zeros_like(self.second)
        self.count = 0

    def add(self, true: Tensor, rough: Tensor, generator: torch.Generator) -> None:
        """Add patches at the same positions of both."""
        found: list[Tensor] = []
        index = None
        for x in (true, rough):
            pixels = padded(self.spec, _before(self.layer, x))
            if index is None:
                most = min(self.per_image, area_of(self.spec, pixels))
                index = positions(self.spec, pixels, most, generator)
            windows = windows_at(self.spec, pixels, index)  # (n, K, C)
            split = windows.view(len(index), windows.shape[1], self.groups, -1)
            found.append(split.permute(2, 0, 3, 1).flatten(2))  # (G, n, D)
        x, y = found
        self.mean_true += x.sum(1)
        self.mean += y.sum(1)
        self.count += x.shape[1]
        if self.second is not None and self.apart is not None:
            self.second += y.mT @ y
            self.apart += (x - y).mT @ y

    def finish(self, *, centred: bool) -> None:
        """Make means of the sums; the second ones about the first where a bias makes up for it."""
        self.mean /= self.count
        self.mean_true /= self.count
        if self.second is None or self.apart is None:
            return
        self.second /= self.count
        self.apart /= self.count
        exact = _RESOLVED * self.second.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        if centred:
            self.second -= self.mean[..., None] * self.mean[:, None]
            self.apart -= (self.mean_true - self.mean)[..., None] * self.mean[:, None]
        self.second += torch.diag_embed(exact.expand_as(self.mean))

    def rows(self, weight: Tensor) -> Tensor:
        """A weight as (G, O, D)."""
        return weight.double().reshape(self.groups, -1, self.length)


def _before(layer: Layer, x: Tensor) -> Tensor:
    """The input as the module gets it: padded where its two sides differ."""
    pads = layer.before if isinstance(layer.before, tuple) else layer.before(x.shape[2:])
    return nn.functional.pad(x, tuple(pads)) if any(pads) else x

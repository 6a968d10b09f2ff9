"""Sums over patches, batch by batch, that become a layer's second moments."""

from __future__ import annotations

from math import prod
from zlib import crc32

import torch
from torch import Tensor

from factorize.calibrate.patches import area_of, outputs_at, padded, positions, windows_at
from factorize.errors import DataError
from factorize.spec import ConvSpec
from factorize.tensor.moments import Moments

LARGEST = 8000
"""Patch length up to which all pairs of entries are kept: (D, D) float64 is 0.5 GB there."""

_BLOCK_ROWS = 2048  # patches in one float32 product: its rounding stays that of a short sum
_PANEL = 512  # rows of a symmetric product that are made at a time, as far as the diagonal
_BLOCK_VALUES = 2**23  # float32 values gathered at a time: 32 MB


class MomentSums:
    """Second moments of one layer's input patches, summed over its calls.

    Products of blocks of patches are float32 (float64 for float64 input) on the input's device;
    their sum is float64 there, and nothing waits for the device until `finish`. Until then little
    more than half of a symmetric sum, in panels as far as the diagonal, is made and held. With
    `per_image` positions drawn from a map of P, a patch stands for P / per_image: the sums
    estimate those over all positions, whatever the sizes of the maps.

    Where D exceeds `LARGEST`, S is approximated by a Kronecker product: channels (C, C), the
    covariance of the channels summed over the kernel's positions, times positions (K, K), that of
    the positions summed over the channels, divided by the trace. Trace and both partial traces
    are those of S. It is exact where all channels share one spatial autocorrelation, and blind to
    what differs between them: edges in some, flat areas in others. `cross` stays exact.

    Parameters
    ----------
    spec
        Of any kind, with groups=1.
    per_image
        Output positions drawn from each image at each call; None: all.
    seed
        Of the positions, together with the layer's name: no other layer has a part in it.
    """

    def __init__(self, spec: ConvSpec, *, per_image: int | None, seed: int) -> None:
        self.spec, self.per_image = spec, per_image
        self.generator = torch.Generator().manual_seed(seed + crc32(spec.name.encode()))
        self.second: tuple[list[Tensor], ...] = ()  # the panels of each matrix
        self.mean = self.cross = self.output_mean = self.output_second = torch.zeros(())
        self.with_outputs = False
        self._held: list[tuple[Tensor, Tensor | None]] = []  # windows, outputs
        self._weight = 0.0  # of those that are held
        self.images = self.count = self.positions = 0

    @staticmethod
    def memory(spec: ConvSpec, *, outputs: bool = False) -> int:
        """Bytes of the sums, with `cross` where outputs are given."""
        length = _length(spec)
        values = sum(rows * columns for n in _sizes(spec) for rows, columns in _panels(n)) + length
        own = spec.out_channels if outputs else 0
        held = 4 * _block_rows(spec) * (length + own)
        return held + 8 * (values + own * (length + 2))

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add one call: x (N, C, *spatial), and (N, O, ...) if other outputs than its own count.

        Outputs are given at every call or at none.
        """
        # Autocast that the model has switched on around this layer must not reach the sums.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            pixels = padded(self.spec, x.detach())
            index = positions(self.spec, pixels, self.per_image, self.generator)
            if not self.count:
                self._start(pixels, with_outputs=y is not None)
            assert self.with_outputs == (y is not None), "outputs at every call or at none"
            area = area_of(self.spec, pixels)
            weight = len(x) * area / max(len(index), 1)
            for rows in index.split(_block_rows(self.spec)):
                outputs = None if y is None else outputs_at(self.spec, y.detach(), rows)
                self._hold(windows_at(self.spec, pixels, rows), outputs, weight)
        self.images += len(x)
        self.count += len(index)
        self.positions += len(x) * area

    def finish(self, images: int | None = None) -> Moments:
        """The moments of all that was added.

        Parameters
        ----------
        images
            How many there were, where the batches do not tell; the layer's calls per image are
            taken from its spec otherwise.

        Raises
        ------
        DataError
            Nothing was added, or something that is not finite.
        """
        label, total = self.spec.label, self.positions
        self.flush()
        if not self.count:
            raise DataError(
                f"{label}: must be called with the calibration images, and was not. "
                "Leave the layer out, or give images that reach it."
            )
        second = [_symmetric(panels).div_(total) for panels in self.second]
        if len(second) == 2:
            second[1] /= second[1].trace().clamp_min(torch.finfo(torch.float64).tiny)
        found = [*second, *(sums.cpu() / total for sums in (self.mean, *self._output_sums()))]
        if not all(bool(torch.isfinite(values).all()) for values in found):
            raise DataError(
                f"{label}: its input on the calibration images must be finite and its squares "
                "within float32, found values that are not. Check the images and their "
                "preprocessing, and that the model's own outputs are finite."
            )
        cross, output_mean, output_second = found[len(second) + 1 :] or (None, None, None)
        return Moments(
            second=tuple(second),
            mean=found[len(second)],
            count=self.count,
            images=images or self.images // max(len(self.spec.input_sizes), 1),
            cross=cross,
            output_mean=output_mean,
            output_second=output_second,
        )

    @torch.inference_mode(False)  # sums outlive the mode of the model's pass
    def _start(self, pixels: Tensor, *, with_outputs: bool) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        device = torch.device("cpu") if pixels.device.type == "mps" else pixels.device  # no float64
        length, outputs = _length(self.spec), self.spec.out_channels
        self.second = tuple([zeros(*size) for size in _panels(n)] for n in _sizes(self.spec))
        self.mean = zeros(length)
        self.with_outputs = with_outputs
        if with_outputs:
            self.cross, self.output_mean = zeros(outputs, length), zeros(outputs)
            self.output_second = zeros(outputs)

    def _output_sums(self) -> tuple[Tensor, ...]:
        return (self.cross, self.output_mean, self.output_second) if self.with_outputs else ()

    def _hold(self, windows: Tensor, outputs: Tensor | None, weight: float) -> None:
        """Keep patches until they fill a block: adding (D, D) costs as much for one patch."""
        rows = len(windows) + sum(len(held) for held, _ in self._held)
        if rows > _block_rows(self.spec) or weight != self._weight:
            self.flush()
        self._held.append((windows, outputs))
        self._weight = weight

    @torch.inference_mode(False)
    def flush(self) -> None:
        """Add the patches that are kept, so that the sums are all that is held."""
        if self._held:
            windows, outputs = zip(*self._held, strict=True)
            self._held = []
            joined = torch.cat(outputs) if self.with_outputs else None
            self._add_block(torch.cat(windows), joined, self._weight)

    def _add_block(self, windows: Tensor, outputs: Tensor | None, weight: float) -> None:
        """Add patches (n, K, C) and outputs (n, O), each standing for `weight` positions."""

        def add(sums: Tensor, values: Tensor) -> None:
            sums.add_(values.to(sums.device), alpha=weight)

        patches = windows.transpose(1, 2).flatten(1)  # (n, D)
        factors = [patches]
        if len(self.second) == 2:
            factors = [windows.flatten(0, 1), windows.transpose(0, 1).flatten(1).T]  # C, K columns
        for panels, rows in zip(self.second, factors, strict=True):
            for panel in panels:
                height, width = panel.shape
                add(panel, rows[:, width - height : width].T @ rows[:, :width])
        add(self.mean, patches.sum(0))
        if outputs is not None:
            outputs = outputs.to(patches.dtype)
            add(self.cross, outputs.T @ patches)
            add(self.output_mean, outputs.sum(0))
            add(self.output_second, outputs.square().sum(0))


def _length(spec: ConvSpec) -> int:
    """D."""
    return spec.in_channels * prod(spec.kernel)


def _block_rows(spec: ConvSpec) -> int:
    """Patches in a block, at most."""
    return min(_BLOCK_ROWS, max(_BLOCK_VALUES // _length(spec), 1))


def _panels(size: int) -> list[tuple[int, int]]:
    """Rows and columns of the panels of a symmetric matrix, each as wide as its last row."""
    ends = [*range(_PANEL, size, _PANEL), size]
    return [(end - start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _symmetric(panels: list[Tensor]) -> Tensor:
    """The whole matrix, on the CPU."""
    size = panels[-1].shape[1]
    whole = torch.empty(size, size, dtype=panels[-1].dtype)
    for panel in panels:
        height, width = panel.shape
        some, before = slice(width - height, width), width - height
        whole[some, :width] = panel
        whole[:before, some] = whole[some, :before].T
        corner = whole[some, some].tril()
        whole[some, some] = corner + corner.tril(-1).T
    return whole


def _sizes(spec: ConvSpec) -> tuple[int, ...]:
    """Sizes of the square matrices that hold or stand for S."""
    if _length(spec) <= LARGEST:
        return (_length(spec),)
    return (spec.in_channels, prod(spec.kernel))

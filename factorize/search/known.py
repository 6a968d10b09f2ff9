"""Errors of fits in earlier runs: the same layer, on the same images, is not fitted anew."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from factorize import methods
from factorize.measure import NumberCache
from factorize.search.error_curve import Key
from factorize.spec import ConvSpec, Rank
from factorize.tensor.moments import LayerCalibration
from factorize.tensor.noise import noise

KEPT_AT_ONCE = 16  # errors; what is not written yet is lost with the process
_CODE = ("methods", "tensor", "fit", "search")  # what errors depend on


class KnownErrors:
    """Errors by layer and chain, in a file that runs share.

    A layer is known by its weight, its bias, its moments and its attributes, to the bit: nothing
    else decides an error but the code, whose text is a part of the key too.

    Parameters
    ----------
    refresh
        Compute anew what the file holds; it then holds that.

    Attributes
    ----------
    found, made
        How many errors were there, and how many were not.
    """

    def __init__(self, cache: NumberCache, *, refresh: bool = False) -> None:
        self.cache, self.refresh = cache, refresh
        self.found = self.made = 0
        self._waiting: dict[str, dict[str, dict[str, float]]] = {}  # by method, by place

    def __enter__(self) -> KnownErrors:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self.cache.close()

    def get(self, layer: str, key: Key, rank: Rank, how: str) -> float | None:
        """The relative squared error of a chain, or None.

        Parameters
        ----------
        layer
            Its `fingerprint`.
        how
            It was found: ``rough`` or ``fitted``.
        """
        where, context = _where(layer, key, rank, how), _context(key[0])
        known = {} if self.refresh or context is None else self.cache.get(context, [where])
        if where not in known:
            self.made += 1
            return None
        self.found += 1
        return known[where]["error"]

    def put(self, layer: str, key: Key, rank: Rank, how: str, error: float) -> None:
        """Keep the error of a chain."""
        self._waiting.setdefault(key[0], {})[_where(layer, key, rank, how)] = {"error": error}
        if sum(map(len, self._waiting.values())) >= KEPT_AT_ONCE:
            self._write()

    def _write(self) -> None:
        for method, entries in self._waiting.items():
            if (context := _context(method)) is not None:
                self.cache.put(context, entries)
        self._waiting.clear()


def fingerprint(
    spec: ConvSpec, weight: Tensor, bias: Tensor | None, moments: LayerCalibration | None, seed: int
) -> str:
    """What tells a layer and its images from all others."""
    digest = hashlib.blake2b(f"{replace(spec, name='')} {seed} {noise()}".encode(), digest_size=20)
    for tensor in _tensors(weight, bias, moments):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(
    weight: Tensor, bias: Tensor | None, moments: LayerCalibration | None
) -> Iterable[Tensor]:
    yield weight
    yield weight.new_empty(0) if bias is None else bias
    for one in (moments.fit, moments.held_out) if moments else ():
        yield torch.tensor([one.count, one.images])
        for tensor in (*one.second, one.mean, one.cross, one.output_mean, one.output_second):
            yield weight.new_empty(0) if tensor is None else tensor


def _where(layer: str, key: Key, rank: Rank, how: str) -> str:
    return f"{layer} {key[0]} {key[1]} {','.join(map(str, rank))} {how}"


@cache
def _context(method: str) -> dict[str, str] | None:
    """What errors depend on beside the layer; None where the code cannot be read."""
    package = Path(__file__).parents[1]
    files = {file for folder in _CODE for file in (package / folder).glob("*.py")}
    digest = hashlib.blake2b(digest_size=20)
    try:
        files.add(Path(inspect.getfile(type(methods.get(method)))))  # that of a plugin
        for file in sorted(files):
            digest.update(file.read_bytes())
    except (OSError, TypeError):  # typed in at a prompt, or inside an archive
        return None
    return {"code": digest.hexdigest(), "torch": torch.__version__}

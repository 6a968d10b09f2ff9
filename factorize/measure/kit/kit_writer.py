"""The folder that goes to a device: small ONNX files, what is in them, and the program for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from factorize.measure import runtimes
from factorize.measure.environment import package_version
from factorize.measure.interleave import REFERENCE, REFERENCE_SIZE
from factorize.measure.kit.anonymous import RandomWeights, anonymous, chain_file, ends_file
from factorize.measure.kit.wanted import kind_of, macs_at
from factorize.measure.latency_model import key_of
from factorize.measure.onnx_chain import input_shape
from factorize.measure.runtimes import Target
from factorize.measure.runtimes.base import Chain
from factorize.spec import ConvSpec, Size
from factorize.types import LayerPlan

FORMAT, VERSION = "factorize-kit", 1
_BENCH = Path(__file__).with_name("bench.py")
ABOUT = (
    "Chains of convolutions, and nets made of them, to be timed by bench.py. Their weights are "
    "random numbers that bench.py draws: of the model there are shapes alone, and the names of its "
    "layers."
)


@dataclass(frozen=True)
class Group:
    """Chains of one layer that are timed together."""

    spec: ConvSpec
    size: Size
    chains: tuple[Chain, ...]


class KitWriter:
    """Writes the files of a kit into a folder.

    Parameters
    ----------
    folder
        Empty.
    net
        What tells the net from others.
    """

    def __init__(self, folder: Path, *, net: str, model: str, batch: int) -> None:
        self.folder, self.batch = folder, batch
        self._models = folder / "models"
        self._models.mkdir()
        self._weights = RandomWeights()
        self._files = 0
        self._layers: dict[tuple[ConvSpec, Size], int] = {}
        self._manifest: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "factorize": package_version("factorize"),
            "about": ABOUT, "net": net, "model": model, "batch": batch,
            "layers": [], "groups": [], "nets": [],
            "reference": self._write(chain_file([REFERENCE], REFERENCE_SIZE, 1, 1, self._weights)),
        }  # fmt: skip

    def add_net(
        self, onnx: Any, feeds: Mapping[str, np.ndarray], layers: Sequence[LayerPlan] = (),
        predicted: float | None = None,
    ) -> None:  # fmt: skip
        """Add a net: the dense one first, then others and how much faster they should be.

        Parameters
        ----------
        onnx
            As ``onnx.ModelProto``.
        layers
            That are replaced in it.
        """
        shapes = {name: value.shape for name, value in feeds.items()}
        entry: dict[str, Any] = {
            "id": net_id(layers) if layers else "dense",
            "file": self._write(anonymous(onnx, shapes, self._weights)),
        }
        if layers:
            entry["predicted"] = predicted
            entry["layers"] = {
                one.spec.name: f"{one.method} {','.join(map(str, one.rank))}" for one in layers
            }
        else:
            entry["inputs"] = [
                {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
                for name, value in feeds.items()
            ]
        self._manifest["nets"].append(entry)

    def add_group(self, group: Group) -> None:
        """Add chains of a layer, after those that are more important."""
        target = Target(threads=1, batch=self.batch)
        copies = runtimes.get(target.runtime).copies(target, group.spec, group.size)
        place = replace(group.spec, name="", input_sizes=()), group.size
        if place not in self._layers:
            self._layers[place] = len(self._manifest["layers"])
            dense = self._chain((group.spec,), group.size, copies)
            ends = None
            if group.spec.kernel:
                how = group.spec, group.size, self.batch, copies, self._weights
                ends = self._write(ends_file(*how))
            entry = {"file": dense, "ends": ends, "copies": copies,
                     "input": input_shape(*place, self.batch)}  # fmt: skip
            self._manifest["layers"].append(entry)
        chains = [
            {
                "key": key_of(group.spec, group.size, chain),
                "kind": kind_of(chain),
                "macs": macs_at(chain, group.size),
                "file": self._chain(chain, group.size, copies),
            }
            for chain in group.chains
        ]
        self._manifest["groups"].append({"layer": self._layers[place], "chains": chains})

    def close(self) -> dict[str, int]:
        """Write what bench.py reads, and bench.py; how much there is of what."""
        content = {**self._manifest, "weights": self._weights.floats}
        text = json.dumps(content, sort_keys=True)
        content = {"kit": hashlib.sha256(text.encode()).hexdigest()[:12], **content}
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (self.folder / _BENCH.name).write_bytes(_BENCH.read_bytes())
        groups = self._manifest["groups"]
        return {
            "layers": len(self._layers),
            "chains": sum(len(group["chains"]) for group in groups),
            "nets": len(self._manifest["nets"]),
        }

    def _chain(self, chain: Chain, size: Size, copies: int) -> str:
        return self._write(chain_file(chain, size, self.batch, copies, self._weights))

    def _write(self, content: bytes) -> str:
        name = f"{self._files:05}.onnx"
        (self._models / name).write_bytes(content)
        self._files += 1
        return name


def net_id(layers: Sequence[LayerPlan]) -> str:
    """What tells a net from others that are made of the same one."""
    replaced = sorted((one.spec.name, one.method, *one.rank, one.variant) for one in layers)
    return hashlib.sha256(json.dumps(replaced).encode()).hexdigest()[:12]

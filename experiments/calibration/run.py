"""Measures how many output positions a layer's calibration needs.

    python experiments/calibration/run.py CHECKPOINT --data FOLDER [--images N] [--out FILE]

Fits made with subsampled second moments S' are judged in the norm of the full ones, S.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from factorize.calibrate import collect
from factorize.graph import find
from factorize.models.load_model import load_model
from factorize.tensor.moments import Calibration

HERE = Path(__file__).parent
CONFIG = json.loads((HERE.parent / "cifar10" / "weights" / "config.json").read_text())
PER_IMAGE = {"all": 10**9, "default (50)": None, "25": 25, "6": 6}
"""Positions drawn from each image; the default is for 800 images to fit to and any layer here."""

COLUMNS = (
    "frobenius", "channel_svd", "channel_svd held out", "regression", "regression held out",
)  # fmt: skip
HEAD = f"""\
| positions per image | patches | seconds | {" | ".join(COLUMNS)} |
|---|---|---|{"---|" * len(COLUMNS)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with train_0.npz")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()

    model = load_model(options.checkpoint, arch=CONFIG["arch"]).model
    specs = {site.spec.name: site.spec for site in find(model, torch.zeros(1, 3, 32, 32))}
    kernels = {name: model.get_submodule(name).weight.detach().double() for name in specs}
    images = load(options.data / "train_0.npz", options.images).split(100)

    found, seconds = {}, {}
    for budget, per_image in PER_IMAGE.items():
        start = time.perf_counter()
        found[budget] = collect(model, specs, images, per_image=per_image)
        seconds[budget] = round(time.perf_counter() - start, 2)
    full = found["all"]
    results = []
    for name, kernel in kernels.items():
        rows = kernel.flatten(1)
        truth, held_out = (part.second[0] for part in parts(full, name))
        for budget, calibration in found.items():
            fit = parts(calibration, name)[0]
            second = fit.second[0]
            entry = {"layer": name, "per_image": budget, "D": rows.shape[1], "patches": fit.count}
            entry["frobenius"] = float((second - truth).norm() / truth.norm())
            for made in (channel_svd, regression):
                entry[made.__name__] = excess(made, rows, second, truth)
                entry[f"{made.__name__} held out"] = excess(made, rows, second, held_out)
                rounded = second.float().double()
                entry[f"{made.__name__} float32"] = excess(made, rows, rounded, second)
            results.append(entry)
    settings = {
        "checkpoint": Path(options.checkpoint).name,
        "images": options.images,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    record = {"settings": settings, "seconds": seconds, "layers": results}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def parts(calibration: Calibration, name: str) -> tuple:
    layer = calibration.layers[name]
    return layer.fit, layer.held_out


def load(path: Path, count: int) -> Tensor:
    """The first images of the file as the model takes them."""
    images = torch.from_numpy(np.load(path)["images"][:count]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def excess(fit, rows: Tensor, second: Tensor, truth: Tensor) -> float:
    """How much larger the squared error under `truth` is than that of a fit made under it."""

    def error(made_with: Tensor) -> float:
        gap = rows - fit(rows, made_with)
        return float(((gap @ truth) * gap).sum())

    return error(second) / error(truth) - 1


def channel_svd(rows: Tensor, second: Tensor) -> Tensor:
    """The best kernel of rank R under S, R at half the MACs: few free numbers, hard to mislead."""
    outputs, length = rows.shape
    rank = max(outputs * length // (2 * (outputs + length)), 1)
    vectors = torch.linalg.eigh(rows @ second @ rows.T)[1][:, -rank:]
    return vectors @ vectors.T @ rows


def regression(rows: Tensor, second: Tensor) -> Tensor:
    """The best kernel that reads every second entry of the patch: D / 2 free numbers per output.

    As many as any fit can have, so it shows the most that sampling can cost.
    """
    kept = torch.arange(0, rows.shape[1], 2)
    gram = second[kept][:, kept]
    gram = gram + 1e-8 * gram.diagonal().mean() * torch.eye(len(kept), dtype=gram.dtype)
    fitted = torch.zeros_like(rows)
    fitted[:, kept] = torch.linalg.solve(gram, (rows @ second[:, kept]).T).T
    return fitted


def table(record: dict) -> str:
    """Median / largest over the layers, in percent."""
    lines = [HEAD]
    for budget, seconds in record["seconds"].items():
        layers = [entry for entry in record["layers"] if entry["per_image"] == budget]
        cells = [budget, f"{sum(entry['patches'] for entry in layers):,}", f"{seconds:.1f}"]
        for key in COLUMNS:
            values = sorted(100 * entry[key] for entry in layers)
            cells.append(f"{values[len(values) // 2]:.2f} / {values[-1]:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

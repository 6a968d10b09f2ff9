"""ResNet-20 as a module and as its own ONNX file: plans and accuracy side by side.

    PYTHONPATH=. python experiments/onnx/module_and_file.py --data FOLDER [--only images ...]

Each case is two whole commands, one on the checkpoint and one on the ONNX file that torch exports
of it. Writes module_and_file.json after each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from factorize.export import export_onnx
from factorize.measure.environment import environment
from factorize.models.load_model import load_model

HERE = Path(__file__).parent
ARCH = f"{HERE.parent / 'cifar10' / 'resnet.py'}:resnet20"
STEPS = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
CASES = {
    "images": ["--macs", "0.5,0.3", "--pick", "0.3", "--calibration-images", "1000"],
    "made up": ["--macs", "0.5,0.3", "--pick", "0.3", "--evaluate", f"{__file__}:top1"],
    "one epoch": ["--macs", "0.3", "--calibration-images", "1000", "--finetune", "1"],
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with cifar10/ and models/")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    data = options.data.resolve()
    checkpoint = data / "models" / "resnet20-12fca82f.th"
    file = HERE / "module_and_file.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder, "resnet20.onnx")
        model = load_model(checkpoint, arch=ARCH).model
        export_onnx(model, torch.zeros(1, 3, 32, 32), onnx)
        shape = ["--input-shape", "3,32,32"]
        sources = {
            "module": [str(checkpoint), "--arch", ARCH, *shape],
            "file": [str(onnx), *shape],
        }
        for case in options.only:
            images = [] if case == "made up" else ["--data", str(data / "cifar10")]
            if case == "one epoch":
                images = ["--data", str(_fifth(data / "cifar10", Path(folder)))]
            for source, named in sources.items():
                command = [*named, *STEPS, *CASES[case], *images]
                row = {"case": case, "source": source} | _run(command, folder, data)
                print({key: row[key] for key in row if key != "plan"}, flush=True)
                rows = [r for r in rows if (r["case"], r["source"]) != (case, source)] + [row]
                content = {"environment": environment(), "rows": rows}
                file.write_text(json.dumps(content, indent=1) + "\n")


def top1(model: nn.Module) -> float:
    """Percent of the test images, for ``--evaluate``."""
    test = np.load(Path(os.environ["CIFAR10"], "test.npz"))
    mean, std = (
        torch.tensor([float(v) for v in STEPS[i].split(",")])[:, None, None] for i in (1, 3)
    )
    right = 0
    with torch.inference_mode():
        for start in range(0, len(test["labels"]), 256):
            pixels = torch.from_numpy(test["images"][start : start + 256])
            pixels = pixels.permute(0, 3, 1, 2)
            labels = torch.from_numpy(test["labels"][start : start + 256])
            right += int((model((pixels / 255 - mean) / std).argmax(1) == labels).sum())
    return 100 * right / len(test["labels"])


def _fifth(images: Path, folder: Path) -> Path:
    """A fifth of the training images, for a tuning that takes minutes; all test images."""
    fewer = folder / "fifth"
    fewer.mkdir()
    for name in ("train_0.npz", "test.npz"):
        (fewer / name).symlink_to(images / name)
    return fewer


def _run(command: list[str], folder: str, data: Path) -> dict[str, Any]:
    out = Path(folder, "out")
    subprocess.run(
        [sys.executable, "-m", "factorize", *command, "--out", str(out), "--force"],
        check=True, env={**os.environ, "CIFAR10": str(data / "cifar10")},
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    return {
        "quality": report["quality"],
        "curve": report["curve"],
        "macs": report["macs"],
        # Layers of the file are named by its nodes; their order is the same.
        "plan": [[one["method"], one["rank"], one["variant"]] for one in report["layers"]],
    }


if __name__ == "__main__":
    main()

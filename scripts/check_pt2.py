"""Exported programs in and out: full rank, and half the MACs, each run with torch alone.

    python scripts/check_pt2.py [--out experiments/exported_programs/result.json]

ResNet-18, a small U-Net and a 1-D net with random weights are exported with any batch and size.
Each goes through `factorize` from its file; what is written is loaded in a fresh process that has
torch alone, and runs there at two batches and sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim

from factorize import Budget, FitConfig, compress
from factorize.export.program_back import export_program_back
from factorize.export.traces import quiet
from factorize.models.load_model import load_model
from factorize.run.make_plan import make_plan
from factorize.run.steps import rewrite

ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1])
model = program.module()
with torch.no_grad():
    torch.save([model(x) for x in torch.load(sys.argv[2])], sys.argv[3])
assert not any(name.startswith("factorize") for name in sys.modules)
"""


def block(channels: int, out: int) -> nn.Sequential:
    """Two convolutions, each with a batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = block(3, 32), block(32, 64), block(64, 128)
        self.up_two, self.up_one = (
            nn.ConvTranspose2d(128, 64, 2, 2),
            nn.ConvTranspose2d(64, 32, 2, 2),
        )
        self.back_two, self.back_one = block(128, 64), block(64, 32)
        self.last = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2, H, W)."""
        one = self.one(x)
        two = self.two(nn.functional.max_pool2d(one, 2))
        y = self.up_two(self.three(nn.functional.max_pool2d(two, 2)))
        y = self.up_one(self.back_two(torch.cat([y, two], 1)))
        return self.last(self.back_one(torch.cat([y, one], 1)))


def line() -> nn.Module:
    """A 1-D net, as for sound."""
    layers: list[nn.Module] = []
    for channels, out in ((4, 32), (32, 64), (64, 64), (64, 128)):
        layers += [nn.Conv1d(channels, out, 9, 2, padding=4), nn.BatchNorm1d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 10))


NETS: dict[str, tuple[Any, list[tuple[int, ...]], int]] = {
    "resnet18": (torchvision.models.resnet18, [(2, 3, 64, 64), (3, 3, 96, 128)], 32),
    "unet": (UNet, [(2, 3, 64, 64), (3, 3, 80, 48)], 4),
    "line": (line, [(2, 4, 1024), (3, 4, 1600)], 16),
}
"""The net, two sizes, and what heights, widths and lengths are multiples of."""


def written(name: str, folder: Path) -> tuple[Path, nn.Module, list[Tensor]]:
    """The net's program, the net, and inputs of two sizes."""
    make, sizes, step = NETS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(size) for size in sizes]
    net = make()
    with torch.no_grad():
        net.train()(torch.randn(8, *sizes[0][1:]))
    names = ("height", "width") if len(sizes[0]) == 4 else ("length",)
    free: dict[int, Any] = {i: step * Dim(n, max=512) for i, n in enumerate(names, 2)}
    if name == "resnet18":  # it takes any size
        free = {i: Dim(n, min=33, max=2048) for i, n in enumerate(names, 2)}
    path = folder / f"{name}.pt2"
    with quiet():
        program = torch.export.export(
            net.eval(), (inputs[0],), dynamic_shapes=({0: Dim("batch", max=64), **free},)
        )
        torch.export.save(program, path)
    return path, net, inputs


def alone(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    """What a program gives in a fresh process with torch alone."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given"), Path(folder, "made")
        torch.save(inputs, given)
        command = [
            sys.executable,
            "-I",
            "-W",
            "ignore",
            "-c",
            ALONE,
            *map(str, (path, given, made)),
        ]
        subprocess.run(command, check=True)
        return torch.load(made)


def apart(path: Path, model: nn.Module, inputs: list[Tensor]) -> float:
    """Largest difference of a program and a model, relative to the largest output."""
    gaps = []
    with torch.no_grad():
        for got, x in zip(alone(path, inputs), inputs, strict=True):
            wanted = model(x)
            gaps.append(float((got - wanted).abs().max() / wanted.abs().max()))
    return max(gaps)


def checked(name: str) -> dict[str, Any]:
    """One net's figures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path, net, inputs = written(name, folder)
        loaded = load_model(path)
        assert loaded.input_shape
        assert loaded.check
        x = torch.randn(1, *loaded.input_shape)
        loaded.check(x)
        plan = make_plan(loaded.model, x, rank=1.0, include=["*"], allow_costlier=True)
        full = folder / "full.pt2"
        axes = export_program_back(rewrite(loaded.model, plan), plan, x, full)  # type: ignore[arg-type]
        result = compress(
            loaded.model, x, budget=Budget(macs=0.5), fit=FitConfig(how="weights"),
            out=folder / "out", latency=False, device="cpu",
        )  # fmt: skip
        before, after = (torch.export.load(p) for p in (path, folder / "out" / "model.pt2"))
        return {
            "net": name,
            "layers": len(plan.factorized),
            "free": axes,
            "full_rank": apart(full, net, inputs),
            "macs_left": result.report.macs["compressed"] / result.report.macs["original"],
            "half_macs_layers": len(result.plan.factorized),
            "half_macs_and_its_twin": apart(folder / "out" / "model.pt2", result.model, inputs),
            "same_ranges": str(before.range_constraints) == str(after.range_constraints),
            "same_call": before.call_spec == after.call_spec,
            "failures": list(result.report.failures),
            "seconds": round(time.perf_counter() - start, 1),
        }


def main() -> None:
    """Check all nets and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, default=None)
    out = parser.parse_args().out
    rows = []
    print("| net | layers at full rank | full rank | MACs left | layers | file and twin | s |")
    print("|---|---|---|---|---|---|---|")
    for name in NETS:
        row = checked(name)
        rows.append(row)
        print(
            f"| {name} | {row['layers']} | {row['full_rank']:.1e} | {row['macs_left']:.3f} | "
            f"{row['half_macs_layers']} | {row['half_macs_and_its_twin']:.1e} | {row['seconds']} |",
            flush=True,
        )
    machine = {
        "python": platform.python_version(), "torch": torch.__version__,
        "torchvision": torchvision.__version__, "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"environment": machine, "nets": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

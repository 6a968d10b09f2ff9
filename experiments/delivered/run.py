"""Nets in the forms in which people have them, delivered at one size and run at three others.

    PYTHONPATH=. python experiments/delivered/run.py [NET ...]

Each is compressed with images and written; its files are then loaded in fresh processes, by this
library (into a net made anew), by torch.export alone and by ONNX Runtime, and run at three sizes
that they were not delivered at. Writes results.json (rows are replaced as they are run again), and
the table of README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from nets import NETS, _leaves, build, inputs

import factorize
from factorize.measure.environment import environment

HERE = Path(__file__).parent
WAYS = "library", "pt2", "onnx"


def main() -> None:
    path = HERE / "results.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in sys.argv[1:] or NETS:
        if find_spec(NETS[name].needs) is None:
            print(f"{name}: SKIPPED, {NETS[name].needs} is not installed", flush=True)
            continue
        rows[name] = row(name)
        print(name, rows[name], flush=True)
        rows = {one: rows[one] for one in NETS if one in rows}
        content = {"environment": environment(), "rows": rows}
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")
        table(content)


def row(name: str) -> dict[str, Any]:
    """Deliver one net, and run its files elsewhere."""
    case, model, start = NETS[name], build(name), time.perf_counter()
    draw = torch.Generator().manual_seed(2)
    images = [torch.randn(8, *case.at[1:], generator=draw) for _ in range(8)]
    data: Any = [(list(batch.sigmoid()[:2]),) for batch in images] if case.detector else images
    example: Any = [torch.rand(case.at[1:], generator=draw)] if case.detector else images[0][:1]
    with tempfile.TemporaryDirectory() as folder:
        result = factorize.compress(
            model, example, rank=0.3, data=data, out=folder, force=True, latency=False,
            device="cpu", fit=factorize.FitConfig(case.fit, images=64),
        )  # fmt: skip
        report = result.report
        found: dict[str, Any] = {
            "replaced": len(result.plan.factorized), "layers": len(result.plan.layers),
            "macs_left": report.derived()["left"]["macs"],
            "onnx_takes": report.onnx["input_sizes"] if report.onnx else None,
            "failures": list(report.failures),
            "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
        given = inputs(name)
        with torch.no_grad():
            wanted = [_leaves(result.model.eval()(one)) for one in given]
        found["difference"] = {way: difference(way, folder, name, given, wanted) for way in WAYS}
    return found


def difference(way: str, folder: str, name: str, given: Any, wanted: Any) -> float | str:
    """Largest relative difference over the three inputs and all outputs, or why there is none."""
    needed = {"pt2": "model.pt2", "onnx": "model.onnx"}.get(way, "model.safetensors")
    if not Path(folder, needed).exists():
        return "not exported"
    with tempfile.TemporaryDirectory() as made:
        torch.save(given, Path(made, "inputs.pt"))
        ran = subprocess.run(
            [sys.executable, str(HERE / "nets.py"), json.dumps([way, folder, name, made])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            return ran.stderr.strip().splitlines()[-1][:200]
        outputs = torch.load(Path(made, f"{way}.pt"))
    worst = 0.0
    for one, other in zip(outputs, wanted, strict=True):
        floats = [v for v in other if isinstance(v, torch.Tensor)]
        for a, b in zip(one, floats, strict=True):
            if a.shape != b.shape:
                return f"shape {tuple(a.shape)} in place of {tuple(b.shape)}"
            if b.is_floating_point() and b.numel():
                worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)))
    return worst


def table(content: dict[str, Any]) -> None:
    """Below the mark in README.md."""
    machine = content["environment"]
    lines = [
        f"{machine['cpu']}, Python {machine['python']}, torch {machine['torch']}, "
        f"onnxruntime {machine['onnxruntime']}.",
        "",
        "| net | replaced | MACs left | model.onnx takes | factorize.load | .pt2 | .onnx | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in content["rows"].items():
        ways = [one["difference"][way] for way in WAYS]
        shown = [way if isinstance(way, str) else f"{way:.1e}" for way in ways]
        lines.append(
            f"| {name} | {one['replaced']} of {one['layers']} | {one['macs_left']:.2f} "
            f"| {one['onnx_takes'] or '-'} | {' | '.join(shown)} | {one['seconds']:.0f} |"
        )
    mark = "<!-- made by run.py: do not edit below -->"
    page = (HERE / "README.md").read_text().partition(mark)[0]
    (HERE / "README.md").write_text("\n".join([page.rstrip(), "", mark, "", *lines, ""]))


if __name__ == "__main__":
    main()

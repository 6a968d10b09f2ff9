"""Trained ONNX files as they are found: half the MACs, and a speed that is asked for.

    PYTHONPATH=. python experiments/onnx/found.py --data FOLDER [--only rfb320 espcn] [--cases ...]

FOLDER has onnx/rfb320.onnx and onnx/espcn.onnx. Each case is a whole command, on an idle machine.
With photographs the chains are fitted to crops of one of scikit-learn's two sample images; the
outputs are always compared on crops of the other one, in ONNX Runtime. Writes found.json (rows are
replaced as they are run again), and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from factorize.measure.environment import environment
from factorize.tensor.call import onnx_session

HERE = Path(__file__).parent
RESULTS, README = HERE / "found.json", HERE / "README.md"
MARKS = "<!-- made by found.py: from here -->", "<!-- made by found.py: to here -->"
FILES: dict[str, tuple[tuple[int, int], str, float, float]] = {  # size, colours, mean, std
    "rfb320": ((240, 320), "RGB", 127, 128),
    "espcn": ((224, 224), "L", 0, 255),
}
FIT, COMPARED = 200, 20
CASES = {
    "made up": ["--macs", "0.5"],
    "photographs": ["--macs", "0.5"],
    "speedup 1.5": ["--speedup", "1.5"],
}


def crops(source: str, count: int, size: tuple[int, int], colours: str) -> np.ndarray:
    """Parts of a photograph, of any scale: (N, H, W, C) uint8."""
    draw, image = np.random.default_rng(0), Image.fromarray(load_sample_image(source))
    found = []
    for _ in range(count):
        most = min(image.height / size[0], image.width / size[1])
        scale = draw.uniform(min(1, most), most)
        high, wide = round(size[0] * scale), round(size[1] * scale)
        top, left = draw.integers(image.height - high + 1), draw.integers(image.width - wide + 1)
        part = image.crop((left, top, left + wide, top + high)).resize(size[::-1])
        found.append(np.asarray(part.convert(colours)).reshape(*size, -1))
    return np.stack(found)


def differences(
    one: Path, two: Path, pixels: np.ndarray, mean: float, std: float
) -> dict[str, Any]:
    """Of each output over all images: root mean square, relative to the original's."""
    sessions = [onnx_session(path, 1) for path in (one, two)]
    names = [output.name for output in sessions[0].get_outputs()]
    given = sessions[0].get_inputs()[0].name
    missed, size = np.zeros(len(names)), np.zeros(len(names))
    for image in pixels:
        x = (image.astype(np.float32).transpose(2, 0, 1)[None] - mean) / std
        before, after = (session.run(None, {given: x.astype(np.float32)}) for session in sessions)
        missed += [np.square(a - b).sum() for a, b in zip(before, after, strict=True)]
        size += [np.square(a).sum() for a in before]
    return dict(zip(names, np.sqrt(missed / size).tolist(), strict=True))


def row(name: str, case: str, source: Path, folder: Path) -> dict[str, Any]:
    """One command, and what came of it."""
    size, colours, mean, std = FILES[name]
    values = ["--scale", "255", "--mean", str(mean), "--std", str(std)]
    command = [str(source), *CASES[case], *values]
    if case == "photographs":
        data = folder / f"{name}-photographs.npz"
        np.savez(data, images=crops("china.jpg", FIT, size, colours))
        command += ["--data", str(data)]
    out, begin = folder / "out", time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "factorize", *command, "--out", str(out), "--force"],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    seconds = round(time.perf_counter() - begin, 1)
    print(ran.stderr[-2000:], flush=True)
    found: dict[str, Any] = {"file": name, "case": case, "exit": ran.returncode, "seconds": seconds}
    if not (out / "model.onnx").exists():
        return found | {"said": ran.stderr.strip().splitlines()[-1]}
    report = json.loads((out / "report.json").read_text())
    measured = (report["search"] or {}).get("measured") or report["speed"][0]
    keys = ("speedup", "speedup_p10", "speedup_p90", "threads", "batch")
    pixels = crops("flower.jpg", COMPARED, size, colours)
    found |= {
        "left": report["derived"]["left"]["macs"],
        "layers": sum(layer["method"] is not None for layer in report["layers"]),
        "measured": {key: measured[key] for key in keys},
        "ms": [measured[one]["median_ms"] for one in ("original", "compressed")],
        "difference": differences(source, out / "model.onnx", pixels, mean, std),
    }
    if ran.returncode:
        found["said"] = ran.stderr.strip().splitlines()[-1]
    return found


def table(stored: dict[str, Any]) -> str:
    """What README.md has between the marks."""
    where = stored["environment"]
    threads = max(
        (one["measured"]["threads"] for one in stored["rows"] if "measured" in one), default=0
    )
    lines = [
        f"{where['cpu']}, {threads} threads, torch {where['torch']}, "
        f"onnxruntime {where['onnxruntime']}, seed 0.", "",
        "| file | asked for, images | exit | MACs left, layers | difference of the outputs "
        "| ms before, after | speedup (p10..p90) | seconds |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in stored["rows"]:
        asked = " ".join(CASES[one["case"]])
        images = "photographs" if one["case"] == "photographs" else "made up"
        cells = [one["file"], f"`{asked}`, {images}", str(one["exit"])]
        if "measured" in one:
            parts = ", ".join(f"`{k}` {100 * v:.2f} %" for k, v in one["difference"].items())
            speed = one["measured"]
            cells += [
                f"{one['left']:.3f}, {one['layers']}", parts,
                " ".join(f"{ms:.2f}" for ms in one["ms"]),
                f"{speed['speedup']:.2f} ({speed['speedup_p10']:.2f}..{speed['speedup_p90']:.2f})",
            ]  # fmt: skip
        else:
            cells += [f"none: {one['said']}", "", "", ""]
        lines.append(f"| {' | '.join([*cells, str(round(one['seconds']))])} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for; rows of others stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    for key in [(name, case) for name in options.only for case in options.cases]:
        with tempfile.TemporaryDirectory() as folder:
            source = options.data.resolve() / "onnx" / f"{key[0]}.onnx"
            made = row(*key, source, Path(folder))
        print(json.dumps(made), flush=True)
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
        rows = {(one["file"], one["case"]): one for one in stored["rows"]} | {key: made}
        ordered = [rows[name, case] for name in FILES for case in CASES if (name, case) in rows]
        stored = {"environment": environment(), "rows": ordered}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        head, _, rest = README.read_text().partition(MARKS[0])
        tail = rest.partition(MARKS[1])[2]
        README.write_text(f"{head}{MARKS[0]}\n\n{table(stored)}\n\n{MARKS[1]}{tail}")


if __name__ == "__main__":
    main()

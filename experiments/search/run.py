"""How long searches take, as a user runs them: whole commands, each in a process of its own.

    PYTHONPATH=. python experiments/search/run.py --data FOLDER --label now [--only resnet20 ...]

The first command of a net has an empty cache, the ones after it have what that one left. Rows of
the same label and command are replaced in results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from factorize.measure.environment import environment

HERE = Path(__file__).parent
ARCH = HERE.parent / "cifar10" / "resnet.py"
DENOISE = HERE.parent / "denoise" / "dncnn.py"
TIMED = ["--target", "onnxruntime", "--threads", "2"]
NETS: dict[str, list[list[str]]] = {
    "resnet20": [["--macs", "0.5"], ["--macs", "0.35"]],
    "resnet56": [["--macs", "0.5"], ["--macs", "0.3"]],
    "dncnn": [["--speedup", "2", *TIMED]],
    "resnet18": [["--speedup", "2", *TIMED], ["--speedup", "2", *TIMED]],
    "resnet50": [["--speedup", "2", *TIMED]],
    "vgg16_bn": [["--speedup", "2", *TIMED]],
}
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with cifar10/, models/, denoise/")
    parser.add_argument("--label", required=True, help="of the code that is run, for the table")
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    for net in options.only:
        with tempfile.TemporaryDirectory() as cache:
            for number, budget in enumerate(NETS[net]):
                command = [*_net(net, options.data.resolve()), *budget]
                key = {"label": options.label, "net": net, "number": number}
                row = {**key, "budget": " ".join(budget[:2]), **_run(command, cache, options.data)}
                print(row, flush=True)
                rows = json.loads(options.out.read_text()) if options.out.exists() else []
                rows = [one for one in rows if not key.items() <= one.items()]
                options.out.write_text(json.dumps([*rows, row], indent=1) + "\n")


def _net(net: str, data: Path) -> list[str]:
    if net == "dncnn":
        return [
            str(data / "models" / "dncnn-s15.pth"), "--arch", f"{DENOISE}:dncnn",
            "--input-shape", "1,256,256", "--evaluate", f"{DENOISE}:psnr",
            "--data", f"{DENOISE}:noisy_crops",
        ]  # fmt: skip
    if net not in CHECKPOINTS:
        return [f"torchvision:{net}"]
    return [
        str(data / "models" / CHECKPOINTS[net]), "--arch", f"{ARCH}:{net}",
        "--data", str(data / "cifar10"), "--mean", "0.485,0.456,0.406",
        "--std", "0.229,0.224,0.225", "--calibration-images", "1000",
    ]  # fmt: skip


def _run(command: list[str], cache: str, data: Path) -> dict[str, Any]:
    denoise = data.resolve() / "denoise"
    folders = {"DENOISE_TEST": str(denoise / "set12"), "DENOISE_TRAIN": str(denoise / "train")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "factorize", *command, "--out", str(out)],
            env={**os.environ, **folders, "FACTORIZE_CACHE": cache},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        found = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_gb": round(usage.ru_maxrss / 1e6, 2),
            "environment": environment(),
        }
        if not (out / "report.json").exists():
            return {**found, "message": text.strip()[-500:]}
        report = json.loads((out / "report.json").read_text())
    measured = report["search"]["measured"]
    return {
        **found,
        "quality": report["quality"],
        "seconds_by_step": report.get("seconds"),
        "trials": report["search"]["trials"],
        "speedup": measured and [measured[k] for k in ("speedup", "speedup_p10", "speedup_p90")],
    }


if __name__ == "__main__":
    main()

"""A kit timed elsewhere, with one thread, against a search here with two.

    PYTHONPATH=. python experiments/kit/run.py resnet18 --minutes 5 --program-minutes 1

The other place is this machine, in an environment of its own that has only numpy and ONNX Runtime.
A step whose files are there is not done again; delete them in --work to repeat it. Writes
results-NAME.json, and the tables of all of them into README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from factorize import Target, load_plan
from factorize.measure import environment, speedup
from factorize.report import load_report

HERE = Path(__file__).parent
PATTERN = r"typical run => (?P<us>[0-9.]+) us"
NETS: dict[str, dict[str, Any]] = {
    "resnet18": {"input": (3, 224, 224), "arch": "torchvision:resnet18", "speedup": 2.0},
    "digits": {"input": (1, 8, 8), "speedup": 1.3},
}
MARK = "<!-- run.py writes what follows -->\n"


class Run:
    """The steps of one net."""

    def __init__(self, name: str, work: Path, minutes: float, program_minutes: float) -> None:
        self.name, self.work = name, work / name
        self.minutes, self.program_minutes = minutes, program_minutes
        self.net = NETS[name]
        self.work.mkdir(parents=True, exist_ok=True)
        self.asked = ["--speedup", str(self.net["speedup"])]
        self.python = self.work / "venv" / "bin" / "python"

    def model(self) -> list[str]:
        """The arguments that name it."""
        if "arch" not in self.net:
            return [self.name]
        path = self.work / f"{self.name}.pt"
        if not path.exists():
            torch.manual_seed(0)
            made = torchvision.models.get_model(self.net["arch"].partition(":")[2])
            torch.save(made.state_dict(), path)
        return [str(path), "--arch", self.net["arch"]]

    def factorize(self, log: str, *arguments: object, kit: bool = False) -> float:
        """Run the command; its output is in the work folder. Seconds."""
        command = [sys.executable, "-m", "factorize", *(["kit"] if kit else []), *self.model()]
        start = time.perf_counter()
        with (self.work / f"{log}.log").open("w") as file:
            subprocess.run(
                [*command, *self.asked, *map(str, arguments)], stdout=file,
                stderr=subprocess.STDOUT, check=True,
            )  # fmt: skip
        return time.perf_counter() - start

    def fresh_environment(self) -> list[str]:
        """What is installed where the kit is timed."""
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.work / "venv"], check=True)
            pip = [self.python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"]
            subprocess.run(pip, check=True)
        listed = subprocess.run(
            [self.python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True
        )
        return [f"{one['name']} {one['version']}" for one in json.loads(listed.stdout)]

    def bench(self, kit: str, out: str, *options: object) -> list[object]:
        return [self.python, self.work / kit / "bench.py", "--threads", 1, "--out",
                self.work / out, *options]  # fmt: skip

    def timed(self, kit: str, out: str, *options: object) -> None:
        if not (self.work / out).exists():
            subprocess.run([*map(str, self.bench(kit, out, *options))], check=True)

    def kit(self) -> dict[str, Any]:
        """Write the kit, and break one of its chains on purpose."""
        path = self.work / "kit"
        if not path.exists():
            self.factorize("kit", "--out", path, kit=True)
            manifest = json.loads((path / "manifest.json").read_text())
            broken = manifest["groups"][2]["chains"][0]
            (path / "models" / broken["file"]).write_bytes(b"broken on purpose")
            (path / "broken.txt").write_text(broken["key"])
        manifest = json.loads((path / "manifest.json").read_text())
        files = list(path.rglob("*.onnx"))
        return {
            "layers": len(manifest["layers"]),
            "chains": sum(len(group["chains"]) for group in manifest["groups"]),
            "jobs": len(manifest["groups"]) + len(manifest["nets"]),
            "megabytes": sum(one.stat().st_size for one in files) / 1e6,
            "broken": (path / "broken.txt").read_text(),
        }

    def interrupted(self, jobs: int) -> int:
        """Time the kit until a third is done, and kill that; how much was done."""
        log, note = self.work / "times.json.journal", self.work / "killed.json"
        if not note.exists():
            log.unlink(missing_ok=True)
            command = [*map(str, self.bench("kit", "times.json", "--minutes", self.minutes))]
            with subprocess.Popen(command) as process:
                while process.poll() is None and _done(log) < jobs // 3:
                    time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
            note.write_text(json.dumps(_done(log)))
        return int(json.loads(note.read_text()))

    def searched(self, out: str, *options: object) -> Path:
        folder = self.work / out
        if not (folder / "report.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            # Random weights, whose times alone are asked for, need no images.
            tuning = ["--fit", "weights"] if "arch" in self.net else ["--finetune", 0]
            self.factorize(out, "--out", folder, *tuning, *options)
        return folder

    def beside(self, threads: int, first: Path, second: Path) -> dict[str, float]:
        """Two delivered nets in turns, on one setting."""
        example = torch.randn(1, *self.net["input"])
        found = speedup(Target("onnxruntime", threads), first, second, example)
        return {
            "first_ms": found.original.median_ms, "second_ms": found.compressed.median_ms,
            "ratio": found.speedup, "p10": found.speedup_p10, "p90": found.speedup_p90,
        }  # fmt: skip

    def all(self) -> dict[str, Any]:
        packages, kit = self.fresh_environment(), self.kit()
        killed = self.interrupted(kit["jobs"])
        self.timed("kit", "times.json", "--minutes", self.minutes)
        times = json.loads((self.work / "times.json").read_text())
        there = self.searched("there", "--times", self.work / "times.json")
        here = self.searched("here", "--target", "onnxruntime", "--threads", 2, "--refresh")
        if not (self.work / "kit2").exists():
            self.factorize("kit2", "--times", self.work / "times.json", "--out",
                           self.work / "kit2", kit=True)  # fmt: skip
        self.timed("kit2", "times2.json", "--minutes", self.minutes)
        both = ["--times", self.work / "times.json", "--times", self.work / "times2.json"]
        closed = self.searched("closed", *both)
        program = f"{self.python} {HERE / 'program.py'} {{model}} {{threads}}"
        self.timed("kit", "program.json", "--minutes", self.program_minutes, "--command", program,
                   "--pattern", PATTERN)  # fmt: skip
        dense, nets = self.dense(), {"there": there, "closed": closed, "here": here}
        timed = {
            f"{name}, {threads} threads": self.beside(threads, dense, folder / "model.onnx")
            for name, folder in nets.items()
            for threads in (1, 2)
        }
        against = {
            f"{threads} threads": self.beside(threads, here / "model.onnx", closed / "model.onnx")
            for threads in (1, 2)
        }
        return {
            "net": self.name, "asked": self.net["speedup"], "environment": environment(),
            "packages": packages, "kit": kit, "killed_after": killed,
            "goes_on": _resumed(self.work / "times.json.journal", killed),
            "machine": times["machine"], "chains": _counts(times),
            "broken": times["chains"].get(kit["broken"]), "program": self.program(times),
            "predicted": {name: load_report(one / "report.json").speed[0].speedup
                          for name, one in nets.items()},
            "nets2": json.loads((self.work / "times2.json").read_text())["nets"],
            "plans": {name: _plan(one) for name, one in nets.items()},
            "timed": timed, "closed_against_here": against,
        }  # fmt: skip

    def dense(self) -> Path:
        """The original as ONNX, to time the others beside."""
        from factorize import export_onnx
        from factorize.models.load_model import load_model

        path = self.work / "dense.onnx"
        if not path.exists():
            name, *arch = self.model()
            model = load_model(name, arch=arch[1] if arch else None).model
            export_onnx(model, torch.randn(1, *self.net["input"]), path)
        return path

    def program(self, times: dict[str, Any]) -> dict[str, Any]:
        """The same chains timed by another program, as far as it came."""
        found = json.loads((self.work / "program.json").read_text())
        shared = [
            (one["speedup"], times["chains"][key]["speedup"])
            for key, one in found["chains"].items()
            if "refused" not in one | times["chains"].get(key, {"refused": ""})
        ]
        ratios = sorted(a / b for a, b in shared)
        return {"timed": len(shared), "machine": found["machine"],
                "tenths": [ratios[len(ratios) * k // 10] for k in (1, 5, 9)]}  # fmt: skip


def _done(log: Path) -> int:
    """Jobs that a journal has whole."""
    return (
        len(re.findall(r'^\{"done": "\w+ \d+",.*\}$', log.read_text(), re.M)) if log.exists() else 0
    )


def _resumed(log: Path, killed: int) -> dict[str, int]:
    """How many jobs were done after the kill, and whether one was done twice."""
    names = re.findall(r'^\{"done": "(\w+ \d+)",', log.read_text(), re.M)
    return {"after": len(names) - killed, "twice": len(names) - len({*names})}


def _counts(times: dict[str, Any]) -> dict[str, int]:
    refused = sum("refused" in one for one in times["chains"].values())
    return {"timed": len(times["chains"]) - refused, "skipped": refused}


def _plan(folder: Path) -> dict[str, str]:
    return {
        one.spec.name: f"{one.method} {','.join(map(str, one.rank))}"
        for one in load_plan(folder / "plan.json").factorized
    }


def tables() -> str:
    parts = []
    for path in sorted(HERE.glob("results-*.json")):
        one = json.loads(path.read_text())
        kit, plans = one["kit"], one["plans"]
        names = dict.fromkeys(name for plan in plans.values() for name in plan)
        same = sum(plans["closed"].get(name) == plans["here"].get(name) for name in names)
        goes_on = one["goes_on"]
        parts += [
            f"## {one['net']}, {one['asked']:g}x asked",
            "",
            f"{one['environment']['cpu']}, {one['environment']['cores']} cores. Kit: "
            f"{kit['layers']} layers, {kit['chains']} chains, {kit['megabytes']:.1f} MB. Killed "
            f"after {one['killed_after']} of {kit['jobs']} jobs; then {goes_on['after']} more, "
            f"{goes_on['twice']} twice. Timed {one['chains']['timed']}, skipped "
            f"{one['chains']['skipped']}: `{(one['broken'] or {}).get('refused', 'not reached')}`. "
            f"Of {len(names)} layers that a plan replaces, {same} are replaced alike.",
            "",
            "| times of | predicted | measured, 1 thread | measured, 2 threads |",
            "|---|---|---|---|",
        ]
        words = {"there": "the kit, 1 thread", "closed": "the kit and its nets, 1 thread",
                 "here": "a search here, 2 threads"}  # fmt: skip
        for name, text in words.items():
            cells = [one["timed"][f"{name}, {t} threads"] for t in (1, 2)]
            shown = " | ".join(f"{c['ratio']:.2f}x ({c['p10']:.2f}..{c['p90']:.2f})" for c in cells)
            parts.append(f"| {text} | {one['predicted'][name]:.2f}x | {shown} |")
        ratios = one["closed_against_here"]
        shown = ", ".join(f"{r['ratio']:.3f} with {name}" for name, r in ratios.items())
        low, middle, high = one["program"]["tenths"]
        parts += [
            "",
            f"Time of the net searched here over that of the net searched there: {shown}.",
            "",
            f"Another program timed {one['program']['timed']} of the chains; speedups over those "
            f"of bench.py's own runs: {middle:.2f} ({low:.2f}..{high:.2f}, tenths).",
            "",
        ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--work", type=Path, default=Path("/tmp/factorize-kit"))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--program-minutes", type=float, default=3.0)
    args = parser.parse_args()
    found = Run(args.net, args.work, args.minutes, args.program_minutes).all()
    text = json.dumps(found, indent=1, default=str) + "\n"
    (HERE / f"results-{args.net}.json").write_text(text)
    readme = HERE / "README.md"
    head, mark, _ = readme.read_text().partition(MARK)
    readme.write_text(head + mark + "\n" + tables())


if __name__ == "__main__":
    main()

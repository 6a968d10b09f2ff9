"""ONNX files of torchvision's families, by torch's exporters: twin, full rank, half the MACs.

    PYTHONPATH=. OMP_NUM_THREADS=1 python scripts/check_onnx.py [dynamo:18 old:17 ...]
        [--only resnet18,vgg11_bn] [--kinds constants,float16] [--again] [--table]
        [--found net.onnx ...]

One row for each net, exporter, opset and kind of file is added to experiments/onnx/families.json as
soon as it is there; rows that are there are not made again, without --again. Without arguments: all
that the table has. The table in experiments/onnx/README.md is made of all rows at the end, and by
--table alone. With --found, files of one input that are there already get rows instead. Exits 1
where a file does not come back.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx_families import NETS, exported, model_of, side_of
from onnx_plans import halved, plan_of
from onnx_table import table, verdict

from factorize.errors import FactorizeError
from factorize.export.onnx_back import export_back
from factorize.measure import environment
from factorize.measure.cost import count
from factorize.measure.environment import package_version
from factorize.models.load_model import load_model
from factorize.run.steps import find, rewrite
from factorize.tensor.call import onnx_session

FOLDER = Path(__file__).parents[1] / "experiments" / "onnx"
RESULTS, README = FOLDER / "families.json", FOLDER / "README.md"
MARK = "<!-- made by scripts/check_onnx.py: do not edit below -->"
SAMPLES = 2
OTHER_SIDES = ((64, 80), (128, 112))

Key = tuple[str, str, str]  # net, exporter:opset, kind


def queue() -> Iterator[Key]:
    """All rows of the table, the broadest first."""
    for how in ("dynamo:18", "old:17", "dynamo:23", "old:11"):
        for name in NETS:
            yield name, how, "plain"
        if how == "old:17":
            for kind in ("constants", "external", "float16", "free"):
                for one in ("dynamo:18", "old:17"):
                    yield "resnet18", one, kind
            yield "mobilenet_v3_small", "dynamo:18", "free"
            yield "big", "dynamo:18", "large"
    for how in (
        *("old:12", "old:13", "old:14", "old:15", "old:16"),
        *("dynamo:19", "dynamo:20", "dynamo:21", "dynamo:22"),
    ):
        for name in NETS:
            yield name, how, "plain"


def difference(one: Path, two: Path, x: torch.Tensor) -> float:
    """Largest, of all outputs, relative to the largest value."""
    outputs = []
    for path in (one, two):
        session = onnx_session(path, 1)
        (given,) = session.get_inputs()
        value = x.half() if given.type == "tensor(float16)" else x
        outputs.append(session.run(None, {given.name: value.numpy()}))
        del session
    return max(
        float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max() / np.abs(a).max())
        for a, b in zip(*outputs, strict=True)
    )


def checked(key: Key, folder: Path, found: Path | None = None) -> dict[str, Any]:
    """A row: of a file that is exported, or of one that was found."""
    name, how, kind = key
    side = side_of(name, how) if not found else 0
    row: dict[str, Any] = {"net": name, "how": how, "kind": kind}
    x, path = torch.randn(SAMPLES, 3, side, side), folder / "net.onnx"
    begin = time.perf_counter()
    try:
        if found:
            path.write_bytes(found.read_bytes())
            shape = onnx_session(path, 1).get_inputs()[0].shape
            x = torch.rand([n if isinstance(n, int) else SAMPLES for n in shape])
        else:
            exported(model_of(name), x, how, kind, path)
    except Exception as error:  # the exporter's, not ours
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return row | {
            "stage": "export", "error": f"{type(error).__name__}: {(lines or [''])[0][:200]}",
        }  # fmt: skip
    gc.collect()
    row["exported_s"] = round(time.perf_counter() - begin, 1)
    row["mb"] = round(sum(one.stat().st_size for one in folder.iterdir()) / 1e6)
    row["opset"] = onnx.load(path, load_external_data=False).opset_import[0].version
    begin, stage = time.perf_counter(), "twin"
    try:
        loaded = load_model(path)
        assert loaded.check is not None
        row["notes"] = [*loaded.notes, *loaded.check(x[:1])]
        model: Any = loaded.model
        sites, macs = find(model, x[:1]), count(model, x[:1]).macs
        convs = {one.spec.name for one in sites if one.spec.kernel}
        row |= {"convs": len(convs), "linear": len(sites) - len(convs), "macs": macs}
        stage = "full rank"
        plan = plan_of(sites, convs, None)
        row["left"] = dict(Counter(
            one.skip_reason for one in plan.layers if one.spec.name in convs and not one.method
        ))  # fmt: skip
        row["layers"] = len(plan.factorized)
        out = folder / "full" / "net.onnx"
        out.parent.mkdir()
        row["full_twin"] = export_back(model, rewrite(model, plan), plan, x[:1], out).max_rel
        row["full_rank"] = difference(path, out, x)
        stage = "half the MACs"
        plan, row["kept"], row["replaced"] = halved(sites, macs)
        row["half_layers"] = len(plan.factorized)
        out = folder / "half" / "net.onnx"
        out.parent.mkdir()
        small = rewrite(model, plan)
        check = export_back(model, small, plan, x[:1], out)
        row["half_twin"], row["half_mb"] = check.max_rel, round(check.bytes / 1e6)
        row["free_axes"] = list(check.free_axes)
        if kind == "free":
            row["other_sizes"] = {
                f"{h}x{w}": _beside(small, out, torch.randn(1, 3, h, w)) for h, w in OTHER_SIDES
            }
    except FactorizeError as error:
        row |= {"stage": stage, "error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # ours: a traceback where the user should get a line
        row |= {"stage": stage, "error": f"BUG, {type(error).__name__}: {error}"[:400]}
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


def _beside(twin: Any, path: Path, x: torch.Tensor) -> float:
    """Of a twin and its file."""
    session = onnx_session(path, 1)
    made = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        ours = twin(x).numpy()
    return float(np.abs(ours - made).max() / np.abs(made).max())


def write_table() -> None:
    """Make README.md's part below the mark anew."""
    head = README.read_text().partition(MARK)[0].rstrip("\n")
    README.write_text(f"{head}\n\n{MARK}\n\n{table(json.loads(RESULTS.read_text()))}")


def main() -> None:
    """Check what is asked for; rows of others stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", nargs="*")
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--kinds", type=lambda text: text.split(","))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--found", type=Path, nargs="+", default=[], help="check these files alone")
    options = parser.parse_args()
    found = {(path.stem, "as found", "plain"): path for path in options.found}
    asked = [] if options.table else [*(found or queue())]
    failed = []
    for key in asked:
        name, how, kind = key
        if options.how and how not in options.how:
            continue
        if (options.only and name not in options.only) or (
            options.kinds and kind not in options.kinds
        ):
            continue
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
        rows = {(row["net"], row["how"], row["kind"]): row for row in stored["rows"]}
        if key in rows and not options.again:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = checked(key, Path(folder), found.get(key))
        rows[key] = row
        print(f"{how} {name} {kind}: {verdict(row)} {json.dumps(row)}", flush=True)
        if verdict(row) not in ("ok", "not exported"):
            failed.append(f"{name} {how} {kind}")
        ordered = [rows[one] for one in dict.fromkeys((*queue(), *rows)) if one in rows]
        versions = {**environment(), "onnx2pytorch": package_version("onnx2pytorch")}
        text = json.dumps({"environment": versions, "rows": ordered}, indent=1)
        RESULTS.with_suffix(".new").write_text(text + "\n")
        RESULTS.with_suffix(".new").replace(RESULTS)
        gc.collect()
    write_table()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

"""One model of the zoo, through all of the library: what came of each stage, as a row.

    python scripts/zoo_check.py SUITE NAME ROW.json

The row is written before every stage, so that a process that is ended from outside leaves what it
knows.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from zoo_models import Entry, entries, resize, smallest
from zoo_outputs import comparable, difference, feed_batch_norms, outputs, train_loss
from zoo_plan import plan_for

import factorize
from factorize import methods
from factorize.export import save_weights
from factorize.measure import environment
from factorize.models.load_model import load_model
from factorize.plan import save_plan
from factorize.tensor.call import call
from factorize.types import Plan

Row = dict[str, Any]

TOLERANCE = 1e-3
ONNX_SECONDS = 180
QUARTER = 0.25


class Stopped(BaseException):
    """Time is up; not an Exception, which exporters catch."""


def check(
    entry: Entry, save: Callable[[Row], None] = lambda row: None, *, onnx: bool = True
) -> Row:
    """Take a model through all stages; a stage that fails is told in ``failures``, with its cause.

    Parameters
    ----------
    save
        Called with the row so far before every stage, and at the end.
    onnx
        Whether to export, which takes longest.
    """
    row: Row = {"suite": entry.suite, "model": entry.name, "family": entry.family}
    row |= {"seconds": {}, "failures": {}}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        row["at"] = name
        save(row)
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            row["failures"][name] = f"{type(error).__name__}: {_line(error)}"
        row["seconds"][name] = round(time.perf_counter() - start, 2)
        row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)

    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        _stages(entry, row, stage, Path(folder), onnx)
    del row["at"]
    row["cpu_seconds"] = round(time.process_time(), 1)
    row["environment"] = environment()
    save(row)
    return row


def _stages(entry: Entry, row: Row, stage: Any, folder: Path, onnx: bool) -> None:
    if ".quantization." in f".{entry.family}.":
        with stage("refused"):
            row["refused"] = _refusal(f"torchvision:{entry.name}")
        return

    arguments, model, x, sites = {}, nn.Module(), None, ()
    with stage("original"):
        arguments, model, x = smallest(entry, _runs)
        row["arguments"] = arguments
        row["input"] = [list(t.shape) for t in tree_leaves(x)]
        row["params"] = sum(p.numel() for p in model.parameters())
        feed_batch_norms(model, x)
        if not all(t.isfinite().all() for t in outputs(model, x)):
            raise ValueError("the original's output is not finite")
    if row["failures"]:
        return
    with stage("load"):
        model = _loaded(entry, arguments, model, x, row, folder)
    with stage("find"):
        sites = factorize.find(model, x)
        row["found"] = dict(Counter(site.spec.kind for site in sites))
    if row["failures"]:
        return
    with stage("full rank"):
        full = plan_for(model, x, sites, 1.0)
        row["full"] = {"methods": _methods(full), "left": _left(full)}
        row["full"] |= _compared(model, x, full)
    quarter = made = None
    with stage("quarter rank"):
        quarter = plan_for(model, x, sites, QUARTER)
        made = factorize.rewrite(model, quarter)
        row["quarter"] = {"methods": _methods(quarter), "left": _left(quarter)}
        macs = sum(layer.spec.macs for layer in quarter.layers)
        row["quarter"]["macs"] = round(sum(layer.macs for layer in quarter.layers) / macs, 4)
        row["quarter"]["difference"] = difference(outputs(model, x), found := outputs(made, x))
        if not all(t.isfinite().all() for t in found):
            raise ValueError("the output is not finite")
    if quarter is None or made is None or "quarter rank" in row["failures"]:
        return
    with stage("train"):
        row["train"] = _trained(model, made, x, quarter)
    with stage("save and load"):
        save_weights(made, folder / "model.safetensors", force=True)
        save_plan(quarter, folder / "plan.json")
        loaded = factorize.load(folder, copy.deepcopy(model)).eval()
        row["reloaded"] = difference(outputs(made, x), outputs(loaded, x))
        if row["reloaded"] > 0:
            raise ValueError(f"the loaded model differs by {row['reloaded']:.1e}")
        del loaded
    if not onnx:
        return
    with stage("onnx"):
        row["onnx"] = _exported(model, made, x, quarter, folder)


def _refusal(source: str) -> str:
    try:
        load_model(source)
    except factorize.FactorizeError as error:
        return str(error)
    raise ValueError(f"{source}: is quantized, and was not refused")


def _runs(model: nn.Module, x: Any) -> None:
    """Run as later stages will; raises where the input is too small."""
    with torch.no_grad():
        call(model.eval(), x)
        outputs(model, x)
    twin = copy.deepcopy(model).train()  # train mode changes statistics
    train_loss(twin, x)


def _loaded(
    entry: Entry, arguments: dict[str, Any], model: nn.Module, x: Any, row: Row, folder: Path
) -> nn.Module:
    """The model again, from a file with its state dict."""
    path = folder / "state.pt"
    torch.save(model.state_dict(), path)
    expected = outputs(model, x)
    if entry.suite == "timm":
        loaded = load_model(path, arch=f"timm:{entry.name}", arch_args=arguments)
    else:
        try:
            loaded = load_model(path)
        except factorize.FactorizeError as error:
            row["not_recognised"] = _line(error).replace(f"{path}: ", "")
            arch = f"torchvision:{entry.name}"
            loaded = load_model(path, arch=arch, arch_args=arguments)
        row["arch"] = loaded.arch
    path.unlink()
    resize(loaded.model, x)
    row["loaded"] = difference(expected, outputs(loaded.model, x))
    if row["loaded"] > 0:
        raise ValueError(f"the loaded model differs by {row['loaded']:.1e}")
    if entry.suite == "torchvision" and row.get("arch") != f"torchvision:{entry.name}":
        raise ValueError(f"recognised as {row['arch']}")
    return loaded.model


def _methods(plan: Plan) -> dict[str, int]:
    return dict(Counter(layer.method or "" for layer in plan.factorized))


def _left(plan: Plan) -> dict[str, int]:
    return dict(Counter(layer.skip_reason or "" for layer in plan.layers if not layer.method))


def _compared(model: nn.Module, x: Any, plan: Plan) -> Row:
    """The difference in float32; where that is too much, in float64, beside the net's rounding."""
    expected = outputs(model, x)
    found: Row = {"float32": difference(expected, outputs(factorize.rewrite(model, plan), x))}
    if found["float32"] <= TOLERANCE:
        return found
    double, x64 = copy.deepcopy(model).double(), tree_map(Tensor.double, x)
    exact = outputs(double, x64)
    found["rounding"] = difference(exact, expected)
    found["float64"] = difference(exact, outputs(factorize.rewrite(double, plan), x64))
    if found["float64"] > TOLERANCE:
        raise ValueError(f"differs by {found['float32']:.1e}, in float64 {found['float64']:.1e}")
    return found


def _trained(model: nn.Module, made: nn.Module, x: Any, plan: Plan) -> Row:
    """One backward pass in train mode; layers without a gradient had none in the original."""
    names = [layer.spec.name for layer in plan.factorized]
    without = set(_without_gradient(made, x, names))
    made.zero_grad()
    made.eval()
    if without:
        lost = without - set(_without_gradient(copy.deepcopy(model), x, names))
        if lost:
            raise ValueError(f"no gradient reaches {', '.join(sorted(lost)[:3])}")
    return {"layers": len(names), "without_gradient_as_before": len(without)}


def _without_gradient(model: nn.Module, x: Any, names: list[str]) -> list[str]:
    """Names of the layers that a backward pass does not reach; gradients must be finite."""
    torch.manual_seed(0)
    train_loss(model.train(), x).backward()
    modules = dict(model.named_modules(remove_duplicate=False))
    gradients = {n: [p.grad for p in modules[n].parameters() if p.requires_grad] for n in names}
    for name, found in gradients.items():
        if any(g is not None and not g.isfinite().all() for g in found):
            raise ValueError(f"{name}: its gradient is not finite")
    return [name for name, found in gradients.items() if any(g is None for g in found)]


def _exported(model: nn.Module, made: nn.Module, x: Any, plan: Plan, folder: Path) -> Row:
    """The chains exported; the original too where they are not, for what it does itself."""
    one, given = comparable(made, x)
    prefix = "detector." if one is not made else ""
    called = {layer.spec.name: layer for layer in plan.factorized if layer.spec.input_sizes}
    chains = {prefix + name: len(methods.chain_of(layer)) for name, layer in called.items()}
    try:
        with _limited(ONNX_SECONDS):
            parity = factorize.export_onnx(one, given, folder / "model.onnx", chains=chains)
        return {"chains": parity.max_rel, "dynamic_batch": parity.dynamic_batch}
    except (Stopped, Exception) as error:
        cause = _line(error).replace(f"{folder}{os.sep}", "")
    dense, given = comparable(model, x)
    try:
        with _limited(ONNX_SECONDS):
            parity = factorize.export_onnx(dense, given, folder / "dense.onnx")
    except (Stopped, Exception) as error:
        told = _line(error).replace(f"{folder}{os.sep}", "")
        return {"chains": cause, "dense": told}
    raise ValueError(f"{cause} (the original exports, {parity.max_rel:.1e})")


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Stopped(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again, where something swallowed it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def write(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all; what is not finite as a word."""
    value = json.loads(json.dumps(value), parse_constant=str)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value) + "\n")
    temporary.replace(path)


def main() -> None:
    """Check the model that is named; the row goes to a file."""
    suite, name, path = sys.argv[1:]
    (entry,) = [one for one in entries(suite) if one.name == name]
    warnings.simplefilter("ignore")
    check(entry, lambda row: write(Path(path), row))


if __name__ == "__main__":
    main()

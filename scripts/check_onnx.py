"""ONNX files of torchvision's models, by torch's exporters: twin, full rank, and a quarter's rank.

    python scripts/check_onnx.py dynamo:18 dynamo:23 old:11 old:17 [--only resnet18,vgg11_bn]

For each file: whether it converts; how far the file with chains of full rank is from the original,
relative to its largest output, in ONNX Runtime; whether one with a quarter of the rank is written.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision

from factorize.errors import FactorizeError
from factorize.export.onnx_back import export_back
from factorize.export.traces import quiet
from factorize.models.load_model import load_model
from factorize.run.make_plan import make_plan
from factorize.run.steps import rewrite
from factorize.tensor.call import onnx_session

SMALL = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet0_5
mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d
shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11_bn fcn_resnet50
deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
"""
SIZES = {**dict.fromkeys(SMALL.split(), 96), "inception_v3": 128, "maxvit_t": 224, "vit_b_16": 224}
SAMPLES = 2


def model_of(name: str) -> Any:
    """The model with random weights, its batch norms used to random images."""
    torch.manual_seed(0)
    more: dict[str, Any] = {"weights_backbone": None} if "_mobilenet_v3_l" in name else {}
    if name == "fcn_resnet50":
        more = {"weights_backbone": None}
    if name in ("googlenet", "inception_v3"):
        more = {"init_weights": False, "aux_logits": False} | (
            {"aux_logits": True} if name == "inception_v3" else {}
        )
    net = torchvision.models.get_model(name, weights=None, **more)
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, SIZES[name], SIZES[name]))
    return net.eval()


def exported(net: Any, x: torch.Tensor, how: str, path: Path) -> None:
    """Write the ONNX file; how is ``dynamo:OPSET`` or ``old:OPSET``."""
    exporter, _, opset = how.partition(":")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(
                net, (x,), dynamo=True, opset_version=int(opset), verbose=False,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
            assert program is not None
            program.save(path)
        else:
            torch.onnx.export(
                net, (x,), path, dynamo=False, opset_version=int(opset), input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
            )  # fmt: skip


def difference(one: Path, two: Path, x: torch.Tensor) -> float:
    """Largest, of all outputs, relative to the largest value."""
    outputs = []
    for path in (one, two):
        session = onnx_session(path, 1)
        outputs.append(session.run(None, {session.get_inputs()[0].name: x.numpy()}))
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*outputs, strict=True))


def checked(name: str, how: str, folder: Path) -> str:
    """One line on one file."""
    size = SIZES[name]
    net, x = model_of(name), torch.randn(SAMPLES, 3, size, size)
    path = folder / "net.onnx"
    begin = time.perf_counter()
    try:
        exported(net, x, how, path)
    except Exception as error:  # the exporter's, not ours
        line = (str(error).strip().splitlines() or [""])[0]
        return f"not exported: {type(error).__name__}: {line[:80]}"
    del net
    version = onnx.load(path, load_external_data=False).opset_import[0].version
    try:
        loaded = load_model(path)
        assert loaded.check is not None
        notes = (*loaded.notes, *loaded.check(x[:1]))
        told = []
        for rank in (10**6, 0.25):
            linear = [n for n, m in loaded.model.named_modules() if type(m) is torch.nn.Linear]
            plan = make_plan(
                loaded.model, x[:1], rank=rank, include=["*"], exclude=linear,
                allow_costlier=rank != 0.25,
            )  # fmt: skip
            out = folder / f"{rank}" / "net.onnx"
            out.parent.mkdir()
            check = export_back(loaded.model, rewrite(loaded.model, plan), plan, x[:1], out)
            told.append(f"{len(plan.factorized)} at {rank}: {difference(path, out, x):.1e} "
                        f"(twin {check.max_rel:.0e})")  # fmt: skip
        seconds = time.perf_counter() - begin
        return f"ok, opset {version}, {'; '.join(told)}, {seconds:.0f} s {'; '.join(notes)}"
    except FactorizeError as error:
        return f"FAILED, opset {version}: {error}"


def main() -> None:
    """Check all files, one line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("how", nargs="+")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SIZES))
    options = parser.parse_args()
    good = tried = 0
    for how in options.how:
        for name in options.only:
            with tempfile.TemporaryDirectory() as folder:
                line = checked(name, how, Path(folder))
            if not line.startswith("not exported"):
                tried, good = tried + 1, good + line.startswith("ok")
            print(f"{how} {name}: {line}", flush=True)
            gc.collect()
    print(f"{good} of {tried}")


if __name__ == "__main__":
    main()

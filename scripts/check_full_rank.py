"""Rewrite torchvision models at full rank by every method and compare their outputs.

    python scripts/check_full_rank.py [--models resnet18 vgg16_bn ...] [--methods cp ...] [--onnx]

Weights are random; batch-norm statistics are set from random images, since a fresh network is so
close to constant that nothing could be seen in its output. Such a network also amplifies rounding,
so each line has three relative differences: rewritten against original in float64, the same in
float32, and, to compare, the original's own rounding (float32 against float64). Exits 1 where the
first is above 1e-9, or the second above 1e-4 and above twice the third. `--as-built` leaves the
statistics alone, `--onnx` also exports the classifiers.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models import get_model_builder

import factorize
from factorize import methods

MODELS = (
    "resnet18", "vgg16_bn", "mobilenet_v3_small", "densenet121", "googlenet",
    "deeplabv3_resnet50", "fasterrcnn_resnet50_fpn",
)  # fmt: skip
ENOUGH = 64  # values per channel for batch-norm statistics


def main() -> None:
    """Read the arguments, go through models and methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=methods.names())
    parser.add_argument("--size", type=int, default=64, help="side of the input image")
    parser.add_argument(
        "--as-built", action="store_true", help="leave the batch-norm statistics at 0 and 1"
    )
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args()

    failed = 0
    for name in options.models:
        model, x = build(name, options.size, options.as_built)
        double, x64 = copy.deepcopy(model).double(), tree_map(Tensor.double, x)
        expected, exact = outputs(model, x), outputs(double, x64)
        rounding = difference(exact, expected)
        for method in options.methods:
            start = time.perf_counter()
            plan = factorize.make_plan(
                double, x64, method=method, rank=1.0, include=["*"], allow_costlier=True
            )
            made = factorize.rewrite(double, plan)
            in_float64 = difference(exact, outputs(made, x64))
            made = made.float()
            in_float32 = difference(expected, outputs(made, x))
            bad = in_float64 > 1e-9 or in_float32 > max(1e-4, 2 * rounding)
            failed += bad
            line = (
                f"{name:24} {method:20} {len(plan.factorized):3}/{len(plan.layers):3} layers  "
                f"float64 {in_float64:.1e}  float32 {in_float32:.1e}  rounding {rounding:.1e}  "
                f"{time.perf_counter() - start:6.1f} s"
            )
            if options.onnx and isinstance(x, Tensor) and len(expected) == 1:
                chains = {one.spec.name: len(methods.chain_of(one)) for one in plan.factorized}
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "model.onnx")
                    check = factorize.export_onnx(made, x, path, chains=chains)
                line += f"  ONNX {check.max_rel:.1e}"
            print(line + ("  FAILED" if bad else ""), flush=True)
    print(f"{failed} failed, torch {torch.__version__}")
    sys.exit(failed > 0)


def build(name: str, size: int, as_built: bool) -> tuple[nn.Module, Any]:
    """A seeded model in eval mode, its batch norms fed unless left as built, and its input."""
    torch.manual_seed(0)
    builder = get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = builder(**options)
    images = torch.randn(4, 3, size, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(_learn_from_many)
    with torch.no_grad():
        if not as_built:
            getattr(model, "backbone" if "rcnn" in name else "forward")(images)
    return model.eval(), [torch.rand(3, size, size)] if "rcnn" in name else images[:2]


def _learn_from_many(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Take the batch's statistics; those of a handful of pooled values would blow rounding up."""
    module.momentum = float(inputs[0].numel() / inputs[0].shape[1] >= ENOUGH)


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """All floating outputs, as float64."""
    with torch.no_grad():
        found = tree_leaves(model(x))
    return [t.double() for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest ``||a - b|| / ||a||`` over the outputs; infinite where shapes differ."""
    if [a.shape for a in expected] != [b.shape for b in actual]:
        return float("inf")
    pairs = zip(expected, actual, strict=True)
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


if __name__ == "__main__":
    main()

"""Rewrite torchvision models at full rank by every method and compare their outputs.

    python scripts/check_full_rank.py [--models resnet18 vgg16_bn ...] [--methods cp ...]

Weights are random; batch-norm statistics are set from random images, since a fresh network is so
close to constant that nothing could be seen in its output. Prints a line per model and method and
exits 1 where a relative difference is above 1e-4. `--onnx` also exports the classifiers.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import get_model_builder

import factorize
from factorize import methods

MODELS = (
    "resnet18", "vgg16_bn", "mobilenet_v3_small", "densenet121", "googlenet",
    "deeplabv3_resnet50", "fasterrcnn_resnet50_fpn",
)  # fmt: skip
TOLERANCE = 1e-4
ENOUGH = 64  # values per channel for batch-norm statistics


def main() -> None:
    """Read the arguments, go through models and methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=methods.names())
    parser.add_argument("--size", type=int, default=64, help="side of the input image")
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args()

    worst = 0.0
    for name in options.models:
        model, x = build(name, options.size)
        expected = outputs(model, x)
        for method in options.methods:
            start = time.perf_counter()
            plan = factorize.plan(
                model, x, method=method, rank=1.0, include=["*"], allow_costlier=True
            )
            made = factorize.rewrite(model, plan)
            error = max(
                float((a - b).norm() / a.norm())
                for a, b in zip(expected, outputs(made, x), strict=True)
            )
            worst = max(worst, error)
            line = (
                f"{name:24} {method:20} {len(plan.factorized):3}/{len(plan.layers):3} layers  "
                f"relative difference {error:.1e}  {time.perf_counter() - start:6.1f} s"
            )
            if options.onnx and isinstance(x, Tensor) and len(expected) == 1:
                chains = {one.spec.name: len(methods.chain_of(one)) for one in plan.factorized}
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "model.onnx")
                    check = factorize.export_onnx(made, x, path, chains=chains)
                line += f"  ONNX {check.max_rel:.1e}"
            print(line, flush=True)
            del made
    print(f"worst {worst:.1e}, allowed {TOLERANCE:.0e}, torch {torch.__version__}")
    sys.exit(worst > TOLERANCE)


def build(name: str, size: int) -> tuple[nn.Module, Any]:
    """A seeded model in eval mode whose batch norms have seen images, and its input."""
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
        getattr(model, "backbone" if "rcnn" in name else "forward")(images)
    return model.eval(), [torch.rand(3, size, size)] if "rcnn" in name else images[:2]


def _learn_from_many(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Take the batch's statistics; those of a handful of pooled values would blow rounding up."""
    module.momentum = float(inputs[0].numel() / inputs[0].shape[1] >= ENOUGH)


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """All floating outputs in float64."""
    with torch.no_grad():
        found = tree_leaves(model(x))
    return [t.double() for t in found if isinstance(t, Tensor) and t.is_floating_point()]


if __name__ == "__main__":
    main()

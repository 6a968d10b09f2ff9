"""How the files of a run are loaded: a snippet for each that was delivered, to copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factorize.report.record import Report

_HUB = ("timm:", "hf:")


@dataclass(frozen=True)
class Snippet:
    """Python that runs in the folder of the files."""

    file: str
    what: str
    code: str


def snippets(report: Report) -> tuple[Snippet, ...]:
    """One for each file that holds the net, the most used first."""
    there = {kind for kind, pair in report.bytes.items() if "compressed" in pair}
    # An ONNX file's result is one; its twin's weights are of no use without the file.
    of_onnx = "pt2" not in there and not any("model.pt2" in one for one in report.failures)
    found = []
    if "onnx" in there:
        found.append(Snippet("model.onnx", "ONNX Runtime; nothing of this library is needed.",
                             _onnx(report)))  # fmt: skip
    if "pt2" in there:
        found.append(Snippet("model.pt2", "PyTorch, without this library or the model's own class.",
                             _program(report)))  # fmt: skip
    if "safetensors" in there and not of_onnx:
        what = "PyTorch, as a module to train or change further."
        found.append(Snippet("model.safetensors and plan.json", what, _module(report)))
    return tuple(found)


def _shape(report: Report) -> tuple[int, ...] | None:
    """Of one image as a batch, where it is known."""
    shape = (report.settings.get("input") or {}).get("shape")
    return (1, *shape) if isinstance(shape, list | tuple) else None


def _onnx(report: Report) -> str:
    known = _shape(report)
    own = "n if isinstance(n, int) else"
    sizes = (
        f"[{own} free for n, free in zip(one.shape, {known})]" if known else
        f"[{own} 64 for n in one.shape]"
    )  # fmt: skip
    return f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
inputs = {{}}
for one in session.get_inputs():
    shape = {sizes}
    inputs[one.name] = np.zeros(shape, np.float32)  # zeros stand for your images
outputs = session.run(None, inputs)
"""


def _tensor(report: Report) -> str:
    dtype = (report.settings.get("input") or {}).get("dtype", "float32")
    shape = ", ".join(map(str, _shape(report) or (1, 3, 224, 224)))
    extra = "" if dtype == "float32" else f", dtype=torch.{dtype}"
    return f"torch.zeros({shape}{extra})"


def _program(report: Report) -> str:
    return f"""\
import torch

net = torch.export.load("model.pt2").module()
with torch.no_grad():
    output = net({_tensor(report)})  # zeros stand for your images
"""


def _function(model: str) -> tuple[str, str] | None:
    """Module and name of a function that the run built the net with."""
    place, _, name = model.rpartition(":")
    module = Path(place).stem if place.endswith(".py") else place
    names = [*module.split("."), name]
    return (module, name) if module and all(map(str.isidentifier, names)) else None


def _module(report: Report) -> str:
    if report.model == "digits":
        original = "from factorize.models.digits import load_digits_model as build\n"
    elif report.model.startswith("torchvision:") and "(" not in report.model:
        name = report.model.removeprefix("torchvision:")
        original = f"from torchvision.models import {name} as build\n"
    elif report.model.startswith(_HUB):
        original = ""
    elif function := _function(report.model):
        module, name = function
        known = name if name == "build" else f"{name} as build"
        original = f"from {module} import {known}  # as the run did; to be found from here\n"
    else:
        original = "from my_net import build  # the function or class that makes the original\n"
    given = '".", build()' if original else '"."'
    return f"""\
import factorize
import torch
{original}
net = factorize.load({given}).eval()
with torch.no_grad():
    output = net({_tensor(report)})  # zeros stand for your images
"""

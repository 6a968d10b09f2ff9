"""What `forking` forks from: a process's imports and its first export take seconds."""

from importlib import import_module

import torch
from torch import nn

from factorize.export.program import quiet

# What a run imports only when it needs it.
for _name in (
    "PIL.Image", "accelerate", "factorize.cli.command", "jinja2", "markupsafe", "matplotlib",
    "onnx", "onnxruntime", "onnxscript", "torch.onnx", "torchvision",
):  # fmt: skip
    import_module(_name)

with quiet():
    _program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, 3, 8, 8),))
    torch.onnx.export(_program, dynamo=True, optimize=True, verbose=False)

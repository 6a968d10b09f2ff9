"""What `interrupting` forks from: a process's first export takes seconds, so it is done here."""

import interrupting  # noqa: F401
import torch
from torch import nn

from factorize.export.program import quiet

with quiet():
    _program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, 3, 8, 8),))
    torch.onnx.export(_program, dynamo=True, optimize=True, verbose=False)

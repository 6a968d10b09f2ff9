"""Exported programs for the tests."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from factorize.export.program_back import export_program_back
from factorize.export.traces import quiet
from factorize.models.door import LoadedModel
from factorize.models.load_model import load_model
from factorize.run.make_plan import make_plan
from factorize.run.steps import rewrite


class UNet(nn.Module):
    """Half the height and width, and back; every kind of call that 2-D nets have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, (3, 5), (2, 2), (1, 2), bias=False)
        self.inner = nn.Conv2d(16, 16, 3, padding=1, groups=2, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1)
        self.last = nn.Conv2d(16, 4, 3, padding="valid")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = self.up(self.inner(self.down(x)).relu())
        return self.last(torch.cat([x, y], 1))


def used(net: nn.Module, *inputs: Tensor) -> nn.Module:
    """The net in eval mode, its batch norms used to some inputs."""
    with torch.no_grad():
        net.train()(*inputs)
    return net.eval()


def unet() -> nn.Module:
    torch.manual_seed(0)
    return used(UNet(), torch.randn(4, 4, 16, 16))


def exported(net: nn.Module, inputs: Any, path: Path, sizes: Any = None, **named: Any) -> Path:
    """Write a program; ``sizes`` are torch's ``dynamic_shapes``."""
    with quiet():
        program = torch.export.export(net, inputs, named, dynamic_shapes=sizes, strict=False)
        torch.export.save(program, path)
    return path


def written(net: nn.Module, path: Path) -> Path:
    """Write a 2-D net with any batch, and even height and width."""
    batch, height, width = Dim("batch", max=64), Dim("height", max=64), Dim("width", max=64)
    sizes = ({0: batch, 2: 2 * height, 3: 2 * width},)
    return exported(net, (torch.randn(2, 4, 16, 12),), path, sizes)


def example_of(loaded: LoadedModel) -> Any:
    if loaded.example is not None:
        return loaded.example
    assert loaded.input_shape
    return torch.randn(1, *loaded.input_shape, generator=torch.Generator().manual_seed(0))


def in_and_out(path: Path, out: Path, **how: Any) -> Any:
    """A program with all its layers replaced, at full rank unless said; the twin with chains."""
    loaded = load_model(path)
    x = example_of(loaded)
    assert loaded.check
    loaded.check(x)
    how = how or {"rank": 1.0, "method": "spatial_svd"}
    plan = make_plan(loaded.model, x, allow_costlier=True, include=["*"], **how)
    small = rewrite(loaded.model, plan)
    export_program_back(small, plan, x, out)  # type: ignore[arg-type]
    return small, plan


def edited(path: Path, change: Callable[[dict[str, Any]], None], entry: str = "model.json") -> Path:
    """Change a JSON file of an archive."""
    return replaced(path, entry, lambda text: _changed(text, change))


def _changed(text: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    content = json.loads(text)
    change(content)
    return json.dumps(content).encode()


def replaced(path: Path, entry: str, content: Callable[[bytes], bytes]) -> Path:
    """Change the entry that ends so, in place."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, content(value) if name.endswith(entry) else value)
    return path

"""Half precision is converted to float32, and that is said."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from loading import saved, tiny
from torch import nn

from factorize.models.load_model import load_model

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(\n"
        "    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))\n"
    )
    return f"{tmp_path}/arch.py:net"


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in model.state_dict().values() if t.is_floating_point()}


@pytest.mark.parametrize("name", list(HALF))
@pytest.mark.parametrize("form", ["state dict", "module", "safetensors"])
def test_is_converted(name: str, form: str, arch: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    half = copy.deepcopy(tiny()).to(HALF[name])
    path = tmp_path / "model.pt"
    if form == "safetensors":
        save_file(half.state_dict(), path)
    else:
        saved(half if form == "module" else half.state_dict(), tmp_path)
    loaded = load_model(path, arch=None if form == "module" else arch)
    assert dtypes(loaded.model) == {torch.float32}
    assert f"saved in {name}: converted to float32" in loaded.notes
    for got, expected in zip(loaded.model.parameters(), half.parameters(), strict=True):
        assert torch.equal(got, expected.float())
    assert loaded.model(torch.rand(1, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("form", ["state dict", "module"])
def test_is_converted_where_types_are_mixed(form: str, arch: str, tmp_path: Path) -> None:
    """As mixed precision saves it: batch norms in float32."""
    mixed = copy.deepcopy(tiny())
    mixed[0].half()
    mixed[3].bfloat16()
    whole = form == "module"
    path = saved(mixed if whole else mixed.state_dict(), tmp_path)
    loaded = load_model(path, arch=None if whole else arch)
    assert dtypes(loaded.model) == {torch.float32}
    assert "saved in bfloat16 and float16 and float32: converted to float32" in loaded.notes


def test_other_types_are_kept(arch: str, tmp_path: Path) -> None:
    double = copy.deepcopy(tiny()).double()
    loaded = load_model(saved(double.state_dict(), tmp_path), arch=arch)
    assert dtypes(loaded.model) == {torch.float64}
    assert loaded.notes == ("saved in float64",)
    assert dtypes(load_model(saved(double, tmp_path)).model) == {torch.float64}
    double[3].float()
    loaded = load_model(saved(double.state_dict(), tmp_path), arch=arch)
    assert loaded.notes == ("saved in float32 and float64: loaded as float64",)
    assert dtypes(load_model(saved(double, tmp_path)).model) == {torch.float32, torch.float64}

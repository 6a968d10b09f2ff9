"""Exported programs on the command line: what goes with them, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from program_files import exported, unet
from torch import Tensor, nn

WISH = "--method", "spatial_svd", "--rank", "2", "--dry-run"


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, pair: list[Tensor], scale: float, *, y: Tensor) -> dict[str, Any]:
        return {"z": self.conv(pair[0]) * scale, "y": (y, pair[1])}


@pytest.mark.parametrize("samples", [1, 4])
def test_an_input_is_of_the_programs_size(samples: int, tmp_path: Any, command: Any) -> None:
    exported(unet(), (torch.randn(samples, 4, 16, 12),), tmp_path / "net.pt2")
    ran = command("net.pt2", *WISH)
    assert ran.code == 0
    assert ("its batch of 4 is fixed" in ran.out) == (samples == 4)
    ran = command("net.pt2", *WISH, "--input-shape", "4,32,32")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert "with --input-shape" in ran.err if samples == 1 else "takes 4x4x16x12" in ran.err
    for wrong in (["--arch", "timm:resnet18"], ["--weights", "DEFAULT"], ["--key", "ema"]):
        ran = command("net.pt2", *WISH, *wrong)
        assert ran.code == 2
        assert f"{wrong[0]} goes with" in ran.err
    assert [one.name for one in tmp_path.iterdir()] == ["net.pt2"]


def test_nested_inputs_are_described(tmp_path: Any, command: Any) -> None:
    pair = [torch.randn(1, 16, 8, 8), torch.randn(1, 2)]
    exported(Nested(), (pair, 2.0), tmp_path / "net.pt2", y=torch.randn(1, 3))
    ran = command("net.pt2", *WISH)
    assert ran.code == 0
    assert "pair 16x8x8 and 2" in ran.out
    assert "y 3" in ran.out

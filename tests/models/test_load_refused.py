"""Files that are no model, or not one to start from: each is refused in one line."""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import refusal
from torch import nn
from torchvision import models

from factorize.errors import FactorizeError
from factorize.models.load_model import load_model


def write_state(path: Path, **changes: torch.Tensor) -> Path:
    state = dict(models.squeezenet1_1(num_classes=2).state_dict())
    torch.save(state | {key.replace("__", "."): value for key, value in changes.items()}, path)
    return path


class TestTensors:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite(self, value: float, tmp_path: Path) -> None:
        bias = torch.zeros(64)
        bias[3] = bias[7] = value
        path = write_state(tmp_path / "bad.pt", features__0__bias=bias)
        assert "features.0.bias has 2 of 64 values that are not finite" in refusal(path)

    def test_large_is_finite(self, tmp_path: Path) -> None:
        """The sum overflows, but no value does."""
        large = torch.full((64,), 3e38)
        path = write_state(tmp_path / "large.pt", features__0__bias=large)
        loaded = load_model(path, arch="torchvision:squeezenet1_1")
        assert torch.equal(loaded.model.state_dict()["features.0.bias"], large)

    @pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
    def test_quantized(self, tmp_path: Path) -> None:
        weight = torch.quantize_per_tensor(torch.zeros(64, 3, 3, 3), 0.1, 0, torch.qint8)
        path = write_state(tmp_path / "q.pt", features__0__weight=weight)
        assert "features.0.weight is quantized (torch.qint8)" in refusal(path)

    def test_integers_for_floats(self, tmp_path: Path) -> None:
        weight = torch.zeros(64, 3, 3, 3, dtype=torch.int8)
        path = write_state(tmp_path / "int8.pt", features__0__weight=weight)
        assert "features.0.weight is torch.int8, expected torch.float32" in refusal(path)

    def test_eight_bit_floats(self, tmp_path: Path) -> None:
        weight = torch.zeros(64, 3, 3, 3).to(torch.float8_e4m3fn)
        path = write_state(tmp_path / "f8.pt", features__0__weight=weight)
        assert "features.0.weight is torch.float8_e4m3fn" in refusal(path)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_sparse(self, tmp_path: Path) -> None:
        path = write_state(tmp_path / "s.pt", features__0__bias=torch.zeros(64).to_sparse())
        assert "features.0.bias is sparse" in refusal(path)

    def test_meta(self, tmp_path: Path) -> None:
        path = write_state(tmp_path / "m.pt", features__0__bias=torch.zeros(64, device="meta"))
        assert "features.0.bias has a shape but no values" in refusal(path)

    def test_few_bytes_that_claim_many(self, tmp_path: Path) -> None:
        huge = torch.zeros(1).expand(10**7, 10**7)
        path = write_state(tmp_path / "huge.pt", features__0__bias=huge)
        assert "features.0.bias repeats 1 stored values" in refusal(path)
        claim = {"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}
        header = str(claim).replace("'", '"').encode()
        path = tmp_path / "huge.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
        assert "truncated" in refusal(path)


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
            (b"\x89PNG\r\n\x1a\n", "a PNG image"),
            (b"\xff\xd8\xff\xe0", "a JPEG image"),
            (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX file"),
            (b"hello, this is no model\n", "is not a model file"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"\x89HDF\r\n\x1a\n", "Keras"),
            (b"\0" * 257 + b"ustar", "tar archive"),
            (b"PK\x03\x04 and no more", "truncated or damaged"),
            (b"\x80", "truncated, damaged"),
            (b"\x80\x02}q\x00.", "truncated, damaged"),
            (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.", "truncated, damaged"),
            (struct.pack("<Q", 500) + b'{"a":', "truncated"),
            (struct.pack("<Q", 2) + b"{]" + b"\0" * 8, "truncated, damaged"),
        ],
    )
    def test_not_a_checkpoint(self, content: bytes, says: str, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert says in refusal(path)
        assert list(tmp_path.iterdir()) == [path]

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        assert "there is none. Check the path" in refusal(tmp_path / "none.pt")
        assert "is a folder" in refusal(tmp_path)

    @pytest.mark.parametrize("format_", ["zip", "legacy", "safetensors"])
    def test_truncated_anywhere(self, format_: str, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        state = {"weight": torch.rand(64), "bias": torch.rand(8)}
        path = tmp_path / "model.pt"
        if format_ == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=format_ == "zip")
        whole = path.read_bytes()
        for length in {1, 9, 60, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
            path.write_bytes(whole[:length])
            assert refusal(path)

    def test_damaged_anywhere(self, tmp_path: Path) -> None:
        """Whatever the bytes, the answer is a model or an error of ours."""
        path = tmp_path / "model.pt"
        torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), path)
        whole = path.read_bytes()
        start = whole.index(b"data.pkl")
        for position in range(start, start + 1500, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 0xFF
            path.write_bytes(damaged)
            with contextlib.suppress(FactorizeError):
                load_model(path)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_torchscript(self, tmp_path: Path) -> None:
        path = tmp_path / "script.pt"
        model = models.squeezenet1_1(num_classes=2).eval()
        torch.jit.trace(model, torch.rand(1, 3, 64, 64)).save(path)
        message = refusal(path)
        assert "TorchScript" in message
        assert "by torch.export (.pt2) or to ONNX" in message
        # The advice given must work.
        torch.save(torch.jit.load(path).state_dict(), tmp_path / "weights.pt")
        assert load_model(tmp_path / "weights.pt").arch == "torchvision:squeezenet1_1"

    def test_other_archives(self, tmp_path: Path) -> None:
        import numpy as np

        np.savez(tmp_path / "images.npz", images=np.zeros(3))
        assert "without a PyTorch checkpoint (it holds images.npy)" in refusal(
            tmp_path / "images.npz"
        )

    def test_onnx_by_its_name(self, tmp_path: Path) -> None:
        import onnx

        graph = onnx.helper.make_graph([], "empty", [], [])
        onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model"))
        assert "an ONNX file" in refusal(tmp_path / "model")


class TestContents:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (torch.zeros(3), "holds a Tensor, not a model"),
            ([1, 2], "holds a list"),
            ({}, "its keys are (none)"),
            ({"epoch": 3, "loss": 0.5}, "its keys are epoch, loss"),
            ({"layers": {"a": torch.zeros(1)}, "best": torch.zeros(1)}, "its keys are layers"),
            ({"state_dict": {}}, "no state dict in it"),
            (OrderedDict(optimizer={"state": {}, "param_groups": []}), "optimizer"),
        ],
    )
    def test_no_model_in_it(self, content: Any, says: str, tmp_path: Path) -> None:
        path = tmp_path / "content.pt"
        torch.save(content, path)
        assert says in refusal(path)

    def test_optimizer_only(self, tmp_path: Path) -> None:
        layer = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.rand(1, 2)).sum().backward()
        optimizer.step()
        path = tmp_path / "optimizer.pt"
        torch.save(optimizer.state_dict(), path)
        assert "optimizer's state without a model" in refusal(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    torch.save({"a": torch.zeros(3)}, tmp_path / "small.pt")
    with (
        zipfile.ZipFile(tmp_path / "small.pt") as small,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in small.namelist():
            bomb.writestr(entry, small.read(entry))
        with bomb.open("small/data/1", "w") as file:
            for _ in range(1 << 7):
                file.write(bytes(1 << 20))
    assert "may unpack to 50 times its size, got 134," in refusal(tmp_path / "bomb.pt")

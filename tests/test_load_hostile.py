"""Files that must not load: nothing they hold runs, and each is refused in one line."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from factorize.errors import FactorizeError, ModelLoadError
from factorize.io.models import load_model
from factorize.io.pickles import load_pickled

PROTO, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def zipped(program: bytes, path: Path) -> Path:
    """Write a torch.save archive with this pickle in it."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, program if entry.endswith("data.pkl") else content)
    return path


def legacy(program: bytes, path: Path) -> Path:
    """Write the format before PyTorch 1.6: pickles in a row, the fourth is the object."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, protocol=2)
    head, found, tail = buffer.getvalue().partition(empty + pickle.dumps([], protocol=2))
    assert found
    path.write_bytes(head + program + pickle.dumps([], protocol=2) + tail)
    return path


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(str(path))
    return message


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


class TestPickles:
    """A crafted pickle runs nothing, in either format, at the top or inside of a state dict."""

    def programs(self, marker: Path, other: Path) -> dict[str, bytes]:
        shell = text(f"touch {marker}")
        touch = text(f"__import__('pathlib').Path({str(marker)!r}).touch()")
        conv = name("torch.nn.modules.conv", "Conv2d")
        partial = name("functools", "partial")
        new_conv = conv + b")\x81"
        return {
            "os.system": call(name("os", "system"), shell),
            "posix.system": call(name("posix", "system"), shell),
            "eval": call(name("builtins", "eval"), touch),
            "eval of Python 2": call(name("__builtin__", "eval"), touch),
            "exec": call(name("builtins", "exec"), touch),
            "getattr": call(name("builtins", "getattr"), name("os", "x"), text("system")),
            "subprocess": call(name("subprocess", "Popen"), shell),
            "pathlib": call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), shell)),
            "INST": b"(" + shell + b"ios\nsystem\n",
            "OBJ": b"(" + name("os", "system") + shell + b"o",
            "NEWOBJ": name("os", "system") + b"(" + shell + b"t\x81",
            "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(" + shell + b"tR",
            "torch.load": call(name("torch.serialization", "load"), text(str(other))),
            "torch.hub": call(name("torch.hub", "load"), text(str(other))),
            "partial of os.system": call(
                call(partial, name("os", "system"), shell), b""
            ),
            "partial called": call(call(partial, conv), b"K\x01", b"K\x01", b"K\x01"),
            "partial of partial": call(partial, call(partial, name("os", "system")), shell),
            "constructor": call(conv, b"K\x01", b"K\x01", b"K\x01"),
            "constructor by NEWOBJ": conv + b"(K\x01t\x81",
            "listed function": call(name("torchvision.ops.boxes", "box_iou"), b"N", b"N"),
            "script": call(name("torch.jit", "load"), text(str(other))),
            "fx": call(name("torch.fx.graph_module", "reduce_graph_module"), b"}", text("1")),
            "fx class": name("torchvision.models.feature_extraction", "DualGraphModule") + b")\x81",
            "attribute of a module": new_conv + b"}" + text("x")
            + call(name("os", "system"), shell) + b"sb",
            "method shadowed": new_conv + b"}" + text("eval") + conv + b"sb",
            "forward shadowed": new_conv + b"}" + text("forward") + conv + b"sb",
            "state that is no dict": new_conv + b"K\x01b",
            "class overwritten": call(
                name("torch._tensor", "_rebuild_from_type_v2"),
                name("torch.nn.modules.linear", "Identity") + b")\x81}b",
                conv, b"(" + conv + b"t", b"}" + text("forward") + conv + b"s",
            ),
            "module without state": new_conv,
            "module in itself": new_conv + b"q\x01}" + text("_modules") + b"}" + text("a")
            + b"h\x01ss" + b"b",
        }  # fmt: skip

    @pytest.mark.parametrize("write", [zipped, legacy])
    @pytest.mark.parametrize("place", ["top", "state dict", "key"])
    def test_nothing_runs(self, write: Any, place: str, marker: Path, tmp_path: Path) -> None:
        other = zipped(PROTO + call(name("os", "system"), text(f"touch {marker}")) + STOP,
                       tmp_path / "other.pt")  # fmt: skip
        forward = nn.Conv2d.forward
        for what, body in self.programs(marker, other).items():
            if place == "state dict":
                body = b"}" + text("state_dict") + b"}" + text("conv.weight") + body + b"ss"
            elif place == "key":
                body = b"}" + text("epoch") + body + b"s"
            path = write(PROTO + body + STOP, tmp_path / f"{what}.pt")
            assert refusal(path), what
            assert not marker.exists(), what
            assert nn.Conv2d.forward is forward, what

    def test_the_programs_are_live(self, marker: Path, tmp_path: Path) -> None:
        """Otherwise the test above would prove nothing: Python's own pickle does run them."""
        for what in ("os.system", "eval", "INST", "OBJ", "STACK_GLOBAL"):
            pickle.loads(PROTO + self.programs(marker, tmp_path)[what] + STOP)
            assert marker.exists(), what
            marker.unlink()

    def test_trusting_runs_it(self, marker: Path, tmp_path: Path) -> None:
        program = self.programs(marker, tmp_path)["os.system"]
        path = zipped(PROTO + program + STOP, tmp_path / "trusted.pt")
        assert "holds a int, not a model" in refusal(path, trust_pickle=True)
        assert marker.exists()

    def test_modules_are_built_without_their_constructor(self, tmp_path: Path, monkeypatch) -> None:
        torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), tmp_path / "model.pt")

        def called(*_: object, **__: object) -> None:
            raise AssertionError("a constructor was called")

        monkeypatch.setattr(nn.Conv2d, "__init__", called)
        monkeypatch.setattr(nn.Sequential, "__init__", called)
        model = load_pickled(tmp_path / "model.pt", trust=False)
        assert type(model[0]) is nn.Conv2d


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)


class TestModules:
    def test_another_class_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.pt"
        torch.save({"model": Foreign()}, path)
        message = refusal(path)
        assert f"asks for {__name__}.Foreign" in message
        assert "--trust-pickle" in message
        loaded = load_model(path, trust_pickle=True)
        assert loaded.arch == "pickled module Foreign"
        assert not loaded.model.training

    def test_whole_module_of_the_old_format(self, tmp_path: Path) -> None:
        path = tmp_path / "old.pt"
        torch.save(nn.Conv2d(1, 1, 1), path, _use_new_zipfile_serialization=False)
        assert "before PyTorch 1.6" in refusal(path)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_quantized_module(self, tmp_path: Path) -> None:
        layer = torch.ao.nn.quantized.ReLU6()
        path = tmp_path / "quantized.pt"
        torch.save(nn.Sequential(nn.Conv2d(1, 1, 1), layer), path)
        assert "quantized" in refusal(path)
        assert "1 is a quantized ReLU6" in refusal(path, trust_pickle=True)

    def test_compiled_module(self, tmp_path: Path) -> None:
        path = tmp_path / "compiled.pt"
        torch.save(torch.compile(nn.Conv2d(1, 1, 1), backend="eager"), path)
        assert "torch.compile" in refusal(path)

    def test_weights_of_a_module_are_checked(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 1))
        model[0].weight.data[0] = float("nan")
        torch.save(model, tmp_path / "nan.pt")
        assert "0.weight has 1 of 2 values that are not finite" in refusal(tmp_path / "nan.pt")


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
        assert "no such file" in refusal(tmp_path / "none.pt")
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
        # The advice given must work.
        torch.save(torch.jit.load(path).state_dict(), tmp_path / "weights.pt")
        assert load_model(tmp_path / "weights.pt").arch == "torchvision:squeezenet1_1"

    def test_exported_program(self, tmp_path: Path) -> None:
        path = tmp_path / "program.pt2"
        model = models.squeezenet1_1(num_classes=2).eval()
        torch.export.save(torch.export.export(model, (torch.rand(1, 3, 64, 64),)), path)
        assert "torch.export archive" in refusal(path)
        torch.save(torch.export.load(path).state_dict, tmp_path / "weights.pt")
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
            ({"weights": {"a": torch.zeros(1)}, "best": torch.zeros(1)}, "its keys are weights"),
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

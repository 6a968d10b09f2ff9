"""Archives, damaged files, tensors, state dicts and modules that are no model to start from."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted import PROTO, STOP, call, name, text, zipped
from refusing import RUN, Arguments, Case, Corpus, check_refused, save_net, small_net
from torch import nn

CORPUS = Corpus()
ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def repacked(folder: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Arguments:
    """Save a net, and write each entry of its archive anew, compressed."""
    with zipfile.ZipFile(folder / save_net(folder)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(folder / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries.items():
            archive.writestr(*change(entry, content))
    return ("net.pt", *RUN)


@CORPUS.case("net.pt: a zip archive may unpack to 50 times")
def zip_bomb_in_the_pickle(folder: Path) -> Arguments:
    bomb = PROTO + b"]" + b"N" * (1 << 27) + STOP
    return repacked(folder, lambda e, c: (e, bomb if e.endswith("data.pkl") else c))


@CORPUS.case("net.pt: a zip archive may unpack to 50 times")
def zip_bomb_in_a_tensor(folder: Path) -> Arguments:
    return repacked(folder, lambda e, c: (e, bytes(1 << 27) if e.endswith("data/0") else c))


@CORPUS.case("net.pt: a zip archive may unpack to 50 times")
def entries_that_share_their_bytes(folder: Path) -> Arguments:
    content = bytes(range(256)) * 4096
    with zipfile.ZipFile(folder / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", content)
        entry = archive.infolist()[0]
        archive.filelist += [entry] * 4000
    return ("net.pt", *RUN)


@CORPUS.case("net.pt: is a zip archive without a PyTorch checkpoint")
def archive_with_paths_that_climb(folder: Path) -> Arguments:
    return repacked(folder, lambda e, c: (f"../../../it-ran/{e.partition('/')[2]}", c))


@CORPUS.case("net.pt: is a zip archive without a PyTorch checkpoint")
def archive_with_escape_codes_in_names(folder: Path) -> Arguments:
    with zipfile.ZipFile(folder / "net.pt", "w") as archive:
        archive.writestr(ESCAPES + "\n" + "a" * 5000, b"")
    return ("net.pt", *RUN)


def stored(numel: int, size: int, key: str = "0", offset: int = 0, stride: int = 1) -> bytes:
    """A tensor of a storage, each said to be of these sizes."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    kind = name("torch", "FloatStorage")
    storage = b"(" + text("storage") + kind + text(key) + text("cpu") + number(numel) + b"tQ"
    return call(
        name("torch._utils", "_rebuild_tensor_v2"), storage, number(offset),
        number(size) + b"\x85", number(stride) + b"\x85", b"\x89",
        call(name("collections", "OrderedDict")),
    )  # fmt: skip


for _what, _tensor in {
    "storage of 4 TB": stored(10**12, 10**12),
    "storage larger than its bytes": stored(10**4, 10**4),
    "storage of negative size": stored(-16, 4),
    "storage of a path": stored(16, 16, key="../../../../../../etc/passwd"),
    "view beyond its storage": stored(16, 10**4),
    "view before its storage": stored(16, 4, offset=-100),
    "view of negative size": stored(16, -4),
    "view of negative stride": stored(16, 4, stride=-1),
}.items():

    def _crafted(folder: Path, tensor: bytes = _tensor) -> Arguments:
        path = zipped(PROTO + b"}" + text("0.weight") + tensor + b"s" + STOP, folder / "net.pt")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/data/0", bytes(64))
        return ("net.pt", *RUN)

    CORPUS.add(_what, _crafted, "error: net.pt: cannot be loaded")


for _what, _header, _says in [
    ("header of a terabyte", {"a": ("F32", [10**12], 4 * 10**12)}, "truncated"),
    ("header with a shape unlike its bytes", {"a": ("F32", [5], 16)}, "cannot be loaded"),
    ("header whose sizes overflow", {"a": ("F32", [2**63, 2**63], 16)}, "cannot be loaded"),
    ("header with an unknown type", {"a": ("Q9", [4], 16)}, "cannot be loaded"),
    ("header with a negative size", {"a": ("F32", [-4], 16)}, "cannot be loaded"),
    ("header with escape codes", {ESCAPES: ("F32", [4], 16)}, "must be printable"),
    ("header with a name without end", {"n" * 10**6: ("F32", [4], 16)}, "up to 200 characters"),
    ("header of nested lists", b'{"a":' + b"[" * 100_000, "cannot be loaded"),
]:

    def _safetensors(folder: Path, header: Any = _header) -> Arguments:
        if isinstance(header, dict):
            keys = ("dtype", "shape", "data_offsets")
            entries = {
                k: dict(zip(keys, (d, s, [0, n]), strict=True)) for k, (d, s, n) in header.items()
            }
            header = json.dumps(entries).encode()
        content = struct.pack("<Q", len(header)) + header + bytes(16)
        (folder / "net.safetensors").write_bytes(content)
        return ("net.safetensors", *RUN)

    CORPUS.add(f"safetensors {_what}", _safetensors, "error: net.safetensors: ", _says)


for _share in (0.02, 0.5, 0.98):

    def _truncated(folder: Path, share: float = _share) -> Arguments:
        path = folder / save_net(folder)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return ("net.pt", *RUN)

    CORPUS.add(f"truncated to {_share:.0%}", _truncated, "net.pt: the file is truncated")

for _place in (b"data.pkl", b"ctorch.nn", b"PK\x01\x02", b"PK\x05\x06"):

    def _flipped(folder: Path, place: bytes = _place) -> Arguments:
        path = folder / save_net(folder)
        content = bytearray(path.read_bytes())
        content[content.index(place) + 1] ^= 0x80
        path.write_bytes(content)
        return ("net.pt", *RUN)

    CORPUS.add(f"bit flipped in {_place!r}", _flipped, "error: net.pt: ")

for _what, _change, _says in [
    ("NaN", {"2.bias": torch.full((8,), torch.nan)}, "2.bias has 8 of 8 values that are not"),
    ("Inf", {"0.bias": torch.full((8,), torch.inf)}, "0.bias has 8 of 8 values that are not"),
    ("integers", {"2.bias": torch.zeros(8, dtype=torch.int32)}, "2.bias is torch.int32"),
    ("complex", {"2.bias": torch.zeros(8, dtype=torch.complex64)}, "2.bias is torch.complex64"),
    ("booleans", {"2.bias": torch.zeros(8, dtype=torch.bool)}, "2.bias is torch.bool"),
    ("meta", {"2.bias": torch.zeros(8, device="meta")}, "2.bias has a shape but no values"),
    ("one value as 10**15", {"2.bias": torch.zeros(1).expand(10**15)}, "2.bias repeats 1 stored"),
    ("no values", {"0.weight": torch.zeros(0, 3, 3, 3)}, "0.weight is (0, 3, 3, 3), expected"),
    ("transposed", {"0.weight": torch.zeros(3, 8, 3, 3)}, "0.weight is (3, 8, 3, 3), expected"),
    ("extra key", {"9.weight": torch.zeros(1)}, "unexpected 9.weight"),
    ("5000 extra keys", {f"x{i}": torch.zeros(1) for i in range(5000)}, "and 4997 more"),
    ("missing key", {"2.bias": None}, "missing 2.bias"),
    ("escape codes in a key", {ESCAPES: torch.zeros(1)}, "a name must be printable"),
    ("lines in a key", {"a\n\nb": torch.zeros(1)}, "a name must be printable"),
    ("a key without end", {"a" * 10**5: torch.zeros(1)}, "up to 200 characters"),
]:

    def _state(folder: Path, change: dict[str, Any] = _change) -> Arguments:
        state = small_net().state_dict() | change
        torch.save({k: v for k, v in state.items() if v is not None}, folder / "net.pt")
        (folder / "arch.py").write_text(
            "from torch.nn import Conv2d, ReLU, Sequential\n"
            "def net(): return Sequential(Conv2d(3, 8, 3, padding=1), ReLU(),\n"
            "                             Conv2d(8, 8, 3, padding=1))\n"
        )
        return ("net.pt", "--arch", "arch.py:net", *RUN)

    CORPUS.add(f"state dict with {_what}", _state, "error: net.pt: ", _says)


def cyclic() -> nn.Module:
    net = small_net()
    net._modules["1"] = net
    return net


def wrapper_of_itself() -> nn.Module:
    wrapper = nn.DataParallel(nn.Conv2d(3, 8, 3))
    wrapper._modules["module"] = wrapper
    return wrapper


def with_attribute(key: str, value: object) -> nn.Module:
    net = small_net()
    setattr(net[2], key, value)
    return net


def named(name: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    net.add_module(name, nn.Conv2d(8, 8, 3))
    return net


for _what, _make, _says in [
    ("in itself", cyclic, "net.pt: its pickled module does not work"),
    ("wrapping itself", wrapper_of_itself, "net.pt: its pickled module does not work"),
    ("of 10**9 channels", lambda: with_attribute("in_channels", 10**9), "2: its weight must be"),
    ("of a kernel of text", lambda: with_attribute("kernel_size", "ab"), "2: its weight must be"),
    ("of no groups", lambda: with_attribute("groups", 0), "2: groups must be 1 or more"),
    ("of stride 0", lambda: with_attribute("stride", (0, 0)), "the model must run on the example"),
    ("of huge padding", lambda: with_attribute("padding", (10**6,) * 2), "can't allocate memory"),
    ("of padding mode in escape codes", lambda: with_attribute("padding_mode", ESCAPES), "padding"),
    ("without weight", lambda: with_attribute("weight", None), "net.pt: its pickled module"),
    ("named in escape codes", lambda: named(ESCAPES), "a name must be printable"),
    ("named on two lines", lambda: named("a\nb"), "a name must be printable"),
    ("without convolution", lambda: nn.Sequential(nn.Linear(3, 3)), "at least one convolution"),
    ("without forward", lambda: nn.ModuleList([nn.Conv2d(3, 8, 3)]), 'the required "forward"'),
    (
        "that asks for 320 GB",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(10**5)),
        "can't allocate memory",
    ),
]:

    def _module(folder: Path, make: Callable[[], nn.Module] = _make) -> Arguments:
        torch.save(make(), folder / "net.pt")
        return ("net.pt", *RUN)

    CORPUS.add(f"module {_what}", _module, _says)


@CORPUS.case("net.pt: its pickled module does not work")
def module_in_itself_and_trusted(folder: Path) -> Arguments:
    torch.save(cyclic(), folder / "net.pt")
    return ("net.pt", "--trust-pickle", *RUN)


@CORPUS.case("net.pt: is a TorchScript archive")
def torchscript(folder: Path) -> Arguments:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.trace(small_net(), torch.rand(1, 3, 16, 16)).save(folder / "net.pt")
    return ("net.pt", *RUN)


@CORPUS.case("net.pt: is an ONNX file")
def onnx_graph(folder: Path) -> Arguments:
    import onnx

    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(folder / "net.pt"))
    return ("net.pt", *RUN)


for _what, _content in {
    "empty file": b"",
    "text": b"hello",
    "a line of 10 MB": b"a" * 10**7,
    "escape codes": ESCAPES.encode(),
    "an image": b"\x89PNG\r\n\x1a\n",
    "zeros": bytes(4096),
}.items():

    def _other(folder: Path, content: bytes = _content) -> Arguments:
        (folder / "net.pt").write_bytes(content)
        return ("net.pt", *RUN)

    CORPUS.add(f"no model: {_what}", _other, "error: net.pt: ")


@CORPUS.parametrize()
@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile: the same name twice
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)

"""Datasets that cannot be read, or not as what they say they are."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from refusing import MARKER, RUN, Arguments, Case, Corpus, check_refused, save_net

CORPUS = Corpus()
ESCAPES = "\x1b]0;owned\x07\x1b[2J"
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
FLOATS = (PIXELS / 255).astype(np.float32)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch ../{MARKER}",)


def save_images(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(PIXELS[number]).save(folder / f"{number}.png")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (header, *chunks, (b"IEND", b""))
    ]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def folder_case(name: str, *says: str) -> Callable[[Callable[[Path], object]], None]:
    """A case of ``--data data``, that the function fills."""

    def add(fill: Callable[[Path], object]) -> None:
        def build(folder: Path) -> Arguments:
            fill(folder / "data")
            return (save_net(folder), *RUN, "--data", "data")

        CORPUS.add(name, build, *says)

    return add


folder_case("no folder", "data: data must be a folder", "does not exist")(lambda data: None)
folder_case("empty folder", "data: must hold train/", "no image")(lambda data: data.mkdir())
folder_case("one image", "data: the training split needs at least 2 images")(
    lambda data: save_images(data, 1)
)
folder_case("link to itself", "data: data must be a folder")(lambda data: data.symlink_to("data"))
folder_case("folder named as an image", "no image")(
    lambda data: (data / "a.png").mkdir(parents=True)
)
folder_case("pipe", "data: data must be a folder")(lambda data: os.mkfifo(data))


@folder_case("files that are no images", "data: must hold train/", "no image")
def _(data: Path) -> None:
    data.mkdir()
    (data / "labels.csv").write_text("1,2")


@folder_case("train is a link to its parent", "data/train: needs images")
def _(data: Path) -> None:
    data.mkdir()
    (data / "train").symlink_to("../data")


@folder_case("300 links to the parent", "data/train: needs images")
def _(data: Path) -> None:
    for number in range(300):
        (data / "train" / str(number)).mkdir(parents=True)
        (data / "train" / str(number) / "up").symlink_to("..")


@folder_case("links to themselves beside a broken image", "data/train/a/0.png: not a readable")
def _(data: Path) -> None:
    save_images(data / "train" / "a")
    (data / "train" / "a" / "0.png").write_text("hello")
    (data / "train" / "a" / "loop").symlink_to(".")
    (data / "train" / "a" / "9.png").symlink_to("9.png")


@folder_case("a class in the test images alone", "data/test: must have the class folders")
def _(data: Path) -> None:
    save_images(data / "train" / "a")
    save_images(data / "test" / "b")


@folder_case("a class in escape codes", "data/test: must have the class folders")
def _(data: Path) -> None:
    save_images(data / "train" / "a")
    save_images(data / "test" / ESCAPES)


@folder_case("an image in escape codes", "not a readable image")
def _(data: Path) -> None:
    save_images(data)
    (data / f"0{ESCAPES}\n.png").write_text("hello")


@folder_case("a name that is not UTF-8", "not a readable image")
def _(data: Path) -> None:
    save_images(data)
    Path(os.fsdecode(os.fsencode(data) + b"/0\xff\x9b.png")).write_text("hello")


ZEROS = zlib.compress(bytes(10**6))
for _what, _content, _says in [
    ("text", b"hello", "data/4.png: not a readable image"),
    (
        "cut off",
        png(16, 16, (b"IDAT", zlib.compress(PIXELS.tobytes())[:200])),
        "data/4.png: not a readable image",
    ),
    ("of 10 Gpixel", png(100_000, 100_000, (b"IDAT", ZEROS)), "DecompressionBomb"),
    ("of 100 Mpixel", png(10_000, 10_000, (b"IDAT", ZEROS)), "DecompressionBomb"),
    (
        "with a text of 100 MB",
        png(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", ZEROS)),
        "data/4.png: not a readable image",
    ),
    ("of no pixels", png(0, 0, (b"IDAT", ZEROS)), "data/4.png: not a readable image"),
    (
        "a TIFF of 60000 tags",
        b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + b"\xff" * 1000,
        "data/4.png: not a readable image",
    ),
]:

    def _image(data: Path, content: bytes = _content) -> None:
        save_images(data)
        (data / "4.png").write_bytes(content)

    folder_case(f"image {_what}", _says)(_image)


def npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def changed(where: bytes, offset: int, value: int) -> bytes:
    """An honest .npz with one byte changed."""
    content = bytearray(zipped({"images.npy": npy(PIXELS.shape, PIXELS.tobytes())}))
    content[content.index(where) + offset] = value
    return bytes(content)


CENTRAL = b"PK\x01\x02"
for _what, _content, _says in [
    ("other keys", {"pixels": PIXELS}, "needs the key 'images'"),
    ("keys in escape codes", {ESCAPES: PIXELS}, "needs the key 'images'"),
    ("pickled images", {"images": np.array([Evil()] * 9, object)}, "got pickled objects"),
    ("pickled labels", {"images": PIXELS, "labels": np.array([Evil()] * 9)}, "pickled objects"),
    ("a pickle", pickle.dumps(Evil()), "got pickled objects"),
    ("labels below 0", {"images": PIXELS, "labels": np.arange(9) - 1}, "0 or more, got -1"),
    ("labels of 2**62", {"images": PIXELS, "labels": np.full(9, 2**62)}, "must be below"),
    ("labels that wrap", {"images": PIXELS, "labels": np.full(9, 2**64 - 1, np.uint64)}, "below"),
    ("float labels", {"images": PIXELS, "labels": np.zeros(9)}, "labels must be integers"),
    ("too few labels", {"images": PIXELS, "labels": np.zeros(3, int)}, "labels must be integers"),
    ("NaN", {"images": np.full_like(FLOATS, np.nan)}, "must be finite"),
    ("a few NaN", {"images": np.where(FLOATS > 0.99, np.nan, FLOATS)}, "must be finite"),
    ("Inf", {"images": np.full_like(FLOATS, np.inf)}, "must be finite"),
    ("values whose squares overflow", {"images": FLOATS * 3e38}, "must be finite"),
    ("complex images", {"images": FLOATS.astype(np.complex64)}, "uint8 or float, got complex64"),
    ("text for images", {"images": np.array(["a"] * 9)}, "uint8 or float, got <U1"),
    ("five axes", {"images": PIXELS[None]}, "images must be (N, H, W)"),
    ("no images", {"images": PIXELS[:0]}, "got (0, 16, 16, 3)"),
    ("images of no pixels", {"images": PIXELS[:, :0]}, "got (9, 0, 16, 3)"),
    ("a petabyte", zipped({"images.npy": npy((10**6, 10**6, 10**3))}), "not a readable .npz"),
    ("fewer than no images", zipped({"images.npy": npy((-5, 16, 16))}), "not a readable .npz"),
    (
        "a zip bomb",
        zipped({"images.npy": npy((1 << 15, 64, 64), bytes(1 << 27))}, zipfile.ZIP_DEFLATED),
        "a zip archive may unpack to 50 times",
    ),
    ("a bit flipped", changed(PIXELS[4].tobytes()[:64], 0, PIXELS[4, 0, 0, 0] ^ 1), "BadZipFile"),
    ("an unknown compression", changed(CENTRAL, 10, 99), "not a readable .npz"),
    ("a password", changed(CENTRAL, 8, 1), "not a readable .npz"),
    ("cut off", zipped({"images.npy": npy(PIXELS.shape)})[:100], "not a readable .npz"),
]:  # fmt: skip

    def _npz(folder: Path, content: Any = _content) -> Arguments:
        if isinstance(content, bytes):
            (folder / "d.npz").write_bytes(content)
        else:
            np.savez(folder / "d.npz", **content)
        return (save_net(folder), *RUN, "--data", "d.npz")

    place = () if _says == "must be finite" else ("d.npz: ",)
    CORPUS.add(f"npz with {_what}", _npz, *place, _says)

for _what, _code, _says in [
    ("raises", "def data(): raise OSError('a\\nb\\x1b[2J')", "the function failed: OSError: a"),
    ("leaves", "def data(): raise SystemExit(0)", "the function failed: SystemExit"),
    ("leaves on import", "raise SystemExit(0)", "cannot import d.py: SystemExit"),
    ("returns nothing", "def data(): pass", "must return (train, test)"),
    (
        "returns a loader that raises",
        "class Loader:\n    def __iter__(self): raise OSError('gone')\n"
        "def data(): return Loader(), None",
        "a loader failed: OSError: gone",
    ),
]:

    def _function(folder: Path, code: str = _code) -> Arguments:
        (folder / "d.py").write_text(code)
        return (save_net(folder), *RUN, "--data", "d.py:data")

    CORPUS.add(f"function that {_what}", _function, "d.py:data: ", _says)


@CORPUS.parametrize()
def test_refused(case: Case, tmp_path: Path) -> None:
    check_refused(case, tmp_path)

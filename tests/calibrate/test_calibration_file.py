"""Calibration files: what they hold, and those that are refused."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrating import IMAGES, generator, net, same, whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from factorize.calibrate import MomentSums, check, collect, load_calibration, save_calibration
from factorize.calibrate import moment_sums as moments_module
from factorize.errors import DataError, OutputError
from factorize.graph.spec_of import spec_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, specs = net()
    path = tmp_path / "layers.safetensors"
    save_calibration(collect(model, specs, IMAGES, source="some images"), path)
    return path


def test_a_file_holds_it_all_in_float32(tmp_path: Path, monkeypatch):
    model, specs = net()
    monkeypatch.setattr(moments_module, "LARGEST", 35)  # separates `twice` and `last`
    found = collect(model, specs, IMAGES, source="23 images")
    crossed = MomentSums(specs["first"], per_image=None, seed=0)
    crossed.add(IMAGES[0], whole(6, 4, 8, 8).float())
    found.layers["first"] = replace(found.layers["first"], held_out=crossed.finish())
    path = tmp_path / "a.safetensors"
    save_calibration(found, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    read = load_calibration(path)
    assert read.source == "23 images"
    assert read.specs == specs
    assert list(read.layers) == list(specs)
    for name, layer in found.layers.items():
        for part in ("fit", "held_out"):
            wanted, got = getattr(layer, part), getattr(read.layers[name], part)
            assert (wanted.count, wanted.images) == (got.count, got.images)
            assert len(wanted.second) == len(got.second)
            for key in ("second", "mean", "cross", "output_mean", "output_second"):
                ours, theirs = getattr(wanted, key), getattr(got, key)
                assert (ours is None) == (theirs is None)
                ours, theirs = ((x,) if isinstance(x, Tensor) else x or () for x in (ours, theirs))
                for x, y in zip(ours, theirs, strict=True):
                    assert y.dtype == torch.float64
                    assert torch.equal(x.float().double(), y)
    assert read.layers["first"].held_out.cross is not None
    save_calibration(read, path)
    again = load_calibration(path)
    assert all(same(again.layers[name].fit, read.layers[name].fit) for name in specs)


def test_float32_in_the_file_costs_nothing_that_counts(tmp_path: Path):
    """Strongly correlated inputs, a fit by regression: the rounding costs less than 1e-6 of it."""
    x = torch.randn(64, 4, 24, 24, generator=generator()).double()
    x = F.avg_pool2d(F.avg_pool2d(x, 5, 1), 5, 1)
    conv = nn.Conv2d(4, 6, 3).double()
    sums = MomentSums(spec_of(conv, "a"), per_image=None, seed=0)
    sums.add(x)
    second = sums.finish().second[0]
    rows, kept = whole(6, 36), torch.arange(0, 36, 2)

    def error(made_with: Tensor) -> float:
        gap = rows.clone()
        gram = made_with[kept][:, kept]
        gap[:, kept] -= torch.linalg.solve(gram, (rows @ made_with[:, kept]).T).T
        return float(((gap @ second) * gap).sum())

    assert torch.linalg.cond(second) > 1e3
    assert error(second.float().double()) / error(second) - 1 < 1e-6


def test_a_file_is_replaced_whole_or_not_at_all(saved: Path, tmp_path: Path, monkeypatch):
    calibration = load_calibration(saved)
    before = saved.read_bytes()

    def fails(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("factorize.calibrate.calibration_file.save_file", fails)
    with pytest.raises(OutputError, match=r"layers\.safetensors: .* cannot be written"):
        save_calibration(calibration, saved)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]
    with pytest.raises(OutputError, match=r"cannot be written"):
        save_calibration(calibration, tmp_path / "no" / "folder.safetensors")


def rewritten(path: Path, **changes: str | None) -> None:
    """The same tensors under other metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    metadata |= changes
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})


def entries(path: Path) -> list:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["layers"])


def test_files_that_are_no_calibration(saved: Path, tmp_path: Path):
    def refused(rule: str, path: Path = saved) -> None:
        with pytest.raises(DataError) as caught:
            load_calibration(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert rule in message
        assert "\n" not in message

    whole_file = saved.read_bytes()
    refused("readable", tmp_path / "missing.safetensors")
    refused("readable", tmp_path)
    for length in (0, 5, 100, len(whole_file) - 1):
        saved.write_bytes(whole_file[:length])
        refused("whole safetensors file")
    saved.write_bytes(struct.pack("<Q", 2**60) + whole_file[8:])
    refused("whole safetensors file")
    saved.write_bytes(b"PK\x03\x04" + bytes(100))
    refused("whole safetensors file")
    save_file({"weight": torch.zeros(2)}, saved)
    refused('must say "format"')


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "pt"}, 'must say "format": "factorize-calibration", got \'pt\''),
        ({"version": "2"}, "version must be 1, got '2'"),
        ({"layers": None}, "must describe each layer, got KeyError"),
        ({"layers": "{"}, "must describe each layer, got JSONDecodeError"),
        ({"layers": "[" * 100_000}, "must describe each layer, got RecursionError"),
        ({"layers": "{}"}, "must describe each layer, got TypeError: not a list"),
        ({"layers": "[1]"}, "must describe each layer, got TypeError"),
        ({"layers": '[{"name": "a"}]'}, "must describe each layer, got KeyError"),
        ({"layers": '[{"name": [], "conv": {}}]'}, "must describe each layer, got TypeError"),
    ],
)  # fmt: skip
def test_metadata_that_is_wrong(saved: Path, changes: dict[str, str | None], rule: str):
    rewritten(saved, **changes)
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "rule"),
    [
        (("name",), "other", "is not an ungrouped layer of that name"),
        (("conv", "kind"), "conv1d", "is not an ungrouped layer"),
        (("conv", "kernel"), [3], "is not an ungrouped layer"),
        (("conv", "kernel"), 3, "TypeError"),
        (("conv", "kernel"), [3, 5], "first.fit.second.0 must be float32 of shape [15, 15]"),
        (("conv", "kernel"), ["3", 3], "has a weight of shape"),
        (("conv", "in_channels"), 10**12, "first.fit.second.0 must be float32 of shape"),
        (("conv", "in_channels"), -1, "has a weight of shape"),
        (("conv", "groups"), 0, "is not an ungrouped layer"),
        (("conv", "surprise"), 0, "TypeError"),
        (("fit", "count"), 0, "numbers of patches and images"),
        (("fit", "images"), "7", "numbers of patches and images"),
        (("held_out",), {}, "KeyError"),
    ],
)  # fmt: skip
def test_a_layer_that_is_described_wrongly(saved: Path, where: tuple[str, ...], value, rule: str):
    layers = entries(saved)
    entry = layers[0]
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    rewritten(saved, layers=json.dumps(layers))
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert str(caught.value).startswith(f"{saved}: ")


def test_a_layer_named_twice(saved: Path):
    rewritten(saved, layers=json.dumps([*entries(saved), entries(saved)[0]]))
    with pytest.raises(DataError, match=r"must name each layer once"):
        load_calibration(saved)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("first.fit.mean", None, "must hold the tensor 'first.fit.mean'"),
        ("twice.held_out.second.0", None, "must hold the tensor 'twice.held_out.second.0'"),
        ("first.fit.mean", torch.zeros(8), "of shape [9] for its layer, got F32 [8]"),
        ("first.fit.mean", torch.zeros(9).double(), "of shape [9] for its layer, got F64 [9]"),
        ("first.fit.mean", torch.full((9,), torch.inf), "first.fit.mean must be finite"),
        ("first.fit.cross", torch.zeros(4, 9), "must hold the tensor 'first.fit.output_mean'"),
    ],
)  # fmt: skip
def test_tensors_that_are_wrong(saved: Path, key: str, value: Tensor | None, rule: str):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved) | {key: value}
    save_file({k: v for k, v in tensors.items() if v is not None}, saved, metadata)
    with pytest.raises(DataError) as caught:
        load_calibration(saved)
    assert rule in str(caught.value)
    assert str(caught.value).startswith(f"{saved}: ")


def test_a_calibration_is_of_its_own_model(saved: Path):
    _, specs = net()
    calibration = load_calibration(saved)
    check(calibration, specs)
    check(calibration, {"twice": replace(specs["twice"], input_sizes=((4, 4),))})
    with pytest.raises(DataError, match=r"^new: the calibration must have this layer"):
        check(calibration, {"new": replace(specs["first"], name="new")})
    with pytest.raises(
        DataError,
        match=r"^last: .* stride is \(2, 2\) in the calibration and \(1, 1\) in the model",
    ):
        check(calibration, {"last": replace(specs["last"], stride=(1, 1))})

"""What texts of the command line mean: shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from factorize.cli.parse import example, image_shape, preprocessing_of, shape_of, shapes_of
from factorize.errors import DataError
from factorize.models.load_model import LoadedModel


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1,1024", (1, 1024)),
        ("1x1024", (1, 1024)),
        ("3,224,224", (3, 224, 224)),
        ("3x16x112x112", (3, 16, 112, 112)),
        (None, None),
    ],
)
def test_shapes(text: str | None, shape: tuple[int, ...] | None) -> None:
    assert shape_of(text) == shape
    if shape:
        loaded = LoadedModel(nn.Conv2d(1, 1, 1).double(), "net", shape)
        sample = example(loaded, loaded.input_shape, None, seed=0)
        assert sample.shape == (1, *shape)
        assert sample.dtype == torch.float64


@pytest.mark.parametrize("text", ["3", "", "3,", "3,0", "3,-1,4", "1,2,3,4,5", "a,b", "3.5,2"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match=r"channels and one to three sizes such as 1,1024 or"):
        shape_of(text)


def test_shapes_by_name() -> None:
    assert shapes_of("3,8,8") is None
    wanted = {"image": (1, 3, 48, 64), "a:0": (1, 1)}
    assert shapes_of("image=1x3x48x64,a:0=1x1") == wanted
    assert shape_of("image=1x3x48x64") is None
    for text in ("image=1x3x0", "=1x3", "image=1x3,4", "image=axb"):
        with pytest.raises(DataError, match="by name must be such as image=1x3x480x640"):
            shapes_of(text)
    with pytest.raises(DataError, match="up to 100,000,000 values"):
        shapes_of("image=1x100000x100000")


def test_what_white_is() -> None:
    loaded = LoadedModel(nn.Conv2d(1, 1, 1), "net")
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1)

    def seen(*options: str | float | None) -> list[float]:
        steps = preprocessing_of(loaded, *options, None, None)  # type: ignore[arg-type]
        assert steps is not None
        return [round(v, 4) for v in steps.normalise(pixels).flatten().tolist()]

    assert seen(None, None, 255) == [0, 127, 255]
    assert seen("127", "128", 255) == [-0.9922, 0, 1]  # the face detector's
    assert seen("0.5", "0.5", None) == [-1, -0.0039, 1]
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="--scale must be a finite number above 0 such as 255"):
            preprocessing_of(loaded, None, None, scale, None, None)


@pytest.mark.parametrize("text", ["1,1000000000", "1000,1000,1000", "100,100,100,1000"])
def test_shapes_without_end(text: str) -> None:
    with pytest.raises(DataError, match="up to 100,000,000 values"):
        shape_of(text)


def test_images_have_two_sizes(tmp_path: Path) -> None:
    assert image_shape(str(tmp_path), (3, 8, 8)) == (3, 8, 8)
    assert image_shape(str(tmp_path), None) is None
    for shape, told in (((1, 1024), "1x1024"), ((3, 4, 8, 8), "3x4x8x8")):
        for data in (str(tmp_path), "images.npz", "digits"):
            with pytest.raises(DataError, match=rf"files of images .* takes {told}\. Give --data"):
                image_shape(data, shape)
        assert image_shape("signals:loaders", shape) is None
    (tmp_path / "a:b").mkdir()
    with pytest.raises(DataError):
        image_shape(f"{tmp_path}/a:b", (1, 1024))

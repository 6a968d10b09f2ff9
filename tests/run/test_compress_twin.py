"""What `compress` refuses of an ONNX file before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_files import image, node, random, save, twin_of

from factorize.errors import ExportError
from factorize.export import OnnxConfig
from factorize.measure import Target
from factorize.run.compress import compress


def test_options_that_an_onnx_file_has_no_room_for(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", [node("Conv", "x w", "y", "conv")],
                {"w": random(8, 3, 3, 3)}, inputs={"x": (1, 3, 9, 10)})  # fmt: skip
    twin = twin_of(path, image())
    with pytest.raises(ExportError, match="an ONNX file keeps its own"):
        compress(twin, image(), rank=1, onnx=OnnxConfig(half=True))
    with pytest.raises(ExportError, match="--batch must be that of the file, 1, got 4"):
        compress(twin, image(), rank=1, target=Target("onnxruntime", batch=4))


def test_a_batch_that_is_fixed_is_timed_as_it_is(tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 3, 3), "shape": np.array([4, -1])}
    nodes = [node("Conv", "x w", "a", "conv"), node("Reshape", "a shape", "y")]
    path = save(tmp_path / "net.onnx", nodes, weights, inputs={"x": (4, 3, 9, 10)})
    made = compress(
        twin_of(path, image()), image(), rank=1, allow_costlier=True, include=["conv"],
        target=Target("onnxruntime", threads=1, batch=4), out=tmp_path / "out",
    )  # fmt: skip
    assert not made.report.failures
    assert made.report.speed[0].batch == 4
    assert (tmp_path / "out" / "model.onnx").exists()

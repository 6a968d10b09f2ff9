"""What the tests of kits share: a small kit, and its bench.py in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from factorize import methods
from factorize.measure import Group, KitWriter
from factorize.spec import ConvSpec
from factorize.types import LayerPlan

CONV = ConvSpec("", "conv2d", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1))
LINEAR = ConvSpec("", "linear", 12, 6, (), (), (), ())
SIZE = (6, 5)

# It prints a time by the size of the file, in its own words, and notes what it was given.
PROGRAM = """
import os, sys
path, log = sys.argv[1:3]
with open(log, "a") as file:
    file.write(os.path.basename(path) + "\\n")
print(f"loaded in 3 us\\nEACH RUN TOOK <{len(open(path, 'rb').read())}> us, 9 runs")
"""
PATTERN = r"TOOK <(?P<us>\d+)> us"


def chains(spec: ConvSpec, name: str, *ranks: int) -> tuple[tuple[ConvSpec, ...], ...]:
    method = methods.get(name)
    return tuple(method.stages(spec, (rank,), method.variants[0]) for rank in ranks)


def net() -> Any:
    """One convolution and what is behind it."""
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=(1, 1, 1, 1)),
        helper.make_node("Clip", ["c", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 8, 6, 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0), "zero")],
        doc_string="of the user's",
    )  # fmt: skip
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="somebody")
    helper.set_model_props(model, {"secret": "yes"})
    return model


def small_kit(folder: Path, *, nets: int = 0) -> Path:
    """A kit of a convolution, a linear layer and, if asked for, nets beside the dense one."""
    folder.mkdir(parents=True)
    kit = KitWriter(folder, net="abc", model="a net", batch=1)
    feeds = {"x": np.zeros((1, 8, 6, 5), np.float32)}
    kit.add_net(net(), feeds)
    for rank in range(1, nets + 1):
        kit.add_net(net(), feeds, [LayerPlan(CONV, "spatial_svd", (rank,), "v")], 1.5)
    kit.add_group(Group(CONV, SIZE, chains(CONV, "spatial_svd", 2, 4, 8)))
    kit.add_group(Group(replace(LINEAR), (), chains(LINEAR, "channel_svd", 2, 4)))
    kit.close()
    return folder


def manifest(kit: Path) -> dict[str, Any]:
    return json.loads((kit / "manifest.json").read_text())


def keys(kit: Path) -> list[str]:
    return [c["key"] for group in manifest(kit)["groups"] for c in group["chains"]]


def file_of(kit: Path, key: str) -> Path:
    found = [c for group in manifest(kit)["groups"] for c in group["chains"] if c["key"] == key]
    return kit / "models" / found[0]["file"]


def bench(kit: Path, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(kit / "bench.py"), "--threads", "1", *map(str, options)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


def by_program(kit: Path, *options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The kit timed by `PROGRAM`."""
    program = cwd / "program.py"
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program} {{model}} {cwd / 'log'}"
    return bench(kit, "--command", command, "--pattern", PATTERN, *options, cwd=cwd)


def times(cwd: Path, name: str = "times.json") -> dict[str, Any]:
    return json.loads((cwd / name).read_text())

"""``factorize kit``, bench.py and ``--times``, from one end to the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from suggestions import check_accepted, suggested

from factorize.report import load_report

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# A device whose times are MACs: what a file is, the kit's manifest says.
PROGRAM = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
kit = json.loads((path.parents[1] / "manifest.json").read_text())
us = {chain["file"]: chain["macs"] for group in kit["groups"] for chain in group["chains"]}
for group in kit["groups"]:
    layer = kit["layers"][group["layer"]]
    most = max(chain["macs"] for chain in group["chains"])
    us[layer["file"]] = max(us.get(layer["file"], 0), 1.5 * most)
    us[layer["ends"]] = 0
us[kit["nets"][0]["file"]] = 2.5e5
if path.name.startswith("00007"):
    sys.exit("no kernel for this")
print("time:", us.get(path.name, 1e6))
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    draw, tensors, nodes = np.random.default_rng(0), [], []
    source = "x"
    for index, (inputs, outputs) in enumerate([(3, 16), (16, 32), (32, 32)]):
        weight = draw.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) / 8
        tensors.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        source = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["y"]))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 12, 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 32, 1, 1))], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_kit_its_times_and_the_net_for_that_device(
    command: Any, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "--method", "spatial_svd,channel_svd"
    ran = command("kit", net, "--speedup", "1.4", "--out", "kit", *method)
    assert ran.code == 0, ran.err
    assert "random weights, written to kit/" in ran.out
    (tmp_path / "device.py").write_text(PROGRAM)
    timed = subprocess.run(
        [
            sys.executable, "kit/bench.py", "--threads", "3", "--pattern", r"time: (?P<us>[0-9.]+)",
            "--rounds", "1", "--command", f"{sys.executable} device.py {{model}}",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert timed.returncode == 0, timed.stderr
    assert "no kernel for this" in timed.stdout
    asked = net, "--speedup", "1.4", "--times", "times.json", "--fit", "weights", *method
    ran = command(*asked, "--dry-run")
    assert ran.code == 0, ran.err
    device = json.loads((tmp_path / "times.json").read_text())["machine"]["device"]
    assert f"on {device} ({sys.executable}, 3 threads, batch 1)" in " ".join(ran.out.split())
    assert "predicted from its times (times.json), not measured" in " ".join(ran.out.split())
    ran = command(*asked, "--out", "out")
    assert ran.code == 0, ran.err
    assert "faster on" in ran.out
    report = load_report(tmp_path / "out" / "report.json")
    assert [one.taken_from for one in report.speed] == ["times.json"]
    assert report.settings["int8_possible"] is False  # a kit has no times in integers
    assert report.speed[0].speedup >= 1.4
    assert (tmp_path / "out" / "model.onnx").exists()
    commands = suggested(tmp_path / "out" / "report.html")
    check_accepted(monkeypatch, [words for words in commands if "photos/" not in words])
    [words] = [words for words in commands if words[1] == "kit"]
    ran = command(*words[1:])
    assert ran.code == 0, ran.err
    assert "nets, random weights, written to out-kit2/" in ran.out
    nets = json.loads((tmp_path / "out-kit2" / "manifest.json").read_text())["nets"]
    assert nets[0]["id"] == "dense"
    assert all(net["layers"] for net in nets[1:])


@pytest.mark.parametrize(
    "options, message",
    [
        (("kit", "net.onnx", "--out", "."), "the kit must have a folder of its own"),
        (("kit", "net.onnx", "--out", "kit", "--speedup", "0.5"), "speedup must be a number"),
        (("kit", "none.onnx", "--out", "kit"), "none.onnx"),
        (("kit", "net.onnx"), "Missing option '--out'"),
        (("kit", "net.onnx", "--out", "kit", "--times", "no.json"), "no.json: must be a file"),
        (("net.onnx", "--speedup", "2", "--times", "no.json"), "no.json: must be a file"),
        (("net.onnx", "--speedup", "2", "--target", "recorded"), "give them by --times FILE"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(
    command: Any, net: Path, options: tuple[str, ...], message: str
) -> None:
    ran = command(*options)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not (net.parent / "kit").exists()


def test_a_device_far_away_is_the_target(command: Any, tmp_path: Path) -> None:
    content = {
        "format": "factorize-times", "version": 1, "net": "a", "model": "b", "batch": 1,
        "unit_ms": 1.0, "chains": {}, "nets": {},
        "machine": {"device": "Board 4", "runtime": "onnxruntime 1.16", "threads": 4},
    }  # fmt: skip
    (tmp_path / "times.json").write_text(json.dumps(content))
    for more in (("--target", "torch-cpu"), ("--batch", "4"), ("--target", "cuda", "--compile")):
        ran = command("digits", "--speedup", "2", "--times", "times.json", *more)
        assert ran.code == 2
        assert ran.err.startswith(
            "error: --times: the target is Board 4, 4 threads, batch 1. Leave"
        )
    ran = command("digits", "--macs", "0.5", "--times", "times.json")
    assert ran.code == 2
    assert "--times: are for a search by time, got none" in ran.err

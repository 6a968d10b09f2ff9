"""Kits, and searches on the times that come back, of a device whose times are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from searching import EXAMPLE, QUICK, UNIT_MS, Machine, installed, plain, searched
from torch import nn

from factorize import find, load_times, methods, write_kit
from factorize.errors import BudgetError, DataError, DeviceError, FactorizeError, OutputError
from factorize.measure import KitWriter, Recorded, Target, net_id
from factorize.measure.latency_model import key_of
from factorize.plan import Budget
from factorize.report import load_report, verdict
from factorize.run import kit as kit_module
from factorize.search import SearchConfig, wanted_chains

SPEEDUP = 1.3
MACHINE = {"device": "Board 4", "runtime": "onnxruntime 1.16", "threads": 3, "cores": 4}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return installed(monkeypatch, tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def exported() -> Any:
    """The net as ONNX; its export takes seconds, and kits are what is tested."""
    model = plain()
    weights = {
        name: np.asarray(value.numpy()) for name, value in model.state_dict().items()
        if value.is_floating_point() and value.numel() > 1
    }  # fmt: skip
    nodes, tensors = [], []
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d):
            tensors.append(onnx.numpy_helper.from_array(weights[f"{name}.weight"], f"{name}.w"))
            nodes.append(onnx.helper.make_node(
                "Conv", [nodes[-1].output[0] if nodes else "x", f"{name}.w"], [f"{name}.y"],
                f"{name}/Conv", pads=(1, 1, 1, 1),
            ))  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("N", 3, "H", "W"))],
        [onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        tensors, doc_string="mine",
    )  # fmt: skip
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    return made, {node.name.partition("/")[0]: [node.name] for node in nodes}


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch, exported: Any) -> None:
    monkeypatch.setattr(kit_module, "as_onnx", lambda *_: exported)


def manifest(kit: Path) -> dict[str, Any]:
    return json.loads((kit / "manifest.json").read_text())


class Board:
    """A device whose times are those of a machine."""

    def __init__(self, machine: Machine, model: nn.Module) -> None:
        self.machine, self.model = machine, model
        sites = find(model, EXAMPLE)
        self.specs = {site.spec.name: site.spec for site in sites}
        self.chains: dict[str, Any] = {}
        self.named: dict[str, Any] = {}
        for group in wanted_chains(
            sites, QUICK.split(","), include=(), exclude=(), target=Target(threads=1), speedup=2
        ):
            for chain in group.chains:
                self.chains[key_of(group.spec, group.size, chain)] = group, chain

    def times(
        self, kit: Path, lacking: Callable[[str], bool] = lambda key: False
    ) -> dict[str, Any]:
        """What bench.py would write."""
        content, chains = manifest(kit), {}
        for group in content["groups"]:
            for one in group["chains"]:
                place, chain = self.chains[one["key"]]
                [found] = self.machine.chains(TARGET, (place.spec,), [chain], place.size)
                if not lacking(one["key"]):
                    chains[one["key"]] = {"kind": one["kind"], "macs": one["macs"], **asdict(found)}
        whole = self.machine.net(self.model, EXAMPLE)
        nets: dict[str, Any] = {"dense": {"units": whole, "runs": 9}}
        for net in content["nets"][1:]:
            saved = whole * (1 - 1 / net["predicted"])
            after = whole - self.machine.gain * saved
            nets[net["id"]] = {
                "predicted": net["predicted"], "speedup": whole / after, "p10": whole / after,
                "p90": whole / after, "runs": 60, "original_ms": whole * UNIT_MS,
                "compressed_ms": after * UNIT_MS,
            }  # fmt: skip
        return {
            "format": "factorize-times", "version": 1, "machine": MACHINE, "unit_ms": UNIT_MS,
            **{key: content[key] for key in ("kit", "net", "model", "batch")},
            "chains": chains, "nets": nets,
        }  # fmt: skip


TARGET = Target(threads=1)


@pytest.fixture
def board(machine: Machine) -> Board:
    return Board(machine, plain())


@pytest.fixture
def taken(board: Board, tmp_path: Path, unexported: None) -> Path:
    """A kit that was timed on the board."""
    write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    return written(tmp_path / "times.json", board.times(tmp_path / "kit"))


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


# The kit


def test_a_kit_has_each_chain_once_and_what_matters_first(
    board: Board, tmp_path: Path, unexported: None
) -> None:
    counts = write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK, name="mine")
    content = manifest(tmp_path / "kit")
    keys = [one["key"] for group in content["groups"] for one in group["chains"]]
    assert len(keys) == len(set(keys)) == counts["chains"]
    assert counts["nets"] == 1
    assert all("128-128" in one["key"] for one in content["groups"][0]["chains"])  # the probes
    files = {path.name for path in (tmp_path / "kit" / "models").iterdir()}
    wanted = {one["file"] for group in content["groups"] for one in group["chains"]}
    wanted |= {layer[key] for layer in content["layers"] for key in ("file", "ends")} - {None}
    assert files == wanted | {content["reference"], content["nets"][0]["file"]}
    assert content["model"] == "mine"
    assert (tmp_path / "kit" / "bench.py").exists()
    assert not [path for path in tmp_path.iterdir() if path.name != "kit"]


def test_a_kit_has_what_a_search_asks_for_on_any_step(
    board: Board, machine: Machine, tmp_path: Path, unexported: None
) -> None:
    """All that it measures, wherever the times lead it."""
    write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    known = {c["key"] for group in manifest(tmp_path / "kit")["groups"] for c in group["chains"]}
    for call, speedup in ((2000.0, 1.3), (20000.0, 1.2), (0.0, 1.5)):
        machine.call = call
        machine.timed.clear()
        with suppress(BudgetError):  # it has asked by then
            searched(board.model, Budget(speedup=speedup), refresh=True)
        asked = {
            key_of(dense[0], size, chain) for dense, size, chain in machine.timed if chain != dense
        }
        assert asked
        assert asked <= known


def test_a_kit_has_no_weights_of_the_users(
    board: Board, tmp_path: Path, unexported: None, exported: Any
) -> None:
    write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    theirs = [tensor.raw_data for tensor in exported[0].graph.initializer]
    for path in (tmp_path / "kit").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(one[:32] in content for one in theirs)
        assert b"mine" not in content
    net = tmp_path / "kit" / "models" / manifest(tmp_path / "kit")["nets"][0]["file"]
    for tensor in onnx.load(net, load_external_data=False).graph.initializer:
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
    assert net.stat().st_size < 2000
    assert "random" in manifest(tmp_path / "kit")["about"]


def test_nothing_is_left_of_a_kit_that_failed(
    board: Board, tmp_path: Path, unexported: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KitWriter, "close", stop)
    with pytest.raises(KeyboardInterrupt):
        write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["/proc/none", "file"])
def test_a_folder_that_cannot_be_made_is_one_line(
    board: Board, tmp_path: Path, unexported: None, inside: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="must be a folder that can be written to") as caught:
        write_kit(board.model, EXAMPLE, tmp_path / inside / "kit", method=QUICK)
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_kit_has_a_folder_of_its_own(board: Board, tmp_path: Path, unexported: None) -> None:
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "mine").touch()
    with pytest.raises(OutputError, match="kit: the kit must have a folder of its own"):
        write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    (tmp_path / "kit" / "mine").unlink()
    write_kit(board.model, EXAMPLE, tmp_path / "kit", method=QUICK)
    with pytest.raises(FactorizeError, match="the model must be float32, got float64"):
        write_kit(board.model.double(), EXAMPLE.double(), tmp_path / "two", method=QUICK)
    assert not (tmp_path / "two").exists()


# The search


def test_all_times_give_the_plan_that_a_search_there_gives(
    board: Board, machine: Machine, taken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = searched(board.model, Budget(speedup=SPEEDUP))
    untimed_here(monkeypatch)
    here = searched(
        board.model, Budget(speedup=SPEEDUP), target=load_times(taken), out=tmp_path / "out"
    )
    assert here.plan.factorized == there.plan.factorized != ()
    [speed] = here.report.speed
    assert speed.speedup == pytest.approx(there.report.speed[0].speedup)
    assert speed.runs == 0
    ms = {one.name: (one.ms_original, one.ms) for one in there.report.layers}
    for one in here.report.layers:
        assert (one.ms_original, one.ms) == pytest.approx(ms[one.name])
    told, faster = verdict(load_report(tmp_path / "out" / "report.json")) or ("", False)
    assert faster
    assert "faster on Board 4 (onnxruntime 1.16, 3 threads, batch 1)" in told
    assert "predicted from its times (times.json), not measured" in told
    assert here.report.search
    assert here.report.search.target["device"] == "Board 4"
    assert here.report.search.chains_timed == 0
    assert "Board 4" in (tmp_path / "out" / "report.html").read_text()


def untimed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: Any, **__: Any) -> None:
        raise AssertionError("timed here")

    for place in (
        "factorize.measure.latency_model.time_chains", "factorize.measure.latency_model.in_units",
        "factorize.search.prepare.Assembled", "factorize.run.deliver.speedups",
    ):  # fmt: skip
        monkeypatch.setattr(place, timed)


def test_what_was_not_timed_lies_between_or_stays_dense(
    board: Board, machine: Machine, taken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = searched(board.model, Budget(speedup=SPEEDUP), target=load_times(taken))
    chosen = full.plan.factorized[0]
    key = next(
        key for key, (group, chain) in board.chains.items()
        if group.spec == replace(chosen.spec, name="", input_sizes=())
        and chain[0].out_channels == chosen.rank[0] and len(chain) == 2
    )  # fmt: skip
    dense = key.partition(" : ")[0]
    untimed_here(monkeypatch)

    one_less = written(tmp_path / "less.json", board.times(tmp_path / "kit", lambda k: k == key))
    result = searched(board.model, Budget(speedup=SPEEDUP), target=load_times(one_less))
    assert result.report.speed[0].speedup >= SPEEDUP
    if chosen.rank in [one.rank for one in result.plan.factorized if one.spec == chosen.spec]:
        assert any(
            "not timed on Board 4" in note and chosen.spec.name in note
            for note in result.report.notes
        )

    none = written(
        tmp_path / "none.json", board.times(tmp_path / "kit", lambda k: k.startswith(dense))
    )
    result = searched(board.model, Budget(speedup=1.05), target=load_times(none))
    [layer] = [one for one in result.plan.layers if one.spec == chosen.spec]
    assert layer.skip_reason == "not timed on Board 4, 3 threads, batch 1"


def test_no_layer_becomes_slower_by_a_guess(board: Board, machine: Machine, taken: Path) -> None:
    """A chain that is dearer than all that were timed of its kind is not offered."""
    content = json.loads(taken.read_text())
    layer = next(key for key in content["chains"] if key.startswith("conv2d 16-32")).partition(
        " : "
    )[0]
    of_layer = {k: one for k, one in content["chains"].items() if k.startswith(layer)}
    least = min(one["macs"] for one in of_layer.values())
    for key, one in of_layer.items():
        if one["macs"] > least:
            del content["chains"][key]
    result = searched(board.model, Budget(speedup=1.02), target=load_times(written(taken, content)))
    for one in result.plan.factorized:
        if one.spec.in_channels == 16 and one.spec.out_channels == 32:
            assert one.macs <= least


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_nets_that_were_timed_correct_the_rest(
    board: Board, machine: Machine, taken: Path, tmp_path: Path, gain: float, unexported: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine.gain = gain
    first = load_times(taken)
    counts = write_kit(
        board.model, EXAMPLE, tmp_path / "kit2", speedup=SPEEDUP, method=QUICK, times=first
    )
    assert counts["chains"] == 0
    assert 3 <= counts["nets"] <= 4
    second = written(tmp_path / "times2.json", board.times(tmp_path / "kit2"))
    there = searched(board.model, Budget(speedup=SPEEDUP))
    untimed_here(monkeypatch)
    result = searched(board.model, Budget(speedup=SPEEDUP), target=load_times(taken, second))
    [speed] = result.report.speed
    assert speed.speedup >= SPEEDUP
    assert there.report.search
    # What was predicted is what the machine needs for it.
    saved = 1 - 1 / speed.speedup
    layers = result.plan.factorized
    before = machine.net(board.model, EXAMPLE)
    really = sum(
        machine.of(one.spec, (one.spec,)) - machine.of(one.spec, methods.chain_of(one))
        for one in layers
    )
    assert saved == pytest.approx(gain * really / before, rel=1e-3)
    timed = net_id(layers) in json.loads(second.read_text())["nets"]
    assert (speed.runs > 0) == timed


# What is refused


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format="x"), 'must say "format": "factorize-times"'),
        (lambda c: c.update(version=2), "its version must be 1, got 2"),
        (lambda c: c.pop("unit_ms"), "unit_ms: must be a number, got None"),
        (lambda c: c.update(unit_ms=0), "unit_ms: must be above 0"),
        (lambda c: c["machine"].pop("threads"), "machine.threads: must be an integer, got None"),
        (lambda c: c.update(chains=[]), r"chains: must be an object, got \[\]"),
        (lambda c: one_of(c).update(low="x"), r"chains\[.*\].low: must be a number, got 'x'"),
        (lambda c: one_of(c).update(low=float("nan")), r"low: must be above 0 and below"),
        (lambda c: one_of(c).update(dense=10**400), r"dense: must be above 0 and below"),
        (lambda c: one_of(c).pop("kind"), r"kind: must be a text, got None"),
        (lambda c: c["nets"].update(a={"speedup": 1}), r"nets.a.predicted: must be a number"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_one_line(
    board: Board, taken: Path, change: Callable[[Any], Any], message: str
) -> None:
    content = json.loads(taken.read_text())
    change(content)
    with pytest.raises(DataError, match=message) as error:
        load_times(written(taken, content))
    assert "\n" not in str(error.value)


def one_of(content: Any) -> Any:
    return next(iter(content["chains"].values()))


def test_files_that_are_none_or_do_not_go_together(taken: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no.json: must be a file that bench.py wrote: No such"):
        load_times(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="bad.json: must be JSON"):
        load_times(tmp_path / "bad.json")
    content = json.loads(taken.read_text())
    other = written(tmp_path / "other.json", {**content, "machine": {**MACHINE, "threads": 1}})
    with pytest.raises(
        DataError, match="other.json: its threads must be that of times.json, 3, got 1"
    ):
        load_times(taken, other)


def test_times_of_another_net_or_for_another_wish(board: Board, taken: Path) -> None:
    target = load_times(taken)
    assert isinstance(target, Recorded)
    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3)).eval()
    with pytest.raises(DataError, match="must be of a kit of this net at this input size"):
        searched(other, Budget(speedup=1.2), target=target)
    with pytest.raises(DataError, match="are for a search by time, got none"):
        searched(board.model, Budget(macs=0.5), target=target)
    with pytest.raises(DataError, match="are for a search by time, got none"):
        searched(board.model, None, search=SearchConfig(shares=(0.5,)), target=target)
    with pytest.raises(DataError, match="cannot be combined with times of another target"):
        searched(board.model, Budget(speedup=1.2), target=target, also=("onnxruntime",))
    with pytest.raises(DeviceError, match="must be timed on a target that computes in integers"):
        searched(board.model, Budget(speedup=1.2), target=target, int8=True)
    with pytest.raises(BudgetError, match="the most that was predicted on Board 4"):
        searched(board.model, Budget(speedup=50), target=target)
    with pytest.raises(DeviceError, match="needs the times that were taken, found none"):
        Target("recorded")
    content = json.loads(taken.read_text())
    content["nets"]["dense"] = {"refused": "too new"}
    with pytest.raises(DataError, match="must have the time of the whole net"):
        searched(board.model, Budget(speedup=1.2), target=load_times(written(taken, content)))


def test_a_sweep_on_times_has_no_points_that_nobody_timed(board: Board, taken: Path) -> None:
    result = searched(
        board.model, None, search=SearchConfig(sweep=(1.1, 1.2)), target=load_times(taken)
    )
    assert [point.kind for point in result.report.curve] == ["dense", "search", "search"]

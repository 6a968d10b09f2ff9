"""Exported files give the model's outputs, or do not appear."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import textwrap
from dataclasses import replace

import exporting
import onnx
import pytest
import torch
from exporting import CHAINS, Net
from safetensors.torch import load_model
from torch import nn
from torch.torch_version import TorchVersion

from factorize.errors import ExportError, OutputError
from factorize.export import comparison, export_onnx, export_program, save_weights, to_onnx, traces
from factorize.export.plain_call import plain_call
from factorize.tensor.call import onnx_feeds, onnx_session


@pytest.fixture
def net() -> Net:
    return exporting.net()


@pytest.fixture
def x() -> torch.Tensor:
    return exporting.image()


def run(path, inputs) -> torch.Tensor:
    session = onnx_session(path, threads=1)
    return torch.as_tensor(session.run(None, onnx_feeds(session, inputs))[0])


def test_onnx_gives_the_models_outputs_at_any_size(net, x, tmp_path, capfd):
    before = copy.deepcopy(net.state_dict())
    path = tmp_path / "net.onnx"
    check = export_onnx(net, x, path, chains=CHAINS)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert capfd.readouterr() == ("", "")
    net.eval()
    for shape in ((1, 3, 9, 9), (2, 3, 30, 17), (5, 3, 7, 64)):
        inputs = torch.randn(shape)
        torch.testing.assert_close(run(path, inputs), net(inputs).detach(), rtol=1e-4, atol=1e-5)

    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    proto = onnx.load(path)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, "height", "width"]
    assert check.bytes == path.stat().st_size
    assert check.nodes["Conv"] == 1 + 2 + 4
    assert sum(check.nodes.values()) == len(proto.graph.node)
    assert check.opset == proto.opset_import[0].version
    assert check.dynamic_batch
    assert check.free_axes == ("batch", "height", "width")
    assert 0 <= check.max_rel <= check.tolerance == 1e-4


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_files_are_compared_at_batch_1_and_3_and_another_size(
    net, x, tmp_path, monkeypatch, export
):
    seen, alone = [], comparison._alone
    monkeypatch.setattr(
        comparison, "_alone", lambda *a: seen.extend(v.shape for (v,) in a[1]) or alone(*a)
    )
    export(net, x, tmp_path / "net.file")
    assert seen == [(1, 3, 9, 9), (3, 3, 9, 9), (1, 3, 12, 10)]


@pytest.mark.parametrize("structure", ["tuple", "mapping"])
def test_onnx_with_several_inputs(structure, tmp_path):
    class Two(nn.Module):
        def forward(self, image, scale):
            return {"out": image * scale, "sum": image.sum((1, 2))}

    inputs = {"scale": torch.rand(2, 1, 1), "image": torch.rand(2, 3, 4)}
    if structure == "tuple":
        inputs = (inputs["image"], inputs["scale"])
    assert export_onnx(Two(), inputs, tmp_path / "two.onnx").dynamic_batch
    assert "batch" in export_program(Two(), inputs, tmp_path / "two.pt2")
    graph = onnx.load(tmp_path / "two.onnx").graph
    assert {v.name for v in graph.input} == {"image", "scale"}
    assert [v.name for v in graph.output] == ["out", "sum"]


def test_half_precision_has_a_looser_tolerance(net, x, tmp_path):
    check = export_onnx(net.half(), x.half(), tmp_path / "net.onnx", chains=CHAINS)
    assert 1e-4 < check.tolerance < 0.1
    with pytest.raises(ExportError, match="bfloat16"):
        export_onnx(net.bfloat16(), x.bfloat16(), tmp_path / "other.onnx")


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_file_that_differs_is_not_published(net, x, tmp_path, monkeypatch, export):
    other, trace = copy.deepcopy(net), traces._trace
    with torch.no_grad():
        other.fc.weight[0, 0] += 1e-2
    # torch still traces the net, but what it made is held against another one
    monkeypatch.setattr(
        traces, "_trace", lambda *a: replace(trace(*a), called=plain_call(other, x))
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(ExportError, match=r"must equal the model's within 0\.0001"):
        export(net, x, path, force=True)
    assert path.read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_model_that_gives_nan_is_not_published(net, x, tmp_path):
    with torch.no_grad():
        net.fc.bias[0] = float("nan")
    with pytest.raises(ExportError, match="got nan"):
        export_onnx(net, x, tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("torch_version", "installed", "advice"),
    [
        ("2.6.0+cpu", ("0.7.2", "7.36.2"), "With .*: pip install 'onnxscript<0.3' 'protobuf<7'. N"),
        ("2.6.0+cpu", ("0.2.7", "7.36.2"), "With torch 2.6.0.cpu: pip install 'protobuf<7'. N"),
        ("2.6.0+cpu", ("0.2.7", "6.33.6"), "got no such type. N"),
        ("2.10.0", ("0.7.2", "7.36.2"), "got no such type. N"),
    ],
)
def test_packages_too_new_for_torch_are_named(
    x, tmp_path, monkeypatch, torch_version, installed, advice
):
    def fail(proto):
        monkeypatch.setattr(torch, "__version__", TorchVersion(torch_version))
        raise RuntimeError("no such type")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    versions = dict(zip(("onnxscript", "protobuf"), installed, strict=True))
    monkeypatch.setattr(to_onnx, "version", versions.__getitem__)
    with pytest.raises(ExportError, match=f"{advice}ot written.$"):
        export_onnx(nn.Conv2d(3, 4, 1), x, tmp_path / "net.onnx")


def test_a_fixed_batch_size_is_said(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)

    check = export_onnx(Fixed(), torch.rand(2, 3), tmp_path / "fixed.onnx")
    assert not check.dynamic_batch
    assert check.input_sizes == "fixed batch 2"
    assert not export_program(Fixed(), torch.rand(2, 3), tmp_path / "fixed.pt2")


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.lu_factor(x)[0]


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Identity(), [torch.ones(3, 4, 4)], "every input must be a tensor, .*got list"),
        (nn.Identity(), (torch.ones(1, 3), b""), "got Tensor, bytes"),
        (Branch(), torch.ones(2, 3), "must be able to trace"),
        (Unknown(), torch.rand(2, 4, 4), "must be expressible in ONNX, got .*lu_factor"),
    ],
)
def test_what_cannot_be_exported_is_one_line(model, example, message, tmp_path, capfd):
    with pytest.raises(ExportError, match=message) as raised:
        export_onnx(model, example, tmp_path / "a.onnx")
    assert len(str(raised.value).splitlines()) == 1
    assert "\x1b" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_pt2_loads_without_this_library_or_the_models_class(net, x, tmp_path):
    path = tmp_path / "net.pt2"
    assert export_program(net, x, path) == ("batch", "height", "width")
    inputs = torch.randn(3, 3, 20, 11)
    torch.save(inputs, tmp_path / "inputs.pt")
    script = f"""
        import sys, importlib.util, torch
        assert importlib.util.find_spec("exporting") is None
        sys.modules["factorize"] = None  # importing it is an error
        model = torch.export.load(r"{path}").module()
        out = [model(torch.load(r"{tmp_path}/inputs.pt")[:n]) for n in (1, 3)]
        torch.save(out, r"{tmp_path}/outputs.pt")
    """
    subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(script)], check=True, cwd=tmp_path, timeout=120
    )
    net.eval()
    for n, got in zip((1, 3), torch.load(tmp_path / "outputs.pt"), strict=True):
        torch.testing.assert_close(got, net(inputs[:n]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs.pt", "net.pt2", "outputs.pt"]


def test_weights_round_trip_and_stay_shared(net, tmp_path):
    net.head = nn.Linear(8, 5)
    net.head.weight = net.fc.weight
    save_weights(net, tmp_path / "net.safetensors")
    other = Net()
    other.head = nn.Linear(8, 5)
    other.head.weight = other.fc.weight
    assert load_model(other, tmp_path / "net.safetensors") == (set(), [])
    assert other.head.weight is other.fc.weight
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_overlapping_weights_are_refused(tmp_path):
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
    net[1].weight = nn.Parameter(net[0].weight.data[:2])
    net[0].weight = nn.Parameter(net[0].weight.data[1:])
    with pytest.raises(ExportError, match="must not overlap"):
        save_weights(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_onnx, export_program, save_weights])
def test_an_existing_file_or_a_missing_folder_is_refused(net, x, tmp_path, export):
    path = tmp_path / "net.file"
    path.write_bytes(b"mine")
    arguments = (net,) if export is save_weights else (net, x)
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        export(*arguments, path)
    assert path.read_bytes() == b"mine"
    with pytest.raises(OutputError, match="folder must exist"):
        export(*arguments, tmp_path / "none" / "net.file")


def test_a_root_logger_at_info_is_not_flooded(
    net: Net, x: torch.Tensor, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    """As some libraries set it; a level of an exporter's own logger is kept."""
    own = logging.getLogger("onnx_ir")
    with caplog.at_level(logging.INFO):
        export_onnx(net, x, tmp_path / "m.onnx", chains=CHAINS)
        export_program(net, x, tmp_path / "m.pt2")
        assert [one.name for one in caplog.records] == []
        assert own.level == logging.NOTSET
        with caplog.at_level(logging.INFO, "onnx_ir"):
            export_onnx(net, x, tmp_path / "again.onnx", chains=CHAINS)
            assert own.level == logging.INFO
        assert {one.name.partition(".")[0] for one in caplog.records} == {"onnx_ir"}


def test_all_may_read_what_others_files_may_be_read_by(net, x, tmp_path):
    """safetensors writes files for their owner alone."""
    usual = tmp_path / "usual"
    usual.touch()
    save_weights(net, tmp_path / "net.safetensors")
    export_onnx(net, x, tmp_path / "net.onnx", chains=CHAINS)
    for name in ("net.safetensors", "net.onnx"):
        assert (tmp_path / name).stat().st_mode == usual.stat().st_mode

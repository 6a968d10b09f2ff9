"""ONNX Runtime's execution providers: those that are not here, and nodes that one leaves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from factorize import export
from factorize.errors import DeviceError, ExportError
from factorize.measure import Target, runtimes
from factorize.measure.runtimes import onnx_files, providers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate provider"),
]
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("net") / "net.onnx"
    export.export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), X, file)
    return file


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """XNNPACK, which is the CPU's provider in truth."""
    patched = {**providers.PROVIDERS, "XNNPACK": ("CPUExecutionProvider", "luck")}
    monkeypatch.setattr(providers, "PROVIDERS", patched)
    providers._refusal.cache_clear()


@pytest.mark.parametrize("name", providers.PROVIDERS)
def test_a_provider_that_is_not_installed_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError) as error:
        Target(f"onnxruntime:{name.upper()}")
    assert str(error.value) == (
        f"target onnxruntime: the installed build, {onnxruntime.__version__}, has no provider "
        f"{name}, only CPU. Install {providers.PROVIDERS[name][1]} in its place."
    )


@pytest.mark.parametrize(("on", "options", "message"), [
    ("Abacus", (), "the provider must be one of CPU, XNNPACK, OpenVINO, .*, got Abacus.$"),
    ("", ("a=1", "b=2"), "its CPU provider takes no options, got a=1, b=2."),
    ("cpu", ("a=1",), "its CPU provider takes no options"),
])  # fmt: skip
def test_what_is_no_provider(on: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        Target("onnxruntime", on=on, options=options)


def test_the_cpu_is_the_usual_one() -> None:
    assert Target("onnxruntime:CPU", threads=1) == Target("onnxruntime", threads=1)
    assert not {"on", "options"} & Target("onnxruntime", threads=1).context().keys()


def test_times_depend_on_the_provider_and_its_options(there: None) -> None:
    targets = [
        Target("onnxruntime", threads=1), Target("onnxruntime:xnnpack", threads=1),
        Target("onnxruntime", threads=1, on="XNNPACK", options=("a=1",)),
    ]  # fmt: skip
    contexts = [target.context() for target in targets]
    assert all(one != two for one, two in pairwise(contexts))
    assert (targets[1].on, targets[1].label) == ("XNNPACK", "onnxruntime:XNNPACK")
    assert str(targets[2]) == "onnxruntime, XNNPACK, 1 thread, a=1, batch 1"
    assert targets[2].label == "onnxruntime:XNNPACK (a=1)"


def test_nodes_that_are_left_to_the_cpu_are_told(there: None, net: Path) -> None:
    target = Target("onnxruntime:XNNPACK", threads=1)
    left, count = providers.left_to_the_cpu(target, net, X)
    assert len(left) == count > 0
    assert any(name.endswith("(Conv)") for name in left)
    told, compared = runtimes.get("onnxruntime").remarks(target, net, X)
    assert told.startswith(
        f"net.onnx: XNNPACK left {count} of {count} nodes to ONNX Runtime's CPU provider: {left[0]}"
    )
    assert compared.endswith("puts out what ONNX Runtime's CPU provider does, to 0")


def test_nothing_is_told_of_what_the_provider_runs(
    there: None, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "left_to_the_cpu", lambda *_: ([], 5))
    assert providers.fallback_remarks(Target("onnxruntime:XNNPACK", threads=1), net, X) == []
    assert runtimes.get("onnxruntime").remarks(Target("onnxruntime", threads=1), net, X) == []


class OnTheCpu:
    """A session that quietly took another provider."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("session", [onnxruntime.InferenceSession, OnTheCpu])
def test_a_provider_that_cannot_be_started_is_no_target(
    session: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers._refusal.cache_clear()
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    patched = {**providers.PROVIDERS, "QNN": ("NoSuchExecutionProvider", "luck")}
    monkeypatch.setattr(providers, "PROVIDERS", patched)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers",
        lambda: ["NoSuchExecutionProvider", "CPUExecutionProvider"],
    )  # fmt: skip
    with pytest.raises(DeviceError) as error:
        Target("onnxruntime:QNN", threads=1)
    assert str(error.value).startswith("target onnxruntime: QNN cannot be started: ")
    assert str(error.value).isprintable()


def test_a_net_that_a_provider_refuses_is_one_line(there: None, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no net")
    with pytest.raises(ExportError, match=r"^net.onnx: cannot be run on onnxruntime, XNNPACK, 1 "):
        providers.session_on(Target("onnxruntime:XNNPACK", threads=1), tmp_path / "net.onnx")


def test_outputs_that_differ_are_an_error(net: Path) -> None:
    target = Target(threads=1)
    session = providers.session_on(target, net)
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert "does, to 0" in onnx_files.compared(target, net, X, found)[0]
    for wrong in (1.01 * found[0], np.full_like(found[0], np.nan), found[0][:, :1]):
        with pytest.raises(ExportError, match=r"^net.onnx: its outputs on onnxruntime, 1 thread"):
            onnx_files.compared(target, net, X, [wrong])

"""Exported programs in, exported programs out: the same but for the chains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program_files import UNet, exported, in_and_out, unet, used, written
from torch import Tensor, nn
from torch.export import Dim

from factorize import FinetuneConfig, compress, load
from factorize.errors import ExportError
from factorize.export import bundle, program_back
from factorize.models.load_model import load_model

ALONE = """
import sys, torch
model = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    torch.save([model(x) for x in torch.load(sys.argv[2])], sys.argv[3])
assert not any(name.startswith("factorize") for name in sys.modules)
"""


def alone(file: Path, inputs: list[Tensor]) -> list[Any]:
    """What a program gives in a fresh process with torch alone."""
    given, made = file.with_name("given"), file.with_name("made")
    torch.save(inputs, given)
    command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE, *map(str, (file, given, made))]
    subprocess.run(command, check=True)
    return torch.load(made)


def line() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2, dilation=1), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Conv1d(8, 8, 3, 2, groups=2, padding=1, padding_mode="circular"),
        nn.ConvTranspose1d(8, 6, 4, 2, 1),
    )  # fmt: skip
    return used(net, torch.randn(4, 4, 32))


def cube() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 8, 3, 2, dilation=2),
        nn.ConvTranspose3d(8, 4, 2, 2), nn.Flatten(2), nn.Linear(512, 5),
    )  # fmt: skip
    return used(net, torch.randn(4, 4, 12, 12, 12))


def test_height_width_and_batch_stay_free(tmp_path: Path) -> None:
    net, out = unet(), tmp_path / "out.pt2"
    path = written(net, tmp_path / "net.pt2")
    in_and_out(path, out)
    inputs = [torch.randn(2, 4, 16, 12), torch.randn(5, 4, 24, 40)]
    for got, x in zip(alone(out, inputs), inputs, strict=True):
        torch.testing.assert_close(got, net(x), atol=1e-5, rtol=1e-5)
    before, after = torch.export.load(path), torch.export.load(out)
    assert str(after.range_constraints) == str(before.range_constraints)
    assert after.call_spec == before.call_spec
    assert after._guards_code == before._guards_code
    shape = next(n for n in after.graph.nodes if n.name == "x").meta["val"].shape
    assert str(shape) == str(next(n for n in before.graph.nodes if n.name == "x").meta["val"].shape)
    names = [spec.target for spec in after.graph_signature.input_specs if spec.target]
    assert names == [*after.state_dict] or set(names) == set(after.state_dict)
    assert "down.0.weight" in names
    assert "down.weight" not in names
    with pytest.raises(Exception, match="64|range|<="):
        after.module()(torch.randn(65, 4, 16, 12))


@pytest.mark.parametrize(
    "net, sizes, dims",
    [
        (line, [(2, 4, 32), (3, 4, 48)], ({0: Dim("b"), 2: 2 * Dim("half", min=4)},)),
        (cube, [(1, 4, 12, 12, 12)], None),
    ],
    ids=["1-D", "3-D"],
)
def test_full_rank_is_the_original(net: Any, sizes: Any, dims: Any, tmp_path: Path) -> None:
    net, out = net(), tmp_path / "out.pt2"
    inputs = [torch.randn(size) for size in sizes]
    path = exported(net, (inputs[0],), tmp_path / "net.pt2", dims)
    _, plan = in_and_out(path, out, rank=1.0)
    assert len(plan.factorized) >= 3
    program = torch.export.load(out).module()
    for x in inputs:
        torch.testing.assert_close(program(x), net(x), atol=1e-5, rtol=1e-5)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.register_buffer("fixed", torch.ones(1, 8, 1, 1), persistent=False)

    def forward(self, pair: list[Tensor], scale: float, *, y: Tensor) -> dict[str, Any]:
        z = self.conv(pair[0]) * self.fixed + torch.tensor([1.0])
        return {"z": self.other(z) * scale, "more": (y + 1, z + pair[1])}


def test_several_inputs_and_outputs_keep_their_form(tmp_path: Path) -> None:
    net, x, z = Two(), torch.randn(1, 4, 8, 8), torch.randn(1, 8, 8, 8)
    y = torch.randn(1, 2)
    path = exported(net, ([x, z], 2.0), tmp_path / "net.pt2", y=y)
    in_and_out(path, tmp_path / "out.pt2")
    got = torch.export.load(tmp_path / "out.pt2").module()([x, z], 2.0, y=y)
    torch.testing.assert_close(got, net([x, z], 2.0, y=y), atol=1e-5, rtol=1e-5)


def test_a_decomposed_program(tmp_path: Path) -> None:
    """Of core operators: one for all convolutions, batch norms that give three tensors."""
    net = unet()
    x = torch.randn(1, 4, 16, 12)
    program = torch.export.export(net, (x,), strict=False).run_decompositions()
    torch.export.save(program, tmp_path / "net.pt2")
    assert "norm" in load_model(tmp_path / "net.pt2").model.program_form.layers  # type: ignore[union-attr]
    in_and_out(tmp_path / "net.pt2", tmp_path / "out.pt2")
    got = torch.export.load(tmp_path / "out.pt2").module()(x)
    torch.testing.assert_close(got, net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["shuffled_grouped", "cp", "tucker2"])
def test_other_chains(method: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 1 if method == "shuffled_grouped" else 3), nn.ReLU())
    path = exported(net, (torch.randn(1, 8, 6, 6),), tmp_path / "net.pt2")
    small, plan = in_and_out(path, tmp_path / "out.pt2", rank=0.5, method=method)
    assert plan.factorized
    x = torch.randn(1, 8, 6, 6)
    got = torch.export.load(tmp_path / "out.pt2").module()(x)
    torch.testing.assert_close(got, small(x), atol=1e-5, rtol=1e-5)


def test_a_program_that_differs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(unet(), tmp_path / "net.pt2")

    def other(old: Tensor, _: Tensor) -> Tensor:
        return nn.Parameter(old.detach() + 1) if isinstance(old, nn.Parameter) else old + 1

    monkeypatch.setattr(program_back, "_like", other)
    with pytest.raises(ExportError, match="outputs must equal the model's"):
        in_and_out(path, tmp_path / "out.pt2")
    assert not (tmp_path / "out.pt2").exists()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_a_whole_run_keeps_the_batch_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "export_onnx", lambda *_, **__: None)  # takes half of the time
    net = unet()
    model = load_model(written(net, tmp_path / "net.pt2")).model
    out = tmp_path / "out"
    images = torch.randn(40, 4, 16, 12)
    result = compress(
        model, images[:1], rank=0.5, include=["down", "up"], data=images, outputs="values",
        finetune=FinetuneConfig(1, may_stay=False, lr=1e-3, control=False), out=out, latency=False,
        device="cpu",
    )  # fmt: skip
    assert result.report.failures == ()
    recalibrated = (result.report.recalibration or {})["applied"]
    norm: Any = result.model.get_submodule("norm")
    statistics = torch.equal(norm.running_mean, net.norm.running_mean)  # type: ignore[union-attr]
    assert statistics != recalibrated
    assert norm.num_batches_tracked == net.norm.num_batches_tracked  # type: ignore[union-attr]
    assert not torch.equal(norm.weight, net.norm.weight)  # type: ignore[union-attr]
    x = torch.randn(3, 4, 8, 20)
    wanted = result.model(x)
    got = torch.export.load(out / "model.pt2").module()(x)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    # The names are those of the class, which takes the weights too.
    torch.testing.assert_close(load(out, UNet().eval())(x), wanted, atol=1e-5, rtol=1e-5)
    fresh = load_model(tmp_path / "net.pt2").model
    torch.testing.assert_close(load(out, fresh)(x), wanted, atol=1e-5, rtol=1e-5)

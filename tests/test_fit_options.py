"""What the fits are asked for, by command or by call, and what is told and written of them."""

import copy
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ran
from torch import Tensor, nn

import factorize
from factorize import cli
from factorize.errors import DataError, OutputError
from factorize.fit import FitConfig, Fitted, apply_, fit_remarks, fit_sequential, reconstruct
from factorize.fit import layerwise as layerwise_module
from factorize.io.data import load_data
from factorize.io.digits import load_digits_model
from factorize.methods.chain import chain_kernel
from factorize.tensor.moments import LayerCalibration
from factorize.types import Data, Factorization

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FEW = FitConfig(images=40)


def net() -> nn.Module:
    """Convolutions with a bias and with a batch norm, in a block and outside of it."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip
    block[3].running_mean.normal_()
    block[3].running_var.uniform_(0.5, 2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def photographs(count: int = 60) -> Tensor:
    """Smooth images (N, 3, 16, 16): neighbours are alike, as in photographs."""
    rough = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(rough, size=16, mode="bicubic") + 0.3


def data_of(images: Tensor) -> Data:
    """Unlabelled images, some of them for each use."""
    train = [(batch,) for batch in images[:-10].split(16)]
    return Data(train, [(images[-10:],)], None, False, None, "photographs")


def distance(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Relative difference of the outputs."""
    with torch.no_grad():
        wanted = original(images)
        return float((model(images) - wanted).norm() / wanted.norm())


def kernels(model: nn.Module) -> list[Tensor]:
    """What each chain of a rewritten model is equal to."""
    found = factorize.find(model, X)
    chains: dict[str, list[Any]] = {}
    for site in found:
        parent, _, last = site.spec.name.rpartition(".")
        if isinstance(model.get_submodule(parent)[int(last)], nn.Conv2d):
            chains.setdefault(parent, []).append(site.spec)
    return [
        chain_kernel(
            tuple(specs), tuple(model.get_submodule(s.name).weight.detach().double() for s in specs)
        )
        for parent, specs in chains.items()
        if parent and all(isinstance(one, nn.Conv2d) for one in model.get_submodule(parent))
    ]


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(photographs())


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[factorize.Result, Path]:
    """The default with data, and its folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    return factorize.compress(
        net(), X, rank=3, data=data, fit=FEW, out=out, latency=False, device="cpu"
    ), out


@pytest.fixture(scope="module")
def calibration(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the moments in `net`."""
    path = tmp_path_factory.mktemp("calibration") / "moments.safetensors"
    plan = factorize.plan(net(), X, rank=3)
    factorize.rewrite(net(), plan, data=data, config=replace(FEW, save_calibration=path))
    return path


# The default.


def test_with_data_the_default_is_sequential_and_closer_than_outputs_and_weights() -> None:
    data, x = load_data("digits", input_shape=(1, 8, 8)), torch.randn(1, 1, 8, 8)
    results = [
        factorize.compress(
            load_digits_model(), x, rank=8, data=data, fit=fit, latency=False, device="cpu"
        ).report
        for fit in (FitConfig(images=200), FitConfig("outputs", images=200), FitConfig("weights"))
    ]
    assert [one.settings["fit"]["how"] for one in results] == ["sequential", "outputs", "weights"]
    sequential, outputs, weights = (one.quality["rewritten"]["kl"] for one in results)
    assert sequential < outputs < weights / 3
    assert results[0].quality["rewritten"]["top1"] > results[2].quality["rewritten"]["top1"]


def test_without_data_it_is_weights_and_the_note_says_what_was_given_up() -> None:
    report = factorize.compress(net(), X, rank=3, latency=False).report
    assert report.settings["fit"]["how"] == "weights"
    (note,) = (note for note in report.notes if "weights alone" in note)
    assert "--data" in note
    assert all(layer.held_out_error is None for layer in report.layers)


def test_note_is_there_where_weights_were_asked_for_and_not_where_there_is_a_fit(
    run: tuple[factorize.Result, Path], data: Data
) -> None:
    fit = FitConfig("weights")
    report = factorize.compress(net(), X, rank=3, data=data, fit=fit, latency=False).report
    assert any("--fit sequential" in note for note in report.notes)
    assert not any("weights alone" in note for note in run[0].report.notes)


# What is told and written.


def test_report_has_both_errors_of_each_layer_and_how_it_was_fitted(
    run: tuple[factorize.Result, Path],
) -> None:
    saved = json.loads((run[1] / "report.json").read_text())
    assert saved["settings"]["fit"] == {
        "how": "sequential", "images": 40, "memory": 2e9, "calibration": None,
        "save_calibration": None, "reconstruct": False,
    }  # fmt: skip
    replaced = [layer for layer in saved["layers"] if layer["method"]]
    assert len(replaced) == 3
    for layer, told in zip(saved["layers"], run[0].report.layers, strict=True):
        assert (layer["error"], layer["held_out_error"]) == (told.error, told.held_out_error)
    assert all(0 < layer["error"] < 1 and 0 < layer["held_out_error"] < 1 for layer in replaced)
    dense = [layer for layer in saved["layers"] if not layer["method"]]
    assert dense
    assert {(layer["error"], layer["held_out_error"]) for layer in dense} == {(None, None)}


def test_folder_rebuilds_the_model_with_its_biases_and_means(
    run: tuple[factorize.Result, Path],
) -> None:
    result, out = run
    scrambled = net()
    for tensor in scrambled.state_dict().values():
        tensor.mul_(2).add_(1)
    loaded = factorize.load(out, scrambled)
    for key, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(loaded(photographs()), result.model(photographs()))
    before = net()
    assert not torch.equal(loaded[2][0][-1].bias, before[2][0].bias)
    assert not torch.equal(loaded[2][3].running_mean, before[2][3].running_mean)


def test_table_shows_both_errors(command: Callable[..., Any], calibration: Path) -> None:
    torch.save(net(), "net.pt")
    ran = command("net.pt", "--rank", 3, "--input-shape", "3,16,16", "--calibration", calibration)
    assert ran.code == 0, ran.err
    report = json.loads(Path("net-factorized/report.json").read_text())
    assert report["settings"]["fit"]["how"] == "outputs"
    assert "fit|held" in ran.out
    for layer in report["layers"]:
        if layer["method"]:
            shown = f"{100 * layer['error']:.1f}|{100 * layer['held_out_error']:.1f}"
            assert shown in ran.out


def remarks_of(error: float, held_out: float) -> list[str]:
    spec = factorize.find(net(), X)[1].spec
    made = Factorization(spec, "cp", (1,), "", (), (), error, held_out)
    return fit_remarks("sequential", Fitted({spec.name: made}))


def test_overfitting_to_few_images_is_told_and_rounding_is_not() -> None:
    (remark,) = remarks_of(0.1, 0.15)
    assert "2.0: " not in remark
    assert "2.0, 1.50 times" in remark
    assert remarks_of(0.1, 0.11) == []
    assert remarks_of(1e-9, 5e-9) == []
    assert remarks_of(0.0, 0.0) == []


# Orders.


def low_rank_input() -> nn.Sequential:
    """Its last layer has weights for one order, and an input for the other, which is then exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3)).eval()
    basis = torch.linalg.qr(torch.randn(8, 4))[0]
    with torch.no_grad():
        weight = model[1].weight
        weight.copy_(torch.einsum("or,pr,pixy->oixy", basis, basis, weight) + 0.4 * weight)
    return model


def test_plan_that_is_written_has_the_order_that_was_fitted(tmp_path: Path) -> None:
    model, images = low_rank_input(), torch.randn(60, 4, 9, 9)
    options = {"data": data_of(images), "fit": FEW, "latency": False, "device": "cpu"}
    planned = factorize.plan(model, images[:1], method="channel_svd", rank=4)
    assert planned.layers[1].variant == "spatial_first"

    out = tmp_path / "out"
    result = factorize.compress(model, images[:1], method="channel_svd", rank=4, out=out, **options)
    assert [conv.kernel_size for conv in result.model[1]] == [(1, 1), (3, 3)]
    written = factorize.load_plan(out / "plan.json")
    assert written.layers[1].variant == "pointwise_first"
    assert result.report.layers[1].variant == "pointwise_first"
    assert result.report.layers[1].error < 0.05  # of the other order: above 0.2
    content = json.loads((out / "plan.json").read_text())["layers"][1]
    assert content["macs"]["chain"] == 4 * 8 * 81 + 4 * 8 * 9 * 49
    assert content["predicted_error"] is None
    loaded = factorize.load(out, low_rank_input())
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))

    # An edited plan is what its user wants.
    kept = factorize.compress(model, images[:1], plan=planned, **options)
    assert [conv.kernel_size for conv in kept.model[1]] == [(3, 3), (1, 1)]
    assert kept.plan.layers[1].variant == "spatial_first"


# Calibration files.


def test_calibration_file_gives_the_chains_that_the_images_give(
    data: Data, calibration: Path
) -> None:
    plan = factorize.plan(net(), X, rank=3)
    outputs = replace(FEW, how="outputs")
    by_images = factorize.rewrite(net(), plan, data=data, config=outputs)
    by_file = factorize.rewrite(net(), plan, config=FitConfig(calibration=calibration))
    by_weights = factorize.rewrite(net(), plan)
    found = [kernels(model) for model in (by_images, by_file, by_weights)]
    assert [len(ones) for ones in found] == [3, 3, 3]
    for one, two, other in zip(*found, strict=True):
        assert (one - two).norm() < 1e-3 * one.norm()
        assert (one - other).norm() > 0.1 * one.norm()
    assert torch.allclose(by_images[3][-1].bias, by_file[3][-1].bias, atol=1e-4)


def test_images_are_not_read_where_there_is_a_calibration(calibration: Path) -> None:
    def unread() -> Iterator[Any]:
        raise AssertionError("the images were read")
        yield

    class Unread:
        def __iter__(self) -> Iterator[Any]:
            return unread()

    plan = factorize.plan(net(), X, rank=3)
    data = replace(data_of(photographs()), train=Unread())
    config = FitConfig(calibration=calibration)
    assert config.resolved(data) == "outputs"
    factorize.rewrite(net(), plan, data=data, config=config)
    with pytest.raises(AssertionError, match="were read"):
        factorize.rewrite(net(), plan, data=data, config=FitConfig())


def test_calibration_of_another_model_is_refused(calibration: Path, tmp_path: Path) -> None:
    model = net()
    model[3] = nn.Conv2d(16, 16, 3, stride=2)
    config = FitConfig(calibration=calibration)
    with pytest.raises(DataError, match=r"^3: the calibration must be of this very layer.*stride"):
        factorize.compress(model, X, rank=2, fit=config, out=tmp_path / "out", latency=False)
    model = nn.Sequential(nn.Identity(), net())
    with pytest.raises(DataError, match=r"^1\.2\.0: the calibration must have this layer"):
        factorize.compress(model, X, rank=2, fit=config, out=tmp_path / "out", latency=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_corrupt_calibration_is_refused(calibration: Path, tmp_path: Path, size: int) -> None:
    file = tmp_path / "moments.safetensors"
    file.write_bytes(calibration.read_bytes()[:size])
    with pytest.raises(DataError, match=r"moments\.safetensors.*whole safetensors") as caught:
        factorize.compress(
            net(), X, rank=3, fit=FitConfig(calibration=file), out=tmp_path / "out", latency=False
        )
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_calibration_is_not_overwritten_unasked(data: Data, tmp_path: Path) -> None:
    file = tmp_path / "moments.safetensors"
    file.write_text("hours of work")
    config, progress = replace(FEW, save_calibration=file), []
    options = {"rank": 3, "fit": config, "latency": False, "device": "cpu", "data": data}
    with pytest.raises(OutputError, match="exists already.*--force"):
        factorize.compress(
            net(), X, out=tmp_path / "out", progress=lambda *now: progress.append(now), **options
        )
    with pytest.raises(OutputError, match="exists already"):
        factorize.rewrite(net(), factorize.plan(net(), X, rank=3), data=data, config=config)
    assert not progress  # before any work
    assert file.read_text() == "hours of work"
    assert list(tmp_path.iterdir()) == [file]

    result = factorize.compress(net(), X, force=True, **options)
    assert result.report.settings["fit"]["how"] == "sequential"
    factorize.compress(net(), X, rank=3, fit=FitConfig(calibration=file), latency=False)
    assert list(tmp_path.iterdir()) == [file]


def test_calibration_can_be_saved_in_the_output_folder(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = replace(FEW, how="weights", save_calibration=out / "moments.safetensors")
    factorize.compress(net(), X, rank=3, data=data, fit=config, out=out, latency=False)
    assert {"moments.safetensors", "model.safetensors"} <= {path.name for path in out.iterdir()}


def test_moments_are_let_go_once_their_layer_is_fitted(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[LayerCalibration]] = []
    alive = []

    def fit_layer(layer: Any, module: Any, calibration: LayerCalibration, **options: Any) -> Any:
        seen.append(weakref.ref(calibration))
        alive.append(sum(one() is not None for one in seen))
        return plain_fit(layer, module, calibration, **options)

    plain_fit = layerwise_module.fit_layer
    monkeypatch.setattr(layerwise_module, "fit_layer", fit_layer)
    plan = factorize.plan(net(), X, rank=3)
    config = replace(FEW, how="outputs", memory=1.0)
    bounded = factorize.rewrite(net(), plan, data=data, config=config)
    assert alive == [1, 1, 1]
    at_once = factorize.rewrite(net(), plan, data=data, config=replace(config, memory=2e9))
    for one, two in zip(kernels(bounded), kernels(at_once), strict=True):
        assert torch.equal(one, two)


# Models.


@pytest.mark.parametrize("training", [False, True])
def test_rewrite_leaves_the_model_as_it_was(data: Data, training: bool) -> None:
    model = net().train(training)
    state = copy.deepcopy(model.state_dict())
    plan = factorize.plan(model, X, rank=3)
    fitted = factorize.rewrite(model, plan, data=data, config=FEW)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(m.training is training for one in (model, fitted) for m in one.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    images, plain = photographs(), factorize.rewrite(model, plan)
    assert distance(fitted.eval(), net(), images) < 0.5 * distance(plain.eval(), net(), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_of_another_precision_is_fitted_in_its_own(data: Data, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    result = factorize.compress(
        model, X.to(dtype), rank=3, data=data, fit=FEW, latency=False, device="cpu"
    )
    for one in (model, result.model):
        assert {p.dtype for p in one.parameters()} == {dtype}
    plain = factorize.rewrite(model, result.plan).double()
    seen = set()
    with model[0].register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype)):
        factorize.rewrite(model, result.plan, data=data, config=FEW)
    assert seen == {torch.promote_types(dtype, torch.float32)}  # sums of halves would overflow
    images = photographs().double()
    far = distance(plain, copy.deepcopy(model).double(), images)
    assert distance(result.model.double(), model.double(), images) < 0.5 * far


def test_reconstruction_brings_the_outputs_closer_and_is_told(data: Data) -> None:
    options = {"rank": 3, "data": data, "latency": False, "device": "cpu"}
    plain, tuned = (
        factorize.compress(net(), X, fit=replace(FEW, reconstruct=wanted), **options)
        for wanted in (False, True)
    )
    notes = [any("--reconstruct" in note for note in one.report.notes) for one in (plain, tuned)]
    assert notes == [False, True]
    images, block = photographs(), net()[:3]
    closer, before = (distance(one.model[:3], block, images) for one in (tuned, plain))
    assert closer < before


class Joining(nn.Module):
    """Two tensors in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat((x, y), 1)))


class Parting(nn.Module):
    """Two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.relu(self.conv(x)).chunk(2, 1)


class Unusual(nn.Module):
    """Holders of layers that are called otherwise than with one tensor for one, or never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parting, self.joining = Parting(), Joining()
        self.listed = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1)])
        self.plain = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.joining(*self.parting(x.repeat(1, 3, 1, 1)[:, :8]))
        return self.plain(torch.relu(self.listed[0](x)))


def test_reconstruction_leaves_alone_what_is_no_block() -> None:
    model, images = Unusual().eval(), list(photographs().split(20))
    plan = factorize.plan(model, X, rank=2)
    before = fit_sequential(model, plan, images)
    assert set(before.layers) == {
        "parting.conv", "joining.conv", "listed.0", "plain.0", "plain.2",
    }  # fmt: skip
    steps = []
    after = reconstruct(model, before, images, progress=lambda *now: steps.append(now[:3]))
    assert steps == [("reconstruct", 1, 1)]
    moved = {
        name
        for name, made in after.layers.items()
        if not torch.equal(made.weights[0].float(), before.layers[name].weights[0].float())
    }
    assert moved == {"plain.0", "plain.2"}


def test_reconstruction_takes_frozen_models_and_those_with_modes_of_their_own() -> None:
    class Own(nn.Module):
        def __init__(self, mode: Any) -> None:
            super().__init__()
            self.inner, self.mode = net(), mode

        def forward(self, x: Tensor) -> Tensor:
            with self.mode():
                return self.inner(x)

    images = list(photographs().split(20))
    for mode in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
        model = Own(mode).eval().requires_grad_(False)
        plan = factorize.plan(model, X, rank=3)
        before = fit_sequential(model, plan, images)
        after = reconstruct(model, before, images)
        name = "inner.2.0"
        assert not torch.allclose(
            after.layers[name].weights[0], before.layers[name].weights[0], rtol=1e-3
        )
        assert not any(p.requires_grad for p in apply_(copy.deepcopy(model), after).parameters())


# The command line.


def prepare(folder: Path) -> tuple[str, ...]:
    """A model and images; the arguments that name them."""
    torch.save(net(), folder / "net.pt")
    pixels = (photographs() * 40 + 100).clamp(0, 255).to(torch.uint8).movedim(1, -1)
    np.savez(folder / "images.npz", images=pixels.numpy())
    (folder / "there.safetensors").write_text("mine")
    return "net.pt", "--rank", "3", "--input-shape", "3,16,16", "--device", "cpu"


WITH = ("--data", "images.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fit", "sequential"), "--fit sequential needs images, got none. Give --data"),
        (("--fit", "outputs"), "--fit outputs needs images, got none. Give --data"),
        (("--reconstruct",), "--reconstruct needs images"),
        (("--save-calibration", "new.safetensors"), "--save-calibration needs images"),
        (("--fit", "best"), "--fit must be one of weights, outputs, sequential, got 'best'"),
        (("--fit", "best", *WITH), "got 'best'"),
        (("--calibration-images", "1", *WITH), "--calibration-images"),
        (("--calibration-images", "many"), "--calibration-images"),
        (("--calibration-memory", "0", *WITH), "--calibration-memory"),
        (("--calibration-memory", "-1", *WITH), "--calibration-memory"),
        (("--calibration-memory", "nan", *WITH), "--calibration-memory"),
        (("--calibration", "there.safetensors"), "there.safetensors: the calibration must be"),
        (("--calibration", "missing.safetensors"), "missing.safetensors"),
        (
            ("--calibration", "there.safetensors", "--fit", "sequential", *WITH),
            "--fit outputs, got",
        ),
        (("--calibration", "there.safetensors", "--fit", "sequential"), "--fit outputs, got"),
        (("--calibration", "there.safetensors", "--fit", "weights"), "--fit outputs, got"),
        (("--calibration", "there.safetensors", "--reconstruct"), "--reconstruct needs images"),
        (
            ("--calibration", "there.safetensors", "--save-calibration", "new.safetensors", *WITH),
            "Leave one of them out",
        ),
        (("--save-calibration", "there.safetensors", *WITH), "there.safetensors: exists already"),
        (("--save-calibration", ".", "--force", *WITH), "exists already"),
        (("--save-calibration", "no/new.safetensors", *WITH), "the folder of the calibration"),
    ],
)
def test_bad_wish_is_one_line_and_leaves_nothing(
    command: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    base = prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    ran = command(*base, *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_dry_run_fits_nothing(command: Callable[..., Ran], tmp_path: Path) -> None:
    base = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    wishes = ("--fit", "sequential", "--reconstruct", "--save-calibration", "new.safetensors")
    ran = command(*base, *WITH, *wishes, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "spatial_svd 3" in ran.out
    assert "held" not in ran.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("wish", "stage", "kept"),
    [
        ((), "factorize", set()),
        (("--fit", "outputs"), "calibrate", set()),
        (("--save-calibration", "new.safetensors"), "calibrate", set()),
        (("--save-calibration", "new.safetensors"), "factorize", {"new.safetensors"}),
    ],
)
def test_ctrl_c_during_the_fit_leaves_no_results(
    command: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: tuple[str, ...],
    stage: str,
    kept: set[str],
) -> None:
    def interrupt(_: object, now: str, *__: object) -> None:
        if now == stage:
            raise KeyboardInterrupt

    base, threads = prepare(tmp_path), threading.active_count()
    before = {path.name for path in tmp_path.rglob("*")}
    monkeypatch.setattr(cli.Bars, "update", interrupt)
    ran = command(*base, *WITH, *wish)
    assert ran.code == 130
    but = f" but {kept.copy().pop()}" if kept else ""
    assert ran.err == f"interrupted: nothing was written{but}\n"
    assert {path.name for path in tmp_path.rglob("*")} == before | kept
    assert threading.active_count() == threads

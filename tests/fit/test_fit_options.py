"""What the fits are asked for, and what is told and written of them."""

import json
from pathlib import Path

import pytest
import torch
from photographs import FEW, X, data_of, net, photographs
from torch import nn

import factorize
from factorize.data.load_data import load_data
from factorize.fit import FitConfig, Fitted, fit_remarks
from factorize.models.digits import load_digits_model
from factorize.types import Data, Factorization

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


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
    how = FitConfig("weights")
    report = factorize.compress(net(), X, rank=3, fit=how, latency=False).report
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
    planned = factorize.make_plan(model, images[:1], method="channel_svd", rank=4)
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

"""A subset of the zoo: families that differ, through all of the library."""

import math
from importlib.util import find_spec
from typing import Any

import pytest
import zoo_check
from zoo_models import Entry, build
from zoo_outputs import difference

import factorize

ALWAYS = [
    ("torchvision", "shufflenet_v2_x0_5", "shufflenetv2"),
    ("torchvision", "squeezenet1_1", "squeezenet"),
    ("torchvision", "lraspp_mobilenet_v3_large", "segmentation.lraspp"),
    ("torchvision", "ssdlite320_mobilenet_v3_large", "detection.ssdlite"),
    ("torchvision", "raft_small", "optical_flow.raft"),
    ("timm", "ghostnet_050", "ghostnet"),
]
NIGHTLY = [
    ("torchvision", "densenet121", "densenet"),
    ("torchvision", "regnet_y_400mf", "regnet"),
    ("torchvision", "efficientnet_b0", "efficientnet"),
    ("torchvision", "r3d_18", "video.resnet"),
    ("torchvision", "mnasnet0_5", "mnasnet"),
    ("timm", "lcnet_035", "mobilenetv3"),
    ("timm", "repghostnet_050", "repghost"),
]


def _cases() -> list[Any]:
    """The last: whether it is exported too, which takes longest."""
    exported = Entry("torchvision", "mobilenet_v3_small", "mobilenetv3")
    return [
        pytest.param(Entry("torchvision", "resnet18", "resnet"), True),
        *[pytest.param(Entry(*names), False) for names in ALWAYS],
        pytest.param(exported, True, marks=pytest.mark.nightly),
        *[pytest.param(Entry(*names), False, marks=pytest.mark.nightly) for names in NIGHTLY],
    ]


# The models' own warnings, and those of torch's exporter about them.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "entry, onnx", _cases(), ids=lambda value: value.name if isinstance(value, Entry) else ""
)
def test_a_model_goes_through_all_stages(entry: Entry, onnx: bool) -> None:
    if entry.suite == "timm" and find_spec("timm") is None:
        pytest.skip("timm is not installed (pip install '.[dev]'): its families are not checked")
    row = zoo_check.check(entry, onnx=onnx)
    assert row["failures"] == {}
    done = sum(row["full"]["methods"].values())
    assert done + sum(row["full"]["left"].values()) == sum(row["found"].values())
    assert "" not in row["full"]["left"]
    assert row["full"]["float32"] <= zoo_check.TOLERANCE
    assert row["reloaded"] == 0
    if entry.suite == "torchvision":
        assert row["arch"] == f"torchvision:{entry.name}"
    if done:  # else nothing could be seen of its layers in the output
        assert row["quarter"]["difference"] > 10 * zoo_check.TOLERANCE
        assert row["train"]["layers"] == sum(row["quarter"]["methods"].values())
    if onnx:
        assert row["onnx"]["chains"] < 1e-4


def test_quantized_models_are_refused_by_name() -> None:
    row = zoo_check.check(Entry("torchvision", "quantized_resnet18", "quantization.resnet"))
    assert row["failures"] == {}
    assert "quantized_resnet18" in row["refused"]


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_rewrite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model, plan):
        made = rewrite(model, plan)
        made.features[0][-1].weight.data *= 1.1
        return made

    rewrite = factorize.rewrite
    monkeypatch.setattr(factorize, "rewrite", wrong)
    row = zoo_check.check(Entry("torchvision", "squeezenet1_1", "squeezenet"), onnx=False)
    assert list(row["failures"]) == ["full rank"]
    assert row["full"].get("float64", 1) > zoo_check.TOLERANCE


def test_no_constant_weight_hides_a_layer() -> None:
    model = build(Entry("torchvision", "convnext_tiny", "convnext"), {})
    scales = [p for name, p in model.named_parameters() if name.endswith("layer_scale")]
    assert scales
    assert all(p.min() >= 0.2 for p in scales)


def test_difference_is_infinite_where_outputs_cannot_be_compared() -> None:
    import torch

    one = torch.ones(2)
    assert difference([one], [one[:1]]) == math.inf
    assert difference([one], [one * math.nan]) == math.inf
    assert difference([torch.zeros(2)], [one]) == math.inf
    assert difference([one, one], [one, 2 * one]) == 1

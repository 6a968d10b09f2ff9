"""The whole, as a library: metrics of one's own, data, and fine-tuning that goes on."""

import json
import math
from pathlib import Path

import pytest
import torch
from compressing import X, net
from torch import nn

import factorize
from factorize.data.load_data import load_data
from factorize.errors import DataError, OutputError
from factorize.models.digits import load_digits_model

# torch.export's own deprecations, and accelerate's on a machine without a GPU.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]

WEIGHTS = factorize.FitConfig("weights")


def test_own_metric_is_reported() -> None:
    @torch.no_grad()
    def size(model: nn.Module) -> dict[str, float]:
        return {"norm": sum(float(p.norm()) for p in model.parameters()), "other": 1.0}

    size.higher_is_better = False  # type: ignore[attr-defined]
    result = factorize.compress(net(), X, rank=4, evaluate=size, latency=False, fit=WEIGHTS)
    assert result.report.quality["original"] == size(net())
    assert result.report.quality["rewritten"] == pytest.approx(size(result.model))
    assert result.report.settings["higher_is_better"] == {"norm": False, "other": False}


def test_metric_sees_a_model_in_eval_mode_without_gradients() -> None:
    seen = []

    def look(model: nn.Module) -> float:
        seen.append((any(m.training for m in model.modules()), torch.is_grad_enabled()))
        return 0.0

    result = factorize.compress(net().train(), X, rank=4, evaluate=look, latency=False)
    assert set(seen) == {(False, False)}
    assert result.model.training


def test_metric_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(DataError, match="evaluate= broken: must return .* ZeroDivisionError"):
        factorize.compress(net(), X, rank=4, latency=False,
                           evaluate=factorize.Metric(lambda _: 1 / 0, "broken"))  # fmt: skip


def test_data_recalibrates_and_tunes_and_reports_each_stage(tmp_path: Path) -> None:
    data = load_data("digits", input_shape=(1, 8, 8))
    model = load_digits_model()
    x = torch.randn(1, 1, 8, 8)
    out = tmp_path / "out"
    result = factorize.compress(
        model, x, rank=8, data=data, finetune=1, out=out, latency=False, device="cpu"
    )
    quality = result.report.quality
    assert list(quality) == ["original", "rewritten", "recalibrated", "finetuned", "control"]
    assert quality["original"]["top1"] >= 98
    assert quality["original"]["agreement"] == 100
    assert quality["original"]["kl"] == pytest.approx(0, abs=1e-9)
    assert quality["finetuned"]["kl"] < quality["recalibrated"]["kl"] < quality["rewritten"]["kl"]
    assert quality["finetuned"]["top1"] > 95
    assert not (out / "finetune.ckpt").exists()
    with torch.no_grad():
        images, labels = next(iter(data.test or []))
        right = (factorize.load(out, load_digits_model())(images).argmax(1) == labels).float()
    assert float(right.mean()) > 0.95


@pytest.mark.nightly  # always: the rounds of test_rounds, and test_interrupted in processes
def test_interrupted_tuning_keeps_a_checkpoint_and_resumes(
    tmp_path: Path, unexported: None
) -> None:
    data = load_data("digits", input_shape=(1, 8, 8))
    x = torch.randn(1, 1, 8, 8)
    steps = 0

    def interrupt(stage: str, done: int, total: int, values: dict[str, float]) -> None:
        nonlocal steps
        if stage == "fine-tuning":
            steps += 1
            if steps == 5:
                raise KeyboardInterrupt

    out = tmp_path / "out"
    options = {"rank": 8, "data": data, "latency": False, "device": "cpu",
               "fit": factorize.FitConfig("weights")}  # fmt: skip
    config = factorize.FinetuneConfig(epochs=2)
    broken = factorize.compress(
        load_digits_model(), x, out=out, finetune=config, progress=interrupt, **options
    )
    assert broken.report.finetuning is not None
    assert broken.report.finetuning["interrupted"]
    assert any("interrupted" in note for note in broken.report.notes)
    assert (out / "finetune.ckpt").exists()

    resumed = factorize.compress(
        load_digits_model(), x, out=out,
        finetune=factorize.FinetuneConfig(epochs=2, resume=True), **options,
    )  # fmt: skip
    straight = factorize.compress(load_digits_model(), x, finetune=config, **options)
    for one, two in zip(
        resumed.model.state_dict().values(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)


def test_checkpoint_of_a_killed_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "finetune.ckpt").write_text("hours of work")
    with pytest.raises(OutputError, match=r"finetune.ckpt already.*resume=True"):
        factorize.compress(net(), X, rank=4, out=tmp_path)
    assert (tmp_path / "finetune.ckpt").read_text() == "hours of work"


def test_resume_goes_with_a_fine_tuning() -> None:
    with pytest.raises(DataError, match="finetune="):
        factorize.compress(net(), X, rank=4, finetune=factorize.FinetuneConfig(0, resume=True))


def test_tuning_without_data_is_refused() -> None:
    with pytest.raises(DataError, match="data="):
        factorize.compress(net(), X, rank=4, finetune=1)


def test_report_has_no_nan_in_its_json(tmp_path: Path) -> None:
    result = factorize.compress(
        net(), X, rank=4, latency=False, out=tmp_path / "o", evaluate=lambda _: math.nan
    )
    assert math.isnan(next(iter(result.report.quality["original"].values())))
    saved = json.loads((tmp_path / "o" / "report.json").read_text())
    assert next(iter(saved["quality"]["original"].values())) is None

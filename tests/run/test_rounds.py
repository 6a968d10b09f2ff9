"""Cuts in several stages, and the original tuned beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import factorize
import factorize.export
from factorize.data.digits import digits_data
from factorize.data.images import Loading, PixelSet, build
from factorize.errors import DataError, NoConvolutionError, RankError
from factorize.models.digits import load_digits_model
from factorize.plan import Budget
from factorize.run.rounds import Selection, Wish, rounds_of

X = torch.randn(1, 1, 8, 8)
FIT = factorize.FitConfig("weights")  # in no time


def digits() -> factorize.Data:
    """Few images to tune on: as many steps as with all, in a third of the time."""
    whole: Any = digits_data()
    train = whole.train.dataset.dataset
    few = PixelSet(train.pixels[:400], train.labels[:400], train.prepare)
    return build(few, whole.test.dataset, Loading(256), classes=10, source="digits")


def compress(**options: Any) -> factorize.Result:
    settings = {"latency": False, "device": "cpu", "data": digits(), "fit": FIT, **options}
    return factorize.compress(load_digits_model(), X, **settings)


def equal(a: factorize.Result, b: factorize.Result) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(map(torch.equal, *zip(*pairs, strict=True)))


def pressed_at(stage: str, count: int) -> Any:
    seen = 0

    def progress(name: str, done: int, total: int, values: dict[str, float]) -> None:
        nonlocal seen
        seen += name == stage
        if seen == count:
            seen += 1
            raise KeyboardInterrupt

    return progress


def test_stages_cut_by_equal_shares() -> None:
    whole = Wish(None, Budget(macs=0.25, speedup=4.0), None, Selection())
    budgets = [wish.budget for wish in rounds_of(whole, 2)]
    assert [b.macs for b in budgets if b] == pytest.approx([0.5, 0.25])
    assert [b.speedup for b in budgets if b] == pytest.approx([2.0, 4.0])
    share = Wish(None, None, None, Selection(rank=0.125))
    ranks = [wish.selection.rank for wish in rounds_of(share, 3)]
    assert ranks == pytest.approx([0.5, 0.25, 0.125])


@pytest.mark.parametrize(
    "options", [{"rank": 8}, {"rank": "vbmf"}, {"energy": 0.9}, {"budget": Budget(max_drop=1.0)}]
)
def test_what_has_no_steps_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(RankError, match=r"stages= needs Budget\(speedup=\)"):
        compress(stages=2, finetune=1, **options)
    with pytest.raises(RankError, match="at least 1, got 0"):
        compress(stages=0, finetune=1, **options)


def test_stages_need_a_tuning() -> None:
    with pytest.raises(DataError, match="stages: is for a fine-tuning"):
        compress(stages=2, rank=0.25)


def test_a_staged_run_tunes_after_each_cut_and_resumes(tmp_path: Path, unexported: None) -> None:
    out, config = tmp_path / "out", factorize.FinetuneConfig(1)
    options = {"rank": 0.1, "stages": 2}
    whole = compress(finetune=config, **options)
    once = compress(finetune=config, rank=0.1)
    quality = whole.report.quality
    stages = [name for name in quality if "recalibrated" not in name]
    assert stages == [
        "original", "rewritten, round 1 of 2", "finetuned, round 1 of 2",
        "rewritten, round 2 of 2", "finetuned, round 2 of 2", "control",
    ]  # fmt: skip
    assert whole.report.macs == once.report.macs
    assert [layer.rank for layer in whole.plan.layers] == [layer.rank for layer in once.plan.layers]
    assert whole.report.quality_now["top1"] > 95
    assert whole.report.quality_now == quality["finetuned, round 2 of 2"]

    first = pressed_at("fine-tuning, round 1 of 2", 3)
    config = replace(config, control=False)
    cut = compress(finetune=config, out=out, progress=first, **options)
    assert cut.report.finetuning
    assert cut.report.finetuning["interrupted"]
    assert any("interrupted" in note for note in cut.report.notes)
    assert [p.name for p in out.glob("*.ckpt")] == ["finetune-1.ckpt"]
    assert "rewritten, round 2 of 2" not in cut.report.quality
    resume = replace(config, resume=True)
    with pytest.raises(KeyboardInterrupt):  # in the second cut
        compress(finetune=resume, out=out, progress=pressed_at("factorize", 6), **options)
    resumed = compress(finetune=resume, out=out, **options)
    assert equal(whole, resumed)
    assert not list(out.glob("*.ckpt"))


def test_the_original_is_tuned_alike_beside_the_result(tmp_path: Path, unexported: None) -> None:
    config = factorize.FinetuneConfig(2, lr=5e-3)
    whole = compress(rank=8, finetune=config)
    control, tuned = whole.report.control, whole.report.finetuning
    assert control is not None
    assert tuned is not None
    assert (control["steps"], control["epochs_done"]) == (tuned["steps"], tuned["epochs_done"])
    assert control["best_epoch"] > 0
    assert whole.report.quality["control"]["agreement"] < 100  # it has moved
    assert whole.report.quality_now == whole.report.quality["finetuned"]

    out = tmp_path / "out"
    cut = compress(rank=8, finetune=config, out=out, progress=pressed_at("tuning the original", 60))
    assert cut.report.control is not None
    assert cut.report.control["interrupted"]
    assert (out / "control-finetune.ckpt").exists()
    again = factorize.FinetuneConfig(2, lr=5e-3, resume=True)
    resumed = compress(rank=8, finetune=again, out=out)
    assert resumed.report.quality == whole.report.quality
    assert resumed.report.control is not None
    assert resumed.report.control["history"] == control["history"]
    assert not list(out.glob("*.ckpt"))


def test_a_first_stage_that_would_cut_nothing_is_left_out() -> None:
    quality = compress(rank=0.25, stages=4, finetune=factorize.FinetuneConfig(1)).report.quality
    assert "rewritten, round 1 of 4" not in quality
    assert "rewritten, round 4 of 4" in quality
    with pytest.raises(NoConvolutionError):
        compress(rank=0.9, stages=2, finetune=1)


def test_no_control_by_labels_that_are_not_the_models() -> None:
    data = replace(digits(), classes=7)
    config = factorize.FinetuneConfig(1, logit_weight=0.0, feature_weight=1.0)
    report = compress(rank=8, finetune=config, data=data).report
    assert report.control is None
    assert any("no control" in note for note in report.notes)


def test_a_run_does_not_resume_what_an_earlier_one_left(tmp_path: Path, unexported: None) -> None:
    out, slow = tmp_path / "out", factorize.FinetuneConfig(1, lr=1e-3)
    pressed = pressed_at("tuning the original", 3)
    compress(rank=8, finetune=slow, out=out, progress=pressed)
    assert (out / "control-finetune.ckpt").exists()
    config = factorize.FinetuneConfig(1)
    pressed = pressed_at("fine-tuning", 3)
    compress(rank=8, finetune=config, out=out, progress=pressed, force=True)
    resumed = compress(rank=8, finetune=replace(config, resume=True), out=out)
    assert resumed.report.control is not None


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"control": False}, None), ({"label_weight": 0.0}, "no labels are tuned to")],
)
def test_no_control_where_there_is_nothing_to_learn(
    settings: dict[str, Any], told: str | None
) -> None:
    report = compress(rank=8, finetune=factorize.FinetuneConfig(1, **settings)).report
    assert report.control is None
    assert "control" not in report.quality
    assert told is None or any(told in note for note in report.notes)


def test_a_start_that_wins_on_images_that_the_original_knows_is_told() -> None:
    data = digits()
    assert data.test is not None
    new = replace(data, test=[(x, (y + 1) % 10) for x, y in data.test])  # all wrong
    config = factorize.FinetuneConfig(1, lr=5e-3)
    free = replace(config, may_stay=False)
    bare = replace(data, test=None)
    for images, how, epoch, kept, known in (
        (new, config, 0, 1, 1), (new, free, 1, 0, 0), (data, config, 0, 1, 0),
        (bare, config, 0, 1, 0),
    ):  # fmt: skip
        report = compress(rank=0.4, data=images, finetune=how).report
        assert report.finetuning is not None
        assert report.finetuning["best_epoch"] == epoch
        assert sum("fine-tuning kept its start" in note for note in report.notes) == kept
        assert sum("the original knows the held-out" in note for note in report.notes) == known

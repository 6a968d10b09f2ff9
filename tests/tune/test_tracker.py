"""Trackers: what accelerate speaks to is told what a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from torch import nn

from factorize.errors import DataError
from factorize.tune import FinetuneConfig, finetune
from factorize.types import Data


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images() -> Data:
    batch = (torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
    return Data([batch, batch], [batch], labelled=False)


class Fake(accelerate.tracking.GeneralTracker):
    name = "wandb"
    requires_logging_directory = False
    made: list[Any] = []  # noqa: RUF012

    def __init__(self, project: str, **_: Any) -> None:
        super().__init__()
        self.project, self.settings, self.logged, self.finished = project, {}, [], False
        Fake.made.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_a_tracker_gets_settings_scalars_and_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    kinds = [accelerate.utils.LoggerType("wandb")]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", kinds)
    config = FinetuneConfig(2, lr=0.01, tracker="wandb")
    result = finetune(net(1), net(0), images(), config, name="fine-tuning")
    (one,) = Fake.made
    assert (one.project, one.finished) == ("factorize", True)
    assert one.settings["run"] == "fine-tuning"
    assert (one.settings["epochs"], one.settings["lr"]) == (2, 0.01)
    losses = [
        values["fine-tuning/loss"] for _, values in one.logged if "fine-tuning/loss" in values
    ]
    assert len(losses) == result.steps == 4
    scores = [v["fine-tuning/held-out score"] for _, v in one.logged
              if "fine-tuning/held-out score" in v]  # fmt: skip
    assert scores == pytest.approx([entry["score"] for entry in result.history])
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_through_accelerate_writes_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    finetune(net(1), net(0), images(), FinetuneConfig(1, tracker="tensorboard"))
    events = EventAccumulator(str(tmp_path / "runs" / "factorize"))
    events.Reload()
    tags: Any = events.Tags()
    assert "fine-tuning/loss" in tags["scalars"]


def test_an_unknown_or_missing_tracker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="got 'wandbb'. Did you mean wandb"):
        finetune(net(1), net(0), images(), FinetuneConfig(1, tracker="wandbb"))
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(DataError, match="needs the package mlflow"):
        finetune(net(1), net(0), images(), FinetuneConfig(1, tracker="mlflow"))

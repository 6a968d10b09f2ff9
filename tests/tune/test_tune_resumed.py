"""Checkpoints of fine-tuning: runs that go on from one, and files that are none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tuning import dataset, equal, net, pressed_at

from factorize.errors import ModelLoadError, OutputError
from factorize.tune import FinetuneConfig, finetune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("loader", [True, False])
@pytest.mark.parametrize("step", [2, 6, 9])
def test_resumed_run_equals_an_undisturbed_one(tmp_path, step, loader):
    path = tmp_path / "run.pt"
    data, original = dataset(loader=loader), net(0)
    whole, halved = net(1), net(1)
    config = FinetuneConfig(3, lr=1e-2)
    want = finetune(whole, original, data, config)

    config = FinetuneConfig(3, lr=1e-2, checkpoint=path)
    torch.manual_seed(99)  # what else the process draws must not matter
    cut = finetune(halved, original, data, config, progress=pressed_at(step))
    assert cut.interrupted
    assert cut.steps == step
    resumed = net(1)
    torch.manual_seed(123)
    config = FinetuneConfig(3, lr=1e-2, checkpoint=path, resume=True)
    got = finetune(resumed, original, data, config)
    assert got.history == want.history
    assert (got.steps, got.best_epoch) == (want.steps, want.best_epoch)
    assert equal(resumed, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    again = net(1)
    assert finetune(again, original, data, config).steps == want.steps
    assert equal(again, whole)


def test_resume_within_the_last_score(tmp_path):
    path = tmp_path / "run.pt"
    data, original = dataset(), net(0)
    scores = iter((0.0, 1.0))
    want = finetune(
        whole := net(1), original, data, FinetuneConfig(1), score=lambda m: next(scores)
    )
    assert want.best_epoch == 1

    config = FinetuneConfig(1, checkpoint=path)
    calls = []

    def second_fails(m):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return 0.0

    assert finetune(net(1), original, data, config, score=second_fails).interrupted
    config = FinetuneConfig(1, checkpoint=path, resume=True)
    resumed = net(1)
    got = finetune(resumed, original, data, config, score=lambda m: 1.0)
    assert len(got.history) == 2
    assert got.steps == want.steps
    assert got.best_epoch == 1
    assert torch.equal(resumed[0].weight, whole[0].weight)


def test_checkpoints_are_written_while_an_epoch_runs(tmp_path):
    path = tmp_path / "run.pt"
    seen = []

    def progress(stage, done, total, values):
        seen.append(path.exists())

    config = FinetuneConfig(1, checkpoint=path, checkpoint_minutes=0)
    finetune(net(1), net(0), dataset(), config, progress=progress)
    assert seen
    assert all(seen)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_of_another_run_or_none(tmp_path):
    path, data = tmp_path / "run.pt", dataset(count=32)

    def resume(model=None, original=None, data=data, **changes):
        config = FinetuneConfig(1, checkpoint=path, resume=True, **changes)
        with pytest.raises(ModelLoadError) as caught:
            finetune(model or net(1), original or net(0), data, config)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no checkpoint" in resume()
    finetune(net(1), net(0), data, FinetuneConfig(1, checkpoint=path))
    assert "lr was None, is 0.1" in resume(lr=0.1)
    assert "tuned model was" in resume(net(1, outputs=5))
    assert "original model was" in resume(original=net(2))
    moved = net(0)
    moved[1].running_mean += 1
    assert "original model was" in resume(original=moved)
    assert "data was 'test', is 'other'" in resume(data=replace(data, source="other"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable" in resume()
    path.write_bytes(b"")
    assert "not a readable" in resume()
    torch.save({"state_dict": {}}, path)
    assert "not a readable" in resume()
    torch.save({"fingerprint": Evil(tmp_path / "ran")}, path)
    assert "not a readable" in resume()
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    config = FinetuneConfig(1, checkpoint=tmp_path / "missing" / "run.pt")
    with pytest.raises(OutputError, match=r"run\.pt: the checkpoint cannot be written"):
        finetune(net(1), net(0), dataset(count=32), config)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="disk full"):
        finetune(net(1), net(0), dataset(count=32), FinetuneConfig(1, checkpoint=path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]

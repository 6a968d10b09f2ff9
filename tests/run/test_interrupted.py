"""Runs that are stopped by SIGINT, SIGTERM and SIGKILL: nothing is half written, nothing is lost.

With ``--nightly`` at every moment of `interrupting`, as ``scripts/interrupt.py`` does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interrupting
import pytest
import torch
from conftest import Ran
from interrupting import ARGUMENTS, MOMENTS, SIGNALS, Moment

from factorize.errors import OutputError
from factorize.export import output_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
USUAL = (
    "fit, between two layers", "epoch 2, in a step", "checkpoint 2 half written",
    "model.onnx half written", "outputs being published",
)  # fmt: skip
REAL = [  # in a process of its own
    (signal.SIGINT, "batch-norm recalibration"),
    # USUAL has what is like these.
    pytest.param(signal.SIGTERM, "ONNX export", marks=pytest.mark.nightly),
    pytest.param(signal.SIGKILL, "checkpoint 2, before its rename", marks=pytest.mark.nightly),
    pytest.param(signal.SIGINT, "epoch 2, step 3", marks=pytest.mark.nightly),
]
BY_NAME = {moment.name: moment for moment in MOMENTS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run makes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    interrupting.prepare(folder)
    ended = interrupting.fork(folder, *ARGUMENTS)
    assert ended.code == 0, ended.err
    found = interrupting.result(folder / "out")
    assert found["finetuning"]["best_epoch"] == 3  # so that tuning decides the weights
    assert not interrupting.damaged(folder / "out")
    return found


def cases() -> list[Any]:
    return [
        pytest.param(moment, SIGNALS[index % 3], id=f"{SIGNALS[index % 3].name}: {moment.name}",
                     marks=() if moment.name in USUAL else pytest.mark.nightly)
        for index, moment in enumerate(MOMENTS)
    ]  # fmt: skip


@pytest.mark.parametrize(("moment", "number"), cases())
def test_stopped_run_goes_on_to_the_same_result(
    whole: dict[str, Any], tmp_path: Path, moment: Moment, number: int
) -> None:
    interrupting.prepare(tmp_path / "run")
    stopped = interrupting.fork(tmp_path / "run", *ARGUMENTS, moment=moment, number=number)
    assert interrupting.carried_on(tmp_path / "run", stopped, number, whole) == []


@pytest.mark.parametrize(("number", "moment"), REAL)
def test_so_does_a_process_of_its_own(
    whole: dict[str, Any], tmp_path: Path, number: int, moment: str
) -> None:
    interrupting.prepare(tmp_path / "run")
    when = BY_NAME[moment]
    stopped = interrupting.process(tmp_path / "run", *ARGUMENTS, moment=when, number=number)
    assert interrupting.carried_on(tmp_path / "run", stopped, number, whole) == []


def test_another_run_takes_nothing_over(whole: dict[str, Any], tmp_path: Path) -> None:
    folder, other = tmp_path / "run", ("--fit", "weights")
    interrupting.prepare(folder)
    moment = BY_NAME["epoch 2, step 3"]
    stopped = interrupting.fork(folder, *ARGUMENTS, *other, moment=moment, number=signal.SIGKILL)
    assert stopped.code == -signal.SIGKILL
    resumed = interrupting.fork(folder, *ARGUMENTS, "--resume")
    assert (resumed.code, resumed.err.count("\nerror: ")) == (2, 1)
    assert "fit was 'weights', is 'sequential'" in resumed.err
    unforced = interrupting.fork(folder, *ARGUMENTS)
    assert (unforced.code, unforced.err.count("\n")) == (2, 1)
    assert "finetune.ckpt already" in unforced.err
    early = BY_NAME["before the fit"]
    kept = (folder / "out" / "finetune.ckpt").read_bytes()
    stopped = interrupting.fork(folder, *ARGUMENTS, "--force", moment=early, number=signal.SIGINT)
    assert stopped.err.endswith("interrupted: nothing was written\n")  # the checkpoint is not its
    assert (folder / "out" / "finetune.ckpt").read_bytes() == kept
    assert interrupting.fork(folder, *ARGUMENTS, "--force").code == 0
    assert interrupting.result(folder / "out") == whole


def test_nothing_to_resume_is_told_before_any_work(
    command: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting.prepare(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr("factorize.run.pipeline.fit", lambda *_, **__: pytest.fail("work"))
    ran = command(*ARGUMENTS, "--resume")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "there is no checkpoint to resume from" in ran.err
    assert not (tmp_path / "run" / "out").exists()


def test_one_run_at_a_time_and_leavings_go(tmp_path: Path) -> None:
    for left in (".partial-killed", "mine"):
        (tmp_path / left).mkdir()
    (tmp_path / ".partial-finetune.ckpt").write_text("half")
    with output_folder(tmp_path, ("a",), False) as (staging, _):
        assert {path.name for path in tmp_path.iterdir()} == {staging.name, "mine"}
        with (
            pytest.raises(OutputError, match="one run at a time"),
            output_folder(tmp_path, ("a",), True),
        ):
            pass
        assert staging.exists()
    with output_folder(tmp_path, ("a",), False):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize("stop", range(5))
def test_files_of_two_runs_never_lie_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed at each change that publishing makes."""
    for name in ("a", "b", "work"):
        (tmp_path / name).write_text("old")
    folder = output_folder(tmp_path, ("a", "b"), True, lambda _: ["work"])
    staging, publish = folder.__enter__()
    for name in ("a", "b"):
        (staging / name).write_text("new")
    changes = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            if changes == stop:
                raise SystemExit
            changes += 1
            return real(*args, **kwargs)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(Path, "replace", dying(Path.replace))
        with pytest.raises(SystemExit):
            publish()
    assert len({(tmp_path / name).read_text() for name in "ab" if (tmp_path / name).exists()}) <= 1
    assert (tmp_path / "work").exists()
    folder.__exit__(None, None, None)


def test_checkpoint_is_loaded_as_it_was_written(tmp_path: Path) -> None:
    """`damaged` sees what it is for."""
    torch.save({"state": 1}, tmp_path / "finetune.ckpt")
    (tmp_path / "report.json").write_text("{}")
    assert not interrupting.damaged(tmp_path)
    for name in ("finetune.ckpt", "report.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert len(interrupting.damaged(tmp_path)) == 2

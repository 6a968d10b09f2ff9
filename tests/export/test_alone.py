"""The process that files run in: one for each runtime, alone, and none too many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from factorize.export import alone
from factorize.export.alone import run_alone


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), path)
    torch.save([((torch.ones(1, 3),), {})], tmp_path / "inputs")
    return path


def waiting() -> subprocess.Popen[str]:
    return alone._waiting[os.getpid(), "torch"]


def test_files_run_one_after_the_other_in_forks_of_one_process(program: Path) -> None:
    folder = program.parent
    assert run_alone("torch", folder, program, 1) == 0
    first = waiting().pid
    (made,) = torch.load(folder / "outputs", weights_only=True)
    assert made[0].shape == (1, 2)
    (folder / "outputs").unlink()
    assert run_alone("torch", folder, folder / "none.pt2", 1) == 0
    assert (folder / "error").exists()
    assert not (folder / "outputs").exists()
    (folder / "error").unlink()
    assert run_alone("torch", folder, program, 1) == 0
    assert (folder / "outputs").exists()
    assert waiting().pid == first


def test_a_process_that_was_killed_is_started_again(program: Path) -> None:
    assert run_alone("torch", program.parent, program, 1) == 0
    waiting().kill()
    waiting().wait()
    assert run_alone("torch", program.parent, program, 1) == 0


def test_it_ends_where_it_waits_too_long_and_is_started_again(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (os.getpid(), "torch") in alone._waiting:
        waiting().kill()
        waiting().wait()
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    assert run_alone("torch", program.parent, program, 1) == 0
    first = waiting()
    assert first.wait(20) == 0
    assert run_alone("torch", program.parent, program, 1) == 0
    again = waiting()
    again.wait(20)
    monkeypatch.setattr(again, "poll", lambda: None)  # it ends between the look and the task
    assert run_alone("torch", program.parent, program, 1) == 0
    assert waiting() is not again


def test_ctrl_c_ends_it_so_that_no_answer_is_left_over(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_alone("torch", program.parent, program, 1) == 0
    process = waiting()

    def pressed() -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        assert process.stdout
        pipe = SimpleNamespace(readline=pressed, close=process.stdout.close)
        patch.setattr(process, "stdout", pipe)
        with pytest.raises(KeyboardInterrupt):
            run_alone("torch", program.parent, program, 1)
    assert process.poll() == -signal.SIGKILL
    assert run_alone("torch", program.parent, program, 1) == 0
    assert waiting() is not process


def test_it_ends_with_the_process_that_started_it(program: Path) -> None:
    """Killed too, as then its input ends."""
    script = (
        "import os, sys; from pathlib import Path; from factorize.export import alone; "
        "folder, file = map(Path, sys.argv[1:3]); alone.run_alone('torch', folder, file, 1); "
        "print(alone._waiting[os.getpid(), 'torch'].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, program.parent, program], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL
    pid = int(ran.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still waits")

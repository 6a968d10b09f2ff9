"""The process that files run in: one for each runtime, alone, and none too many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """For a runtime whose process starts at once."""
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [3]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = onnx.helper.make_opsetid("", 18)
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    with (tmp_path / "inputs").open("wb") as out:
        np.savez(out, **{"0.0": np.ones(3, np.float32)})
    return path


def waiting(runtime: str = "onnxruntime") -> subprocess.Popen[str]:
    return alone._waiting[os.getpid(), runtime]


def ran(file: Path) -> bool:
    """Whether a file ran, by what it put out."""
    outputs = file.with_name("outputs")
    outputs.unlink(missing_ok=True)
    return run_alone("onnxruntime", file.parent, file, 1) == 0 and outputs.exists()


def test_files_run_one_after_the_other_in_forks_of_one_process(program: Path) -> None:
    folder = program.parent
    assert run_alone("torch", folder, program, 1) == 0
    first = waiting("torch").pid
    (made,) = torch.load(folder / "outputs", weights_only=True)
    assert made[0].shape == (1, 2)
    (folder / "outputs").unlink()
    assert run_alone("torch", folder, folder / "none.pt2", 1) == 0
    assert (folder / "error").exists()
    assert not (folder / "outputs").exists()
    (folder / "error").unlink()
    assert run_alone("torch", folder, program, 1) == 0
    assert (folder / "outputs").exists()
    assert waiting("torch").pid == first


def test_a_process_that_was_killed_is_started_again(file: Path) -> None:
    assert ran(file)
    waiting().kill()
    waiting().wait()
    assert ran(file)


def test_it_ends_where_it_waits_too_long_and_is_started_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (os.getpid(), "onnxruntime") in alone._waiting:
        waiting().kill()
        waiting().wait()
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    assert ran(file)
    first = waiting()
    assert first.wait(20) == 0
    assert ran(file)
    again = waiting()
    again.wait(20)
    monkeypatch.setattr(again, "poll", lambda: None)  # it ends between the look and the task
    assert ran(file)
    assert waiting() is not again


def test_ctrl_c_ends_it_so_that_no_answer_is_left_over(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(file)
    process = waiting()

    def pressed() -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        assert process.stdout
        pipe = SimpleNamespace(readline=pressed, close=process.stdout.close)
        patch.setattr(process, "stdout", pipe)
        with pytest.raises(KeyboardInterrupt):
            ran(file)
    assert process.poll() == -signal.SIGKILL
    assert ran(file)
    assert waiting() is not process


def test_it_ends_with_the_process_that_started_it(file: Path) -> None:
    """Killed too, as then its input ends."""
    script = (
        "import sys; from pathlib import Path; module, folder, file = map(Path, sys.argv[1:]); "
        "exec(module.read_text()); run_alone('onnxruntime', folder, file, 1); "
        "print(_waiting[os.getpid(), 'onnxruntime'].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, alone.__file__, file.parent, file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still waits")

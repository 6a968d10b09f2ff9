"""Two processes on the CPU tune as one does, and a lost one is told."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import forking
import interrupting
import pytest
import torch
from hurrying import hurry
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from factorize.cli import command
from factorize.errors import OutputError
from factorize.system import processes
from factorize.tune import FinetuneConfig, checkpoint, finetune
from factorize.types import Data

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals of Unix")
RUNS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SGD, one cycle, averaged": {
        "optimizer": "sgd", "lr": 0.1, "schedule": "one_cycle", "ema": 0.9, "label_smoothing": 0.1,
    },
    "features, moved": {
        "feature_weight": 1.0, "flip": True, "crop": 2, "max_grad_norm": 0.0,
    },
    "parts": {"micro_batches": 5},
    "fixed norms": {"batch_norm": "fixed"},
    "a last batch of one image": {"batch": 37},
}  # fmt: skip


class Net(nn.Module):
    """Norms that see the batch, outputs of two kinds, a head that no loss reaches."""

    def __init__(self, seed: int, chain: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second: nn.Module = nn.Conv2d(8, 8, 3, padding=1)
        if chain:
            self.second = nn.Sequential(nn.Conv2d(8, 4, (3, 1), padding=(1, 0)),
                                        nn.Conv2d(4, 8, (1, 3), padding=(0, 1)))  # fmt: skip
        self.last_norm = nn.BatchNorm2d(8, momentum=None)
        self.head, self.unused = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.norm(self.first(x)))
        z = torch.relu(self.last_norm(self.second(y)))
        return self.head(z.mean((2, 3))), z


def tuned(batch: int = 16, **settings: Any) -> dict[str, Any]:
    """A run whose last batch does not divide evenly; the order is for the seed to decide."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(75, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (75,), generator=generator)
    pairs = TensorDataset(images, labels)
    train = DataLoader(pairs, batch_sampler=BatchSampler(RandomSampler(pairs), batch, False))
    data = Data(train, [(images[:20], labels[:20])], None, True, 4, "random images")
    original, model = Net(0, False).double(), Net(1, True).double()
    torch.manual_seed(int(os.environ.get("RANK", "7")))
    result = finetune(model, original, data, FinetuneConfig(3, **settings))
    return {"state": model.state_dict(), "history": result.history, "processes": result.processes}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a job as users do, by torch's own launcher."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--master_addr", "127.0.0.1", "--master_port", free_port(), *command],
        cwd=folder, capture_output=True, text=True, timeout=400,
        env={**os.environ, **interrupting.ENVIRONMENT},
    )  # fmt: skip


def fork(function: Callable[..., None], *arguments: str, folder: Path) -> tuple[list[int], str]:
    """Run a job in forks, which start sooner: how each ended, and what they said.

    As a launcher does, it ends all as soon as one has failed.
    """
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        forking.started(
            _ranked, function, arguments, folder,
            {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for one in wait([one.sentinel for one in ranks], timeout=400):
        if ranks[[other.sentinel for other in ranks].index(one)].exitcode != 0:
            for other in ranks:
                other.terminate()
    for one in ranks:
        one.join(400)
    said = [(folder / f"stderr-{rank}").read_text() for rank in range(2)]
    return [one.exitcode or 0 for one in ranks], "".join(said)


def _ranked(
    function: Callable[..., None], arguments: tuple[str, ...], folder: Path, job: dict[str, str]
) -> None:
    os.environ.update(job)
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{name}-{job['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    torch.set_num_threads(1)
    forking.hurry_here()
    for console in (command._out, command._err):  # made before it was known who speaks
        console.quiet = not processes.is_main()
    function(arguments)


def _tune(_: Sequence[str]) -> None:
    for number, settings in enumerate(RUNS.values()):
        torch.save(tuned(**settings), f"{number}-{os.environ['RANK']}.pt")


def _command(arguments: Sequence[str]) -> None:
    sys.argv = ["factorize", *arguments]
    command.main()


def _late(arguments: Sequence[str]) -> None:
    if os.environ["RANK"] == "0":
        time.sleep(1)
    _command(arguments)


def _fail(arguments: Sequence[str]) -> None:
    """Where the others are in a step already."""

    def write(*_: Any) -> None:
        if len(tried) == 1:
            raise OutputError("finetune.ckpt: no room.")
        tried.append(1)

    tried: list[int] = []
    if os.environ["RANK"] == "0":
        checkpoint.write = write
    _command(arguments)


def _lose(arguments: Sequence[str]) -> None:
    if os.environ["RANK"] == "1":
        interrupting.strike_at(
            interrupting.Moment("", "before", "torch.optim:AdamW.step", nth=30), signal.SIGKILL
        )
    _command(arguments)


def test_two_processes_tune_as_one(tmp_path: Path) -> None:
    codes, said = fork(_tune, folder=tmp_path)
    assert codes == [0, 0], said[-3000:]
    for number, (name, settings) in enumerate(RUNS.items()):
        one = tuned(**copy.deepcopy(settings))
        for rank in range(2):
            two = torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True)
            assert (one["processes"], two["processes"]) == (1, 2)
            if "micro_batches" in settings and rank == 0:
                one = {**two, "processes": 1}  # norms see other parts than in one process
            for key, value in one["state"].items():
                assert torch.allclose(value, two["state"][key], rtol=1e-7, atol=1e-9), (name, key)
            for a, b in zip(one["history"], two["history"], strict=True):
                assert a == pytest.approx(b, rel=1e-7), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    interrupting.prepare(folder)
    ended = interrupting.fork(folder, *interrupting.ARGUMENTS)
    assert ended.code == 0, ended.err
    return folder / "out"


def test_the_command_on_two_processes(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    interrupting.prepare(folder)
    ran = launch(__file__, "command", *interrupting.ARGUMENTS, folder=folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = (json.loads((out / "report.json").read_text()) for out in (whole, folder / "out"))
    assert two["finetuning"]["processes"] == 2
    assert [layer["error"] for layer in one["layers"]] == [
        layer["error"] for layer in two["layers"]
    ]
    for stage, values in one["quality"].items():
        assert values == pytest.approx(two["quality"][stage], rel=0.02), stage
    assert ran.stdout.count("written to") == 1
    assert {p.name for p in whole.iterdir()} == {p.name for p in (folder / "out").iterdir()}


def test_a_lost_process_is_told_and_the_run_goes_on(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    interrupting.prepare(folder)
    ran = launch(__file__, "lose", *interrupting.ARGUMENTS, folder=folder)
    assert ran.returncode != 0
    told = [line for line in ran.stderr.splitlines() if "--resume goes on" in line]
    assert len(told) == 1, ran.stderr[-3000:]
    assert not interrupting.damaged(folder / "out")
    assert not (folder / "out" / "report.json").exists()
    ended = interrupting.fork(folder, *interrupting.ARGUMENTS, "--resume")
    assert ended.code == 0, ended.err
    one, two = (json.loads((out / "report.json").read_text()) for out in (whole, folder / "out"))
    assert two["finetuning"]["steps"] == one["finetuning"]["steps"]
    for stage, values in one["quality"].items():
        assert values == pytest.approx(two["quality"][stage], rel=0.02), stage


def test_bad_input_is_told_once_though_the_others_meet_it_first(tmp_path: Path) -> None:
    codes, said = fork(_late, "nothing.pt", "--rank", "2", folder=tmp_path)
    assert all(codes)
    assert said.count("error: nothing.pt: ") == 1, said[-3000:]


def test_what_the_main_process_alone_meets_ends_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupting.prepare(folder)
    (folder / "out").mkdir()
    (folder / "out" / "finetune.ckpt").write_bytes(b"damaged")
    codes, said = fork(_command, *interrupting.ARGUMENTS, "--resume", folder=folder)
    assert all(codes)
    assert said.count("error: ") == 1, said[-3000:]
    assert "not a readable fine-tuning checkpoint" in said


@pytest.mark.nightly
def test_so_does_a_checkpoint_that_it_cannot_write(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupting.prepare(folder)
    codes, said = fork(_fail, *interrupting.ARGUMENTS, folder=folder)
    assert all(codes)
    assert said.count("error: finetune.ckpt: no room") == 1, said[-3000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    hurry()
    {"command": _command, "lose": _lose}[sys.argv[1]](sys.argv[2:])

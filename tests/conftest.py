"""Settings for all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from factorize import cli

# Small tensors: more threads would only wait for each other.
torch.set_num_threads(1)

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=300,
                          derandomize=False)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Timings of tests go to a folder of their own, those of commands they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTORIZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Ran:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_out", cli.Console(width=160, force_terminal=False))
    monkeypatch.setattr(cli, "_err", cli.Console(width=160, stderr=True, force_terminal=False))

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["factorize", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        shown = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), shown.out, shown.err)

    return run

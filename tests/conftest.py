"""Settings for all tests."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from greenlet import getcurrent, greenlet
from hurrying import IN_USE, distort, hurry
from hypothesis import HealthCheck, settings

from factorize import export
from factorize.cli import command as cli

# Small tensors: more threads would only wait for each other.
torch.set_num_threads(1)
hurry()

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=300,
                          derandomize=False)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true",
                     help="run what is slow too, and more examples of each property")  # fmt: skip
    parser.addoption("--clock", type=float, metavar="FACTOR",
                     help="chains and compressed nets seem to take so many times as long, which "
                     "no test may depend on (those of the clock itself are left out)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    nightly = config.getoption("--nightly")
    settings.load_profile("nightly" if nightly else "ci")
    config.addinivalue_line("markers", "nightly: slow, and a sibling of what runs always")
    config.addinivalue_line("markers", "clock: of what is done with times that are read")
    if factor := config.getoption("--clock"):
        distort(factor)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {"nightly": not config.getoption("--nightly"), "clock": config.getoption("--clock")}
    for marker in (name for name, is_so in left_out.items() if is_so):
        some = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=some)
        items[:] = [item for item in items if item not in some]


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Timings of tests go to a folder of their own, those of commands they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTORIZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images are made up, and nets timed for as long, as users have it."""
    for owner, name, value in IN_USE:
        monkeypatch.setattr(owner, name, value)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Nets this small lose more than they win by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs export nothing, which takes most of their time."""
    monkeypatch.setattr(export, "export_all", lambda *_: None)


def paused_passes() -> list[greenlet]:
    """Forward passes that stand still somewhere, with all that they hold."""
    passes = [found for found in gc.get_objects() if type(found) is greenlet]
    return [found for found in passes if found and found is not getcurrent()]


@pytest.fixture
def no_pass_is_left() -> Iterator[None]:
    """No forward pass of a fit still stands where it was paused."""
    yield
    assert not paused_passes()


FIRST = "images: ", "input: ", "original: "  # what a run says before all else


class Ran:
    """Exit code and output of one command; what it says first is by itself."""

    def __init__(self, code: int, out: str, err: str) -> None:
        lines = err.splitlines(keepends=True)
        self.first = "".join(line for line in lines if line.startswith(FIRST))
        self.code, self.out = code, out
        self.err = "".join(line for line in lines if not line.startswith(FIRST))


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

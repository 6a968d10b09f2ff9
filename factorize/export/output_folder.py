"""The output folder: files appear in it whole, and only when the work is done."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from factorize.errors import FactorizeError, OutputError
from factorize.system.signals import uninterrupted

PARTIAL = ".partial-"
"""What the names of files in work begin with."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def output_folder(
    out: str | Path | None,
    names: Sequence[str],
    overwrite: bool,
    work: Callable[[Path], Sequence[str]] = lambda folder: (),
) -> Iterator[tuple[Path, Callable[..., None]]]:
    """A staging folder, and a function that moves its files into ``out``.

    That function also removes what an earlier run left under these names, and the files of `work`
    unless ``keep_work`` is set. What a killed run left half done is removed at the start.

    Parameters
    ----------
    out
        Made if it is missing; removed again where the block ends without a file in it. None:
        the staging folder is all there is.
    names
        Of the files that may be published.
    overwrite
        Whether files of these names, or of `work`, may be there already.
    work
        Names of the files in a folder from which an interrupted run goes on.

    Raises
    ------
    OutputError
        ``out`` is not a folder that can be written to, has such files already, or another run
        is writing to it.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="factorize-") as scratch:
            yield Path(scratch), lambda keep_work=False: None
        return
    out = Path(out)
    made: list[Path] = []
    try:
        made += [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=out)
    except OSError as error:
        raise OutputError(
            f"{out}: the output must be a folder that can be written to, got: {error.strerror}. "
            "Choose another with --out."
        ) from error

    def publish(keep_work: bool = False) -> None:
        with uninterrupted():
            # Should the process be killed here, no file of an earlier run is beside a new one,
            # and what the run goes on from is still there.
            for name in names:
                (out / name).unlink(missing_ok=True)
            for name in names:
                if Path(staging.name, name).exists():
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    Path(staging.name, name).replace(out / name)
            for name in () if keep_work else work(out):
                (out / name).unlink(missing_ok=True)

    lock = None
    try:
        lock = _lock(out)
        if lock is not None:
            _remove_leavings(out, but=Path(staging.name))
        there = [name for name in (*names, *work(out)) if (out / name).exists()]
        if folders := [name for name in there if (out / name).is_dir()]:
            raise OutputError(
                f"{out / folders[0]}: must be a file or not there, got a folder. Move it away, or "
                "choose another --out."
            )
        if there and not overwrite:
            onward = " --resume to go on with its fine-tuning," if work(out) else ""
            raise OutputError(
                f"{out}: has {', '.join(there)} already, and nothing is overwritten unasked. "
                f"Pass --force,{onward} or another --out."
            )
        yield Path(staging.name), publish
    except OSError as error:
        if isinstance(error, FactorizeError) or error.errno not in _FULL:
            raise
        raise OutputError(
            f"{out}: the output cannot be written: {error.strerror}. Make room, or choose another "
            "folder with --out."
        ) from error
    finally:
        with uninterrupted():
            staging.cleanup()
            if lock is not None:
                os.close(lock)
            for folder in made:
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()


def _lock(out: Path) -> int | None:
    """Have a folder to ourselves; None where there are no such locks.

    The system takes the lock back when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OutputError(
            f"{out}: one run at a time writes to a folder, and another one is at it. Wait for it, "
            "or choose another with --out."
        ) from None
    except OSError:  # the file system has none
        os.close(lock)
        return None
    return lock


def _remove_leavings(out: Path, but: Path) -> None:
    """Remove what killed runs had in work."""
    for path in out.glob(f"{PARTIAL}*"):
        if path.is_dir() and path != but:
            shutil.rmtree(path, ignore_errors=True)
        elif path != but:
            path.unlink(missing_ok=True)

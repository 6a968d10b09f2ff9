"""The output folder: files appear in it whole, and only when the work is done."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from factorize.errors import FactorizeError, OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def output_folder(
    out: str | Path | None, names: Sequence[str], overwrite: bool
) -> Iterator[tuple[Path, Callable[..., None]]]:
    """A staging folder, and a function that moves its files into ``out``.

    That function also removes what an earlier run left under these names, but for ``keep``.

    Parameters
    ----------
    out
        Made if it is missing; removed again where the block ends without a file in it. None:
        the staging folder is all there is.
    names
        Of the files that may be published.
    overwrite
        Whether files of these names may be there already.

    Raises
    ------
    OutputError
        ``out`` is not a folder that can be written to, or has such files already.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="factorize-") as scratch:
            yield Path(scratch), lambda keep=(): None
        return
    out = Path(out)
    made: list[Path] = []
    try:
        made += [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".partial-", dir=out)
    except OSError as error:
        raise OutputError(
            f"{out}: the output must be a folder that can be written to, got: {error.strerror}. "
            "Choose another with --out."
        ) from error

    def publish(keep: Sequence[str] = ()) -> None:
        for name in names:
            if Path(staging.name, name).exists():
                Path(staging.name, name).replace(out / name)
            elif name not in keep:  # of an earlier run: it does not belong to these files
                (out / name).unlink(missing_ok=True)

    try:
        with staging:
            there = [name for name in names if (out / name).exists()]
            if folders := [name for name in there if (out / name).is_dir()]:
                raise OutputError(
                    f"{out / folders[0]}: must be a file or not there, got a folder. Move it "
                    "away, or choose another --out."
                )
            if there and not overwrite:
                raise OutputError(
                    f"{out}: has {', '.join(there)} already, and nothing is overwritten unasked. "
                    "Pass --force, --resume to go on with a fine-tuning, or another --out."
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
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

"""Zip archives of others: .pt files since PyTorch 1.6, and .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

from factorize.errors import FactorizeError

_FREE = 1 << 26  # bytes that any archive may unpack to
_RATIO = 50  # images and weights compress to a tenth at the best; a bomb to a thousandth


def check_unpacked_size(archive: zipfile.ZipFile, path: Path, error: type[FactorizeError]) -> None:
    """Refuse a bomb: an archive that unpacks to far more than it has.

    Entries that share their bytes count each by itself, as each would be read by itself.
    """
    size = path.stat().st_size
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _FREE + _RATIO * size:
        raise error(
            f"{path}: a zip archive may unpack to {_RATIO} times its size, got {unpacked:,} bytes "
            f"from {size:,}. Save it again without compression."
        )

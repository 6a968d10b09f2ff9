"""Curves of a run for TensorBoard, where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factorize.errors import DataError
from factorize.system import processes


class Scalars:
    """Writes values by step into a folder; nothing without one, or in a helping process."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = Path(folder, name) if folder and processes.is_main() else None
        self.writer: Any = None

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self.folder is not None

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, values: dict[str, float], step: int) -> None:
        """Write values by name; what an interrupted run wrote of later steps does not count."""
        if self.folder is None:
            return
        if self.writer is None:
            check_scalars()
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def check_scalars() -> None:
    """Refuse where TensorBoard is not installed.

    Raises
    ------
    DataError
        With what to install.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise DataError(
            "tensorboard: scalars need the package tensorboard, which is not installed. "
            "Run pip install 'factorize[tensorboard]'."
        ) from None

"""Curves of a run, for TensorBoard or a tracker of accelerate's, where they are asked for."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from factorize.errors import DataError
from factorize.system import processes

TRACKERS = ("wandb", "mlflow", "trackio", "tensorboard")
"""Those that accelerate speaks to, by the names that it and their packages have."""

PROJECT = "factorize"


class Scalars:
    """Writes values by step; nothing unless it is asked for, or in a helping process.

    Parameters
    ----------
    folder
        For TensorBoard's files.
    settings
        Of the run, for the tracker that `accelerator` was made with; without one nothing is
        tracked.
    """

    def __init__(
        self, folder: Path | None, name: str, accelerator: Any = None, settings: Any = None
    ) -> None:
        main = processes.is_main()
        self.name, self.settings, self.writer = name, dict(settings or {}), None
        self.folder = Path(folder, name) if folder and main else None
        self.accelerator = accelerator if main and getattr(accelerator, "log_with", None) else None

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self.folder is not None or self.accelerator is not None

    def __enter__(self) -> Scalars:
        if self.accelerator is not None:
            plain = {k: v for k, v in self.settings.items() if isinstance(v, str | int | float)}
            self.accelerator.init_trackers(PROJECT, config={"run": self.name, **plain})
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        # Not `end_training`, which would end the processes' group too.
        for tracker in self.accelerator.trackers if self.accelerator is not None else ():
            tracker.finish()

    def add(self, values: dict[str, float], step: int) -> None:
        """Write values by name; what an interrupted run wrote of later steps does not count."""
        if self.accelerator is not None:
            named = {f"{self.name}/{key}": value for key, value in values.items()}
            self.accelerator.log(named, step=step)
        if self.folder is None:
            return
        if self.writer is None:
            check_scalars()
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def check_tracker(name: str) -> None:
    """Refuse a tracker that there is not.

    Raises
    ------
    DataError
        With the names that there are, or what to install.
    """
    if name not in TRACKERS:
        near = get_close_matches(name, TRACKERS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(f"--tracker must be one of {', '.join(TRACKERS)}, got {name!r}.{hint}")
    from accelerate.tracking import get_available_trackers

    if name not in [str(one) for one in get_available_trackers()]:
        raise DataError(
            f"--tracker {name}: needs the package {name}, which is not installed. Run pip install "
            f"{name}."
        )


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

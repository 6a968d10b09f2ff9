"""How to fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factorize.data.synthetic import MadeUp
from factorize.errors import DataError, OutputError
from factorize.types import Data

HOW = ("weights", "outputs", "sequential")


@dataclass(frozen=True)
class FitConfig:
    """What the layers are fitted to.

    Attributes
    ----------
    how
        ``weights``, ``outputs`` (each layer's, on the original's inputs) or ``sequential`` (on the
        inputs that the layers fitted before give). None: sequential where there are images,
        outputs where there is a calibration file, else weights.
    images
        How many to take of the training images at most; labels are not used. Every fifth is held
        out.
    memory
        Bytes for moments and activations; where they need more, there are more passes.
    calibration
        A file of moments, in place of images.
    save_calibration
        Where to write such a file; none may be there.
    reconstruct
        Whether to tune the factors of each block together afterwards. None: a run does so on
        made-up images, where the model is small.
    """

    how: Literal["weights", "outputs", "sequential"] | None = None
    images: int = 1000
    memory: float = 2e9
    calibration: str | Path | None = None
    save_calibration: str | Path | None = None
    reconstruct: bool | None = None

    @property
    def wants_images(self) -> bool:
        """Whether it is better with images, be they made up."""
        return self.how != "weights" and self.calibration is None

    def resolved(self, data: Data | MadeUp | None) -> str:
        """What the layers are fitted to, given the data there is.

        Raises
        ------
        DataError
            What is asked for needs images that there are not.
        """
        if self.how not in (None, *HOW):
            raise DataError(f"--fit must be one of {', '.join(HOW)}, got {self.how!r}.")
        if self.images < 2 or not self.memory > 0:
            raise DataError(
                "calibration: needs at least 2 images and some memory, got "
                f"{self.images} images and {self.memory:g} bytes. "
                "See --calibration-images and --calibration-memory."
            )
        how = self.how or (
            "outputs" if self.calibration else "sequential" if data is not None else "weights"
        )
        if self.calibration and how != "outputs":
            raise DataError(
                f"--calibration is for --fit outputs, got --fit {how}. Leave one of them out."
            )
        if self.calibration and self.save_calibration:
            raise DataError(
                "--save-calibration writes what is calibrated anew, got --calibration too. "
                "Leave one of them out."
            )
        for wish, option in (
            (how == "sequential", "--fit sequential"),
            (how == "outputs" and not self.calibration, "--fit outputs"),
            (bool(self.reconstruct), "--reconstruct"),
            (self.save_calibration is not None, "--save-calibration"),
        ):
            if wish and data is None:
                raise DataError(f"{option} needs images, got none. Give --data.")
        return how

    def check_free(self, overwrite: bool) -> None:
        """Raise OutputError where `save_calibration` cannot be written, before any work is done."""
        if self.save_calibration is None:
            return
        path = Path(self.save_calibration)
        if path.is_dir() or (path.exists() and not overwrite):
            raise OutputError(
                f"{path}: exists already, and nothing is overwritten unasked. Pass --force for a "
                "file, or another --save-calibration."
            )
        if not path.parent.is_dir():
            raise OutputError(
                f"{path}: the folder of the calibration must exist, and does not. Make it, or "
                "give another --save-calibration."
            )

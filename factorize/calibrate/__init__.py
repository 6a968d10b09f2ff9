"""Data to input statistics: what a few hundred images tell about each layer's input patches."""

from factorize.calibrate.calibration_file import check, load_calibration, save_calibration
from factorize.calibrate.collect import collect, collect_each, positions_per_image, split
from factorize.calibrate.inversion import STEPS, inverted
from factorize.calibrate.moment_sums import MomentSums
from factorize.calibrate.patches import outputs_at, sample
from factorize.calibrate.preprocessing import input_range
from factorize.calibrate.selection import suited

__all__ = [
    "STEPS",
    "MomentSums",
    "check",
    "collect",
    "collect_each",
    "input_range",
    "inverted",
    "load_calibration",
    "outputs_at",
    "positions_per_image",
    "sample",
    "save_calibration",
    "split",
    "suited",
]

"""Fit each planned layer: the step that joins calibration, the methods and the model.

``weights`` knows no data. ``outputs`` fits each layer's output on the original's inputs.
``sequential`` goes through the net in order of execution and fits each layer to the original's
output from the input that the layers fitted before it give, which makes up for their errors.
"""

from factorize.fit.config import FitConfig
from factorize.fit.fit_plan import calibration_images, fit, reconstructed
from factorize.fit.layer import Fitted, apply_, rebased
from factorize.fit.layerwise import fit_outputs, fit_weights
from factorize.fit.outcome import as_fitted, fit_remarks
from factorize.fit.reconstruct import PASSES, reconstruct
from factorize.fit.sequential import fit_sequential

__all__ = [
    "PASSES",
    "FitConfig",
    "Fitted",
    "apply_",
    "as_fitted",
    "calibration_images",
    "fit",
    "fit_outputs",
    "fit_remarks",
    "fit_sequential",
    "fit_weights",
    "rebased",
    "reconstruct",
    "reconstructed",
]

"""One error tree. Each error is also the fitting built-in, so that plain ``except`` clauses work.

A message says where, the rule, the value and the fix, on one line:
``layer4.0.conv1: rank must be in 1..768 for spatial_svd, got 900. Correct the rank.``
"""


class FactorizeError(Exception):
    """Base of every error this package raises on purpose."""


class ModelLoadError(FactorizeError, ValueError):
    """The model file or name cannot be turned into a model."""


class UnsupportedLayerError(FactorizeError, ValueError):
    """A layer cannot be factorized as asked."""


class NoConvolutionError(FactorizeError, ValueError):
    """The model, or the selection made of it, has no convolution to factorize."""


class RankError(FactorizeError, ValueError):
    """A rank is outside of what the method allows for the layer."""


class BudgetError(FactorizeError, ValueError):
    """No choice of methods and ranks keeps the budget."""


class PlanError(FactorizeError, ValueError):
    """A plan does not parse, or does not fit the model it is applied to."""


class DataError(FactorizeError, ValueError):
    """The dataset cannot be read or does not fit the model."""


class DeviceError(FactorizeError, ValueError):
    """The device that was asked for is not there."""


class OutputError(FactorizeError, OSError):
    """A result cannot be written where it was asked for."""


class ProcessError(FactorizeError, RuntimeError):
    """Another process of the job has ended, and this one cannot go on alone."""


class ExportError(FactorizeError, RuntimeError):
    """An exported file differs from the model it was made of, or cannot be made."""

"""Make trained convolutional networks smaller and faster by factorizing their convolutions."""

from factorize.errors import FactorizeError
from factorize.export import export_onnx
from factorize.fit import FitConfig
from factorize.graph import merge_parallel
from factorize.measure import Target
from factorize.methods import register
from factorize.methods.decompose import Decomposition, decompose
from factorize.plan import Budget, load_plan
from factorize.run.compress import Result, compress
from factorize.run.steps import find, load, make_plan, measure_quality, rewrite, rewrite_
from factorize.search import SearchConfig
from factorize.spec import ConvSpec
from factorize.tune import FinetuneConfig, finetune
from factorize.types import Data, Metric, Outputs, Plan

__all__ = [
    "Budget",
    "ConvSpec",
    "Data",
    "Decomposition",
    "FactorizeError",
    "FinetuneConfig",
    "FitConfig",
    "Metric",
    "Outputs",
    "Plan",
    "Result",
    "SearchConfig",
    "Target",
    "compress",
    "decompose",
    "export_onnx",
    "find",
    "finetune",
    "load",
    "load_plan",
    "make_plan",
    "measure_quality",
    "merge_parallel",
    "register",
    "rewrite",
    "rewrite_",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # read off the installed package when it is asked for
        from importlib.metadata import version

        return version("factorize")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Make trained convolutional networks smaller and faster by factorizing their convolutions."""

from factorize.data import load_data as _load_data
from factorize.errors import FactorizeError
from factorize.export import OnnxConfig
from factorize.export import export_onnx as _export_onnx
from factorize.export import export_program as _export_program
from factorize.fit import FitConfig
from factorize.graph import merge_parallel as _merge_parallel
from factorize.measure import Target
from factorize.measure import load_times as _load_times
from factorize.measure.runtimes import register as register_runtime
from factorize.methods import register as register_method
from factorize.methods.decompose import Decomposition
from factorize.methods.decompose import decompose as _decompose
from factorize.outputs import Outputs
from factorize.plan import Budget
from factorize.plan import load_plan as _load_plan
from factorize.plan import save_plan as _save_plan
from factorize.preprocessing import Preprocessing
from factorize.quantize import Spare
from factorize.quantize import quantize_onnx as _quantize_onnx
from factorize.run import compress as _compress
from factorize.run import kit as _kit
from factorize.run import make_plan as _make_plan
from factorize.run import rebuild as _rebuild
from factorize.run import steps as _steps
from factorize.run.border import in_python
from factorize.run.compress import Result
from factorize.search import SearchConfig
from factorize.spec import ConvSpec
from factorize.tune import FinetuneConfig
from factorize.types import Data, Metric, Plan

compress = in_python(_compress.compress)
decompose = in_python(_decompose)
export_onnx = in_python(_export_onnx)
export_program = in_python(_export_program)
find = in_python(_steps.find)
finetune = in_python(_steps.finetune)
load = in_python(_rebuild.load)
load_data = in_python(_load_data.load_data)
load_plan = in_python(_load_plan)
load_times = in_python(_load_times)
make_plan = in_python(_make_plan.make_plan)
measure_quality = in_python(_steps.measure_quality)
merge_parallel = in_python(_merge_parallel)
quantize_onnx = in_python(_quantize_onnx)
rewrite = in_python(_steps.rewrite)
rewrite_ = in_python(_steps.rewrite_)
save_plan = in_python(_save_plan)
write_kit = in_python(_kit.write_kit)

__all__ = [
    "Budget",
    "ConvSpec",
    "Data",
    "Decomposition",
    "FactorizeError",
    "FinetuneConfig",
    "FitConfig",
    "Metric",
    "OnnxConfig",
    "Outputs",
    "Plan",
    "Preprocessing",
    "Result",
    "SearchConfig",
    "Spare",
    "Target",
    "compress",
    "decompose",
    "export_onnx",
    "export_program",
    "find",
    "finetune",
    "load",
    "load_data",
    "load_plan",
    "load_times",
    "make_plan",
    "measure_quality",
    "merge_parallel",
    "quantize_onnx",
    "register_method",
    "register_runtime",
    "rewrite",
    "rewrite_",
    "save_plan",
    "write_kit",
]

del in_python


def __getattr__(name: str) -> str:
    if name == "__version__":  # read off the installed package when it is asked for
        from importlib.metadata import version

        return version("factorize")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Search by measured time and predicted loss: joins plan, measure and fit."""

from factorize.search.assembled import as_onnx
from factorize.search.best_nets import best_nets
from factorize.search.drop import droppable
from factorize.search.prepare import latency_model, nets_on
from factorize.search.run_search import Outcome, SearchConfig, completed, run_search
from factorize.search.wanted_chains import wanted_chains

__all__ = [
    "Outcome",
    "SearchConfig",
    "as_onnx",
    "best_nets",
    "completed",
    "droppable",
    "latency_model",
    "nets_on",
    "run_search",
    "wanted_chains",
]

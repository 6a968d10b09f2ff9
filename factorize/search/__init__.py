"""Search by measured time and predicted loss: joins plan, measure and fit."""

from factorize.search.drop import droppable
from factorize.search.prepare import latency_model
from factorize.search.run_search import Outcome, SearchConfig, completed, run_search

__all__ = ["Outcome", "SearchConfig", "completed", "droppable", "latency_model", "run_search"]

"""Where convolutions live: the walker over a tree of modules, which can find and rewrite."""

from factorize.graph.balance import balance_
from factorize.graph.collapse import collapse_
from factorize.graph.find import find
from factorize.graph.merge import merge_parallel
from factorize.graph.rewrite import build_chain, check_layer, effective_weight, rewrite_

__all__ = [
    "balance_",
    "build_chain",
    "check_layer",
    "collapse_",
    "effective_weight",
    "find",
    "merge_parallel",
    "rewrite_",
]

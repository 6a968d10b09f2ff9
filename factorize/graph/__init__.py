"""Where convolutions live: the walker over a tree of modules, which can find and rewrite."""

from factorize.graph.find import find
from factorize.graph.rewrite import check_layer, effective_weight, rewrite_

__all__ = ["check_layer", "effective_weight", "find", "rewrite_"]

"""The decompositions, one file each. A new method is one new file in this folder.

Every module here is imported once and registers its method, so the command line's choices, the
planner and the conformance tests know it without being told.
"""

from importlib import import_module
from pkgutil import iter_modules

from factorize.methods.base import Method, get, names, register
from factorize.methods.chain import chain_kernel
from factorize.methods.factorize import chain_of, factorize

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "chain_kernel", "chain_of", "factorize", "get", "names", "register"]

"""What time is measured on, one file each. A new runtime is one new file in this folder.

Every module here is imported once and registers its runtime, so the command line's choices, the
searches, the reports and the contract tests know it without being told.
"""

from importlib import import_module
from pkgutil import iter_modules

from factorize.measure.runtimes.base import Runtime, Target, dtypes, get, names, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Runtime", "Target", "dtypes", "get", "names", "register"]

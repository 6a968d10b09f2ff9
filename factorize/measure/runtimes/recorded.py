"""Times that were taken on a device far away: nothing runs here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from factorize.errors import DeviceError
from factorize.measure.runtimes.base import Chain, Run, Runtime, Target, register
from factorize.spec import Size

NAME = "recorded"


class Recorded(Runtime):
    """Stands for what `measure.kit` read from files; to run something on it is an error."""

    name = NAME
    summary = "a device far away, by the times that bench.py of `factorize kit` took there"
    package = "onnxruntime"
    reads = "onnx"

    def missing(self) -> str | None:  # noqa: D102
        return "needs the times that were taken, found none: give them by --times FILE"

    def chain_runs(  # noqa: D102
        self, target: Target, chains: Sequence[Chain], size: Size
    ) -> list[Run | None]:
        del chains, size
        return self._not_here(target)

    def net_runs(  # noqa: D102
        self, target: Target, nets: Sequence[Any], example_input: Any
    ) -> AbstractContextManager[list[Run]]:
        del nets, example_input
        return self._not_here(target)

    def _not_here(self, target: Target) -> NoReturn:
        raise DeviceError(f"{target}: nothing can be timed on it from here. Give --target too.")


register(Recorded())

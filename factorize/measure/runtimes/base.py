"""What a runtime is: the `Runtime` class, the registry, and `Target`, a runtime and its use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch

from factorize.errors import DeviceError
from factorize.measure.environment import cpu_name, package_version, usable_cores
from factorize.spec import ConvSpec, Size

Chain = tuple[ConvSpec, ...]
Run = Callable[[], float]
"""Runs something once and returns milliseconds."""

_registry: dict[str, Runtime] = {}


class Runtime(ABC):
    """Something that nets run on, and that tells how long they take.

    Attributes
    ----------
    name
        As on the command line.
    summary
        One line that says what it is.
    package
        The installed package that does the work: its version is part of what times depend on, and
        reports call the runtime by its name.
    reads
        The form in which it takes whole nets: ``module`` (an ``nn.Module``) or ``onnx`` (a file, or
        the bytes of one).
    dtypes
        What a target may compute in.
    compiles
        Whether a target may be ``compiled``.
    device
        The torch device that it uses: ``cpu`` or ``cuda``.
    reported
        Whether a report has its times even if no target was asked for, where its device is used.
    steps
        Of channels, that it may like, coarsest first, each half of the one before; searches measure
        which one ranks have to keep to.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    package: ClassVar[str]
    reads: ClassVar[Literal["module", "onnx"]]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    compiles: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"
    reported: ClassVar[bool] = False
    steps: ClassVar[tuple[int, ...]] = (16, 8, 4)

    def missing(self) -> str | None:
        """None, or why it cannot be used on this machine, such as ``needs X, found none``."""
        return None

    def placed(self, target: Target) -> str:
        """The target's device or provider as it is called here; empty for the usual one.

        Raises
        ------
        DeviceError
            It is not there, or does not take the target's options or its dtype.
        """
        if given := [*filter(None, [target.on]), *target.options]:
            raise DeviceError(
                f"target {self.name}: has one device, and takes no options, got "
                f"{', '.join(given)}. Leave it out."
            )
        return ""

    def context(self) -> dict[str, Any]:
        """The hardware and the versions that times depend on. For JSON."""
        machine = {"device": cpu_name(), "cores": usable_cores()}
        return {**machine, self.package: package_version(self.package)}

    def describe(self, target: Target) -> str:
        """How it is used, in words."""
        threads = f"{target.threads} thread" + "s" * (target.threads != 1)
        return ", ".join([*filter(None, [target.on]), threads, *target.options])

    def computes_in(self, target: Target, net: Any, example_input: Any) -> str:
        """The dtype that a net is run in, for the report."""
        del net, example_input
        return target.dtype

    def overhead(self, target: Target) -> float:
        """Milliseconds of a call beside its work: a net pays that once, not for each layer."""
        del target
        return 0.0

    def copies(self, target: Target, dense: ConvSpec, size: Size) -> int:
        """How many copies of a layer, or of a chain for it, one run is made of."""
        del target, dense, size
        return 1

    def remarks(self, target: Target, net: Any, example_input: Any) -> list[str]:
        """What is to be told of how a delivered net, in the form that it reads, runs there.

        Raises
        ------
        ExportError
            It does not run, or not as it should.
        """
        del target, net, example_input
        return []

    @abstractmethod
    def chain_runs(self, target: Target, chains: Sequence[Chain], size: Size) -> list[Run | None]:
        """A function for each chain that runs it once; None for one that cannot be run.

        Parameters
        ----------
        chains
            Of any weights; the first is the dense layer. What a run returns is the time of one
            copy, without the overhead of a call.
        size
            Of the input of each of them.
        """

    @abstractmethod
    def net_runs(
        self, target: Target, nets: Sequence[Any], example_input: Any
    ) -> AbstractContextManager[list[Run]]:
        """A function for each net that runs all of it once; they hold within the context.

        Parameters
        ----------
        nets
            In the form that the runtime reads.
        example_input
            As `tensor.call.call` takes it; one sample is repeated to the target's batch.
        """


def register(runtime: Runtime) -> Runtime:
    """Make a runtime known everywhere by its name; a later one of the same name replaces it."""
    _registry[runtime.name] = runtime
    return runtime


def names() -> tuple[str, ...]:
    """Names of all registered runtimes, sorted."""
    return tuple(sorted(_registry))


def dtypes() -> tuple[str, ...]:
    """All that some registered runtime computes in."""
    return tuple(dict.fromkeys(dtype for name in names() for dtype in get(name).dtypes))


def get(name: str) -> Runtime:
    """The runtime of that name.

    Raises
    ------
    DeviceError
        No such runtime.
    """
    _check_known("target", name, names())
    return _registry[name]


@dataclass(frozen=True)
class Target:
    """Where and how a model will run: a runtime and how it is used.

    Attributes
    ----------
    runtime
        The name of a registered one, such as ``onnxruntime``, ``torch-cpu``, or ``cuda`` (torch,
        channels_last); with a colon and `on` behind it, as in ``openvino:GPU``.
    threads
        Of the CPU; None: all usable cores.
    batch
        Samples per call.
    dtype
        ``float32``, or what else the runtime has.
    compiled
        Where the runtime can: ``torch.compile`` with CUDA graphs instead of eager mode.
    on
        The runtime's device or provider, such as ``CUDA``; empty: its usual one, on the CPU.
    options
        Of that, each as ``NAME=VALUE``.

    Raises
    ------
    DeviceError
        There is no such target, or it is not on this machine.
    """

    runtime: str = "onnxruntime"
    threads: int | None = None
    batch: int = 1
    dtype: str = "float32"
    compiled: bool = False
    on: str = ""
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name, _, on = self.runtime.partition(":")
        self._set(runtime=name, on=on or self.on, options=tuple(self.options))
        runtime = get(self.runtime)
        _check_known("dtype", self.dtype, dtypes())
        for option, count in (("threads", self.threads), ("batch", self.batch)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise DeviceError(f"{option} must be an integer of at least 1, got {count!r}.")
        for can in (
            lambda one: self.dtype in one.dtypes,
            lambda one: one.compiles or not self.compiled,
        ):
            if not can(runtime):
                others = " or ".join(name for name in names() if can(get(name)))
                raise DeviceError(
                    f"target {self.runtime}: this dtype, and compiling, are for {others}. Leave "
                    f"them out, or choose {others}."
                )
        if reason := runtime.missing():
            raise DeviceError(f"target {self.runtime} {reason}.")
        for option in self.options:
            if not all(option.partition("=")[::2]):
                raise DeviceError(f"--provider-option must be NAME=VALUE, got {option!r}.")
        if self.threads is None:
            self._set(threads=usable_cores())
        self._set(on=runtime.placed(self))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.runtime}, {get(self.runtime).describe(self)}, batch {self.batch}"

    @property
    def label(self) -> str:
        """The package, and what of it is used, for the report."""
        name = ":".join(filter(None, [get(self.runtime).package, self.on]))
        return f"{name} ({', '.join(self.options)})" if self.options else name

    @property
    def device(self) -> str:
        """The torch device: ``cpu`` or ``cuda``."""
        return get(self.runtime).device

    def context(self) -> dict[str, Any]:
        """All that a time depends on besides the chain: hardware and versions. For JSON."""
        used = {**asdict(self), "options": [*self.options]}
        for name in ("on", "options"):  # the usual ones go without saying
            if not used[name]:
                del used[name]
        if self.on and torch.cuda.is_available():
            used["cuda_device"] = torch.cuda.get_device_name()
        return {**used, **get(self.runtime).context()}


def _check_known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise DeviceError(f"{option} must be one of {', '.join(known)}, got {value!r}.")

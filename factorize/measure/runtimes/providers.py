"""ONNX Runtime's execution providers: what they are called, and what they leave to the CPU."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from factorize.errors import DeviceError, ExportError
from factorize.measure.framed_chain import frame_model
from factorize.measure.runtimes.base import Target
from factorize.tensor.call import named_feeds, onnx_session, session_options

CPU = "CPU"
PROVIDERS = {
    "XNNPACK": ("XnnpackExecutionProvider", "a build of onnxruntime made with --use_xnnpack"),
    "OpenVINO": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "CUDA": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "TensorRT": ("TensorrtExecutionProvider", "onnxruntime-gpu, and TensorRT"),
    "CoreML": ("CoreMLExecutionProvider", "onnxruntime on a Mac"),
    "DirectML": ("DmlExecutionProvider", "onnxruntime-directml"),
    "QNN": ("QNNExecutionProvider", "onnxruntime-qnn"),
}
"""What each is called there, and what has it."""

_THREADS = {"XNNPACK": "intra_op_num_threads", "OpenVINO": "num_of_threads"}
"""The option of providers that have threads of their own."""

_TOLD = 6  # nodes that a remark names
_LONGEST = 200  # characters of the runtime's own words
_SUFFIX = "_kernel_time"


def provider_of(target: Target) -> str:
    """The provider as it is called here; empty for that of the CPU.

    Raises
    ------
    DeviceError
        The installed ONNX Runtime does not have it, or cannot start it.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    names = {name.lower(): name for name in PROVIDERS}
    name = names.get(target.on.lower(), target.on)
    has = [CPU, *(one for one, (called, _) in PROVIDERS.items() if called in there)]
    if name.upper() in ("", CPU):
        if target.options:
            raise DeviceError(
                f"target onnxruntime: its CPU provider takes no options, got "
                f"{', '.join(target.options)}. Name a provider, as in onnxruntime:XNNPACK."
            )
        return ""
    if name not in PROVIDERS:
        raise DeviceError(
            f"target onnxruntime: the provider must be one of {', '.join([CPU, *PROVIDERS])}, got "
            f"{name}."
        )
    if name not in has:
        raise DeviceError(
            f"target onnxruntime: the installed build, {onnxruntime.__version__}, has no provider "
            f"{name}, only {', '.join(has)}. Install {PROVIDERS[name][1]} in its place."
        )
    if reason := _refusal(name, target.options):
        raise DeviceError(
            f"target onnxruntime: {name} cannot be started: {reason}. See ONNX Runtime's "
            "documentation for what it needs, and the options that it takes."
        )
    return name


def session_on(target: Target, net: str | Path | bytes, *, profile: Path | None = None) -> Any:
    """Open a net on the target's provider, the CPU's behind it for what that leaves.

    Parameters
    ----------
    profile
        How the names of files begin that tell what ran where.

    Raises
    ------
    ExportError
        The provider refuses the net.
    """
    if not target.on:
        return onnx_session(net, target.threads)
    try:
        return _open(net, target.on, target.options, target.threads, profile)
    except Exception as error:  # the runtime has dozens
        raise ExportError(f"{_name(net)}: cannot be run on {target}: {_tail(error)}") from error


def _open(
    net: str | Path | bytes, on: str, options: tuple[str, ...], threads: int | None,
    profile: Path | None = None,
) -> Any:  # fmt: skip
    import onnxruntime

    called = PROVIDERS[on][0]
    settings = {_THREADS[on]: str(threads)} if on in _THREADS and threads else {}
    settings |= dict(option.split("=", 1) for option in options)
    how = session_options(threads)
    how.enable_mem_pattern = on != "DirectML"
    if profile is not None:
        how.enable_profiling, how.profile_file_prefix = True, str(profile)
    source = net if isinstance(net, bytes) else str(net)
    chosen = [(called, settings), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(source, how, providers=chosen, enable_fallback=0)
    if called not in session.get_providers():
        raise RuntimeError("ONNX Runtime could not start it, and fell back to its CPU provider")
    return session


@cache
def _refusal(on: str, options: tuple[str, ...]) -> str | None:
    """Why a provider cannot be started, even for a net of next to nothing."""
    try:
        _open(frame_model(1, (1, 1), 1), on, options, None)
    except Exception as error:  # the runtime has dozens
        return _tail(error)
    return None


def _tail(error: Exception) -> str:
    """The end of a message, which begins with where in the runtime it is from."""
    line = " ".join(str(error).split()).rstrip(".")
    return line if len(line) <= _LONGEST else f"...{line[-_LONGEST:]}"


def left_to_the_cpu(target: Target, net: str | Path | bytes, inputs: Any) -> tuple[list[str], int]:
    """The nodes of a net, as it is run, that the provider left to the CPU's, and how many it has.

    Told by the runtime's own profile of one run.
    """
    with tempfile.TemporaryDirectory(prefix="factorize-") as folder:
        session = session_on(target, net, profile=Path(folder, "run"))
        names = [entry.name for entry in session.get_inputs()]
        session.run(None, named_feeds(names, inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        event["name"].removesuffix(_SUFFIX): event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)
    }
    left = [
        f"{name} ({args['op_name']})"
        for name, args in ran.items()
        if args.get("provider") == "CPUExecutionProvider"
    ]
    return left, len(ran)


def fallback_remarks(target: Target, net: str | Path | bytes, inputs: Any) -> list[str]:
    """What is told of nodes that the provider left to the CPU's."""
    left, count = left_to_the_cpu(target, net, inputs)
    if not left:
        return []
    more = f" and {len(left) - _TOLD} more" if len(left) > _TOLD else ""
    return [
        f"{_name(net)}: {target.on} left {len(left)} of {count} nodes to ONNX Runtime's CPU "
        f"provider: {', '.join(left[:_TOLD])}{more}"
    ]


def _name(net: str | Path | bytes) -> str:
    return "the net" if isinstance(net, bytes) else Path(net).name

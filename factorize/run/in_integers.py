"""The int8 form of what a run delivers, beside what int8 does alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from factorize import export
from factorize.errors import ExportError
from factorize.export.onnx_back import export_back
from factorize.fit import Fitted
from factorize.measure import LatencyModel, OnnxNet, Target, pairs
from factorize.onnx_graph import Twin
from factorize.quantize import LARGEST, Int8Check, Spare, quantize_onnx
from factorize.run.kept_in_float import beside_float, timed_in_integers
from factorize.run.records import EVERYWHERE, Journal, Request
from factorize.types import LayerPlan, Plan, Speedup

FLOAT = "float.onnx"
"""What ``model.onnx`` becomes: for comparison, and not delivered."""

ALONE = "alone.onnx"
"""The original in int8, not factorized: what one would have without us."""

SCALES = "scales.json"
ALONE_STEP, STEP = "int8 alone", "int8"


@dataclass(frozen=True)
class InIntegers:
    """The int8 net, and the original in int8."""

    check: Int8Check
    alone: Int8Check | None

    def reported(self) -> dict[str, Any]:
        """For the report: without the scales, which have a file of their own."""
        checks = {"check": self.check, "alone": self.alone}
        return {
            name: {k: v for k, v in asdict(one).items() if k not in ("grids", "scales")}
            for name, one in checks.items()
            if one
        }


def quantize_delivered(
    made: export.Exports, request: Request, journal: Journal, *, timed: bool, asked: float = 1.0
) -> InIntegers | None:
    """Make ``model.onnx`` int8, and rate it; None where that failed, which is noted.

    The original is quantized too: in the same way, on the same images. ``model.onnx`` stays in
    float where it cannot be int8, or where this is interrupted.

    Parameters
    ----------
    timed
        Whether layers are timed, and stay in float where they are slower in integers.
    asked
        The speedup that the result is to have.
    """
    if made.check is None:
        made.failures.append("model.onnx in int8: there is no float one to make it of")
        return None
    original, model = made.onnx_files
    model.replace(made.folder / FLOAT)
    try:
        return _quantize(made, original, request, journal, timed, asked)
    finally:
        if not model.exists():
            (made.folder / FLOAT).replace(model)


def _quantize(
    made: export.Exports, original: Path, request: Request, journal: Journal, timed: bool,
    asked: float,
) -> InIntegers | None:  # fmt: skip
    timer = request.timer if timed and request.int8 != EVERYWHERE else None
    folder, checks = made.folder, dict[str, Int8Check]()
    for step, source, name in (
        (ALONE_STEP, original, ALONE), (STEP, folder / FLOAT, "model.onnx"),
    ):  # fmt: skip
        try:
            with journal.timed("int8"):
                checks[step] = _careful(source, folder / name, request, timer, journal,
                                        original, asked if step == STEP else 1.0)  # fmt: skip
            with journal.timed("evaluate"):
                net = OnnxNet(folder / name, request.model, request.example_input)
                journal.quality[step] = request.worth(net)
        except ExportError as error:
            text = str(error).replace(f"{folder}{os.sep}", "")
            if step == STEP:
                made.failures.append(f"model.onnx in int8, it stays in float32: {text}")
                return None
            journal.remarks.append(f"the original is not compared in int8: {text}")
    check = checks[STEP]
    assert made.check is not None
    made.check = replace(made.check, nodes=check.nodes, bytes=check.bytes)
    scales = {"values": check.grids, "layers": check.scales}
    (folder / SCALES).write_text(json.dumps(scales, indent=1) + "\n", encoding="utf-8")
    journal.remarks += _remarks(check)
    return InIntegers(check, checks.get(ALONE_STEP))


def worth_in_integers(request: Request, model: nn.Module, fitted: Fitted) -> dict[str, float]:
    """What a model is worth once its layers compute in integers; nothing is kept of it."""
    with tempfile.TemporaryDirectory(prefix="factorize-") as folder:
        exact, rounded = Path(folder, FLOAT), Path(folder, "model.onnx")
        if isinstance(model, Twin):
            assert isinstance(request.model, Twin)
            layers = [
                LayerPlan(one.spec, one.method, one.rank, one.variant)
                for one in fitted.layers.values()
            ]
            plan = Plan(tuple(layers), {})
            export_back(request.model, model, plan, request.example_input, exact)
        else:
            export.export_onnx(model, request.example_input, exact, config=request.onnx)
        _quantized(exact, rounded, request)
        return request.worth(OnnxNet(rounded, request.model, request.example_input))


def drop_data(made: export.Exports) -> None:
    """Remove the data of the float net's file: that of the int8 one is all in it."""
    for name in made.source.external if made.source else ():
        (made.folder / name).unlink(missing_ok=True)


def int8_speedups(
    made: export.Exports, request: Request, compressed: nn.Module, target: Target
) -> list[Speedup]:
    """Times of the int8 net, of its float form and of the original in int8, beside the original.

    On a target that is not for integers, of the float form.
    """
    original, model = made.onnx_files
    in_float = made.folder / FLOAT, "float32", "in float32"
    if target.dtype != "int8":
        nets = [(in_float[0], "", in_float[2])]
    else:
        nets = [(model, "int8", ""), in_float, (made.folder / ALONE, "int8", "int8 alone")]
    return [
        replace(one, dtype=dtype or one.dtype, net=net)
        for file, dtype, net in nets
        if file.exists() or not pairs.reads_files(target)
        for one in pairs.speedups(
            (original, file), request.model, compressed, request.example_input, [target]
        )
    ]


def _careful(
    source: Path, path: Path, request: Request, timer: LatencyModel | None, journal: Journal,
    original: Path, asked: float,
) -> Int8Check:  # fmt: skip
    """Layers that are slower or lose too much in integers stay in float, unless all are to be in.

    Those that lose too much are put back as long as the net is still as fast as asked.
    """
    assert request.data is not None
    if request.int8 == EVERYWHERE:
        return _quantized(source, path, request)
    example, slower, gains = request.example_input, {}, {}
    if timer is not None:
        if isinstance(request.model, Twin):
            example = request.model.fed(example)
        timed = timed_in_integers(source, example, timer)
        slower, gains = timed.slower, timed.gains
    held_out = (batch[0] for batch in request.data.holdout)
    try:
        spare = Spare(held_out, request.outputs.kind, gains)
        check = _quantized(source, path, request, slower, spare)
        if timer is None or not check.alone:
            return check
        first, *others = check.alone
        told, more = check.left[first], f" and {len(others)} more" if others else ""
        found = beside_float(source, path, example, timer)
        if found.speedup_p90 < 1:
            raise ExportError(
                f"{source.name}: {told}, and is slower so than in float, {found.speedup:.2f}x on "
                f"{timer.target}. To have it in integers give --int8 all."
            )
        if asked > 1:
            found = beside_float(original, path, example, timer)
        if found.speedup_p90 < asked:
            journal.remarks.append(
                f"int8: {first}{more} compute in integers all the same: {told}, but with them in "
                f"float it is {found.speedup:.2f}x as fast, of {asked:g}x"
            )
            check = _quantized(source, path, request, slower)
        return check
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _quantized(
    source: Path, path: Path, request: Request, left: Mapping[str, str] | None = None,
    spare: Spare | None = None,
) -> Int8Check:  # fmt: skip
    assert request.data is not None
    return quantize_onnx(
        source, path, (batch[0] for batch in request.data.train), exclude=left or {}, spare=spare,
        memory=request.fit.memory, force=True, seed=request.seed, progress=request.progress,
    )  # fmt: skip


def _remarks(check: Int8Check) -> list[str]:
    told = [
        f"int8: {len(check.losses)} layers compute in integers; the output differs from the same "
        f"net's in float32 by {100 * check.difference:.1f} %, on {check.images} images"
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in check.left.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        told.append(f"int8: {names[0]}{more} stayed in float32: {reason}")
    if check.largest < LARGEST:
        told.append(
            "int8: weights have 7 bits, as this processor has no VNNI and would saturate with 8"
        )
    return told

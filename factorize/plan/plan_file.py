"""Plans as versioned JSON, made to be edited by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from factorize.errors import PlanError
from factorize.spec import ConvSpec
from factorize.types import LayerPlan, Plan

FORMAT = "factorize-plan"
VERSION = 1


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values. To edit: ``method``, ``rank``, ``variant`` of a layer."""
    layers = []
    for layer in plan.layers:
        conv = dict(vars(layer.spec))
        layers.append(
            {
                "name": conv.pop("name"),
                "method": layer.method,
                "rank": list(layer.rank),
                "variant": layer.variant,
                "skip_reason": layer.skip_reason,
                "predicted_error": layer.error,
                "macs": {"dense": layer.spec.macs, "chain": layer.macs},
                "params": {"dense": layer.spec.params, "chain": layer.params},
                "notes": list(layer.notes),
                "conv": conv,
            }
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": plan.settings,
        "layers": layers,
    }


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write the plan as JSON; the file appears when it is whole."""
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps(plan_to_dict(plan), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_plan(path: str | Path) -> Plan:
    """Read a plan. What it says of a model is checked when it is applied to one.

    Raises
    ------
    PlanError
        The file is missing, is not a plan, is of another version, or an entry does not parse.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_writable(content)
    except OSError as error:
        raise PlanError(f"{path}: the plan must be a readable file: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # ValueError: also of numbers too long
        raise PlanError(f"{path}: the plan must be JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError(f'{path}: a plan must say "format": "{FORMAT}". A run writes one.')
    if content.get("version") != VERSION:
        raise PlanError(
            f"{path}: the plan's version must be {VERSION}, got {content.get('version')!r}. "
            "Make it anew with this version of factorize."
        )
    if not isinstance(content.get("layers"), list):
        raise PlanError(f'{path}: "layers" must be a list.')
    layers = tuple(_layer(path, index, entry) for index, entry in enumerate(content["layers"]))
    times = Counter(layer.spec.name for layer in layers)
    if twice := [name for name, count in times.items() if count > 1]:
        raise PlanError(f"{path}: each layer must be named once, {twice[0]!r} is named twice.")
    settings = content.get("settings")
    return Plan(layers, settings if isinstance(settings, dict) else {})


def _layer(path: Path, index: int, entry: Any) -> LayerPlan:
    name = entry.get("name") if isinstance(entry, dict) else None
    place = f"{path}: layer {index} ({name!r})"
    if not isinstance(name, str) or not isinstance(entry.get("conv"), dict):
        raise PlanError(f'{place}: must be an object with a "name" and a "conv".')
    try:
        spec = _spec(name, entry["conv"])
        macs = spec.macs
    except (TypeError, ValueError, ArithmeticError) as error:
        raise PlanError(f'{place}: "conv" does not describe a convolution: {error}.') from error

    method, rank = entry.get("method"), entry.get("rank", [])
    variant, reason = entry.get("variant") or "", entry.get("skip_reason")
    rank = [rank] if isinstance(rank, int) else rank
    if method is not None and not isinstance(method, str):
        raise PlanError(f'{place}: "method" must be a name or null, got {method!r}.')
    if not isinstance(rank, list) or any(isinstance(value, list | dict) for value in rank):
        raise PlanError(f'{place}: "rank" must be an integer or a list of them, got {rank!r}.')
    if not isinstance(variant, str) or not isinstance(reason, str | None):
        raise PlanError(f'{place}: "variant" and "skip_reason" must be text.')
    if method is None:
        return LayerPlan(spec, macs=macs, params=spec.params, skip_reason=reason)
    return LayerPlan(spec, method, tuple(rank), variant)


def _spec(name: str, conv: dict[str, Any]) -> ConvSpec:
    """The convolution, its types checked: who reads the plan computes with them."""
    if unknown := sorted(conv.keys() - {field.name for field in fields(ConvSpec)[1:]}):
        raise TypeError(f"{unknown[0]!r} is unknown")
    spec = ConvSpec(name=name, **{key: _tuples(value) for key, value in conv.items()})
    per_axis = [spec.kernel, spec.stride, spec.dilation]
    if spec.padding != "same":
        per_axis.append(spec.padding)
    if spec.output_padding != ():
        per_axis.append(spec.output_padding)
    if spec.kind != "linear":
        per_axis.extend(spec.input_sizes)
    if not all(isinstance(sizes, tuple) for sizes in (*per_axis, *spec.input_sizes)):
        raise TypeError("kernel, stride, padding, dilation and input_sizes must be lists")
    if any(len(sizes) != len(spec.kernel) for sizes in per_axis):
        raise ValueError("there must be one number per axis")
    counts = spec.in_channels, spec.out_channels, spec.groups
    numbers = *counts, *chain.from_iterable((*per_axis, *spec.input_sizes))
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("all sizes must be whole numbers")
    if not isinstance(spec.kind, str) or type(spec.bias) is not bool:
        raise TypeError('"kind" must be text and "bias" true or false')
    return spec


def _check_writable(value: Any, levels: int = 20) -> None:
    """Raise ValueError for what cannot be shown, or written again, wherever it goes from here."""
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is no text
    elif isinstance(value, dict | list):
        if not levels:
            raise ValueError("nested too deep")
        for inner in chain(value, value.values()) if isinstance(value, dict) else value:
            _check_writable(inner, levels - 1)


def _tuples(value: Any) -> Any:
    """JSON has lists where the types have tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

"""Where in a checkpoint its weights are, and which others it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factorize.errors import ModelLoadError

_PLAIN = (
    "state_dict", "model", "model_state_dict", "model_state", "net", "network", "netG",
    "generator", "params", "weights",
)  # fmt: skip
_AVERAGED = (
    "ema", "params_ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model",
)  # fmt: skip
# Averaging wrappers keep their copy under `module`; a state dict has no such key.
_KEYS = (*_PLAIN, *_AVERAGED, "module")
_DEEPEST = 4
_LONGEST = 60  # characters of a key in a message


def find_weights(
    found: Any, path: Path, key: str | None, notes: list[str]
) -> dict[str, Tensor] | nn.Module:
    """Find the state dict or module inside of what was loaded, under a key where one is given.

    Raises
    ------
    ModelLoadError
        There is none, or no such key.
    """
    trail: list[str] = []
    if key is not None:
        found = _named(found, path, key)
        trail.append(_shown(key))
    while not isinstance(found, nn.Module):
        if not isinstance(found, Mapping):
            place = f" under {trail[0]}" if key is not None else ""
            raise ModelLoadError(f"{path}: holds a {type(found).__name__}{place}, not a model.")
        inside = [name for name in _KEYS if isinstance(found.get(name), (Mapping, nn.Module))]
        if inside and len(trail) < _DEEPEST:
            taken = next((name for name in inside if _has_weights(found[name])), inside[0])
            if others := [name for name in _with_weights(found) if name != taken]:
                within = "".join(f"{part}." for part in trail)
                notes.append(
                    f"the file also has weights under {_listed([within + o for o in others])}, not "
                    "used: --key takes them"
                )
            trail.append(taken)
            found = found[taken]
            continue
        state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        groups = [k for k, v in found.items() if isinstance(v, (Mapping, list))]
        if not state or groups:
            raise _without_weights(found, path)
        if len(state) < len(found):
            others = [k for k in found if k not in state]
            notes.append(f"entries that are not tensors left out: {_listed(others, 4)}")
        found = state
        break
    if trail:
        notes.append(f"read from key {'.'.join(trail)}")
    return found


def _named(found: Any, path: Path, key: str) -> Any:
    """What a key names: an entry, one of an entry, or all tensors whose names begin so."""
    value = _at(found, key)
    if value is not None:
        return value
    names = list(found) if isinstance(found, Mapping) else []
    weights = _with_weights(found) if names else []
    hint = f", with weights under {_listed(weights)}" if weights else ""
    raise ModelLoadError(
        f"{path}: has no key {_shown(key)}; its keys are {_listed(names)}{hint}. Correct --key."
    )


def _at(found: Any, key: str) -> Any:
    if not isinstance(found, Mapping):
        return None
    if key in found:
        return found[key]
    for end in (place for place, letter in enumerate(key) if letter == "."):
        inner = _at(found.get(key[:end]), key[end + 1 :])
        if inner is not None:
            return inner
    start = f"{key}."
    inside = {k.removeprefix(start): v for k, v in found.items() if str(k).startswith(start)}
    return inside or None


def _with_weights(found: Mapping[Any, Any]) -> list[str]:
    return [k for k, v in found.items() if isinstance(k, str) and _has_weights(v)]


def _has_weights(value: Any, deepest: int = _DEEPEST) -> bool:
    """Whether it is a module, or has a kernel or a matrix in it: metrics are tensors too."""
    if not isinstance(value, Mapping):
        return isinstance(value, nn.Module)
    if any(isinstance(one, Tensor) and one.ndim > 1 for one in value.values()):
        return True
    return deepest > 0 and any(_has_weights(value.get(key), deepest - 1) for key in _KEYS)


def _without_weights(found: Mapping[Any, Any], path: Path) -> ModelLoadError:
    if weights := _with_weights(found):
        return ModelLoadError(
            f"{path}: has weights under {_listed(weights)}, which is no usual place. Name them: "
            f"--key {_shown(weights[0])}."
        )
    if "param_groups" in found or any("optim" in str(key) for key in found):
        return ModelLoadError(
            f"{path}: holds an optimizer's state without a model. "
            "Pass the checkpoint that has the model's state dict."
        )
    return ModelLoadError(
        f"{path}: no state dict in it, bare or under {', '.join(_PLAIN)}: its keys are "
        f"{_listed(list(found)) or '(none)'}."
    )


def _listed(keys: list[Any], most: int = 5) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(map(_shown, keys[:most])) + more


def _shown(key: Any) -> str:
    text = str(key)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

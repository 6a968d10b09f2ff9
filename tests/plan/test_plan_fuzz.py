"""Plans edited into anything: each is carried out as it says, or refused in one line."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

import factorize
from factorize import methods
from factorize.errors import FactorizeError
from factorize.export import save_weights
from factorize.measure import count
from factorize.plan import load_plan, plan_to_dict, save_plan
from factorize.spec import ConvSpec

torch.manual_seed(0)
NET = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, (3, 5), stride=2, groups=2),
    nn.Conv2d(8, 6, 1), nn.ConvTranspose2d(6, 6, 3, bias=False),
)  # fmt: skip
X = torch.randn(1, 3, 12, 12)
PLAN = factorize.make_plan(NET, X, method="channel_svd", rank=2, include=["*"], allow_costlier=True)
Place = tuple[str | int, ...]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


WORDS = st.sampled_from([
    *methods.names(), *(v for name in methods.names() for v in methods.get(name).variants),
    "0", "1", "2", "3", "4", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear",
    "channel_shuffle", "same", "valid", "zeros", "reflect", "circular", "\n", "\x1b[2J", "\ud800",
])  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-1, 9), st.sampled_from([10**6, 10**9, 2**31, 2**63, 10**30, -(10**30), 10**400]),
    st.floats(),
)  # fmt: skip
SIZES = st.lists(st.integers(0, 9), max_size=4)
VALUES = st.one_of(
    st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=5), SIZES,
    st.recursive(
        NUMBERS | WORDS, lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS, v, max_size=3)
    ),
    st.sampled_from([nested(50), nested(400), nested(900), [1] * 10_000, "x" * 10_000]),
)  # fmt: skip


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Where in a JSON value something stands."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()  # fmt: skip
    for key, inner in pairs:
        yield from places(inner, (*path, key))


@st.composite
def plans(draw: st.DrawFn) -> Any:
    """A good plan with up to three edits, each anywhere in it."""
    content = json.loads(json.dumps(plan_to_dict(PLAN)))
    for _ in range(draw(st.integers(1, 3))):
        top = draw(st.integers(0, 9)) == 0
        spots = [p for p in places(content) if len(p) == 1 or not top]
        *inside, key = draw(st.sampled_from(spots))
        owner = content
        for step in inside:
            owner = owner[step]
        new = copy.deepcopy(draw(VALUES))
        match draw(st.sampled_from(["replace", "replace", "delete", "add", "repeat"])):
            case "replace":
                owner[key] = new
            case "delete":
                del owner[key]
            case "add" if isinstance(owner, dict):
                owner[draw(WORDS)] = new
            case "repeat" if isinstance(owner, list):
                owner.append(copy.deepcopy(owner[key]))
        if not content:
            break
    return content


def check_refusal(error: FactorizeError, content: Any, folder: str) -> None:
    """One line that starts with the file, or with a layer of it."""
    line = str(error)
    assert line.isprintable(), repr(line)
    layers = content.get("layers")
    names = [layer.get("name") for layer in (layers if isinstance(layers, list) else [])
             if isinstance(layer, dict)]  # fmt: skip
    named = [f"{ConvSpec.label.fget(SimpleNamespace(name=name))}: "  # type: ignore[misc]
             for name in names if isinstance(name, str)]  # fmt: skip
    assert line.startswith((folder, *named)), line


def outcome(act: Callable[[], nn.Module], content: Any, folder: str) -> nn.Module | None:
    try:
        return act()
    except FactorizeError as error:
        check_refusal(error, content, folder)
        return None


@settings(max_examples=3 * settings().max_examples)
@given(plans())
def test_an_edited_plan_is_carried_out_or_refused(content: Any) -> None:
    before = {name: tensor.clone() for name, tensor in NET.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        file.write_text(json.dumps(content))
        save_weights(NET, Path(folder, "model.safetensors"))
        bound: list[factorize.Plan] = []

        def checked() -> nn.Module:
            bound.append(factorize.make_plan(NET, X, edited=load_plan(file)))
            return factorize.rewrite(NET, bound[0])

        if made := outcome(checked, content, folder):
            params, macs = (sum(getattr(one, of) for one in bound[0].layers)
                            for of in ("params", "macs"))  # fmt: skip
            assert (params, macs) == count(made, X)[:2]
            save_plan(bound[0], file)
            assert factorize.make_plan(NET, X, edited=load_plan(file)) == bound[0]
            file.write_text(json.dumps(content))
        # As it is, not looked at beside the model first.
        event("carried out" if bound else "refused")
        unchecked = outcome(lambda: factorize.rewrite(NET, load_plan(file)), content, folder)
        loaded = outcome(lambda: factorize.load(folder, copy.deepcopy(NET)), content, folder)
        for made in filter(None, (unchecked, loaded)):
            assert made(X).shape == NET(X).shape
    assert all(torch.equal(tensor, before[name]) for name, tensor in NET.state_dict().items())

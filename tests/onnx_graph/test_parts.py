"""Parts of a twin that lead from one value to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx import NodeProto
from onnx_files import image, node, random, save, twin_of

from factorize.onnx_graph import Part, spans_of

CONV = {"pads": [1, 1, 1, 1]}


def conv(reads: str, makes: str, name: str, **how: object) -> NodeProto:
    return node("Conv", f"{reads} weight", makes, name, **{**CONV, **how})


def relu(reads: str, makes: str) -> NodeProto:
    return node("Relu", reads, makes)


FIRST = node("Conv", "x first", "a", "first", **CONV)
ROW = [
    FIRST, relu("a", "b"),
    *(one for i in range(5)
      for one in (conv("bcdef"[i], f"{i}", f"c{i}"), relu(f"{i}", "cdefg"[i]))),
    relu("g", "y"),
]  # fmt: skip
RESIDUAL = [
    FIRST, conv("a", "b", "one"), relu("b", "c"), conv("c", "d", "two"), conv("a", "e", "beside"),
    node("Add", "d e", "f"), relu("f", "g"), conv("g", "h", "three"), node("Add", "h g", "y"),
]  # fmt: skip
BRANCHES = [
    FIRST, relu("a", "b"), conv("b", "c", "left"), conv("b", "d", "right"), relu("c", "e"),
    conv("d", "f", "more"), node("Concat", "e f b", "g", axis=1),
    node("Conv", "g wide", "y", "last", **CONV),
]  # fmt: skip
KEPT = [
    FIRST, conv("a", "b", "one"), relu("b", "c"), conv("c", "d", "two"), relu("d", "e"),
    conv("e", "f", "three"), node("Add", "f c", "y"),
]  # fmt: skip
ELSEWHERE = [
    FIRST, conv("a", "b", "one"), relu("a", "c"), conv("c", "d", "two"), node("Add", "b d", "e"),
    node("Add", "e b", "y"),
]  # fmt: skip
READ_BY_A_JOIN = [
    FIRST, conv("a", "b", "one"), relu("a", "c"), conv("c", "d", "two"), node("Add", "b d", "e"),
    relu("d", "f"), node("Add", "e f", "y"),
]  # fmt: skip
PADDED = [FIRST, conv("a", "b", "uneven", pads=[1, 1, 0, 0]), conv("b", "y", "even")]
NETS = {
    "a row, four at a time": (ROW, {"c0", "c1", "c2", "c3", "c4"}, [
        ("c0 c1 c2 c3", "b", "f"), ("c4", "f", "y"),
    ]),
    "others in between": (ROW, {"c0", "c2"}, [("c0 c2", "b", "e")]),
    "up to the next layer": (ROW, {"c1"}, [("c1", "c", "d")]),
    "a shortcut": (RESIDUAL, {"one", "two", "three"}, [("one two three", "a", "y")]),
    "with a layer": (RESIDUAL, {"one", "two", "beside"}, [("one two beside", "a", "g")]),
    "up to a shortcut's end": (RESIDUAL, {"one", "two"}, [("one two", "a", "g")]),
    "branches": (BRANCHES, {"left", "right", "more", "last"}, [("left right more last", "b", "y")]),
    "one branch": (BRANCHES, {"right", "more"}, [("right more", "b", "f")]),
    "read again behind": (KEPT, {"one", "two", "three"}, [("one two three", "a", "y")]),
    "read behind what is left": (KEPT, {"one"}, [("one", "a", "c")]),
    "joins what began elsewhere": (ELSEWHERE, {"two"}, [("two", "c", "d")]),
    "read by what joins others": (READ_BY_A_JOIN, {"two"}, [("two", "c", "d")]),
    "padded unevenly": (PADDED, {"uneven", "even"}, [("even", "b", "y")]),
    "nothing": (ROW, set(), []),
}  # fmt: skip


@pytest.mark.parametrize("nodes, layers, wanted", NETS.values(), ids=NETS)
def test_spans_are_as_long_as_can_be(
    tmp_path: Path, nodes: list[NodeProto], layers: set[str],
    wanted: list[tuple[str, str, str]],
) -> None:  # fmt: skip
    weights = {
        "first": random(6, 3, 3, 3), "weight": random(6, 6, 3, 3), "wide": random(6, 18, 3, 3),
    }  # fmt: skip
    x = image()
    twin = twin_of(save(tmp_path / "net.onnx", nodes, weights), x)
    found = list(spans_of(twin, layers, 4))
    assert [(" ".join(one.layers), one.read, one.made) for one in found] == wanted
    for span in found:
        values = twin.values(twin.given(x), [span.read, span.made])
        part = Part(twin, span)
        torch.testing.assert_close(part(values[span.read]), values[span.made], rtol=0, atol=0)
        assert {*span.layers} <= {name for name, _ in part.named_modules()}


def test_what_the_net_gives_ends_a_span(tmp_path: Path) -> None:
    weights = {"first": random(6, 3, 3, 3), "weight": random(6, 6, 3, 3)}
    path = save(tmp_path / "net.onnx", KEPT, weights, outputs=("d", "y"))
    found = list(spans_of(twin_of(path, image()), {"one", "two", "three"}, 4))
    assert [(one.read, one.made) for one in found] == [("a", "c"), ("c", "d"), ("e", "f")]

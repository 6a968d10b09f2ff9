"""A crafted pickle as MODEL runs nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted import PROTO, STOP, call, legacy, name, text, zipped
from loading import refusal
from torch import nn

from factorize.models import inert
from factorize.models.pickle_size import check_pickles
from factorize.models.pickles import load_pickled


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


class TestPickles:
    """A crafted pickle runs nothing, in either format, at the top or inside of a state dict."""

    def programs(self, marker: Path, other: Path) -> dict[str, bytes]:
        shell = text(f"touch {marker}")
        touch = text(f"__import__('pathlib').Path({str(marker)!r}).touch()")
        conv = name("torch.nn.modules.conv", "Conv2d")
        partial = name("functools", "partial")
        new_conv = conv + b")\x81"
        identity = call(name("torch.nn.modules.linear", "Identity"))
        return {
            "os.system": call(name("os", "system"), shell),
            "posix.system": call(name("posix", "system"), shell),
            "eval": call(name("builtins", "eval"), touch),
            "eval of Python 2": call(name("__builtin__", "eval"), touch),
            "exec": call(name("builtins", "exec"), touch),
            "getattr": call(name("builtins", "getattr"), name("os", "x"), text("system")),
            "subprocess": call(name("subprocess", "Popen"), shell),
            "pathlib": call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), shell)),
            "INST": b"(" + shell + b"ios\nsystem\n",
            "OBJ": b"(" + name("os", "system") + shell + b"o",
            "NEWOBJ": name("os", "system") + b"(" + shell + b"t\x81",
            "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(" + shell + b"tR",
            "torch.load": call(name("torch.serialization", "load"), text(str(other))),
            "torch.hub": call(name("torch.hub", "load"), text(str(other))),
            "partial of os.system": call(
                call(partial, name("os", "system"), shell), b""
            ),
            "partial called": call(call(partial, conv), b"K\x01", b"K\x01", b"K\x01"),
            "partial of partial": call(partial, call(partial, name("os", "system")), shell),
            "constructor": call(conv, b"K\x01", b"K\x01", b"K\x01"),
            "constructor by NEWOBJ": conv + b"(K\x01t\x81",
            "listed function": call(name("torchvision.ops.boxes", "box_iou"), b"N", b"N"),
            "script": call(name("torch.jit", "load"), text(str(other))),
            "fx": call(name("torch.fx.graph_module", "reduce_graph_module"), b"}", text("1")),
            "fx class": name("torchvision.models.feature_extraction", "DualGraphModule") + b")\x81",
            "attribute of a module": new_conv + b"}" + text("x")
            + call(name("os", "system"), shell) + b"sb",
            "state that is no dict": new_conv + b"K\x01b",
            # With nn.Identity on the list this sets nn.Conv2d.forward, for the whole process.
            "class overwritten": call(
                name("torch._tensor", "_rebuild_from_type_v2"), identity, conv,
                b"(" + identity + b"}" + text("as_subclass") + identity + b"sbt",
                b"}" + text("forward") + conv + b"s",
            ),
            "module without state": new_conv,
            "module in itself": new_conv + b"q\x01}" + text("_modules") + b"}" + text("a")
            + b"h\x01ssb",
            "wrapper of itself": name("torch.nn.parallel.data_parallel", "DataParallel")
            + b")\x81q\x01}" + text("_modules") + b"}" + text("module") + b"h\x01ssb",
        }  # fmt: skip

    @pytest.mark.parametrize("write", [zipped, legacy])
    @pytest.mark.parametrize("place", ["top", "state dict", "key"])
    def test_nothing_runs(self, write: Any, place: str, marker: Path, tmp_path: Path) -> None:
        other = zipped(PROTO + call(name("os", "system"), text(f"touch {marker}")) + STOP,
                       tmp_path / "other.pt")  # fmt: skip
        forward = nn.Conv2d.forward
        for what, body in self.programs(marker, other).items():
            if place == "state dict":
                body = b"}" + text("state_dict") + b"}" + text("conv.weight") + body + b"ss"
            elif place == "key":
                body = b"}" + text("epoch") + body + b"s"
            path = write(PROTO + body + STOP, tmp_path / f"{what}.pt")
            assert refusal(path), what
            assert not marker.exists(), what
            assert nn.Conv2d.forward is forward, what

    def test_the_programs_are_live(self, marker: Path, tmp_path: Path) -> None:
        """Otherwise the test above would prove nothing: Python's own pickle does run them."""
        for what in ("os.system", "eval", "INST", "OBJ", "STACK_GLOBAL"):
            pickle.loads(PROTO + self.programs(marker, tmp_path)[what] + STOP)
            assert marker.exists(), what
            marker.unlink()

    def test_trusting_runs_it(self, marker: Path, tmp_path: Path) -> None:
        program = self.programs(marker, tmp_path)["os.system"]
        path = zipped(PROTO + program + STOP, tmp_path / "trusted.pt")
        assert "holds a int, not a model" in refusal(path, trust_pickle=True)
        assert marker.exists()

    def test_modules_are_built_without_their_constructor(self, tmp_path: Path, monkeypatch) -> None:
        torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), tmp_path / "model.pt")

        def called(*_: object, **__: object) -> None:
            raise AssertionError("a constructor was called")

        monkeypatch.setattr(nn.Conv2d, "__init__", called)
        monkeypatch.setattr(nn.Sequential, "__init__", called)
        model = load_pickled(tmp_path / "model.pt", trust=False)
        assert type(model[0]) is nn.Conv2d

    @pytest.mark.parametrize("write", [zipped, legacy])
    def test_a_tuple_that_unfolds_without_end(self, write: Any, tmp_path: Path) -> None:
        doubled = b"K\x01" + b"q\x01h\x01\x86" * 60
        for what, body in {
            "key": b"}" + doubled + b"K\x01s",
            "set": b"}" + text("a") + call(name("builtins", "set"), b"]" + doubled + b"a") + b"s",
            "by mark": b"}K\x01" + b"q\x010(h\x01h\x01h\x01t" * 40 + b"K\x01s",
        }.items():
            path = write(PROTO + body + STOP, tmp_path / f"{what}.pt")
            assert "unfolds to over" in refusal(path), what

    def test_a_name_without_end(self, tmp_path: Path) -> None:
        body = name("x" * 100_000, "y" * 100_000) + b")\x81"
        path = zipped(PROTO + body + STOP, tmp_path / "long.pt")
        assert "names a class in 200,001 characters" in refusal(path)


class TestData:
    """What may lie beside weights is never built, whatever a file calls it with or sets on it."""

    def states(self, marker: Path) -> list[bytes]:
        path = text(str(marker))
        tensor = name("torch", "Tensor")
        attributes = b"".join(
            text(key) + tensor for key in ("__class__", "__reduce__", "__len__", "append", "order")
        )
        return [
            path, b"}" + text("x") + path + b"s", b"}(" + attributes + b"u", b"N",
            b"(N}" + text("__class__") + tensor + b"st",  # the state of slots, which are set
            b"(K\x03" + tensor + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft",  # of a dtype
            b"(K\x01" + b"\x8a\x06\0\0\0\0\0\x10\x85" + tensor + b"\x89" + path + b"t",  # of arrays
        ]  # fmt: skip

    @pytest.mark.parametrize("write", [zipped, legacy])
    def test_nothing_is_built(self, write: Any, marker: Path, tmp_path: Path) -> None:
        path, function = text(str(marker)), name("torch._utils", "_rebuild_tensor_v2")
        huge = b"\x8a\x06\0\0\0\0\0\x10"  # 2**44
        made: list[bytes] = []
        for asked in inert.stand_ins():
            named = name(asked.__module__, asked.__qualname__)
            for arguments in ((), (path,), (function, path), (huge,), (named, huge, path)):
                given = b"(" + b"".join(arguments) + b"t"
                made += [named + given + b"R", named + given + b"\x81"]
                if asked.__module__ != "collections":  # lists and dicts, which have no state
                    made += [made[-1] + state + b"b" for state in self.states(marker)]
        file = write(PROTO + b"](" + b"".join(made) + b"e" + STOP, tmp_path / "data.pt")
        for one in load_pickled(file, trust=False):
            assert type(one) in (inert.Inert, inert._DType, list, dict)
            if isinstance(one, (list, dict)):
                assert not one
            else:
                assert vars(one).keys() <= {"code", "order"}
                assert all(type(value) is str for value in vars(one).values())
        assert not marker.exists()

    def test_numbers_alone_are_read(self, tmp_path: Path) -> None:
        scalar, dtype = name("numpy.core.multiarray", "scalar"), name("numpy", "dtype")
        data = call(name("_codecs", "encode"), text("12345678"), text("latin1"))
        for code in ("O", "O8", "V8", "U2", "S8", "M8", "c8", "f16", "<f8", "f8,f8"):
            program = call(scalar, call(dtype, text(code)), data)
            file = zipped(PROTO + program + STOP, tmp_path / "scalar.pt")
            assert type(load_pickled(file, trust=False)) is inert.Inert, code
        for order in "<>":
            state = b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            program = call(scalar, call(dtype, text("u8")) + state, data)
            file = zipped(PROTO + program + STOP, tmp_path / "scalar.pt")
            expected = int.from_bytes(b"12345678", "little" if order == "<" else "big")
            assert load_pickled(file, trust=False) == expected
        short = call(scalar, call(dtype, text("i4")), data)
        assert "cannot be loaded" in refusal(zipped(PROTO + short + STOP, tmp_path / "short.pt"))

    def test_none_of_it_can_be_a_class_of_torch(self) -> None:
        """A stand-in must not hide what torch itself lists."""
        listed = torch._weights_only_unpickler._get_allowed_globals()
        names = {f"{one.__module__}.{one.__qualname__}" for one in inert.stand_ins()}
        assert not names & set(listed)


def test_honest_files_do_not_unfold(tmp_path: Path) -> None:
    shared = (3, 3)
    for _ in range(12):
        shared = (shared, shared)
    layer = nn.Conv2d(1, 1, 1)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": layer, "shared": shared}, tmp_path / "honest.pt", **options)
        if not options:
            assert "model" in load_pickled(tmp_path / "honest.pt", trust=False)
        check_pickles(tmp_path / "honest.pt")

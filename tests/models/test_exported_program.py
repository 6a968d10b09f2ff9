"""Exported programs: their twins, and files that ask for more than to be read."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import refusal
from program_files import UNet, edited, example_of, exported, replaced, unet, written
from torch import Tensor, nn

from factorize.graph import find
from factorize.models.load_model import load_model
from factorize.program import ProgramTwin

X = torch.randn(1, 4, 16, 12)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def reasons(path: Path, x: Any) -> dict[str, str | None]:
    return {site.spec.name: site.blocked for site in find(load_model(path).model, x)}


def test_layers_are_modules_with_the_names_of_the_net(tmp_path: Path) -> None:
    net = unet()
    path = written(net, tmp_path / "net.pt2")
    loaded = load_model(path)
    assert isinstance(loaded.model, ProgramTwin)
    assert loaded.input_shape == (4, 16, 12)
    assert loaded.check
    assert loaded.check(X) == ()
    assert loaded.model.state_dict().keys() == net.state_dict().keys()
    names = ["first", "down", "inner", "up", "last"]
    assert reasons(path, X) == dict.fromkeys(names)
    assert isinstance(loaded.model.norm, nn.modules.batchnorm._BatchNorm)
    for name in ("first", "down", "up"):
        own, theirs = loaded.model.get_submodule(name), net.get_submodule(name)
        assert type(own) is type(theirs)
        assert own.extra_repr() == theirs.extra_repr()
    for size in (X, torch.randn(3, 4, 8, 20)):
        torch.testing.assert_close(loaded.model(size), net(size))


def test_it_is_told_by_its_content(tmp_path: Path) -> None:
    path = written(unet(), tmp_path / "net.pt2").rename(tmp_path / "net.zip")
    assert isinstance(load_model(path).model, ProgramTwin)
    assert "is an architecture already" in refusal(path, arch="net.py:build")


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.free = nn.Conv2d(4, 4, 1)
        self.bare = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.computed(self.twice(self.twice(x)))
        x = nn.functional.conv2d(x, self.bare)
        return self.free(self.read(x)) * self.read.weight.sum()


def test_weights_that_others_use_are_left_alone(tmp_path: Path) -> None:
    net = Shared().eval()
    loaded = load_model(exported(net, (X,), tmp_path / "net.pt2"))
    found = {site.spec.name: site.blocked for site in find(loaded.model, X)}
    assert found == {
        "twice": "its weight is used 2 times in the program", "free": None, "bare_layer": None,
    }  # fmt: skip
    told = " ".join(loaded.notes)
    assert "left alone: its weight is computed" in told
    assert "left alone: its weights are read by sum_1 too" in told
    torch.testing.assert_close(loaded.model(X), net(X))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor, scale: float, *, y: Tensor) -> dict[str, Any]:
        z = self.conv(x)
        return {"z": z * scale, "more": [y, z.mean(-1)]}


def test_inputs_and_outputs_keep_their_form(tmp_path: Path) -> None:
    net, x, y = Two(), torch.randn(1, 3, 9), torch.randn(1, 2)
    loaded = load_model(exported(net, (x, 2.0), tmp_path / "net.pt2", y=y))
    assert set(loaded.example) == {"x", "y"}
    wanted = net(x, 2.0, y=y)
    for got in (loaded.model(x, y=y), loaded.model(x=x, y=y), loaded.model(x, 2.0, y)):
        torch.testing.assert_close(got, wanted)


def test_a_batch_of_a_fixed_program_goes_one_by_one(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(4, 4, 3), nn.Linear(4 * 14 * 10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(x.shape[0], -1))

    net = Fixed()
    loaded = load_model(exported(net, (X,), tmp_path / "net.pt2"))
    assert loaded.check
    (note,) = loaded.check(example_of(loaded))
    assert note.startswith("images go through one by one")
    x = torch.randn(3, 4, 16, 12)
    torch.testing.assert_close(loaded.model(x), net(x))


def test_the_least_batch_is_taken_where_one_is_too_few(tmp_path: Path) -> None:
    net, x = nn.Conv2d(4, 4, 3), X.repeat(8, 1, 1, 1)
    sizes = ({0: torch.export.Dim("batch", min=5, max=64)},)
    loaded = load_model(exported(net, (x,), tmp_path / "net.pt2", sizes))
    assert loaded.example.shape == (5, 4, 16, 12)
    assert loaded.notes == ("its batch must be 5 or more",)
    assert loaded.check
    assert loaded.check(loaded.example) == ()
    loaded = load_model(exported(net, (x,), tmp_path / "net.pt2"))
    assert loaded.notes == ("its batch of 8 is fixed",)
    assert loaded.example.shape == x.shape


def test_train_mode_and_half_precision_are_refused(tmp_path: Path) -> None:
    path = exported(UNet().train(), (X.repeat(2, 1, 1, 1),), tmp_path / "train.pt2")
    assert "Export it after model.eval()" in refusal(path)
    path = exported(nn.Conv2d(4, 4, 3).half(), (X.half(),), tmp_path / "half.pt2")
    assert "must be in float32 or float64, got torch.float16" in refusal(path)
    path = exported(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout()), (X,), tmp_path / "drop.pt2")
    assert "(dropout: dropout)" in refusal(path)


def expression(text: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        sizes = content["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


def target(name: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = name

    return change


def spec(old: str, new: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        signature = content["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace(old, new)

    return change


def renamed(content: dict[str, Any]) -> None:
    content["graph_module"]["graph"]["nodes"][0]["name"] = "x = os.mkdir('ran')"


def argument(content: dict[str, Any]) -> None:
    signature = content["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = ["x=__import__('os').mkdir('ran')"]


def ranged(content: dict[str, Any]) -> None:
    content["range_constraints"]["__import__('os').mkdir('ran')"] = {"min_val": 1, "max_val": 2}


HOSTILE = {
    "code for a size": (expression("__import__('os').mkdir('ran')"), "must be arithmetic"),
    "attribute": (expression("Symbol.__class__"), "must be arithmetic"),
    "endless number": (expression("9**9**9**9"), "must be arithmetic"),
    "endless power": (expression("Pow(9, Pow(9, 99999999))"), "must be arithmetic"),
    "shift": (expression("LShift(1, 9999999999)"), "must be arithmetic"),
    "deep": (expression("(" * 5000 + "1" + ")" * 5000), "must be arithmetic"),
    "range": (ranged, "must be arithmetic"),
    "os.system": (target("torch.os.system"), "calls torch.os.system"),
    "reads a file": (target("torch.ops.aten.from_file.default"), "calls torch.ops.aten.from_file"),
    "dunder": (target("torch.ops.aten.__init__.__globals__"), "calls torch.ops.aten.__init__"),
    "methodcaller": (target("_operator.methodcaller"), "calls _operator.methodcaller"),
    "name": (renamed, "must be a name"),
    "argument": (argument, "must be a name"),
    "class": (spec("builtins.dict", "my.Output"), "are of the class my.Output"),
    "enum": (spec('"[]"', '"{\\"__enum__\\": 1, \\"fqn\\": \\"this:x\\"}"'), "enum"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_no_code_of_a_program_runs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, says = HOSTILE[what]
    path = edited(written(unet(), tmp_path / "net.pt2"), change)
    assert says in refusal(path)
    assert not Path("ran").exists()


def test_guards_are_read_as_arithmetic_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(content: dict[str, Any]) -> None:
        content["guards_code"] += ["__import__('os').mkdir('ran')", "L['x'].size()[2] != 7"]

    path = edited(written(unet(), tmp_path / "net.pt2"), change)
    model: Any = load_model(path).model
    program = model.program_form.program()
    assert "L['x'].size()[2] != 7" in program._guards_code
    assert not any("import" in guard for guard in program._guards_code)
    assert not Path("ran").exists()


def test_no_pickle_of_a_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    path = written(unet(), tmp_path / "net.pt2")
    replaced(path, "sample_inputs/model.pt", lambda _: buffer.getvalue())
    assert isinstance(load_model(path).model, ProgramTwin)  # unread

    def pickled(content: dict[str, Any]) -> None:
        content["config"]["first.bias"]["use_pickle"] = True

    edited(path, pickled, "weights_config.json")
    replaced(path, "weights/weight_1", lambda _: buffer.getvalue())
    assert "first.bias is an object to unpickle" in refusal(path)

    path = written(unet(), tmp_path / "net.pt2")
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                "tensor_meta": None}  # fmt: skip
    edited(path, lambda content: content["config"].update(c=constant), "constants_config.json")
    assert "c is an object to unpickle" in refusal(path)
    assert not Path("ran").exists()


def test_the_old_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch before 2.8, as torch's own serializer makes its parts."""
    import zipfile

    from torch._export.serde.serialize import serialize

    monkeypatch.chdir(tmp_path)
    net, path = unet(), tmp_path / "old.pt2"
    program = torch.export.export(net, (X,), strict=False)
    made = serialize(program)
    entries = {
        "version": b"8.8", "serialized_exported_program.json": made.exported_program,
        "serialized_state_dict.pt": made.state_dict, "serialized_constants.pt": made.constants,
        "serialized_example_inputs.pt": made.example_inputs,
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    torch.testing.assert_close(load_model(path).model(X), net(X))
    replaced(path, "serialized_state_dict.pt", lambda _: pickle.dumps(Evil()))
    assert "serialized_state_dict.pt holds more than tensors" in refusal(path)
    assert not Path("ran").exists()


def huge(content: dict[str, Any]) -> None:
    content["config"]["first.bias"]["tensor_meta"]["sizes"] = [{"as_int": 10**12}]


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(unet(), tmp_path / "net.pt2")
    whole = path.read_bytes()
    edited(path, huge, "weights_config.json")
    assert "first.bias has 1,000,000,000,000 values in 32 bytes" in refusal(path)
    path.write_bytes(whole)
    replaced(path, "weights/weight_1", lambda _: b"")
    assert "cannot be loaded by torch" in refusal(path)
    for end in (0, 10, 1000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        refusal(path)
    path.write_bytes(b"no zip archive")
    refusal(path)
    path.write_bytes(whole)
    for text in (b"", b"{}", b"[]", b"{" * 100_000, b'{"graph_module": {}}'):
        replaced(path, "model.json", lambda _, text=text: text)
        refusal(path)

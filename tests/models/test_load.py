"""Loading models: state dicts, functions that build one, names."""

from __future__ import annotations

import copy
import random
import urllib.error
from pathlib import Path

import pytest
import torch
from loading import IMAGENET, assert_same, saved, tiny
from torch import nn
from torchvision import models

from factorize.errors import DataError, ModelLoadError
from factorize.models.architectures import build_empty
from factorize.models.load_model import load_model
from factorize.system.imports import import_function


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A quarter of a million parameters, for the many ways to save one."""
    torch.manual_seed(0)
    return models.shufflenet_v2_x0_5(num_classes=10).eval()


@pytest.fixture(scope="module")
def state(small: nn.Module) -> dict[str, torch.Tensor]:
    return dict(small.state_dict())


class TestStateDicts:
    @pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict", "ema", "net"])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
    def test_containers_and_prefixes(
        self, small: nn.Module, state: dict, key: str, prefix: str, tmp_path: Path
    ) -> None:
        content = {prefix + name: tensor for name, tensor in state.items()}
        path = saved({key: content, "epoch": 3} if key else content, tmp_path)
        loaded = load_model(path)
        assert loaded.arch == "torchvision:shufflenet_v2_x0_5"
        assert loaded.input_shape == (3, 224, 224)
        assert loaded.preprocessing == IMAGENET
        assert_same(loaded.model, small)
        assert loaded.notes[-1] == "recognised as torchvision:shufflenet_v2_x0_5 with 10 classes"
        assert (f"read from key {key}" in loaded.notes) == bool(key)
        for part in ("module.", "_orig_mod."):
            assert (f"prefix '{part}' removed" in loaded.notes) == (part in prefix)

    def test_prefix_in_the_middle_and_nested_ema(
        self, small: nn.Module, state: dict, tmp_path: Path
    ) -> None:
        content = {k.replace("stage2.", "stage2._orig_mod."): v for k, v in state.items()}
        loaded = load_model(saved({"ema": {"module": content, "decay": 0.99}}, tmp_path))
        assert_same(loaded.model, small)
        assert "read from key ema.module" in loaded.notes

    def test_averaged_model(self, small: nn.Module, tmp_path: Path) -> None:
        averaged = torch.optim.swa_utils.AveragedModel(small)
        loaded = load_model(saved({"model": averaged.state_dict()}, tmp_path))
        assert_same(loaded.model, small)
        assert any("AveragedModel" in note for note in loaded.notes)

    def test_state_dict_is_taken_before_ema(self, state: dict, tmp_path: Path) -> None:
        other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        loaded = load_model(saved({"ema": other, "state_dict": state}, tmp_path))
        assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])
        assert any("ema" in note and "not used" in note for note in loaded.notes)

    @pytest.mark.parametrize("name", ["model.th", "model.pth", "weights", "model.safetensors"])
    def test_formats_are_told_apart_by_content(
        self, small: nn.Module, state: dict, name: str, tmp_path: Path
    ) -> None:
        from safetensors.torch import save_file

        if name in ("weights", "model.safetensors"):
            save_file(state, tmp_path / name)
        else:
            saved(state, tmp_path, name, _use_new_zipfile_serialization=name == "model.pth")
        assert_same(load_model(str(tmp_path / name)).model, small)

    def test_double_precision_is_kept(self, small: nn.Module, tmp_path: Path) -> None:
        model = copy.deepcopy(small).double()
        loaded = load_model(saved(model.state_dict(), tmp_path))
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float64}
        assert "saved in float64" in loaded.notes
        assert_same(loaded.model, model)

    def test_tensors_of_another_device(self, state: dict, tmp_path: Path) -> None:
        # As a file saved on CUDA names its storages; this machine may have none.
        path = saved(state, tmp_path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        assert b"X\x03\x00\x00\x00cpu" in content
        path.write_bytes(content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
        loaded = load_model(path)
        assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}

    def test_old_files_without_counters(self, state: dict, tmp_path: Path) -> None:
        old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        loaded = load_model(saved(old, tmp_path))
        assert torch.equal(loaded.model.state_dict()["conv1.1.weight"], state["conv1.1.weight"])

    def test_training_script_checkpoint(self, state: dict, tmp_path: Path) -> None:
        """As torchvision's reference scripts write it, optimizer and all."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).state_dict()
        content = {"model": state, "optimizer": optimizer, "epoch": 3, "scaler": None}
        assert load_model(saved(content, tmp_path)).arch == "torchvision:shufflenet_v2_x0_5"


TINY = """
import helper_beside_it
from torch import nn

def net(width=4):
    return nn.Sequential(
        nn.Conv2d(helper_beside_it.CHANNELS, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2, 1))

def text():
    return "not a module"

value = 3
"""


@pytest.fixture
def tiny_py(tmp_path: Path) -> Path:
    (tmp_path / "helper_beside_it.py").write_text("CHANNELS = 3\n")
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


class TestArch:
    def test_torchvision_infers_classes(self, small: nn.Module, state: dict, tmp_path) -> None:
        loaded = load_model(saved(state, tmp_path), arch="torchvision:shufflenet_v2_x0_5")
        assert_same(loaded.model, small)

    def test_torchvision_that_does_not_fit(self, state: dict, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match=r"does not fit torchvision:resnet34: missing"):
            load_model(saved(state, tmp_path), arch="torchvision:resnet34")

    def test_file_function(self, tiny_py: Path, tmp_path: Path) -> None:
        model = tiny()
        path = saved(model.state_dict(), tmp_path)
        loaded = load_model(path, arch=f"{tiny_py}:net")
        assert loaded.arch == f"{tiny_py}:net"
        assert (loaded.input_shape, loaded.preprocessing) == (None, None)
        assert_same(loaded.model, model)

    def test_module_function_and_arguments(self, tiny_py: Path, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tiny_py.parent)
        path = saved(tiny().state_dict(), tmp_path)
        assert_same(load_model(path, arch="tiny:net", arch_args={"width": 4}).model, tiny())
        with pytest.raises(ModelLoadError, match=r"0\.weight is \(4, 3, 3, 3\), expected \(5, 3"):
            load_model(path, arch="tiny:net", arch_args={"width": 5})

    @pytest.mark.parametrize(
        ("reference", "says"),
        [
            ("{}:missing", "missing does not exist in .*tiny.py; it has net, text"),
            ("{}:value", "value is not callable"),
            ("{}:text", "returned a str, not an nn.Module"),
            ("{}", "package.module:function"),
            ("no/such/file.py:net", "no such file"),
            ("no_such_package.models:net", "No module named 'no_such_package'"),
        ],
    )
    def test_bad_references(self, reference: str, says: str, tiny_py: Path, tmp_path) -> None:
        path = saved(tiny().state_dict(), tmp_path)
        with pytest.raises(ModelLoadError, match=says) as caught:
            load_model(path, arch=reference.format(tiny_py))
        assert "\n" not in str(caught.value)

    def test_bad_arguments(self, tiny_py: Path, tmp_path: Path) -> None:
        path = saved(tiny().state_dict(), tmp_path)
        with pytest.raises(ModelLoadError, match=r"unexpected keyword .*Check --arch-args"):
            load_model(path, arch=f"{tiny_py}:net", arch_args={"depth": 4})

    def test_import_function_for_others(self, tiny_py: Path) -> None:
        assert import_function(f"{tiny_py}:text")() == "not a module"
        with pytest.raises(DataError):
            import_function(f"{tiny_py}:missing", error=DataError)

    def test_module_given_an_arch(self, tiny_py: Path, tmp_path: Path) -> None:
        loaded = load_model(saved(nn.DataParallel(tiny()), tmp_path), arch=f"{tiny_py}:net")
        assert loaded.arch == f"{tiny_py}:net"
        assert_same(loaded.model, tiny())


class TestNames:
    def test_random_weights_are_said_and_always_the_same(self) -> None:
        torch.manual_seed(5)
        loaded = load_model("torchvision:mobilenet_v3_small", arch_args={"num_classes": 4})
        assert loaded.arch == "torchvision:mobilenet_v3_small"
        assert any("random weights" in note for note in loaded.notes)
        assert loaded.input_shape == (3, 224, 224)
        torch.manual_seed(6)
        again = load_model("torchvision:mobilenet_v3_small", arch_args={"num_classes": 4})
        assert_same(again.model, loaded.model)

    def test_unknown_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ModelLoadError, match=r"did you mean .*resnet18"):
            load_model("torchvision:resnet81")
        with pytest.raises(ModelLoadError, match="no such float model"):
            load_model("torchvision:quantized_resnet18")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelLoadError, match="did you mean torchvision:resnet18"):
            load_model("resnet18")

    def test_weights(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="has no weights BEST; it has IMAGENET1K_V1"):
            load_model("torchvision:resnet18", weights="BEST")

        def offline(*_: object, **__: object) -> None:
            raise urllib.error.URLError("no network")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.urlopen", offline)
        with pytest.raises(ModelLoadError, match=r"cannot download the weights DEFAULT: .*no netw"):
            load_model("torchvision:resnet18", weights="DEFAULT")

    def test_weights_bring_their_preprocessing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = build_empty("resnet50", {}).state_dict()
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state
        )
        for weights, resize in (("IMAGENET1K_V1", 256), ("DEFAULT", 232)):
            loaded = load_model("torchvision:resnet50", weights=weights)
            assert loaded.preprocessing is not None
            assert loaded.preprocessing.resize == resize
            assert loaded.notes == (f"weights {weights}",)

    def test_digits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").write_text("a file of that name does not hide the example")
        loaded = load_model("digits")
        assert (loaded.arch, loaded.input_shape) == ("digits", (1, 8, 8))
        with torch.no_grad():
            assert loaded.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    def test_arguments_that_are_not_taken(self) -> None:
        for arguments in ({"depth": 3}, {"weights": "DEFAULT"}, {"name": "x"}):
            with pytest.raises(ModelLoadError, match=r"cannot be built: TypeError: .*--arch-args"):
                load_model("torchvision:squeezenet1_1", arch_args=arguments)

    def test_options_that_do_not_go_together(self, state: dict, tmp_path: Path) -> None:
        path = saved(state, tmp_path)
        for source, options in (
            ("torchvision:resnet18", {"arch": "torchvision:resnet18"}),
            ("digits", {"arch": "torchvision:resnet18"}),
            ("digits", {"weights": "DEFAULT"}),
            (path, {"weights": "DEFAULT"}),
            (path, {"arch_args": {"num_classes": 3}}),
        ):
            with pytest.raises(ModelLoadError, match="--"):
                load_model(source, **options)


def test_process_is_left_as_it_was(small: nn.Module, tmp_path: Path) -> None:
    path, whole = saved(small.state_dict(), tmp_path), saved(small, tmp_path, "whole.pt")
    allowed = list(torch.serialization.get_safe_globals())
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    for source in (path, whole, "torchvision:squeezenet1_1"):
        load_model(source)
    after = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert list(torch.serialization.get_safe_globals()) == allowed
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_model(path)
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
        with torch.device("meta"):
            assert_same(load_model(path).model, small)
    finally:
        torch.set_default_dtype(torch.float32)

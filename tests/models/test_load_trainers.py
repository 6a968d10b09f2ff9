"""Checkpoints as trainers write them: prefixes, several sets of weights, data beside them."""

from __future__ import annotations

import argparse
import collections
import datetime
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import assert_same, refusal, saved, tiny
from torch import nn
from torchvision import models

from factorize.models.load_model import load_model
from factorize.models.prefixes import readings

Weights = dict[str, torch.Tensor]


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "arch.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(\n"
        "    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = net()\n"
    )
    return f"{tmp_path}/arch.py:net"


def weights(prefix: str = "", factor: float = 1) -> Weights:
    return {prefix + name: tensor * factor for name, tensor in tiny().state_dict().items()}


def check(content: object, arch: str, tmp_path: Path, **options: Any) -> tuple[str, ...]:
    """It loads as the tiny net's own weights; what was said of it."""
    loaded = load_model(saved(content, tmp_path), arch=arch, **options)
    assert_same(loaded.model, tiny())
    return loaded.notes


class TestPrefixes:
    @pytest.mark.parametrize(
        "prefix", ["model.", "net.", "backbone.", "student.", "resnet.", "model.net.", "a.b.c."]
    )
    def test_one_that_all_share(self, prefix: str, arch: str, tmp_path: Path) -> None:
        notes = check({"state_dict": weights(prefix)}, arch, tmp_path)
        assert notes == ("read from key state_dict", f"prefix '{prefix}' removed")

    def test_as_lightning_writes_it(self, tmp_path: Path) -> None:
        """A net under `model`, a loss, an averaged copy, metrics; hyperparameters beside it."""
        torch.manual_seed(0)
        net = models.squeezenet1_1(num_classes=5).eval()
        state = {
            **{f"model.{name}": tensor for name, tensor in net.state_dict().items()},
            "loss.weight": torch.ones(5),
            **{f"ema.{name}": 0 * tensor for name, tensor in net.state_dict().items()},
        }
        content = {
            "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.5.0",
            "state_dict": state, "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"kth_value": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
            "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1},
        }  # fmt: skip
        loaded = load_model(saved(content, tmp_path))
        assert_same(loaded.model, net)
        assert loaded.notes == (
            "read from key state_dict",
            "prefix 'model.' removed",
            "weights outside of it are not used: loss.weight, ema. (52 tensors)",
            "recognised as torchvision:squeezenet1_1 with 5 classes",
        )
        given = load_model(saved(content, tmp_path), arch="torchvision:squeezenet1_1")
        assert_same(given.model, net)
        assert "prefix 'model.' removed" in given.notes
        averaged = load_model(saved(content, tmp_path), key="state_dict.ema")
        assert not any(tensor.any() for tensor in averaged.model.state_dict().values())

    def test_one_of_the_net_itself_stays(self, arch: str, tmp_path: Path) -> None:
        wrapped = arch.replace(":net", ":Wrapped")
        loaded = load_model(saved(weights("model."), tmp_path), arch=wrapped)
        assert torch.equal(loaded.model.state_dict()["model.0.weight"], weights()["0.weight"])
        assert loaded.notes == ()

    def test_what_fits_nothing_is_compared_without_it(self, arch: str, tmp_path: Path) -> None:
        state = weights("model.") | {"model.3.weight": torch.zeros(5, 4, 1, 1)}
        message = refusal(saved(state, tmp_path), arch=arch)
        assert "3.weight is (5, 4, 1, 1), expected (2, 4, 1, 1)" in message
        assert "missing" not in message
        state = models.squeezenet1_1().state_dict()
        state = {f"model.{name}": tensor for name, tensor in state.items() if "12" not in name}
        assert "nearest is squeezenet1_1: missing features.12" in refusal(saved(state, tmp_path))

    def test_prefixes_without_end(self) -> None:
        """Each costs a comparison with all of torchvision."""
        state = {".".join(["model", "net"] * 15) + f".{i}.x": torch.zeros(1, 1) for i in range(9)}
        assert len(readings(state)) == 12


class TestContainers:
    @pytest.mark.parametrize(
        "key",
        ["params", "params_ema", "netG", "generator", "state_dict_ema", "model_ema",
         "ema_state_dict", "model_state", "weights", "network"],
    )  # fmt: skip
    def test_one_is_found(self, key: str, arch: str, tmp_path: Path) -> None:
        notes = check({key: weights(), "epoch": 3}, arch, tmp_path)
        assert notes == (f"read from key {key}",)

    def test_the_plain_one_is_taken_and_others_are_named(self, arch: str, tmp_path: Path) -> None:
        others = {"params_ema": weights(factor=0), "netD": weights(factor=0)}
        for key in ("params", "net", "weights"):
            content = {**others, "metrics": {"top1": torch.tensor(0.5)}, key: weights()}
            notes = check(content, arch, tmp_path)
            told = "the file also has weights under params_ema, netD, not used: --key takes them"
            assert notes == (told, f"read from key {key}")

    def test_a_config_of_that_name_is_none(self, arch: str, tmp_path: Path) -> None:
        content = {"model": {"name": "tiny", "width": 4}, "network": weights()}
        assert check(content, arch, tmp_path) == ("read from key network",)

    def test_by_key(self, arch: str, tmp_path: Path) -> None:
        content = {
            "model": weights(factor=0),
            "ema": {"module": weights(), "other": weights(factor=0)},
            "my.net": weights(),
            "parts": {"a.b": {"c": weights("module.")}},
        }
        for key in ("ema", "ema.module", "my.net", "parts.a.b.c"):
            notes = check(content, arch, tmp_path, key=key)
            assert any(note.startswith(f"read from key {key}") for note in notes)
        whole = {"first": nn.Sequential(nn.Conv2d(1, 1, 1)), "second": tiny()}
        assert_same(load_model(saved(whole, tmp_path), key="second").model, tiny())

    def test_by_prefix(self, arch: str, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file(weights("net.", 0) | weights("ema_net."), tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors", arch=arch, key="ema_net")
        assert_same(loaded.model, tiny())

    def test_keys_that_are_not_there(self, arch: str, tmp_path: Path) -> None:
        path = saved({"model": weights(), "mine": weights(), "epoch": 3}, tmp_path)
        says = "has no key params; its keys are model, mine, epoch, with weights under model, mine"
        assert says in refusal(path, arch=arch, key="params")
        assert "has no key model.mine" in refusal(path, arch=arch, key="model.mine")
        assert "has no key ;" in refusal(path, arch=arch, key="")
        assert "holds a int under epoch" in refusal(path, arch=arch, key="epoch")
        path = saved([weights()], tmp_path)
        assert "has no key model" in refusal(path, key="model")
        path = saved({"mine": weights(), "\x1b[2J" + "k" * 10**5: weights()}, tmp_path)
        message = refusal(path, arch=arch)
        assert "has weights under mine, '\\x1b[2Jkkk" in message
        assert "--key mine" in message
        for source in ("digits", "torchvision:resnet18"):
            assert "--key goes with a file" in refusal(source, key="model")


BESIDE = {
    "best": np.float64(0.5), "step": np.int64(3), "flag": np.bool_(True), "text": np.str_("a"),
    "history": np.arange(3.0), "mixed": np.array([1, None]), "empty": np.array([]),
    "dtype": np.dtype("float32"), "kind": np.float32, "random": np.random.get_state(),
    "args": argparse.Namespace(lr=0.1, data=Path("/data")), "more": types.SimpleNamespace(a=1),
    "path": Path("a/b"), "when": datetime.datetime.now(datetime.UTC),
    "took": datetime.timedelta(seconds=3), "losses": collections.defaultdict(list, {1: [0.5]}),
    "recent": collections.deque([1, 2], 3), "counts": collections.Counter("aab"),
    "version": torch.__version__, "range": range(3), "bytes": b"", "frozen": frozenset("a"),
}  # fmt: skip


class TestDataBesideTheWeights:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("what", list(BESIDE))
    def test_is_no_obstacle(self, what: str, zipped: bool, arch: str, tmp_path: Path) -> None:
        content = {"model": weights(), what: BESIDE[what], "all": [BESIDE[what]]}
        path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
        assert_same(load_model(path, arch=arch).model, tiny())

    @pytest.mark.parametrize("numpy", ["numpy.core", "numpy._core"])
    def test_of_either_numpy(self, numpy: str, arch: str, tmp_path: Path) -> None:
        content = {"model": weights(), "best": np.float64(0.5), "history": np.arange(3.0)}
        path = saved(content, tmp_path, _use_new_zipfile_serialization=False)
        own = np.float64(0).__reduce__()[0].__module__.rpartition(".")[0].encode()
        named = path.read_bytes().replace(own + b".multi", numpy.encode() + b".multi")
        path.write_bytes(named)
        assert_same(load_model(path, arch=arch).model, tiny())

    def test_numbers_of_modules_are_numbers(self, tmp_path: Path) -> None:
        model = tiny()
        for value in (np.int64(4), np.uint8(4), np.float32(4)):
            model[1].num_features = model[0].out_channels = value
            loaded: Any = load_model(saved(model, tmp_path)).model
            assert loaded[0].out_channels == 4
            assert type(loaded[0].out_channels) in (int, float)
        model[1].affine = np.bool_(False)
        loaded = load_model(saved(model, tmp_path)).model
        assert loaded[1].affine is False

    def test_what_is_not_read_is_not_taken_for_true(self, tmp_path: Path) -> None:
        model = tiny()
        model[1].track_running_stats = np.array([False])
        loaded: Any = load_model(saved(model, tmp_path)).model
        with pytest.raises(TypeError, match="has no truth"):
            bool(loaded[1].track_running_stats)

    def test_other_names_are_still_refused(self, tmp_path: Path) -> None:
        for value in (np.random.RandomState(0), np.poly1d([1]), datetime.datetime.now):
            path = saved({"model": weights(), "x": value}, tmp_path)
            assert "asks for" in refusal(path)

"""The command line: what it prints, what it writes, and one line for each kind of bad input."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ran
from suggestions import check_accepted, suggested
from torch import nn

from factorize.cli import command as cli
from factorize.types import LayerPlan

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:torch|accelerate|onnxscript")]


@pytest.fixture
def factorize(command: Callable[..., Ran]) -> Callable[..., Ran]:
    return command


def save_net(path: Path) -> Path:
    """A pickled module of plain torch classes."""
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
                             nn.Conv2d(16, 16, 3, padding=1)), path)  # fmt: skip
    return path


def test_digits_runs_the_whole_pipeline(
    factorize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = factorize("digits", "--rank", 8, "--device", "cpu")
    assert ran.code == 0, ran.err
    folder = tmp_path / "digits-factorized"
    report = json.loads((folder / "report.json").read_text())
    assert list(report["quality"]) == [
        "original",
        "rewritten",
        "recalibrated",
        "finetuned",
        "control",
    ]
    top1 = f"{report['quality']['finetuned']['top1']:.2f} %"
    assert top1 in ran.out
    assert "x (" in ran.out  # the speedup and its spread
    assert "model.onnx" in ran.out
    assert not report["failures"]
    commands = suggested(folder / "report.html")
    assert all(words[-1].startswith("digits-factorized-") for words in commands)
    check_accepted(monkeypatch, commands)


@pytest.mark.nightly
def test_what_the_report_of_digits_suggests_runs_as_it_stands(factorize, tmp_path: Path) -> None:
    assert factorize("digits", "--macs", 0.5, "--finetune", 0).code == 0
    for _, *words in suggested(tmp_path / "digits-factorized" / "report.html"):
        ran = factorize(*words)
        assert ran.code in (0, 1), ran.err  # 1: a budget that is not reached here
        assert (tmp_path / words[-1] / "report.json").exists()


def test_verbose_tells_how_long_each_layer_took(factorize, tmp_path: Path) -> None:
    net = save_net(tmp_path / "net.pt")
    what = (net, "--macs", 0.5, "--input-shape", "3,16,16", "--dry-run")
    ran = factorize(*what, "-v")
    assert ran.code == 0, ran.err
    assert re.search(r"chains for \S+: \d+ offered in \d+\.\d\d s", ran.err)
    assert re.search(r"fit \S+: \w+ \(.*\): error \S+ in \d+\.\d\d s", ran.err)
    assert " offered in " not in factorize(*what).err


def test_dry_run_shows_every_layer_and_writes_nothing(factorize, tmp_path: Path) -> None:
    ran = factorize(save_net(tmp_path / "net.pt"), "--rank", 4, "--input-shape", "3,16,16",
                    "--dry-run")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "spatial_svd 4" in ran.out
    assert "of weights" in ran.out  # what the errors are of
    assert "reads only" in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_plan_can_be_edited_and_applied(factorize, tmp_path: Path) -> None:
    net = save_net(tmp_path / "net.pt")
    assert factorize(net, "--rank", 4, "--input-shape", "3,16,16").code == 0
    content = json.loads((tmp_path / "net-factorized" / "plan.json").read_text())
    content["layers"][1].update(method="cp", rank=6, variant=None)
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(content))
    ran = factorize(net, "--plan", edited, "--input-shape", "3,16,16", "--out", "again")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert (report["layers"][1]["method"], report["layers"][1]["rank"]) == ("cp", [6])
    second = factorize(net, "--plan", edited, "--input-shape", "3,16,16", "--out", "again")
    assert second.code == 2
    assert "--force" in second.err


def test_a_wrong_plan_is_told_with_its_file_before_anything_is_read(
    factorize, tmp_path: Path
) -> None:
    net = save_net(tmp_path / "net.pt")
    assert factorize(net, "--rank", 4, "--input-shape", "3,16,16").code == 0
    content = json.loads((tmp_path / "net-factorized" / "plan.json").read_text())
    content["layers"][1]["rank"] = [9999]
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    ran = factorize("no-such.pt", "--plan", "wrong.json")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith("error: wrong.json: 2: rank must be an integer in 1..48 for")
    assert "--energy" not in ran.err
    content["layers"][1].update(rank=[4], name="other")
    (tmp_path / "other.json").write_text(json.dumps(content))
    ran = factorize(net, "--plan", "other.json", "--input-shape", "3,16,16", "--dry-run")
    assert ran.err.startswith("error: other.json: other: a plan must name convolutions")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.pt", "--rank", "8", "--plugin", "no.py"), "--plugin no.py: cannot import it"),
        (("missing.pt", "--rank", "8"), "missing.pt"),
        (("net.pt",), "--rank, --energy, --lossless, --plan and a budget"),
        (("net.pt", "--rank", "eight"), "got eight"),
        (("net.pt", "--rank", "0"), "got 0"),
        (("net.pt", "--rank", "8", "--energy", "0.5"), "either"),
        (("net.pt", "--plan", "missing.json"), "missing.json"),
        (("net.pt", "--rank", "8", "--method", "magic"), "got 'magic'"),
        (("net.pt", "--rank", "8", "--include", "layer9*"), "layer9*"),
        (("net.pt", "--rank", "8", "--input-shape", "3,0"), "3,224,224"),
        (("net.pt", "--rank", "8", "--input-shape", "4,16,16"), "must run on the example"),
        (("net.pt", "--rank", "8", "--data", "nowhere"), "nowhere"),
        (("net.pt", "--rank", "8", "--data", "empty"), "empty"),
        (("net.pt", "--rank", "8", "--data", "bad.npz"), "labels"),
        (("net.pt", "--rank", "8", "--mean", "0.5"), "--mean and --std"),
        (("net.pt", "--rank", "8", "--mean", "a", "--std", "b"), "--mean must be numbers"),
        (("net.pt", "--rank", "8", "--mean", "nan", "--std", "1"), "one finite number"),
        (("net.pt", "--rank", "8", "--input-shape", "3,1000000,1000000"), "up to 100,000,000"),
        (("net.pt", "--rank", "8", "--threads", "99999999999"), "--threads"),
        (("net.pt", "--rank", "8", "--batch", "99999999999"), "--batch"),
        (("net.pt", "--rank", "8", "--seed", "9" * 30), "--seed"),
        (("net.pt", "--rank", "8", "--arch-args", "[" * 100_000), "--arch-args must be JSON"),
        (("net.pt", "--rank", "8", "--arch-args", "9" * 5000), "--arch-args must be JSON"),
        (("net.pt", "--rank", "8", "--evaluate", "nowhere:f"), "nowhere"),
        (("net.pt", "--rank", "8", "--arch-args", "[1]"), "--arch-args"),
        (("net.pt", "--rank", "8", "--finetune", "1"), "--data"),
        (("net.pt", "--rank", "8", "--finetune", "x"), "finetune"),
        (("net.pt", "--rank", "8", "--device", "tpu"), "got 'tpu'"),
        (("net.pt", "--rank", "8", "--no-such-option"), "--no-such-option"),
        (("net.pt", "--rank", "8", "--out", "net.pt"), "must be a folder"),
        (("net.pt", "--rank", "1000"), "stay dense"),
        (("linear.pt", "--rank", "8"), "at least one convolution"),
        (("text.pt", "--rank", "8"), "text.pt"),
        # A wish that is wrong by itself comes before a file that is.
        (("text.pt", "--rank", "0"), "--rank must be an integer >= 1"),
        (("text.pt", "--rank", "8", "--method", "cpp"), "got 'cpp'. Did you mean cp?"),
        (("text.pt", "--rank", "8", "--energy", "2"), "--rank or --energy"),
        (("text.pt", "--macs", "0.5", "--method", "cp,cpp"), "got 'cpp'"),
        (("text.pt", "--macs", "0.5", "--energy", "0.5"), "--energy: a budget chooses ranks"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    factorize, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:  # fmt: skip
    save_net(tmp_path / "net.pt")
    torch.save(nn.Sequential(nn.Linear(3, 3)), tmp_path / "linear.pt")
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "empty").mkdir()
    images = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "bad.npz", images=images, labels=np.zeros(3, np.int64))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    if "--input-shape" not in arguments:
        arguments = (*arguments, "--input-shape", "3,16,16")
    ran = factorize(*arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_unknown_shape_asks_for_it(factorize, tmp_path: Path) -> None:
    ran = factorize(save_net(tmp_path / "net.pt"), "--rank", 4)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--input-shape" in ran.err


def test_failed_export_is_told_and_exit_code_is_not_zero(
    factorize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        from factorize.errors import ExportError

        raise ExportError("model.onnx: differs")

    monkeypatch.setattr("factorize.export.bundle.export_onnx", refuse)
    ran = factorize(save_net(tmp_path / "net.pt"), "--rank", 4, "--input-shape", "3,16,16")
    assert ran.code == 1
    assert "differs" in ran.out
    assert not (tmp_path / "net-factorized" / "model.onnx").exists()
    assert (tmp_path / "net-factorized" / "model.safetensors").exists()


def test_ctrl_c_before_the_end_writes_nothing(
    factorize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("factorize.run.pipeline.fit", interrupt)
    ran = factorize(save_net(tmp_path / "net.pt"), "--rank", 4, "--input-shape", "3,16,16")
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "interrupted: nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_names_with_brackets_are_shown_as_they_are(factorize, tmp_path: Path) -> None:
    folder = tmp_path / "[/x] [red]"
    folder.mkdir(parents=True)
    (folder / "nets.py").write_text(
        "import torch\ndef tiny(): return torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3))\n"
    )
    torch.save({"0.weight": torch.randn(8, 8, 3, 3), "0.bias": torch.zeros(8)}, folder / "n.pt")
    ran = factorize(folder / "n.pt", "--arch", f"{folder}/nets.py:tiny", "--rank", 2,
                    "--input-shape", "8,9,9")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "[/x] [red]" in ran.out.replace("\n", "")


def test_help_names_every_method_and_module_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "factorize", "--help-all"],
        capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "PATH": "", "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )  # fmt: skip
    from factorize import methods

    assert all(name in ran.stdout for name in methods.names())
    assert "--dry-run" in ran.stdout


def test_plan_prints_as_a_table() -> None:
    from factorize.types import ConvSpec, Plan

    spec = ConvSpec("c", "conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1), input_sizes=((5, 5),))
    text = str(Plan((LayerPlan(spec, "cp", (2,), macs=7), LayerPlan(spec, skip_reason="why")), {}))
    assert "cp 2" in text.splitlines()[0]
    assert text.splitlines()[1].endswith("why")


def test_the_version_is_shown_of_a_checkout_too(
    factorize, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("factorize.cli.options.package_version", lambda _: None)
    ran = factorize("--version")
    assert (ran.code, ran.out, ran.err) == (0, "factorize (not installed)\n", "")

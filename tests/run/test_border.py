"""The Python API's own words: keywords for options, checks of what is given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compressing import X, net

import factorize
from factorize.errors import (
    BudgetError,
    DataError,
    DeviceError,
    FactorizeError,
    PlanError,
    RankError,
)  # fmt: skip
from factorize.run import border
from factorize.run.border import in_words

OPTION = re.compile(r"(?<![\w-])--[a-z]")


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Lower --rank or use --energy.", "Lower rank= or use energy=."),
        ("--speedup 50: the most is 2x", "Budget(speedup=50): the most is 2x"),
        ("Give --macs 0.5 to keep half.", "Give Budget(macs=0.5) to keep half."),
        ("--force, or --save-calibration.", "force=True, or FitConfig(save_calibration=)."),
        ("Give --finetune EPOCHS.", "Give finetune= EPOCHS."),
        ("Leave --int8 out: --onnx-float16.", "Leave int8=True out: OnnxConfig(half=True)."),
        ("a -- b, -5, x--y", "a -- b, -5, x--y"),
    ],
)  # fmt: skip
def test_options_become_keywords(said: str, read: str) -> None:
    assert in_words(said) == read


def test_every_option_that_is_spelt_otherwise_is_one_of_the_command() -> None:
    text = (Path(border.__file__).parents[1] / "cli" / "options.py").read_text()
    names = {
        name.lower().replace("_", "-") for name in re.findall(r"^(\w+) = Annotated", text, re.M)
    }
    names |= {name.removeprefix("--") for name in re.findall(r"\"(--[a-z-]+)\"", text)}
    folded = {name.replace("-", "") for name in names}
    assert {name.replace("-", "") for name in border._WORDS} <= folded


@pytest.mark.parametrize(
    "call",
    [
        lambda: factorize.compress(net(), X, rank=900, include=["nothing"]),
        lambda: factorize.compress(net(), X, rank=4, finetune=1),
        lambda: factorize.compress(net(), X, rank=4, device="tpu"),
        lambda: factorize.compress(net(), X, stages=2, finetune=1, rank=4, data=None),
        lambda: factorize.make_plan(net(), X, energy=0.5, rank=4),
        lambda: factorize.make_plan(net(), X, rank=4, budget=factorize.Budget(macs=0.5)),
        lambda: factorize.rewrite(net(), factorize.make_plan(net(), X, rank=4),
                                  config=factorize.FitConfig("sequential")),
        lambda: factorize.load_data("nowhere"),
        lambda: factorize.Budget(speedup=0.5),
        lambda: factorize.Target("tpu"),
        lambda: factorize.SearchConfig(sweep=(0.5,)),
    ],
)  # fmt: skip
def test_no_message_names_an_option(call: Any) -> None:
    with pytest.raises(FactorizeError) as caught:
        call()
    assert not OPTION.search(str(caught.value)), str(caught.value)


def test_a_misspelt_keyword_is_told_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"^compress: there is no keyword rnak=\. Did you mean r"):
        factorize.compress(net(), X, rnak=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"find: there is no keyword qqqqq=\. It takes model, "):
        factorize.find(net(), X, qqqqq=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": 2}, BudgetError, r"budget: must be Budget, got 2\. Give Budget\(speedup=2\)"),
        ({"plan": "plan.json"}, PlanError, r"plan: must be Plan, got 'plan\.json'"),
        ({"fit": "weights"}, DataError, r"fit: must be FitConfig, got 'weights'"),
        ({"search": "auto"}, BudgetError, "search: must be SearchConfig"),
        ({"finetune": 1.5}, DataError, "finetune: must be int or FinetuneConfig, got 1.5"),
        ({"finetune": True}, DataError, "finetune: must be int or FinetuneConfig, got True"),
        ({"target": 3}, DeviceError, "target: must be a Target or the name of one, got 3"),
        ({"target": "tpu"}, DeviceError, "target must be one of "),
        ({"device": torch.device("meta")}, DeviceError, "must be auto, cpu or cuda, got 'meta'"),
        ({"rank": "0.5"}, RankError, "rank"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        factorize.compress(net(), X, **{"rank": 4, **given})


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu:0")])
def test_a_device_of_torchs_simply_works(device: Any) -> None:
    assert factorize.compress(net(), X, rank=4, device=device, latency=False).plan.factorized


def test_the_name_of_a_runtime_is_a_target() -> None:
    plan = factorize.make_plan(net(), X, budget=factorize.Budget(macs=0.5), target="torch-cpu")
    assert plan.factorized


def test_plans_with_a_budget_are_those_that_compress_makes() -> None:
    budget = factorize.Budget(macs=0.6)
    plan = factorize.make_plan(net(), X, budget=budget)
    made = factorize.compress(net(), X, budget=budget, latency=False)
    assert [(one.method, one.rank) for one in plan.layers] == [
        (one.method, one.rank) for one in made.plan.layers
    ]


def test_signatures_and_docs_are_those_of_the_functions() -> None:
    assert factorize.compress.__name__ == "compress"
    assert "rank" in (factorize.compress.__doc__ or "")

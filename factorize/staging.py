"""What each stage of a run is to do, and the files that it goes on from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factorize import tune
from factorize.errors import RankError
from factorize.plan import Budget
from factorize.search import SearchConfig
from factorize.types import Plan

CHECKPOINT = "finetune.ckpt"
_WORK = re.compile(r"(control-)?finetune(-\d+)?\.(ckpt|plan\.json)")


@dataclass(frozen=True)
class Wish:
    """What is to be done to the layers.

    Attributes
    ----------
    plan
        Given, not made.
    choice
        For `make_plan`, or of `run_search`.
    """

    plan: Plan | None
    budget: Budget | None
    search: SearchConfig | None
    choice: Mapping[str, Any]

    @property
    def searching(self) -> bool:
        """Whether methods and ranks are searched."""
        return self.budget is not None or self.search is not None


def staged(wish: Wish, stages: int) -> list[Wish]:
    """What each of several stages is to do: the same share of what is left each time.

    Raises
    ------
    RankError
        What is asked for has no steps.
    """
    if stages < 1:
        raise RankError(f"--stages must be at least 1, got {stages}.")
    if stages == 1:
        return [wish]
    rank, budget = wish.choice.get("rank"), wish.budget
    by_share = isinstance(rank, float) and 0 < rank <= 1
    by_budget = budget is not None and budget.max_drop is None
    if wish.plan is not None or (wish.search and wish.search.sweep) or not (by_share or by_budget):
        raise RankError(
            "--stages needs --speedup, --macs, --params or a share as --rank, which can be cut in "
            "steps. Give one of them, or leave it out."
        )
    return [_part(wish, number / stages) for number in range(1, stages + 1)]


def _part(wish: Wish, part: float) -> Wish:
    if wish.budget is None:
        return replace(wish, choice={**wish.choice, "rank": wish.choice["rank"] ** part})
    given = {name: value**part for name, value in vars(wish.budget).items() if value is not None}
    return replace(wish, budget=Budget(**given))


def work_files(folder: Path) -> list[str]:
    """Names of the files from which an interrupted run goes on; none where there is no folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if _WORK.fullmatch(path.name))
    except (OSError, ValueError):
        return []


def of_stage(config: tune.FinetuneConfig, number: int, stages: int) -> tune.FinetuneConfig:
    """The settings of one stage of several: a checkpoint of its own."""
    path = config.checkpoint
    if stages > 1 and path is not None:
        path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        return replace(config, checkpoint=path, resume=config.resume and path.exists())
    return config


def searched(checkpoint: Path) -> Path:
    """Where the plan is kept that a tuning belongs to: times, and so plans, differ between runs."""
    return checkpoint.with_suffix(".plan.json")

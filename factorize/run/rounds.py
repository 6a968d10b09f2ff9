"""What each round of ``--stages`` is to do, and the files that it goes on from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factorize import methods, tune
from factorize.errors import DataError, PlanError, RankError
from factorize.plan import Budget, rule_of
from factorize.run.checks import exists
from factorize.search import SearchConfig
from factorize.types import Plan

CHECKPOINT = "finetune.ckpt"
_WORK = re.compile(r"(control-)?finetune(-\d+)?\.(ckpt|plan\.json)")


@dataclass(frozen=True)
class Selection:
    """Which layers are replaced, and by what; the fields are those of `make_plan`.

    Attributes
    ----------
    method
        None: what there is for each layer's axes, see `choose`; ``auto`` in a search.
    """

    method: str | None = None
    rank: int | float | str | None = None
    energy: float | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    allow_costlier: bool = False

    @property
    def named(self) -> bool:
        """Whether layers are named."""
        return bool(self.include or self.exclude)

    def planned(self) -> dict[str, Any]:
        """For `make_plan`."""
        return dict(vars(self))

    def searched(self) -> dict[str, Any]:
        """For `run_search`.

        Raises
        ------
        RankError
            There is a rule for ranks, which a search chooses.
        """
        for name in ("rank", "energy", "allow_costlier"):
            if getattr(self, name) not in (None, False):
                raise RankError(
                    f"--{name.replace('_', '-')}: a budget chooses ranks itself. Leave one of them "
                    "out."
                )
        return {"method": self.method or "auto", "include": self.include, "exclude": self.exclude}


@dataclass(frozen=True)
class Wish:
    """What is to be done to the layers.

    Attributes
    ----------
    plan
        Given, not made.
    """

    plan: Plan | None
    budget: Budget | None
    search: SearchConfig | None
    selection: Selection

    @property
    def searching(self) -> bool:
        """Whether methods and ranks are searched."""
        return self.budget is not None or self.search is not None

    def check(self) -> None:
        """Whatever of it is wrong by itself, told before anything else is looked at.

        Raises
        ------
        PlanError, RankError, UnsupportedLayerError
            One part excludes another, a rule for ranks is out of range, there is no such method.
        """
        chosen = self.selection
        several = self.searching or chosen.rank == "lossless"
        for name in (chosen.method or "auto").split(",") if several else [chosen.method]:
            if name and not (several and name == "auto"):
                methods.get(name.strip())
        if self.searching and self.plan is not None:
            raise PlanError("--plan: a plan has its ranks already. Leave the budget out.")
        if self.searching:
            chosen.searched()
            if self.search and self.search.points and self.budget and self.budget.timed:
                name = "speedup" if self.budget.speedup is not None else "max-drop"
                through = "speedups" if self.search.sweep else "shares of MACs"
                raise RankError(
                    f"--{name}: a sweep goes through {through} itself. Leave one of them out, or "
                    "choose a point of it with --pick."
                )
        elif self.plan is not None:
            if chosen.named or replace(chosen, include=(), exclude=()) != Selection():
                raise PlanError(
                    "--plan: a plan has its methods, ranks and layers already. Drop --method, "
                    "--rank, --energy, --include, --exclude and --allow-costlier, or edit the plan."
                )
        elif chosen.rank != "lossless":
            rule_of(chosen.rank, chosen.energy)
        elif chosen.energy is not None or chosen.allow_costlier:
            raise RankError("--lossless chooses ranks itself. Drop --energy and --allow-costlier.")


def rounds_of(wish: Wish, count: int) -> list[Wish]:
    """What each of several rounds is to do: the same share of what is left each time.

    Raises
    ------
    RankError
        What is asked for has no parts.
    """
    if count < 1:
        raise RankError(f"--stages must be at least 1, got {count}.")
    if count == 1:
        return [wish]
    rank, budget = wish.selection.rank, wish.budget
    by_share = isinstance(rank, float) and 0 < rank <= 1
    by_budget = budget is not None and budget.max_drop is None
    if wish.plan is not None or (wish.search and wish.search.points) or not (by_share or by_budget):
        raise RankError(
            "--stages needs --speedup, --macs, --params or a share as --rank, which can be cut in "
            "rounds. Give one of them, or leave it out."
        )
    return [_part(wish, number / count) for number in range(1, count + 1)]


def _part(wish: Wish, part: float) -> Wish:
    if wish.budget is None:
        assert isinstance(wish.selection.rank, float)
        return replace(wish, selection=replace(wish.selection, rank=wish.selection.rank**part))
    given = {name: value**part for name, value in vars(wish.budget).items() if value is not None}
    return replace(wish, budget=Budget(**given))


def work_files(folder: Path) -> list[str]:
    """Names of the files from which an interrupted run goes on; none where there is no folder."""
    try:
        return sorted(path.name for path in folder.iterdir() if _WORK.fullmatch(path.name))
    except (OSError, ValueError):
        return []


def of_round(config: tune.FinetuneConfig, number: int, rounds: int) -> tune.FinetuneConfig:
    """The settings of one round of several: a checkpoint of its own."""
    path = config.checkpoint
    if rounds > 1 and path is not None:
        path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        return replace(config, checkpoint=path, resume=config.resume and path.exists())
    return config


def searched(checkpoint: Path) -> Path:
    """Where the plan is kept that a tuning belongs to: times, and so plans, differ between runs."""
    return checkpoint.with_suffix(".plan.json")


def settled(
    config: tune.FinetuneConfig, stages: int, out: str | Path | None
) -> tune.FinetuneConfig:
    """The tuning of a run that writes to a folder.

    Raises
    ------
    DataError, ModelLoadError
        It cannot be as it is wished for.
    """
    for wanted, asked in (("resume", config.resume), ("stages", stages > 1)):
        if asked and not config.epochs:
            raise DataError(
                f"{wanted}: is for a fine-tuning, got 0 epochs. Give --finetune EPOCHS."
            )
    if out is not None and config.epochs and config.checkpoint is None:
        config = replace(config, checkpoint=Path(out, CHECKPOINT))
    first = of_round(config, 1, stages).checkpoint
    if config.resume and first and not exists(first):
        raise tune.missing_checkpoint(first)  # before any work is done
    return config

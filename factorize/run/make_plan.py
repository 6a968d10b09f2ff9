"""The plan: made by a rule, searched within a budget, or given and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from factorize import graph
from factorize.data.synthetic import MadeUp
from factorize.fit import FitConfig, Fitted
from factorize.measure import Target, worth
from factorize.plan import Budget, bind, choose, lossless
from factorize.run.checks import check_configs, check_recorded, resolve_device, resolved_outputs
from factorize.run.made_up import check_real, data_of, delivered, make_up, seen_by
from factorize.run.rounds import Selection, Wish
from factorize.run.steps import beside, find
from factorize.run.targets import as_target, in_int8
from factorize.search import Outcome, SearchConfig, latency_model, run_search
from factorize.tensor.noise import INT8, with_noise
from factorize.tensor.wrappers import prepared
from factorize.types import Data, Plan, Progress


@dataclass(frozen=True)
class Searched:
    """A plan that was searched, and what is known of the net that it makes.

    Attributes
    ----------
    times
        Of layers, in ms and with bounds of their speedup; empty where nothing was timed.
    notes
        On where these are from.
    """

    outcome: Outcome
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_plan(
    model: nn.Module,
    example_input: Any,
    *,
    method: str | None = None,
    rank: int | float | str | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_costlier: bool = False,
    edited: Plan | None = None,
    budget: Budget | None = None,
    target: Target | str | None = None,
    search: SearchConfig | None = None,
    data: Any = None,
    fit: FitConfig | None = None,
    device: Any = "auto",
    refresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Choose a method, a rank and an order for each convolution; nothing is changed.

    Parameters
    ----------
    method
        One for all layers; None: `spatial_svd`, and `channel_svd` for 1-D and linear ones. With a
        budget, ``auto`` or several names with commas between them: the best one for each layer.
    rank
        An integer (clamped to each layer's maximum), a share of the maximum such as 0.25,
        ``"vbmf"``, or ``"lossless"``: only what an exact cheaper chain is known for, then also with
        several methods or ``auto``.
    energy
        Share of each kernel's squared norm to keep; instead of `rank`.
    include, exclude
        Globs on module names. A layer that `include` names is factorized although it reads the
        image or is a 1x1 convolution, which by rule stay dense.
    allow_costlier
        Also where the chain costs as many MACs as the layer, or more.
    edited
        A plan to check against the model instead of making one.
    budget, target, search, data, fit, device, refresh
        To search the plan within a budget, as `compress` does; see there.

    Raises
    ------
    RankError, UnsupportedLayerError, NoConvolutionError, PlanError
        The wish cannot be met; the message says for which layer and why.
    BudgetError
        The budget cannot be kept.
    """
    selection = Selection(method, rank, energy, include, exclude, allow_costlier)
    wish = Wish(edited, budget, search, selection)
    check_configs(budget=budget, search=search, fit=fit, edited=edited)
    wish.check()
    if wish.searching:
        return search_plan(
            model, example_input, wish, target=target, data=data, fit=fit, device=device, seed=seed,
            refresh=refresh, progress=progress,
        ).outcome.plan  # fmt: skip
    return ruled_plan(model, example_input, selection, edited=edited, seed=seed, progress=progress)


def ruled_plan(
    model: nn.Module,
    example_input: Any,
    selection: Selection,
    *,
    edited: Plan | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The plan by a rule for ranks, or the given one, checked against the model."""
    model, _ = prepared(model)
    sites = find(model, example_input)
    modules = dict(model.named_modules(remove_duplicate=False))

    def weight_of(name: str) -> Tensor:
        return graph.effective_weight(modules[name])

    if edited is not None:
        return bind(edited, sites, weight_of)
    rules = selection.planned()
    if selection.rank == "lossless":
        return lossless(
            sites, weight_of, method=rules["method"], include=selection.include,
            exclude=selection.exclude, seed=seed, progress=progress,
        )  # fmt: skip
    return choose(sites, weight_of, **rules, seed=seed, progress=progress)


def images_for(
    model: nn.Module, example_input: Any, data: Data | MadeUp | None, *, device: str, seed: int,
    progress: Progress | None,
) -> Data | None:  # fmt: skip
    """What a search looks at, made up where that is so; it says what the outputs mean."""
    if isinstance(data, MadeUp):
        data = make_up(
            data, model, example_input, outputs=None, device=device, seed=seed, progress=progress
        )
    if data is None:
        return None
    return replace(data, outputs=resolved_outputs(model, data, None, None, None)[0])


def search_plan(
    model: nn.Module,
    example_input: Any,
    wish: Wish,
    *,
    target: Target | str | None = None,
    also: Sequence[Target] = (),
    data: Any = None,
    fit: FitConfig | None = None,
    device: Any = "auto",
    seed: int = 0,
    refresh: bool = False,
    int8: bool | str = False,
    progress: Progress | None = None,
) -> Searched:
    """The plan that `compress` carries out within a budget, and what is predicted of it."""
    model, _ = prepared(model)
    device, example_input = resolve_device(device), beside(model, example_input)
    data = data_of(example_input, data, fit or FitConfig(), seed=seed)
    check_real(data, epochs=0, budget=wish.budget)
    data = images_for(model, example_input, data, device=device, seed=seed, progress=progress)
    seen = seen_by(model, data, device=device)

    def rated(fitted: Fitted | None) -> dict[str, float]:
        one = delivered(model, fitted, seen) if fitted else model
        return worth(model, one, example_input, data=data, metric=None, device=device, seed=seed)

    timed, *others = [
        in_int8(one) or one if int8 else one for one in (as_target(target) or Target(), *also)
    ]
    check_recorded(timed, wish.budget, wish.search, others)
    latency = latency_model(timed, refresh=refresh, also=others)
    with latency.cache, with_noise(INT8 if int8 else 0.0):
        outcome = run_search(
            seen, example_input, wish.budget, wish.search or SearchConfig(), latency, data=data,
            fit=fit or FitConfig(), rate=rated, device=device, seed=seed, progress=progress,
            **wish.selection.searched(),
        )  # fmt: skip
        measured, times = outcome.report.measured, {}
        if measured is not None:
            times = latency.everywhere(outcome.plan, outcome.offered)
    return Searched(outcome, times, tuple(latency.cache.notes))

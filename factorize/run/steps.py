"""Each step of the library by itself; `run.compress` joins them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorize import graph, methods
from factorize.errors import ModelLoadError, PlanError, RankError, UnsupportedLayerError
from factorize.fit import FitConfig, apply_, fit
from factorize.measure import Target, as_metric, worth
from factorize.plan import Budget, bind, choose, load_plan, lossless
from factorize.run.checks import resolve_device
from factorize.search import SearchConfig, latency_model, run_search
from factorize.tensor.call import input_on
from factorize.tensor.wrappers import prepared
from factorize.types import (
    UNDECLARED,
    ConvSite,
    Data,
    Factorization,
    Metric,
    Outputs,
    Plan,
    Progress,
)


def find(model: nn.Module, example_input: Any) -> tuple[ConvSite, ...]:
    """Every convolution of a model, its attributes and sizes, and what forbids replacing it.

    Parameters
    ----------
    example_input
        A tensor, a tuple of positional arguments, a dict of keyword arguments, or whatever else
        the model takes as its one argument. The model is run on it three times, or more where a
        layer cannot be replaced.

    Raises
    ------
    NoConvolutionError, UnsupportedLayerError, ModelLoadError
        The model has none, does not run on the example, or is none whose layers can be seen.
    """
    model, _ = prepared(model)
    return graph.find(model, beside(model, example_input))


def make_plan(
    model: nn.Module,
    example_input: Any,
    *,
    method: str = "spatial_svd",
    rank: int | float | str | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_costlier: bool = False,
    edited: Plan | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Choose a method, a rank and an order for each convolution; nothing is changed.

    Parameters
    ----------
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

    Raises
    ------
    RankError, UnsupportedLayerError, NoConvolutionError, PlanError
        The wish cannot be met; the message says for which layer and why.
    """
    model, _ = prepared(model)
    sites = find(model, example_input)
    modules = dict(model.named_modules(remove_duplicate=False))

    def weight_of(name: str) -> Tensor:
        return graph.effective_weight(modules[name])

    if edited is not None:
        if (method, rank, energy, *include, *exclude, allow_costlier) != (
            "spatial_svd", None, None, False,
        ):  # fmt: skip
            raise PlanError(
                "--plan: a plan has its methods, ranks and layers already. Drop --method, --rank, "
                "--energy, --include, --exclude and --allow-costlier, or edit the plan."
            )
        return bind(edited, sites, weight_of)
    if rank == "lossless":
        if energy is not None or allow_costlier:
            raise RankError("--lossless chooses ranks itself. Drop --energy and --allow-costlier.")
        return lossless(
            sites, weight_of, method=method, include=include, exclude=exclude, seed=seed,
            progress=progress,
        )  # fmt: skip
    return choose(
        sites, weight_of, method=method, rank=rank, energy=energy, include=include,
        exclude=exclude, allow_costlier=allow_costlier, seed=seed, progress=progress,
    )  # fmt: skip


def search_plan(
    model: nn.Module,
    example_input: Any,
    budget: Budget | None,
    *,
    target: Target | None = None,
    search: SearchConfig | None = None,
    data: Data | None = None,
    fit: FitConfig | None = None,
    device: str = "auto",
    seed: int = 0,
    refresh: bool = False,
    progress: Progress | None = None,
    method: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """The plan that `compress` carries out within a budget; the arguments are its own."""
    model, _ = prepared(model)
    device, example_input = resolve_device(device), beside(model, example_input)

    def rated(one: nn.Module) -> dict[str, float]:
        return measure_quality(model, one, example_input, data=data, device=device, seed=seed)

    latency = latency_model(target or Target(), refresh=refresh)
    with latency.cache:
        return run_search(
            model, example_input, budget, search or SearchConfig(), latency, data=data,
            fit=fit or FitConfig(), rate=rated, device=device, seed=seed, progress=progress,
            method=method, include=include, exclude=exclude,
        ).plan  # fmt: skip


def rewrite(
    model: nn.Module,
    plan: Plan,
    *,
    data: Data | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of the model with its planned layers replaced by chains; the model is untouched.

    Parameters
    ----------
    data
        Images to fit the chains to; without, they are fitted to the weights.
    config
        What to fit to, how many images, how much memory.

    Raises
    ------
    PlanError, UnsupportedLayerError, RankError, DataError
        The plan or the data do not fit the model.
    OutputError
        The calibration cannot be saved where that was asked for.
    """
    model, _ = prepared(model)
    return rewrite_(copied(model), plan, data=data, config=config, seed=seed)


def rewrite_(
    model: nn.Module,
    plan: Plan,
    *,
    data: Data | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> nn.Module:
    """As `rewrite`, in place; returns the model.

    A model that is itself a planned convolution cannot change in place: its chain is returned. Of
    a compiled or parallel model, the one inside is changed and returned.
    """
    model, _ = prepared(model, in_place=True)
    config, device = config or FitConfig(), str(_device(model))
    config.check_free(overwrite=False)
    return apply_(model, fit(model, plan, config, data=data, device=device, seed=seed))


def load(directory: str | Path, model: nn.Module) -> nn.Module:
    """Rebuild a compressed model, in place, from a fresh original and a folder of `compress`.

    Parameters
    ----------
    directory
        Has ``plan.json`` and ``model.safetensors``.
    model
        Of the original architecture; its weights are overwritten.

    Raises
    ------
    ModelLoadError, PlanError
        A file is missing or does not fit the model.
    """
    from safetensors import SafetensorError

    model, _ = prepared(model, in_place=True)
    made = unfitted(model, load_plan(Path(directory, "plan.json")))
    path = Path(directory, "model.safetensors")
    try:
        _fill(graph.rewrite_(copied(model), made), path)  # before the model is touched
        model = graph.rewrite_(model, made)
        _fill(model, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelLoadError(f"{path}: the weights must fit the planned model: {detail}") from error
    return model


def unfitted(model: nn.Module, plan: Plan) -> dict[str, Factorization]:
    """Chains of a plan without values, for a model that is to be filled afterwards.

    Raises
    ------
    PlanError
        The plan does not fit the model.
    """
    found, modules = {}, dict(model.named_modules(remove_duplicate=False))
    for layer in plan.factorized:
        graph.check_layer(modules.get(layer.spec.name), layer.spec)
        stages = methods.chain_of(layer)
        zeros = tuple(torch.zeros(stage.kernel_shape) for stage in stages)
        found[layer.spec.name] = Factorization(
            layer.spec, layer.method or "", layer.rank, layer.variant, stages, zeros, 0.0
        )
    return found


def _fill(model: nn.Module, path: Path) -> None:
    """As safetensors' load_model, with the versions that some modules ask for (MNASNet)."""
    from safetensors.torch import load_file

    saved, own = load_file(path), model.state_dict()
    state: Any = OrderedDict(saved)
    by_place = {own[key].data_ptr(): tensor for key, tensor in saved.items() if key in own}
    for key in own.keys() - saved.keys():  # of a shared tensor one name is saved
        if own[key].data_ptr() in by_place:
            state[key] = by_place[own[key].data_ptr()]
    state._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def measure_quality(
    original: nn.Module,
    compressed: nn.Module,
    example_input: Any,
    *,
    data: Data | None = None,
    evaluate: Metric | Callable[[nn.Module], Any] | None = None,
    outputs: Outputs = UNDECLARED,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """What a compressed model is worth: metric, accuracy, agreement with the original.

    Parameters
    ----------
    outputs
        What the models' outputs mean, where there is no data to say so.

    Returns
    -------
    The metric's own values; ``top1``, ``top5``, ``agreement`` in percent, ``kl`` in nats, or
    ``relative_difference``, on data's test split, else on its held-out images, else (without
    data and metric) on random input.
    """
    (original, _), (compressed, _) = prepared(original), prepared(compressed)
    return worth(
        original, compressed, beside(original, example_input), data=data,
        metric=as_metric(evaluate), device=device, seed=seed, outputs=outputs,
    )  # fmt: skip


def beside(model: nn.Module, example_input: Any) -> Any:
    """The example input on the model's device."""
    return input_on(example_input, _device(model))


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter((*model.parameters(), *model.buffers())), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, or a clear error."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__}: the model must be one that copy.deepcopy can copy, got "
            f"{type(error).__name__}: {error}. Use rewrite_ to change it in place."
        ) from error

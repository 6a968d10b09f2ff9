"""A compressed model again, from its plan and its weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factorize import graph, methods
from factorize.errors import ModelLoadError
from factorize.models.hub_folder import fresh
from factorize.plan import load_plan
from factorize.run.steps import copied
from factorize.tensor.wrappers import prepared
from factorize.types import Factorization, Plan


def load(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild a compressed model from a folder of `compress` and a fresh original, in place.

    Parameters
    ----------
    directory
        Has ``plan.json`` and ``model.safetensors``.
    model
        Of the original architecture; its weights are overwritten. None: built from the folder's
        ``config.json``, which results of timm's and transformers' models have.

    Raises
    ------
    ModelLoadError, PlanError
        A file is missing or does not fit the model.
    """
    from safetensors import SafetensorError

    if model is not None:
        model, _ = prepared(model, in_place=True)
    plan = load_plan(Path(directory, "plan.json"))
    model = fresh(directory) if model is None else model
    made = unfitted(model, plan)
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

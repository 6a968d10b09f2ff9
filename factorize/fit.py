"""Fit each planned layer: the stage that joins the methods to the model's weights."""

from __future__ import annotations

from torch import Tensor, nn

from factorize import methods
from factorize.graph import check_layer, effective_weight
from factorize.tensor.norm import Norm
from factorize.types import Factorization, Plan, Progress


def fit(
    model: nn.Module,
    plan: Plan,
    *,
    norm: Norm | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Factorization]:
    """Factorize every planned layer, to its weights.

    Returns
    -------
    Factorization by layer name.

    Raises
    ------
    PlanError, UnsupportedLayerError, RankError
        The plan does not fit the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    fitted: dict[str, Factorization] = {}
    for index, layer in enumerate(plan.factorized):
        check_layer(modules.get(layer.spec.name), layer.spec)
        weight: Tensor = effective_weight(modules[layer.spec.name])
        fitted[layer.spec.name] = methods.factorize(layer, weight, norm=norm, seed=seed)
        if progress:
            progress("factorize", index + 1, len(plan.factorized), {})
    return fitted

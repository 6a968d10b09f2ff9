"""Replace only what an exact, cheaper chain is known for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from factorize import methods
from factorize.errors import RankError
from factorize.methods import Method
from factorize.plan.choose import chain_layer, cost, dense_layer, note_untied
from factorize.plan.select import check_globs, skip_reason
from factorize.spec import ConvSpec, Rank
from factorize.types import ConvSite, LayerPlan, Plan, Progress

TOLERANCE = 1e-6
"""Relative error of a kernel that counts as none: some rounding errors of float32."""


def lossless(
    sites: Sequence[ConvSite],
    weight_of: Callable[[str], Tensor],
    *,
    method: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """For each layer the chain of fewest MACs that reproduces its kernel within `TOLERANCE`.

    Sobel, Gaussian and box filters, for example, are outer products of 1-D filters. Every layer is
    looked at, first ones and 1x1 convolutions too.

    Parameters
    ----------
    method
        None or ``auto``: all whose ranks are read off a spectrum; or names with commas between
        them.

    Raises
    ------
    RankError
        A method has no spectrum.
    NoConvolutionError, UnsupportedLayerError
        A glob matches nothing, a method does not exist.
    """
    method = method or "auto"
    names = methods.names() if method == "auto" else [name.strip() for name in method.split(",")]
    allowed = [methods.get(name) for name in names if methods.get(name).closed or method != "auto"]
    if without := [one.name for one in allowed if not one.closed]:
        known = ", ".join(name for name in methods.names() if methods.get(name).closed)
        raise RankError(f"--lossless needs a method with exact ranks ({known}), got {without[0]}.")
    check_globs(sites, include, exclude)
    planned: dict[str, LayerPlan] = {}
    for index, site in enumerate(sites):
        reasons = {
            one.name: skip_reason(site, one, include, exclude, first=True, pointwise=True)
            for one in allowed
        }
        usable = [one for one in allowed if reasons[one.name] is None]
        if usable:
            weight = weight_of(site.spec.name).to("cpu", torch.float64)
            planned[site.spec.name] = _exact(site, usable, weight, seed)
        else:
            reason = next(iter(reasons.values())) or ""
            planned[site.spec.name] = dense_layer(site.spec, reason, site.notes)
        if progress:
            progress("plan", index + 1, len(sites), {})
    settings = {"method": method, "rank": "lossless", "include": list(include),
                "exclude": list(exclude), "tolerance": TOLERANCE, "seed": seed}  # fmt: skip
    return Plan(tuple(note_untied(site, planned) for site in sites), settings)


def _exact(site: ConvSite, usable: Sequence[Method], weight: Tensor, seed: int) -> LayerPlan:
    spec = site.spec
    choices = [
        (cost(method, spec, rank, variant)[0], method, rank, variant)
        for method in usable
        for rank, variant in _ranks(method, spec, weight, seed)
    ]
    for macs, method, rank, variant in sorted(choices, key=lambda choice: choice[0]):
        if macs >= spec.macs:
            break
        made = methods.factorize(LayerPlan(spec, method.name, rank, variant), weight, seed=seed)
        if made.error <= TOLERANCE:
            return chain_layer(site, method, rank, variant, made.error, site.notes)
    return dense_layer(spec, f"no chain is exact to {TOLERANCE:g} and saves MACs", site.notes)


def _ranks(method: Method, spec: ConvSpec, weight: Tensor, seed: int) -> Iterator[tuple[Rank, str]]:
    """The least rank of each order of a chain that is exact."""
    limit = method.max_rank(spec)
    energy = 1 - TOLERANCE**2 / len(limit)
    for variant in method.variants_of(spec):
        found = [
            method.rank_for_energy(part, energy, variant, most=limit, seed=seed)
            for part in weight.chunk(spec.groups)
        ]
        rank = tuple(map(max, zip(*found, strict=True)))
        if all(value <= top for value, top in zip(rank, limit, strict=True)):
            yield rank, variant

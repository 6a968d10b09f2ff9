"""Plain tables for the knapsack: what each chain costs and loses, and plans made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, sqrt

from factorize import methods
from factorize.errors import BudgetError
from factorize.measure import Chain, LatencyModel
from factorize.methods import Method
from factorize.plan import Budget, Candidate, UnreachableBudget
from factorize.search.losses import Losses
from factorize.search.offers import TIE, Layer, Offer, confirmed
from factorize.spec import ConvSpec, Rank
from factorize.types import ConvSite, LayerPlan, Plan


@dataclass(frozen=True)
class Tables:
    """All that choosing needs.

    Attributes
    ----------
    reasons
        Why the other layers stay dense.
    losses
        Of all chains.
    time
        Of the whole net, in the latency model's units; 0 where nothing is timed.
    macs, params
        Of the whole net.
    target
        In words.
    latency
        Times chains; None where nothing is timed.
    never_slower
        Whether only chains that are measured faster than their layer are offered.
    gained
        How many times as fast the net is before a layer is replaced: where layers are timed in
        integers, speedups are to the float net.
    """

    sites: Sequence[ConvSite]
    layers: dict[str, Layer]
    reasons: Mapping[str, str]
    losses: Losses
    time: float
    macs: int
    params: int
    target: str = ""
    latency: LatencyModel | None = None
    never_slower: bool = False
    gained: float = 1.0

    def confirm(self, chosen: Mapping[str, Candidate]) -> bool:
        """Measure chains whose times are estimates; whether there were none."""
        doubtful = {
            name: one.choice for name, one in chosen.items() if one.choice and one.choice.estimated
        }
        if not doubtful or self.latency is None:
            return True
        specs = {
            name: [site.spec for site in self.sites if site.spec.name in (name, *layer.tied)]
            for name, layer in self.layers.items()
        }
        together: dict[ConvSpec, list[Chain]] = {}  # what layers of one shape want
        for name, offer in doubtful.items():
            for spec in specs[name]:
                chain = methods.get(offer.method).stages(spec, offer.rank, offer.variant)
                together.setdefault(replace(spec, name=""), []).append(chain)
        for spec, chains in together.items():
            for one in (self.latency, *self.latency.beside):
                one.times(spec, chains)
        for name, offer in doubtful.items():
            self.layers[name] = confirmed(
                self.layers[name], offer, specs[name], self.latency, never_slower=self.never_slower
            )
        return False

    def candidates(
        self,
        only: str | None = None,
        factors: Mapping[str, float] | None = None,
        *,
        least: float = 0.0,
        stepped: bool = False,
    ) -> dict[str, list[Candidate]]:
        """The chains of each layer, and the layer itself, which loses nothing.

        Parameters
        ----------
        only
            The one method to offer.
        factors
            What the losses of methods are multiplied by.
        least
            Share of a layer's MACs that a chain must cost.
        stepped
            Whether only ranks on the hardware's step are offered.
        """
        found = {}
        for name, layer in self.layers.items():
            dense = {"macs": layer.macs, "params": layer.params, "time": layer.dense}
            found[name] = [Candidate(dense, 0.0)]
            for offer in layer.offers:
                if only is not None and offer.method != only:
                    continue
                if stepped and not offer.stepped:
                    continue
                if offer.macs < least * layer.macs:
                    continue
                time = offer.time or 0.0
                costs = {"macs": offer.macs, "params": offer.params, "time": time}
                loss = self.losses.loss(name, offer) * (factors or {}).get(offer.method, 1.0)
                if offer.time is None:  # of near-equal losses the chain that is likely faster
                    method = methods.get(offer.method)
                    loss *= 1 + TIE * _length(method, layer.spec, offer.rank, offer.variant)
                found[name].append(Candidate(costs, (1 + len(layer.tied)) * loss, offer))
        return found

    def limits(self, budget: Budget) -> dict[str, float]:
        """What the layers may cost, all other costs of the net taken off."""
        limits = {}
        if budget.macs is not None:
            limits["macs"] = max(budget.macs * self.macs - (self.macs - self.dense("macs")), 0.0)
        if budget.params is not None:
            others = self.params - self.dense("params")
            limits["params"] = max(budget.params * self.params - others, 0.0)
        return limits

    @contextmanager
    def telling(self, budget: Budget) -> Iterator[None]:
        """What can be kept where the budget cannot, as shares of the whole net."""
        try:
            yield
        except UnreachableBudget as error:
            asked = {key: getattr(budget, key) for key in error.reachable}
            least = {
                key: (error.reachable[key] + getattr(self, key) - self.dense(key))
                / getattr(self, key)
                for key in asked
            }
            wanted = ", ".join(f"--{key} {share:g}" for key, share in asked.items())
            can = ", ".join(
                f"--{key} {max(ceil(1000 * share) / 1000, asked[key]):g}"
                for key, share in least.items()
            )
            raise BudgetError(
                f"{wanted}: cannot be kept with these layers and methods, the nearest that can is "
                f"{can}. Ask for that, or offer more layers with --include."
            ) from error

    def dense(self, cost: str) -> float:
        """What all layers that may be replaced cost as they are."""
        key = "dense" if cost == "time" else cost
        return float(sum(getattr(layer, key) for layer in self.layers.values()))

    def speedup(self, chosen: Mapping[str, Candidate]) -> float:
        """Of the whole net, as the times of its layers predict it."""
        saved = self.dense("time") - sum(offer.costs["time"] for offer in chosen.values())
        return self.gained * self.time / max(self.time - saved, 1e-9 * self.time)

    def saved(self, speedup: float) -> float:
        """How much time a net that is so fast has saved."""
        return self.time * (1 - self.gained / speedup)

    def plan(self, chosen: Mapping[str, Candidate]) -> Plan:
        """The plan of a choice for every layer."""
        offers = {name: candidate.choice for name, candidate in chosen.items()}
        for name, layer in self.layers.items():
            offers |= dict.fromkeys(layer.tied, offers[name])
        leaders = {follower: name for name, layer in self.layers.items() for follower in layer.tied}
        return Plan(tuple(self._layer(site, offers, leaders) for site in self.sites), {})

    def _layer(
        self, site: ConvSite, offers: Mapping[str, Offer | None], leaders: Mapping[str, str]
    ) -> LayerPlan:
        spec, name = site.spec, site.spec.name
        offer = offers.get(name)
        if offer is None:
            reason = self.reasons.get(name) or self._stays(self.layers[leaders.get(name, name)])
            return LayerPlan(spec, macs=spec.macs, params=spec.params, skip_reason=reason)
        error = sqrt(self.losses.error(leaders.get(name, name), offer))
        stages = methods.get(offer.method).stages(spec, offer.rank, offer.variant)
        macs, params = (sum(getattr(stage, key) for stage in stages) for key in ("macs", "params"))
        return LayerPlan(
            spec, offer.method, offer.rank, offer.variant, macs, params, error,
            notes=site.notes,
        )  # fmt: skip

    def _stays(self, layer: Layer) -> str:
        if layer.offers:
            return "costs less loss elsewhere"
        if layer.slower is None:
            untimed = self.latency is not None and not layer.dense
            return f"not timed on {self.target}" if untimed else "no chain costs less"
        offer, time = layer.slower
        noise = " beyond the noise" if time.speedup > 1 else ""
        best = f"{offer.method} {','.join(map(str, offer.rank))}"
        beside = self.latency.beside if self.latency else ()
        where = " and ".join([self.target, *(str(one.target) for one in beside)])
        return (
            f"no chain is faster on {where}{noise}: the best, {best}, {time.speedup:.2f}x "
            f"({time.low:.2f}..{time.high:.2f})"
        )


@lru_cache(2**16)  # a search asks for those of all chains a dozen times
def _length(method: Method, spec: ConvSpec, rank: Rank, variant: str) -> int:
    """Stages of a chain."""
    return len(method.stages(spec, rank, variant))

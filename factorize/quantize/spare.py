"""Which layers lose too much in integers: on images that nothing is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from factorize.onnx_graph import Twin
from factorize.quantize.grid import grid_of
from factorize.quantize.places import places_of
from factorize.quantize.rounded_net import RoundedNet
from factorize.quantize.rounding import nearest_codes, scales_of
from factorize.quantize.rows import rows_in
from factorize.quantize.saturation import largest_code
from factorize.tensor.call import batch_size, evaluating, rows_of
from factorize.tensor.output_kinds import distance_of, kind_of

TOO_MUCH = 0.003
"""Of the distances of `factorize.tensor.output_kinds`. As a KL divergence: the probability of what
the float net says falls by 0.3 % in the mean. Nets that lost less on held-out images had no
accuracy lost that could be told from none (`experiments/int8/choices.md`)."""

_MEASURES = {
    "logits": "KL divergence", "multilabel": "KL divergence", "embedding": "1 - cosine",
    "values": "relative squared difference",
}  # fmt: skip
_ALONE = 64  # images that layers are told apart by
_LEAST = 0.01  # of the largest gain: what all others gain at least


@dataclass(frozen=True)
class Spare:
    """What tells which layers lose too much in integers, so that they are to stay in float.

    Attributes
    ----------
    batches
        Held-out inputs, as the net takes them.
    kind
        What the outputs are, as in `Outputs`.
    gains
        By layer: the time that it and those in a row with it gain in integers, in any unit. Where
        there are none, all gain the same.
    """

    batches: Iterable[Any]
    kind: str = "auto"
    gains: Mapping[str, float] = field(default_factory=dict)


class Judge:
    """Measures what a net loses in integers, and chooses layers that stay in float.

    Layers that stand in a row go together. Those are put back that take most of the loss away for
    the time that they gained, as few as seem to be needed.

    Parameters
    ----------
    twin
        The float net.
    given
        Held-out inputs by name.

    Attributes
    ----------
    losses
        What was lost each time, from all layers in integers on.
    alone
        By layer that stays in float: what is lost by the row that it is in, the others in float.
    """

    def __init__(self, spare: Spare, twin: Twin, given: list[dict[str, Tensor]]) -> None:
        self._spare, self._twin, self._given = spare, twin, given
        self._names = [value.name for value in twin.onnx_file.proto.graph.output]
        self._rows: dict[tuple[str, ...], float] = {}
        self._measure = ""
        self.losses: list[float] = []
        self.alone: dict[str, float] = {}

    def choose(
        self, made: RoundedNet, run: Callable[[dict[str, Tensor]], list[Tensor]]
    ) -> tuple[str, ...]:
        """Names of layers that are to stay in float, too; none where the loss is small enough.

        Parameters
        ----------
        run
            Runs the file of the rounded net.
        """
        lost = self._lost(run)
        if lost is None:
            return ()
        self.losses.append(lost)
        if lost <= TOO_MUCH:
            return ()
        if not self._rows:
            self._rows = self._each_alone(made)
        chosen = self._worth_most(lost)
        for row in chosen:
            self.alone |= dict.fromkeys(row, self._rows.pop(row))
        return tuple(name for row in chosen for name in row)

    @property
    def told(self) -> str:
        """Why these stay in float."""
        now = f", and {self.losses[-1]:.2g} without" if len(self.losses) > 1 else ""
        return (
            f"the net loses too much in integers, {self.losses[0]:.2g} of at most {TOO_MUCH:g}"
            f"{now} ({self._measure} on held-out images)"
        )

    def _lost(self, run: Callable[[dict[str, Tensor]], list[Tensor]]) -> float | None:
        """What the file loses; None without images, or where outputs cannot be compared."""
        total, count = 0.0, 0
        with evaluating(self._twin):
            for given in self._given:
                found = dict(zip(self._names, run(given), strict=True))
                apart = self._apart(found, self._twin.values(given, self._names))
                if apart is None:
                    return None
                total, count = total + apart * batch_size(given), count + batch_size(given)
        return total / count if count else None

    def _each_alone(self, made: RoundedNet) -> dict[tuple[str, ...], float]:
        """By row: what is lost by it in integers, the others in float; sums over batches.

        All is rounded to the nearest here: what the rounded net has was fitted to inputs that other
        layers may have spoiled.
        """
        exact, batches = made.exact, self._few()
        assert exact is not None
        losses = {}
        with evaluating(exact):
            wanted = [exact.values(one, [*made.grids, *self._names]) for one in batches]
            grids = {name: grid_of([one[name] for one in wanted]) for name in made.grids}
            for row in rows_in(exact, made.places):
                names = tuple(step.name for step in row)
                others = dict.fromkeys({*made.layers} - {*names}, "")
                places = places_of(exact, exclude=others)
                some = {name: grid for name, grid in grids.items() if name in places.values}
                rounded = RoundedNet(exact, places, grids=some)
                with _rounded([exact.module_of(step) for step in row]):
                    found = [rounded.values(one, self._names) for one in batches]
                losses[names] = sum(
                    self._apart(one, {name: true[name] for name in self._names}) or 0.0
                    for one, true in zip(found, wanted, strict=True)
                )
        return losses

    def _few(self) -> list[dict[str, Tensor]]:
        """Some of the inputs."""
        first = self._given[0]
        if not self._twin.onnx_form.batch:
            first = rows_of(first, slice(_ALONE))
        return [first, *self._given[1 : _ALONE // batch_size(first)]]

    def _worth_most(self, lost: float) -> list[tuple[str, ...]]:
        """As few rows as seem to be enough, if what they lose adds up; one at least."""
        gains = {row: max(self._spare.gains.get(row[0], 1.0), 0.0) for row in self._rows}
        least = _LEAST * max(gains.values(), default=0.0) or 1.0
        order = sorted(self._rows, key=lambda row: -self._rows[row] / max(gains[row], least))
        whole = sum(self._rows.values()) or 1.0

        def enough(rows: list[tuple[str, ...]]) -> bool:
            return lost * (1 - sum(self._rows[one] for one in rows) / whole) <= TOO_MUCH

        count = next((n for n in range(1, len(order)) if enough(order[:n])), len(order))
        chosen = order[:count]
        for row in order[:count]:  # those that later ones made needless
            others = [one for one in chosen if one is not row]
            chosen = others if others and enough(others) else chosen
        return chosen

    def _apart(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float | None:
        """Of the output for which it is largest, or the first one where that decides."""
        distances = []
        for name, value in wanted.items():
            if not (value.is_floating_point() and value.numel()):
                continue
            if found[name].shape != value.shape:
                return None
            kind = kind_of(value, self._spare.kind)
            self._measure = _MEASURES[kind]
            distances.append(float(distance_of(found[name].double(), value.double(), kind)))
            if kind != "values":
                break
        return max(distances, default=None)


@contextmanager
def _rounded(layers: list[Any]) -> Iterator[None]:
    """Some layers with weights on their grids."""
    kept = [one.weight for one in layers]
    try:
        for one in layers:
            rows = one.weight.detach().flatten(1)[None]
            scales = scales_of(rows, largest_code())
            codes = nearest_codes(rows, scales, largest_code())
            one.weight = nn.Parameter((codes * scales[..., None]).view_as(one.weight))
        yield
    finally:
        for one, weight in zip(layers, kept, strict=True):
            one.weight = weight

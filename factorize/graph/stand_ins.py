"""Which layers a model lets a chain stand in for: a layer in a chain of one, and the net run.

Code of a model may ask what a layer is (``isinstance``, ``type``), read what a chain has not, or
hold the layer where no rewriting reaches it. A net with chains would then be another net, without a
word. A chain of the very layer computes the same, so what it changes is that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from factorize.graph.carry import carry_
from factorize.graph.rewrite import dense_module, stored_weight
from factorize.graph.watch import undisturbed
from factorize.spec import ConvSpec

Outcome = list[Any]
ROUNDING = 1e-6  # relative
_OTHERWISE = "the model asks what this layer is (its type or an attribute)"


def refused(
    model: nn.Module, layers: Mapping[int, tuple[nn.Module, ConvSpec]], example_input: Any
) -> dict[int, str]:
    """Why the model computes something else with a chain in the place of layers, by identity.

    Two runs where nothing is wrong; else halves are tried, and halves of those. A model whose
    outputs vary by themselves is held to no more than that.

    Parameters
    ----------
    layers
        Each with its spec, by its identity.
    """
    trial = _Trial(model, layers, example_input)
    reasons: dict[int, str] = {}

    def let(keys: Sequence[int], beside: Sequence[int]) -> list[int]:
        """Those of the keys that can be replaced together, and with those beside."""
        told = trial.complaint([*beside, *keys])
        if told is None:
            return list(keys)
        if len(keys) == 1:
            reasons[keys[0]] = told
            return []
        half = len(keys) // 2
        first = let(keys[:half], beside)
        return first + let(keys[half:], [*beside, *first])

    if layers and trial.repeatable:
        let(list(layers), [])
    return reasons


class _Trial:
    """Runs of a model with chains of one in the place of layers."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[int, tuple[nn.Module, ConvSpec]],
        example_input: Any,
    ) -> None:
        self.model, self.layers, self.example_input = model, layers, example_input
        self.chains: dict[int, nn.Sequential] = {}
        self.called: set[int] = set()
        self.noise: float | None = None
        try:
            self.plain = self._run(model)
        except Exception:  # it ran once before: it is not to be compared with itself
            self.repeatable = False
        else:
            self.repeatable = True

    def complaint(self, keys: Sequence[int]) -> str | None:
        """What goes wrong with chains in the place of these layers, if anything does."""
        self.called.clear()
        try:
            chains = {key: self._chain(key) for key in keys}
            with _in_place(self.model, chains) as changed:
                found = self._run(changed)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            return f"{_OTHERWISE}, and does not run with a chain: {type(error).__name__}: {line}"
        if self._differs(found):
            return f"{_OTHERWISE}, and computes something else with a chain"
        if not self.called.issuperset(keys):
            return "the model holds it in a list, a closure or a cache, where it stays as it is"
        return None

    def _differs(self, found: Outcome) -> bool:
        """Beyond what a run differs from another one of the same model."""
        if (difference := _difference(found, self.plain)) <= ROUNDING:
            return False
        if self.noise is None:
            self.noise = _difference(self._run(self.model), self.plain)
        return difference > 10 * self.noise + ROUNDING

    def _run(self, model: nn.Module) -> Outcome:
        output = undisturbed(model, self.example_input)
        if is_dataclass(output) and not isinstance(output, type):
            output = dict(vars(output))
        leaves, structure = tree_flatten(output)
        return [structure, *map(_kept, leaves)]

    def _chain(self, key: int) -> nn.Sequential:
        """The layer as rewriting would leave it, were its chain exact and of one stage."""
        if key not in self.chains:
            module, spec = self.layers[key]
            plain = dense_module(spec, device="meta")
            plain.weight = nn.Parameter(stored_weight(module), requires_grad=False)
            plain.bias = module.bias
            plain.register_forward_pre_hook(lambda *_: self.called.add(key))
            self.chains[key] = nn.Sequential(plain).eval()
            carry_(module, self.chains[key], leaving=False)
        return self.chains[key]


@contextmanager
def _in_place(model: nn.Module, others: Mapping[int, nn.Module]) -> Iterator[nn.Module]:
    """The model with modules replaced, for the time of this context."""
    modules = dict(model.named_modules(remove_duplicate=False))
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in modules.items():
        if name and id(module) in others:
            parent, _, child = name.rpartition(".")
            places.append((modules[parent], child, module))
    try:
        for parent, child, module in places:
            parent._modules[child] = others[id(module)]
        yield others.get(id(model), model)
    finally:
        for parent, child, module in places:
            parent._modules[child] = module


def _kept(value: Any) -> Any:
    """What later runs leave as it is; a number as a tensor."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return torch.tensor(value) if isinstance(value, (int, float, complex)) else value


def _difference(found: Outcome, wanted: Outcome) -> float:
    """Relative, of the output that differs most; infinite where they cannot be compared."""
    if len(found) != len(wanted) or found[0] != wanted[0]:
        return float("inf")
    return max((_apart(a, b) for a, b in zip(found[1:], wanted[1:], strict=True)), default=0.0)


def _apart(a: Any, b: Any) -> float:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return float("inf") if type(a) is not type(b) else 0.0
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return float("inf")
    if a.layout != torch.strided or a.is_quantized:
        return 0.0
    differs = (a != b) & ~((a != a) & (b != b))  # NaN is like NaN
    if not bool(differs.any()):
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    apart = float((a - b)[differs].abs().double().norm())
    size = float(b[b.isfinite()].abs().double().norm())
    return apart / size if apart < float("inf") and size else float("inf")

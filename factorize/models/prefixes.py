"""What stands before the names of weights: put there by wrappers, or by the code that trained them.

A wrapper's prefix is known and dropped. That of a trainer (`model.` of a LightningModule that keeps
the net as an attribute) may as well be a part of the net, so each reading is tried in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from factorize.models.architectures import Shapes, shapes_of
from factorize.models.recognition import current_names, differences

_MOST = 12  # readings; honest files have two or three
_PARTS = (
    "model", "net", "network", "module", "backbone", "encoder", "student", "netG", "generator",
    "ema_model", "model_ema", "ema",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A state dict as it is, or the part of it with one prefix, without that.

    Attributes
    ----------
    outside
        Names that do not begin with the prefix.
    """

    state: dict[str, Tensor]
    prefix: str = ""
    outside: tuple[str, ...] = ()

    @property
    def shapes(self) -> Shapes:
        """Of each tensor."""
        return shapes_of(self.state)

    @property
    def notes(self) -> list[str]:
        """What was left out."""
        notes = [f"prefix {self.prefix!r} removed"] if self.prefix else []
        if self.outside:
            notes.append(f"weights outside of it are not used: {_summary(self.outside)}")
        return notes


def readings(state: dict[str, Tensor]) -> list[Reading]:
    """The state dict as it is; then without each prefix that all of it has, or that is common."""
    return list(islice(_readings(state, state, ""), _MOST))


def best_reading(found: Sequence[Reading], expected: Shapes) -> Reading:
    """The first reading that an architecture's tensors are those of; else the nearest by names."""
    for reading in found:
        if not differences(reading.shapes, expected):
            return reading
    return max(found, key=lambda reading: len(reading.state.keys() & expected.keys()))


def without_wrappers(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Drop what wrappers put before names: DataParallel, DDP, AveragedModel, torch.compile."""
    if "n_averaged" in state and all(k.startswith("module.") for k in state if k != "n_averaged"):
        state = {key: value for key, value in state.items() if key != "n_averaged"}
        notes.append("read from a torch.optim.swa_utils.AveragedModel")
    if any("_orig_mod." in key for key in state):  # anywhere: submodules may be compiled alone
        state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
        notes.append("prefix '_orig_mod.' removed")
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
        notes.append("prefix 'module.' removed")
    return state


def _readings(whole: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> Iterator[Reading]:
    outside = tuple(key for key in whole if not key.startswith(prefix))
    yield Reading(current_names(state), prefix, outside)
    firsts = {key.partition(".")[0] for key in state if "." in key}
    shared = firsts if all("." in key for key in state) and len(firsts) == 1 else set()
    for first in (*(part for part in _PARTS if part in firsts), *(shared - set(_PARTS))):
        start = f"{first}."
        inner = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        yield from _readings(whole, inner, prefix + start)


def _summary(names: Sequence[str], most: int = 5) -> str:
    """Names by their first part: of many tensors only how many there are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    told = [
        each[0] if len(each) == 1 else f"{first}. ({len(each)} tensors)"
        for first, each in groups.items()
    ]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return ", ".join(told[:most]) + more

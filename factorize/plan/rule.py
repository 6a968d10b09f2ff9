"""The one rule by which the ranks of all layers are chosen, where no budget chooses them."""

from __future__ import annotations

from factorize.errors import RankError

Rule = tuple[str, float]


def rule_of(rank: int | float | str | None, energy: float | None) -> Rule:
    """The rank rule as (kind, value).

    Raises
    ------
    RankError
        It is none, or out of range.
    """
    if rank is None and energy is None:
        raise RankError(
            "one of --rank, --energy, --plan and a budget (--speedup, --macs, --params, "
            "--max-drop) is needed, for example --rank 0.25."
        )
    if rank is not None and energy is not None:
        raise RankError("give either --rank or --energy (and not both), for example --rank 0.25.")
    if energy is not None:
        if not 0 < energy <= 1:
            raise RankError(f"--energy must be a share in (0, 1], got {energy}. Try 0.95.")
        return "energy", energy
    if rank == "vbmf":
        return "vbmf", 0
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return "fixed", rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return "share", rank
    raise RankError(
        f"--rank must be an integer >= 1, a share in (0, 1] such as 0.25, or vbmf, got {rank}."
    )

"""Which layers may be factorized at all: rules, and globs that override them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from factorize.errors import NoConvolutionError
from factorize.methods.base import Method
from factorize.types import ConvSite

FEW_CHANNELS = 4
"""A layer that reads at most this many channels, as of an image, is left alone by rule."""


def check_globs(sites: Sequence[ConvSite], include: Sequence[str], exclude: Sequence[str]) -> None:
    """Raise NoConvolutionError for a pattern that matches no convolution."""
    names = [name for site in sites for name in (site.spec.name, *site.aliases)]
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise NoConvolutionError(
                    f"{option} {pattern!r} must match the name of a convolution, and matches none "
                    f"of {len(names)} (the first is {names[0]!r}). See --dry-run for the names."
                )


def forbidden(site: ConvSite, method: Method) -> str | None:
    """Why a layer cannot be replaced by a method's chain, whatever its shape."""
    if site.unbatched and method.batched:
        return f"called without a batch axis, which {method.name} needs"
    return site.blocked


def skip_reason(
    site: ConvSite,
    method: Method,
    include: Sequence[str],
    exclude: Sequence[str],
    *,
    first: bool = False,
    pointwise: bool = False,
) -> str | None:
    """Why a layer stays dense whatever the rank; None where it may be factorized.

    Parameters
    ----------
    first, pointwise
        Whether layers that read few channels, as of an image, and 1x1 convolutions, may be
        factorized unasked.
    """
    spec = site.spec

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(n, p) for n in (spec.name, *site.aliases) for p in patterns)

    if reason := forbidden(site, method):
        return reason
    if matches(exclude):
        return "matched by --exclude"
    if include and not matches(include):
        return "not matched by --include"
    if reason := method.supports(spec):
        return reason
    if not include:
        if spec.in_channels <= FEW_CHANNELS and not first:
            return f"reads only {spec.in_channels} channel{'s' * (spec.in_channels > 1)}"
        if all(k == 1 for k in spec.kernel) and not pointwise:
            return "1x1 convolution" if spec.kernel else "linear layer"
    return None

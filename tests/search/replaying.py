"""What the tests of curves and replays share: small nets, images, specs, and chains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factorize import find, methods
from factorize.search.error_curve import Key, family_of, macs_of
from factorize.spec import ConvSpec, Rank


class Net(nn.Module):
    """A residual block, a convolution called twice, in-place functions, a head."""

    def __init__(self, mute: bool = False, head: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, head)
        self.mute = mute
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x).mul_(0.5))
        y = F.relu(self.norm(self.a(x)))
        x = x + self.b(y) * (0.0 if self.mute else 1.0)
        if self.fails:
            raise RuntimeError("the model's own")
        x = F.relu_(self.twice(x))
        x = F.relu_(self.twice(x))
        return self.head(x.mean((2, 3)))


def net(**options: object) -> Net:
    return Net(**options).eval()  # type: ignore[arg-type]


IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = list(IMAGES.split(5))


def specs_of(model: nn.Module) -> dict[str, ConvSpec]:
    sites = find(model, IMAGES[:1])
    specs = (site.spec for site in sites if site.spec.in_channels > 4)
    return {spec.name: spec for spec in specs if spec.kind == "conv2d"}


def conv(inputs: int, outputs: int, seed: int = 0) -> tuple[nn.Module, dict[str, ConvSpec]]:
    """A net of one layer, of random weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    sites = find(model, torch.zeros(1, inputs, 8, 8))
    return model, {site.spec.name: site.spec for site in sites}


def offered(
    specs: dict[str, ConvSpec], names: Iterable[str], step: int = 4
) -> dict[str, dict[Key, Sequence[Rank]]]:
    """All chains that save MACs, by layer and kind, the cheapest rank first."""
    return {name: kinds(spec, names, step) for name, spec in specs.items()}


def kinds(spec: ConvSpec, names: Iterable[str], step: int) -> dict[Key, Sequence[Rank]]:
    found: dict[Key, list[Rank]] = {}
    for name in names:
        method = methods.get(name)
        for rank in method.ladder(spec, step=step, count=60):
            for variant in method.variants_of(spec):
                key = name, variant, family_of(method, spec, rank)
                if macs_of(spec, key, rank) < spec.macs:
                    found.setdefault(key, []).append(rank)
    return {
        key: sorted(ranks, key=lambda rank, key=key: macs_of(spec, key, rank))
        for key, ranks in found.items()
    }


def rank_near(spec: ConvSpec, key: Key, ranks: Sequence[Rank], share: float) -> Rank:
    """The rank that costs nearest to a share of the layer's MACs."""
    return min(ranks, key=lambda rank: abs(macs_of(spec, key, rank) - share * spec.macs))

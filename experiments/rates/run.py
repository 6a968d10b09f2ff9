"""Which learning rate a start wants, by its distance from the original.

    PYTHONPATH=. python experiments/rates/run.py

Two nets on the built-in digits: the classifier, whose distance is a KL divergence, and a denoiser,
trained here, whose distance is a relative squared error. Starts at several ranks, fitted to outputs
or to weights, are tuned for two epochs at shares of the default rate, and judged by their distance
to the original on the test images. Writes results.json and the table of README.md.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import factorize
from factorize.data.digits import digits_data
from factorize.measure.environment import environment
from factorize.models.digits import load_digits_model
from factorize.tune.recipe import FAR, LEAST_SHARE, LR

HERE = Path(__file__).parent
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
STARTS = (("sequential", 8), ("sequential", 4), ("sequential", 2), ("weights", 8), ("weights", 4))
SEEDS = (0, 1)
NOISE = 0.2


class Denoiser(nn.Sequential):
    """(N, 1, 8, 8) with noise -> without."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip


def noisy(batches: Any) -> list[tuple[torch.Tensor, ...]]:
    """Images with noise, always the same, and without."""
    draw = torch.Generator().manual_seed(0)
    return [(x + NOISE * torch.randn(x.shape, generator=draw), x) for x, *_ in batches]


def denoiser(data: factorize.Data) -> tuple[nn.Module, factorize.Data]:
    """The trained net, and its images."""
    torch.manual_seed(0)
    net = Denoiser()
    train = noisy(data.train)
    steps = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(30):
        for x, y in train:
            steps.zero_grad()
            (net(x) - y).square().mean().backward()
            steps.step()
    bare = [[(x,) for x, _ in noisy(one or [])] for one in (data.train, data.holdout, data.test)]
    return net.eval(), factorize.Data(*bare, outputs=factorize.Outputs("values"), labelled=False)


def main() -> None:
    """Tune all starts at all rates."""
    torch.set_num_threads(1)
    digits = digits_data(batch_size=64)
    logits = factorize.Data(digits.train, digits.holdout, digits.test, labelled=False)
    x, rows = torch.randn(1, 1, 8, 8), []
    for name, (net, data), key in (
        ("digits, KL", (load_digits_model(), logits), "kl"),
        ("denoiser, relative squared error", denoiser(digits), "relative_difference"),
    ):
        for how, rank in STARTS:
            row = {"net": name, "fit": how, "rank": rank, "after": {}}
            for seed in SEEDS:
                start = factorize.compress(
                    net, x, rank=rank, data=data, fit=factorize.FitConfig(how), latency=False,
                    device="cpu", seed=seed,
                ).model  # fmt: skip
                worth = {"data": data, "device": "cpu"}
                before = factorize.measure_quality(net, start, x, **worth)[key]
                row.setdefault("before", []).append(distance(before, key))
                for share in SHARES:
                    tuned = copy.deepcopy(start)
                    config = factorize.FinetuneConfig(
                        2, lr=share * LR["adamw"], seed=seed, may_stay=False
                    )
                    factorize.finetune(tuned, net, data, config, device="cpu")
                    found = factorize.measure_quality(net, tuned, x, **worth)[key]
                    row["after"].setdefault(str(share), []).append(distance(found, key))
            rows.append(row)
            print(row, flush=True)
    content = {"environment": environment(), "seeds": SEEDS, "rows": rows}
    (HERE / "results.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    table(content)


def distance(value: float, key: str) -> float:
    """As tuning has it: a relative difference is squared."""
    return value**2 if key == "relative_difference" else value


def table(content: dict[str, Any]) -> None:
    """Below the mark in README.md."""
    machine = content["environment"]
    shown = " | ".join(f"{share:g}" for share in SHARES)
    lines = [
        f"{machine['cpu']}, one thread, torch {machine['torch']}, seeds {list(content['seeds'])}; "
        "distances to the original on the test images, the mean of the seeds.",
        "",
        f"| net | fit, rank | before | share taken | {shown} |",
        f"| --- | --- | --- | --- |{' --- |' * len(SHARES)}",
    ]
    for row in content["rows"]:
        before = sum(row["before"]) / len(row["before"])
        taken = min(max((before / FAR) ** 0.5, LEAST_SHARE), 1.0)
        means = {share: sum(v) / len(v) for share, v in row["after"].items()}
        best = min(means.values())
        cells = [f"**{v:.3g}**" if v == best else f"{v:.3g}" for v in means.values()]
        lines.append(
            f"| {row['net']} | {row['fit']}, {row['rank']} | {before:.3g} | {taken:.2f} "
            f"| {' | '.join(cells)} |"
        )
    mark = "<!-- made by run.py: do not edit below -->"
    page = (HERE / "README.md").read_text().partition(mark)[0]
    (HERE / "README.md").write_text("\n".join([page.rstrip(), "", mark, "", *lines, ""]))


if __name__ == "__main__":
    main()

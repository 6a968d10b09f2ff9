"""Chains fitted to made-up images, beside real ones and the weights alone.

    PYTHONPATH=. python experiments/synthetic/run.py --data ../shared/data [--only digits ...]

Nothing is tuned, and no test image is seen before the score. Writes results.json, each row as soon
as it is there, and the tables of README.md. Rows that exist are left, unless --again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from budgets import budgets
from sources import gaussian, photographs, split, without
from tables import write
from torch import nn

import factorize
from factorize.calibrate import inverted
from factorize.data.digits import digits_data
from factorize.data.synthetic import made_up, synthetic_data
from factorize.measure import accuracy, count
from factorize.measure.environment import environment
from factorize.models.digits import load_digits_model
from factorize.run.made_up import suiting

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
SEEDS = (0, 1, 2)
COUNTS = (16, 64, 250, 1000, 4000)
NEVER = patch("factorize.run.pipeline.seen_by", lambda model, *_, **__: model)
TUNED = "and blocks tuned together"
UNIFORM = {"method": "spatial_svd", "energy": 0.75}
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    """Run what is asked for, the quick things first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with cifar10/, denoise/ and models/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", default="*", help="only rows of this name, such as 'resnet20*'")
    parser.add_argument("--again", action="store_true", help="make rows anew that exist")
    options = parser.parse_args()
    path = HERE / "results.json"

    def known() -> dict[str, Any]:
        return json.loads(path.read_text()) if path.exists() else {}

    for part in options.only:
        for name, make in PARTS[part](options.data):
            exists = name in known().get(part, {}) and not options.again
            if exists or not fnmatch(name, options.rows):
                continue
            row = make()
            content = known()  # another process may have added rows meanwhile
            content.setdefault(part, {})[name] = row
            content["environment"] = environment()
            print(part, name, row, flush=True)
            path.write_text(json.dumps(content, indent=1, default=str) + "\n")
            write(HERE / "README.md", content)
    write(HERE / "README.md", known())


def digits(_: Path | None) -> Rows:
    """The built-in example at rank 8."""

    def row() -> dict[str, Any]:
        net, test = load_digits_model(), digits_data().test
        assert test is not None
        found: dict[str, Any] = {"original": accuracy(net, test)["top1"]}
        for name, how in (
            ("real", {"data": "digits"}), ("made up", {}), ("weights", WEIGHTS),
        ):  # fmt: skip
            found[name] = [
                accuracy(compressed(net, (1, 8, 8), seed, rank=8, **how), test)["top1"]
                for seed in SEEDS
            ]
        return found

    yield "digits, spatial_svd, rank 8", row


def uniform(folder: Path | None) -> Rows:
    """Trained nets, 0.75 of each kernel's energy."""
    for name, shape, seeds in (
        ("resnet20", (3, 32, 32), SEEDS), ("resnet56", (3, 32, 32), SEEDS[:1]),
    ):  # fmt: skip
        yield f"{name}, spatial_svd, energy 0.75", partial(_row, name, folder, shape, seeds)


def _row(name: str, folder: Path | None, shape: tuple[int, ...], seeds: Any) -> dict[str, Any]:
    this = task_of(name, folder)
    row: dict[str, Any] = {"original": this.score(this.model), "real": [], "made up": []}
    for seed in seeds:
        real = split(this.calibration(1250, seed), this.batch)
        row["real"].append(this.score(compressed(this.model, shape, seed, data=real, **UNIFORM)))
        made = compressed(this.model, shape, seed, **UNIFORM)
        row["made up"].append(this.score(made))
    x = torch.zeros(1, *shape)
    row["macs"] = count(made, x).macs / count(this.model, x).macs
    row["weights"] = [this.score(compressed(this.model, shape, 0, **UNIFORM, **WEIGHTS))]
    return row


def ablation(folder: Path | None) -> Rows:
    """ResNet-20 and the digits: what each part is worth."""
    digits_net, test = load_digits_model(), digits_data().test
    assert test is not None
    this = task_of("resnet20", folder)
    nets: dict[str, tuple[nn.Module, tuple[int, ...], Callable[[nn.Module], float], Any]] = {
        "digits": (digits_net, (1, 8, 8), lambda m: accuracy(m, test)["top1"], {"rank": 8}),
        "resnet20": (this.model, (3, 32, 32), this.score, UNIFORM),
    }
    for name, (net, shape, score, how) in nets.items():
        for what, (data, as_it_is) in _sources(net, shape).items():

            def row(
                net: Any = net, shape: Any = shape, score: Any = score, how: Any = how,
                data: Any = data, as_it_is: bool = as_it_is, tuned: bool = what.endswith(TUNED),
            ) -> dict[str, Any]:  # fmt: skip
                fit = factorize.FitConfig(reconstruct=tuned)
                return {"top1": score(fitted_to(net, shape, data(), as_it_is, {**how, "fit": fit}))}

            yield f"{name}: {what}", row


def _sources(
    net: nn.Module, shape: tuple[int, ...]
) -> dict[str, tuple[Callable[[], factorize.Data], bool]]:
    """What chains are fitted to, and whether with the batch norms that the net has."""

    @cache
    def chosen() -> factorize.Data:
        with patch("factorize.run.made_up._half_inverted", lambda _, images, *__: images):
            return synthetic_data(shape, suit=suiting(net, None, "cpu", 0))

    @cache
    def plain() -> factorize.Data:
        return synthetic_data(shape, preprocessing=chosen().preprocessing)

    def all_of(data: factorize.Data) -> torch.Tensor:
        return torch.cat([batch[0] for one in (data.train, data.holdout) for batch in one])

    def less(what: str) -> factorize.Data:
        with without(what):
            return synthetic_data(shape, preprocessing=chosen().preprocessing)

    @cache
    def half() -> factorize.Data:
        images = all_of(chosen())
        images[::2] = inverted(net, images[::2], "auto")
        return split(images)

    def noise() -> factorize.Data:
        return split(torch.randn(1250, *shape, generator=torch.Generator().manual_seed(0)))

    def pictures() -> factorize.Data:
        known = chosen().preprocessing
        assert known is not None
        return split(known.normalise(photographs()))

    rows: dict[str, tuple[Callable[[], factorize.Data], bool]] = {
        "white noise": (noise, True),
        "Gaussian of the leaves' covariance": (lambda: split(gaussian(all_of(plain()))), True),
        "leaves as they come": (plain, True),
        "leaves, discs only": (lambda: less("shapes"), True),
        "leaves that add up, no occlusion": (lambda: less("occlusion"), True),
        "leaves, no noise on top": (lambda: less("noise"), True),
        "and the net's norms": (plain, False),
        "chosen among many": (chosen, True),
        "and the net's norms (large nets)": (chosen, False),
        "and half of them inverted (small nets)": (half, False),
        f"and half of them inverted, {TUNED}": (half, False),
    }
    if shape[0] == 3:
        rows["crops of two photographs"] = (pictures, True)
    return rows


def counts(folder: Path | None) -> Rows:
    """ResNet-20: what more images buy, and what making them takes."""
    for number in COUNTS:
        yield f"{number}", partial(_counted, number, folder)


def _counted(number: int, folder: Path | None) -> dict[str, Any]:
    this, shape = task_of("resnet20", folder), (3, 32, 32)
    start = time.perf_counter()
    data = synthetic_data(shape, suit=suiting(this.model, None, "cpu", 0), count=number * 5 // 4)
    making = time.perf_counter() - start
    fit = factorize.FitConfig(images=number)
    made = compressed(this.model, shape, 0, data=data, fit=fit, **UNIFORM)
    whole = time.perf_counter() - start
    threads = torch.get_num_threads()
    return {"top1": this.score(made), "making": making, "whole": whole, "threads": threads}


def times(_: Path | None) -> Rows:
    """Seconds to make images, nothing chosen."""

    def row(shape: tuple[int, ...]) -> dict[str, Any]:
        start = time.perf_counter()
        made_up(shape, 1000)
        return {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}

    for shape in ((3, 32, 32), (3, 224, 224)):
        yield f"1,000 images of {shape[1]}x{shape[2]}", partial(row, shape)


WEIGHTS = {"fit": factorize.FitConfig("weights")}
PARTS = {
    "digits": digits, "times": times, "counts": counts, "ablation": ablation, "uniform": uniform,
    "budgets": budgets,
}  # fmt: skip


def task_of(name: str, folder: Path | None) -> Any:
    """The net and its data."""
    from tasks import task

    if folder is None:
        raise SystemExit("--data: trained nets and their images are needed. Give their folder.")
    return task(name, folder)


def compressed(net: nn.Module, shape: tuple[int, ...], seed: int, **how: Any) -> nn.Module:
    """The compressed net; nothing is tuned."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return factorize.compress(net, x, latency=False, device="cpu", seed=seed, **how).model


def fitted_to(net: nn.Module, shape: Any, data: Any, as_it_is: bool, how: Any) -> nn.Module:
    """With the net's own batch norms, or, for made-up images, those that they are given."""
    data = factorize.Data(data.train, data.holdout, labelled=False, made_up=True)
    if not as_it_is:
        return compressed(net, shape, 0, data=data, **how)
    with NEVER:
        return compressed(net, shape, 0, data=data, **how)


if __name__ == "__main__":
    main()

"""Chains fitted to made-up images, beside real ones and the weights alone.

    PYTHONPATH=. python experiments/synthetic/run.py --data ../shared/data [--only digits ...]

Nothing is tuned, and no test image is seen before the score. Writes results.json and the tables of
README.md; what is asked for is done again, other rows stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tables import write
from torch import Tensor, nn

import factorize
from factorize.calibrate import inverted
from factorize.data.digits import digits_data
from factorize.data.synthetic import synthetic_data
from factorize.measure import accuracy, count
from factorize.measure.environment import environment
from factorize.models.digits import load_digits_model
from factorize.run.made_up import suiting

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
SEEDS = (0, 1, 2)
COUNTS = (16, 64, 250, 1000, 4000)
NEVER = patch("factorize.run.pipeline.seen_by", lambda model, *_, **__: model)
UNIFORM = {"method": "spatial_svd", "energy": 0.75}


def main() -> None:
    """Run what is asked for, the quick things first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with cifar10/, denoise/ and models/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    path = HERE / "results.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in options.only:
        for name, row in PARTS[part](options.data):
            content.setdefault(part, {})[name] = row
            content["environment"] = environment()
            print(part, name, row, flush=True)
            path.write_text(json.dumps(content, indent=1, default=str) + "\n")
            write(HERE / "README.md", content)


def digits(_: Path | None) -> Iterator[tuple[str, Any]]:
    """The built-in example at rank 8."""
    net, test = load_digits_model(), digits_data().test
    assert test is not None
    yield (
        "digits, spatial_svd, rank 8",
        {
            "original": accuracy(net, test)["top1"],
            **{
                name: [
                    accuracy(compressed(net, (1, 8, 8), seed, rank=8, **how), test)["top1"]
                    for seed in SEEDS
                ]
                for name, how in (
                    ("real", {"data": "digits"}),
                    ("made up", {}),
                    ("weights", WEIGHTS),
                )
            },
        },
    )


def uniform(folder: Path | None) -> Iterator[tuple[str, Any]]:
    """Trained nets, 0.75 of each kernel's energy."""
    for name, shape, seeds in (
        ("resnet20", (3, 32, 32), SEEDS), ("resnet56", (3, 32, 32), SEEDS[:1]),
        ("dncnn", (1, 40, 40), SEEDS[:1]),
    ):  # fmt: skip
        this = task_of(name, folder)
        yield f"{name}, spatial_svd, energy 0.75", _row(this, shape, seeds, UNIFORM)


def searched(folder: Path | None) -> Iterator[tuple[str, Any]]:
    """ResNet-20 within shares of its MACs."""
    this = task_of("resnet20", folder)
    for method, share in (("cp", 0.3), ("cp", 0.5)):
        how = {"method": method, "budget": factorize.Budget(macs=share)}
        yield f"resnet20, {method}, {share:g} of the MACs", _row(this, (3, 32, 32), (0,), how)


def _row(this: Any, shape: tuple[int, ...], seeds: Any, how: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"original": this.score(this.model), "real": [], "made up": []}
    for seed in seeds:
        real = split(this.calibration(1250, seed), this.batch)
        row["real"].append(this.score(compressed(this.model, shape, seed, data=real, **how)))
        made = compressed(this.model, shape, seed, **how)
        row["made up"].append(this.score(made))
    x = torch.zeros(1, *shape)
    row["macs"] = count(made, x).macs / count(this.model, x).macs
    row["weights"] = [this.score(compressed(this.model, shape, 0, **how, **WEIGHTS))]
    return row


def ablation(folder: Path | None) -> Iterator[tuple[str, Any]]:
    """ResNet-20 and the digits: what each part is worth."""
    digits_net, test = load_digits_model(), digits_data().test
    assert test is not None
    this = task_of("resnet20", folder)
    nets: dict[str, tuple[nn.Module, tuple[int, ...], Callable[[nn.Module], float], Any]] = {
        "digits": (digits_net, (1, 8, 8), lambda m: accuracy(m, test)["top1"], {"rank": 8}),
        "resnet20": (this.model, (3, 32, 32), this.score, UNIFORM),
    }
    for name, (net, shape, score, how) in nets.items():
        with patch("factorize.run.made_up._half_inverted", lambda _, images, *__: images):
            chosen = synthetic_data(shape, suit=suiting(net, None, "cpu", 0))
        known = chosen.preprocessing
        assert known is not None
        plain = synthetic_data(shape, preprocessing=known)
        images = torch.cat(
            [batch[0] for split_ in (plain.train, plain.holdout) for batch in split_]
        )
        half = torch.cat([b[0] for split_ in (chosen.train, chosen.holdout) for b in split_])
        half[::2] = inverted(net, half[::2], "auto")
        of_noise = torch.randn(1250, *shape, generator=torch.Generator().manual_seed(0))
        rows: dict[str, tuple[Any, bool]] = {
            "white noise": (split(of_noise), True),
            "Gaussian of the leaves' covariance": (split(gaussian(images)), True),
            "leaves as they come": (plain, True),
            "and the net's norms": (plain, False),
            "chosen among many": (chosen, True),
            "and the net's norms (large nets)": (chosen, False),
            "and half of them inverted (small nets)": (split(half), False),
        }
        if shape[0] == 3:
            rows["crops of two photographs"] = (split(known.normalise(photographs())), True)
        for what, (data, as_it_is) in rows.items():
            yield f"{name}: {what}", {"top1": score(fitted_to(net, shape, data, as_it_is, how))}


def counts(folder: Path | None) -> Iterator[tuple[str, Any]]:
    """ResNet-20: what more images buy, and what making them takes."""
    this, shape = task_of("resnet20", folder), (3, 32, 32)
    for number in COUNTS:
        start = time.perf_counter()
        data = synthetic_data(
            shape, suit=suiting(this.model, None, "cpu", 0), count=number * 5 // 4
        )
        making = time.perf_counter() - start
        fit = factorize.FitConfig(images=number)
        made = compressed(this.model, shape, 0, data=data, fit=fit, **UNIFORM)
        whole = time.perf_counter() - start
        yield f"{number}", {"top1": this.score(made), "making": making, "whole": whole}


WEIGHTS = {"fit": factorize.FitConfig("weights")}
PARTS = {
    "digits": digits, "counts": counts, "ablation": ablation, "uniform": uniform,
    "searched": searched,
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


def split(images: Tensor, batch: int = 125) -> factorize.Data:
    """A fifth held out."""
    fitted, held = images.split([len(images) - len(images) // 5, len(images) // 5])
    return factorize.Data(
        [(b,) for b in fitted.split(batch)], [(b,) for b in held.split(batch)], labelled=False
    )


def gaussian(images: Tensor) -> Tensor:
    """Normal images of the same mean and covariance of all pixels."""
    rows = images.flatten(1).double()
    _, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    draw = torch.randn(len(rows), len(values), generator=torch.Generator().manual_seed(0)).double()
    made = draw * values / (len(rows) - 1) ** 0.5 @ right + rows.mean(0)
    return made.float().view_as(images)


def photographs() -> Tensor:
    """(1250, 3, 32, 32) crops of scikit-learn's two sample pictures, at several scales."""
    from sklearn.datasets import load_sample_images

    draw = torch.Generator().manual_seed(0)
    pictures = [
        torch.from_numpy(picture).movedim(2, 0).float() / 255
        for picture in load_sample_images().images
    ]
    made = []
    for number in range(1250):
        picture = pictures[number % 2]
        side = int(32 * 2 ** float(3 * torch.rand(1, generator=draw)))
        y, x = (int(torch.randint(n - side + 1, (1,), generator=draw)) for n in picture.shape[1:])
        part = picture[None, :, y : y + side, x : x + side]
        made.append(nn.functional.interpolate(part, (32, 32), mode="bilinear", antialias=True)[0])
    return torch.stack(made)


if __name__ == "__main__":
    main()

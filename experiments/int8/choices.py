"""What int8 loses, by how many layers stay in float, and by how ranges are chosen.

    PYTHONPATH=. python experiments/int8/choices.py --data ../shared/data

ResNet-20, chains fitted for int8, nothing trained. (a) Layers are put back into float in the order
of what they lose by themselves. (b) Ranges by least squared error (as the tool), from minimum to
maximum, by percentiles, and each of the first kind widened or narrowed where that lowers the loss
of the whole net on calibration images. Losses are KL divergences from the float net on 250 held-out
images and on the 10,000 test images. Writes choices.json and choices.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import factorize
from factorize.export import export_onnx
from factorize.quantize import Spare
from factorize.quantize import rounded_net as walk
from factorize.quantize.grid import Grid, _between, grid_of
from factorize.quantize.places import places_of
from factorize.quantize.rounded_net import RoundedNet, round_net
from factorize.quantize.saturation import largest_code
from factorize.quantize.source import twin_and_batches
from factorize.quantize.spare import Judge
from factorize.quantize.write import write_rounded
from factorize.tensor.call import evaluating, onnx_session
from factorize.tensor.output_kinds import distance_of

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
IMAGES, HELD = 1250, 250
NETS = (("cp", 0.3), ("spatial_svd", 0.5))
BACK = (1, 3, 8)
STRETCHED = (0.8, 0.9, 1.11, 1.25)
GAINED = 0.995  # a loss that is not lower than this share of the one before is none


def main() -> None:
    """Make all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    content: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, share in NETS:
            study = _Study(options.data, method, share, Path(folder, f"{method}.onnx"))
            content[f"{method}, {share:g}"] = dict(study.rows())
            (HERE / "choices.json").write_text(json.dumps(content, indent=1) + "\n")
            _write(content)


class _Study:
    """One net in float, and what becomes of it."""

    def __init__(self, folder: Path, method: str, share: float, file: Path) -> None:
        from tasks import task

        self.net, self.file = task("resnet20", folder), file
        images = self.net.calibration(IMAGES, 0)
        self.held, parts = images[:HELD], images[HELD:].split(self.net.batch)
        self.train = [(one,) for one in parts]
        data = factorize.Data(
            self.train, [(one,) for one in self.held.split(self.net.batch)], labelled=False
        )
        example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        made = factorize.compress(
            self.net.model, example, int8="all", method=method, latency=False, device="cpu",
            budget=factorize.Budget(macs=share), seed=0, data=data,
        )  # fmt: skip
        export_onnx(made.model, example, file)
        self.exact: dict[str, Tensor] = {}

    def rows(self) -> Iterator[tuple[str, dict[str, float]]]:
        """By name: losses, and points of top-1."""
        yield "float", self.rated(str(self.file))
        made = self.made()
        yield "int8, least squared error", self.rated(made)
        judge = Judge(Spare([]), made.twin, [self.first])
        alone = judge._each_alone(made)
        order = sorted(alone, key=lambda row: -alone[row])
        for count in BACK:
            names = [name for row in order[:count] for name in row]
            yield f"{count} of {len(order)} in float", self.rated(self.made(names))
        for name, grid in (
            ("minimum to maximum", _percentile(1)), ("percentile 99.99", _percentile(0.9999)),
            ("percentile 99.9", _percentile(0.999)),
        ):  # fmt: skip
            yield name, self.rated(self.made(grid=grid))
        yield "each by the net's loss", self.rated(self.stretched(made))

    def made(
        self, left: list[str] | None = None, grid: Callable[[Any], Grid] = grid_of
    ) -> RoundedNet:
        """The rounded net, some layers in float."""
        twin, given = twin_and_batches(self.file, self.train)
        self.first = {name: v[:128] for name, v in given[0].items()}
        places = places_of(twin, exclude=dict.fromkeys(left or [], ""))
        walk.grid_of = grid
        try:
            return round_net(twin, places, given, largest=largest_code(), seed=0)
        finally:
            walk.grid_of = grid_of

    def stretched(self, made: RoundedNet) -> RoundedNet:
        """With each range as it suits the whole net's loss on calibration images."""
        names = [value.name for value in made.twin.onnx_file.proto.graph.output]
        assert made.exact is not None
        same = made.places.same
        with evaluating(made.exact, made.twin):
            (wanted,) = made.exact.values(self.first, names).values()

            def loss() -> float:
                (found,) = made.values(self.first, names).values()
                return float(distance_of(found, wanted, "logits"))

            best = loss()
            for name in [one for one in made.grids if one not in same]:
                alike = [name, *(one for one, of in same.items() if of == name)]
                kept = made.grids[name]
                low, high = -kept.zero * kept.scale, (255 - kept.zero) * kept.scale
                for share in STRETCHED:
                    new = _between(share * low, share * high)
                    made.grids.update(dict.fromkeys(alike, new))
                    now = loss()
                    if now < GAINED * best:
                        best, kept = now, new
                made.grids.update(dict.fromkeys(alike, kept))
        return made

    def rated(self, net: RoundedNet | str) -> dict[str, float]:
        """Losses to the float net, and top-1."""
        model = net if isinstance(net, str) else write_rounded(net).SerializeToString()
        file = _File(model)
        top1 = self.net.score(file)
        made = {"test": torch.cat(file.made), "held_out": file(self.held)}
        if isinstance(net, str):
            self.exact = made
        losses = {
            which: float(distance_of(one.double(), self.exact[which].double(), "logits"))
            for which, one in made.items()
        }
        agreed = self.exact["test"].argmax(1) == made["test"].argmax(1)
        found = {**losses, "top1": top1, "agreement": 100 * float(agreed.float().mean())}
        print(found, flush=True)
        return found


class _File(torch.nn.Module):
    """A net's file, and what it has given."""

    def __init__(self, model: str | bytes) -> None:
        super().__init__()
        self.session, self.made = onnx_session(model), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        given = {self.session.get_inputs()[0].name: x.numpy()}
        self.made.append(torch.from_numpy(self.session.run(None, given)[0]))
        return self.made[-1]


def _percentile(share: float) -> Callable[[Any], Grid]:
    """Ranges that so much of the values is in, at both ends."""

    def grid(values: Any) -> Grid:
        every = torch.cat([one.flatten() for one in values]).sort().values
        last = len(every) - 1
        low, high = every[round((1 - share) * last)], every[round(share * last)]
        return _between(min(float(low), 0.0), max(float(high), 0.0))

    return grid


def _write(content: dict[str, Any]) -> None:
    lines = [
        "# What int8 loses, by what stays in float and by how ranges are chosen\n",
        "    PYTHONPATH=. python experiments/int8/choices.py --data ../shared/data\n",
        "ResNet-20, chains within a share of the MACs that are fitted for int8, nothing trained. "
        "Losses are KL divergences from the float net. Of 10,000 images on which two nets disagree "
        "on n, the difference of their top-1 has a standard error of about sqrt(n) / 100 points. "
        "The 250 held-out images are training images, which a net is surer of.\n",
        "| net | | loss, held out | loss, test | agrees with float | top-1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for net, rows in content.items():
        for name, one in rows.items():
            lines.append(
                f"| {net} | {name} | {one['held_out']:.4f} | {one['test']:.4f} | "
                f"{one['agreement']:.2f} % | {one['top1']:.2f} % |"
            )
    (HERE / "choices.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

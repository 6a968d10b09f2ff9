"""int8 and factorization: accuracy as ONNX Runtime runs it.

    PYTHONPATH=. python experiments/int8/run.py --data ../shared/data [--only resnet20 ...]
        [--methods cp ...] [--again]

Each net is searched at a share of its MACs and fitted to 1,000 calibration images; nothing is
trained, and no test image is seen before the score. Beside --int8 stand the same net in float, and
what ONNX Runtime's own static quantizer makes of the net that was fitted in float. A row is written
to results.json as soon as it is there, and is not made again without --again; the tables of
README.md are made of all rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tables import write
from torch import Tensor, nn

import factorize
from factorize.export import export_onnx
from factorize.measure import OnnxNet
from factorize.measure.environment import environment
from factorize.quantize import quantize_onnx

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "fit"))
SHAPES = {"resnet20": (3, 32, 32), "resnet56": (3, 32, 32), "dncnn": (1, 40, 40)}
IMAGES, CALIBRATED = 1250, 256  # a fifth is held out; of the others, those that ranges come from
METHODS, SHARES = ("cp", "spatial_svd", "tucker2", "auto"), (0.5, 0.3)


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=("dense", *METHODS), default=None)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--made-up", action="store_true", help="no image is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="make rows that are there anew")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    path = HERE / "results.json"
    for name in options.only:
        net = _task(name, options.data)
        for key, make in _rows(name, net, options):
            if key in _known(path) and not options.again:
                continue
            row = make()
            content = {**_known(path), key: {**row, "environment": environment()}}
            print(key, row, flush=True)
            path.write_text(json.dumps(content, indent=1, default=str) + "\n")
            write(HERE / "README.md", content)


def _known(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _task(name: str, folder: Path) -> Any:
    from tasks import task

    return task(name, folder)


def _rows(name: str, net: Any, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    end = f"{', made up' * options.made_up}, seed {options.seed}"
    for method in options.methods or ("dense", *METHODS):
        if method == "dense":
            yield f"{name}, dense{end}", lambda: _dense(name, net, options)
            continue
        for share in options.shares:
            yield (
                f"{name}, {method}, {share:g}{end}",
                lambda method=method, share=share: _chains(name, net, method, share, options),
            )


def _dense(name: str, net: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The net as it is, by our quantizer and by ONNX Runtime's."""
    images = _images(name, net, options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "dense.onnx")
        export_onnx(net.model, images[:1], file)
        start = time.perf_counter()
        check = quantize_onnx(file, Path(folder, "int8.onnx"), images.split(net.batch))
        seconds = time.perf_counter() - start
        return {
            "float": net.score(net.model),
            "int8": net.score(_run(Path(folder, "int8.onnx"), net.model, images)),
            "runtime's": net.score(_run(_by_onnxruntime(file, images), net.model, images)),
            "difference": check.difference, "seconds": seconds,
        }  # fmt: skip


def _chains(
    name: str, net: Any, method: str, share: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Chains within a share of the MACs: fitted in float, and with --int8."""
    images = _images(name, net, options)
    held = len(images) // 5
    data = factorize.Data(
        [(b,) for b in images[held:].split(net.batch)],
        [(b,) for b in images[:held].split(net.batch)],
        labelled=False,
    )
    how: dict[str, Any] = {
        "method": method, "budget": factorize.Budget(macs=share), "latency": False,
        "device": "cpu", "seed": options.seed, "data": None if options.made_up else data,
    }  # fmt: skip
    example = torch.randn(1, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        plain = factorize.compress(net.model, example, out=Path(folder, "float"), **how)
        file = Path(folder, "float", "model.onnx")
        fitted = net.score(plain.model)
        afterwards = net.score(_run(_by_onnxruntime(file, images), net.model, example))
        ours = factorize.compress(net.model, example, out=Path(folder, "int8"), int8=True, **how)
        assert ours.report.int8 is not None, ours.report.failures
        file = Path(folder, "int8", "model.onnx")
        return {
            "fitted in float": fitted,
            "and then the runtime's": afterwards,
            "float": net.score(ours.model),
            "int8": net.score(_run(file, net.model, example)),
            "macs": ours.report.macs["compressed"] / ours.report.macs["original"],
            "difference": ours.report.int8["check"]["difference"],
            "seconds": ours.report.seconds["int8"],
        }


def _images(name: str, net: Any, options: argparse.Namespace) -> Tensor:
    if not options.made_up:
        return net.calibration(IMAGES, options.seed)
    from factorize.data.synthetic import synthetic_data
    from factorize.run.made_up import suiting

    suit = suiting(net.model, None, "cpu", options.seed)
    data = synthetic_data(SHAPES[name], suit=suit, count=IMAGES)
    return torch.cat([batch[0] for batch in data.train])


def _run(file: Path, model: nn.Module, example: Tensor) -> nn.Module:
    return OnnxNet(file, model, example[:1])


def _by_onnxruntime(file: Path, images: Tensor) -> Path:
    """ONNX Runtime's static quantizer with the same types, on as many images as ours takes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images[:CALIBRATED].split(1))

        def get_next(self) -> Any:
            one = next(self.left, None)
            return None if one is None else {name: one.numpy()}

    import onnx

    name = onnx.load(file).graph.input[0].name
    ready, made = file.with_suffix(".ready.onnx"), file.with_suffix(".runtime.onnx")
    quant_pre_process(str(file), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready), str(made), Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


if __name__ == "__main__":
    main()

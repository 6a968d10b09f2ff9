"""int8 of the same nets by us and by others, on the same images, as ONNX Runtime runs it.

    PYTHONPATH=. python experiments/int8/peers.py --data ../shared/data [--only resnet20 ...]

Others are ONNX Runtime's static quantizer, NNCF's post-training quantization (``pip install nncf``)
and AIMET (``pip install aimet-onnx``, whose net is simulated by it); one that is not installed is
left out, and rows that were made stay. All have per-channel weights of 8 bits, activations of 8
bits and 256 calibration images; NNCF and AIMET are as they come. Nets are dense, and ``cp`` at half
the MACs, fitted in float. Writes peers.json and peers.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from run import CALIBRATED, IMAGES, SHAPES, _by_onnxruntime, _run, _task
from torch import Tensor

import factorize
from factorize.export import export_onnx
from factorize.measure.environment import environment, package_version
from factorize.quantize import quantize_onnx

HERE = Path(__file__).parent
NETS = {"dense": None, "cp, half the MACs": 0.5}


def main() -> None:
    """Make the rows of all that is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of trained nets")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=["resnet20", "dncnn"])
    options = parser.parse_args()
    path = HERE / "peers.json"
    for name in options.only:
        net = _task(name, options.data)
        images = net.calibration(IMAGES, 0)
        for kind, share in NETS.items():
            with tempfile.TemporaryDirectory() as folder:
                file = _float(net, images, share, Path(folder))
                made = {"float": {"score": net.score(_run(file, net.model, images))}}
                for peer, quantize in PEERS.items():
                    start = time.perf_counter()
                    if (found := quantize(file, images)) is None:
                        continue
                    runs, version = found
                    seconds = time.perf_counter() - start
                    score = net.score(_Called(runs) if callable(runs) else _run(
                        runs, net.model, images
                    ))  # fmt: skip
                    made[peer] = {"score": score, "seconds": seconds, "version": version}
                    print(name, kind, peer, made[peer], flush=True)
            content = json.loads(path.read_text()) if path.exists() else {}
            key = f"{name}, {kind}"
            made = {**content.get(key, {}), **made, "environment": environment()}
            content[key] = made
            path.write_text(json.dumps(content, indent=1) + "\n")
            _write(content)


def _float(net: Any, images: Tensor, share: float | None, folder: Path) -> Path:
    """The file that all of them get."""
    if share is None:
        export_onnx(net.model, images[:1], folder / "float.onnx")
        return folder / "float.onnx"
    data = factorize.Data(
        [(b,) for b in images[len(images) // 5 :].split(net.batch)],
        [(b,) for b in images[: len(images) // 5].split(net.batch)],
        labelled=False,
    )
    factorize.compress(
        net.model, images[:1], method="cp", budget=factorize.Budget(macs=share), data=data,
        latency=False, device="cpu", out=folder / "float",
    )  # fmt: skip
    return folder / "float" / "model.onnx"


Made = tuple[Path | Callable[[Tensor], Tensor], str] | None


def _ours(file: Path, images: Tensor) -> Made:
    made = file.with_suffix(".ours.onnx")
    quantize_onnx(file, made, images[:CALIBRATED].split(32))
    return made, package_version("factorize")


def _runtime(file: Path, images: Tensor) -> Made:
    return _by_onnxruntime(file, images), package_version("onnxruntime")


def _nncf(file: Path, images: Tensor) -> Made:
    if find_spec("nncf") is None:
        return None
    import nncf
    import onnx

    proto = onnx.load(file)
    name = proto.graph.input[0].name
    items = [{name: one.numpy()} for one in images[:CALIBRATED].split(1)]
    quantized = nncf.quantize(proto, nncf.Dataset(items), subset_size=CALIBRATED)
    made = file.with_suffix(".nncf.onnx")
    onnx.save(quantized, made)
    return made, package_version("nncf")


def _aimet(file: Path, images: Tensor) -> Made:
    if find_spec("aimet_onnx") is None:
        return None
    import onnx
    from aimet_onnx.quantsim import QuantizationSimModel

    simulation = QuantizationSimModel(onnx.load(file))
    session = simulation.session
    name = session.get_inputs()[0].name
    simulation.compute_encodings([{name: one.numpy()} for one in images[:CALIBRATED].split(1)])

    def runs(x: Tensor) -> Tensor:
        return torch.from_numpy(simulation.session.run(None, {name: x.numpy()})[0])

    return runs, package_version("aimet-onnx")


PEERS: dict[str, Callable[[Path, Tensor], Made]] = {
    "factorize": _ours, "onnxruntime": _runtime, "nncf": _nncf, "aimet": _aimet,
}  # fmt: skip


class _Called(torch.nn.Module):
    def __init__(self, runs: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        return self.runs(x)


def _write(content: dict[str, Any]) -> None:
    peers = ["float", *PEERS]
    lines = [
        "# int8 by others, on the same nets\n",
        "    PYTHONPATH=. python experiments/int8/peers.py --data ../shared/data\n",
        "Top-1 in percent on CIFAR-10's test images, or PSNR in dB on Set12 (DnCNN); 256 "
        "calibration images, nothing trained. The float net of a row is the same for all: it was "
        "not fitted for int8, as `--int8` does.\n",
        f"| net | {' | '.join(peers)} |", f"|{' --- |' * (len(peers) + 1)}",
    ]  # fmt: skip
    for key, row in content.items():
        cells = [f"{row[one]['score']:.2f}" if one in row else "" for one in peers]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    last = next(reversed(content.values()))
    versions = ", ".join(f"{one} {last[one]['version']}" for one in PEERS if one in last)
    about = last["environment"]
    lines.append(f"\n{about['cpu']}, torch {about['torch']}, {versions}, seed 0.")
    (HERE / "peers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

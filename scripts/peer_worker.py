"""Runs the peers' decompositions, in their own environment, for `compare_peers.py`.

Reads one JSON request per line, writes one JSON reply per line; tensors travel as .npz files. The
first line that it writes names the versions it runs. A peer's exception is a reply, not an end.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

# Whatever the peers print goes to stderr: stdout speaks the protocol.
_REPLIES = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import tensorly  # noqa: E402
import torch  # noqa: E402
from aimet_torch.channel_pruning.channel_pruner import InputChannelPruner  # noqa: E402
from aimet_torch.channel_pruning.weight_reconstruction import WeightReconstructor  # noqa: E402
from aimet_torch.svd.svd_splitter import (  # noqa: E402
    SpatialSvdModuleSplitter,
    WeightSvdModuleSplitter,
)
from tensorly.decomposition import parafac, partial_tucker  # noqa: E402
from tltorch import FactorizedConv  # noqa: E402
from torch import Tensor, nn  # noqa: E402

_PACKAGES = ("aimet-torch", "tensorly-torch", "tensorly", "torch", "numpy", "scikit-learn")

Run = Callable[[Tensor], Tensor]
Result = tuple[Callable[[], Tensor], Run | None]
"""The kernel (O, I, k_h, k_w) that a peer's factors make, and how the peer runs the layer."""


@dataclass(frozen=True)
class Layer:
    """A convolution without bias, inputs to run it on, and samples for a peer that uses data."""

    conv: nn.Conv2d
    inputs: Tensor  # (N, I, H, W)
    samples: np.ndarray  # (n, I, k_h, k_w): input patches of the calibration images
    targets: np.ndarray  # (n, O): the layer's outputs at the same places

    @property
    def exact(self) -> np.ndarray:
        """The kernel in float64, which a peer that takes bare arrays gets."""
        return self.conv.weight.detach().double().numpy()


def aimet_spatial_svd(layer: Layer, rank: list[int]) -> Result:
    """k_h x 1, then 1 x k_w."""
    first, second = SpatialSvdModuleSplitter.split_module(layer.conv, rank[0])
    return (
        lambda: torch.einsum("riyz,orzx->oiyx", first.weight, second.weight),
        nn.Sequential(first, second),
    )


def aimet_weight_svd(layer: Layer, rank: list[int]) -> Result:
    """1x1, then k_h x k_w."""
    first, second = WeightSvdModuleSplitter.split_module(layer.conv, rank[0])
    return (
        lambda: torch.einsum("ri,oryx->oiyx", first.weight[:, :, 0, 0], second.weight),
        nn.Sequential(first, second),
    )


def aimet_channel_pruning(layer: Layer, rank: list[int]) -> Result:
    """The input channels of largest norm, and a linear regression of the outputs on them."""
    conv = layer.conv
    share = min(1, (rank[0] + 0.5) / conv.in_channels)  # which AIMET rounds down to the rank
    pruned = InputChannelPruner._select_inp_channels(conv, share)
    kept = sorted(set(range(conv.in_channels)) - {int(channel) for channel in pruned})
    small = nn.Conv2d(
        len(kept), conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
    )
    WeightReconstructor.reconstruct_params_for_conv2d(small, layer.samples[:, kept], layer.targets)

    def kernel() -> Tensor:
        full = torch.zeros_like(conv.weight)
        full[:, kept] = small.weight
        return full

    return kernel, lambda x: small(x[:, kept])


def tltorch_cp(layer: Layer, rank: list[int]) -> Result:
    """Four-way CP."""
    return _tltorch(layer, rank[0], "cp")


def tltorch_tucker(layer: Layer, rank: list[int]) -> Result:
    """Tucker of all four modes, the spatial ones at full rank: Tucker-2."""
    inputs, outputs = rank
    return _tltorch(layer, (outputs, inputs, *layer.conv.kernel_size), "tucker")


def tltorch_tt(layer: Layer, rank: list[int]) -> Result:
    """Tensor train over (input, y, x, output)."""
    kernel, run = _tltorch(layer, (1, *rank, 1), "tt")
    return lambda: kernel().movedim(-1, 0), run


def _tltorch(layer: Layer, rank: Any, factorization: str) -> Result:
    module = FactorizedConv.from_conv(
        layer.conv, rank=rank, factorization=factorization, implementation="factorized"
    )
    return module.weight.to_tensor, module


def tensorly_partial_tucker(layer: Layer, rank: list[int]) -> Result:
    """Tucker of the two channel modes."""
    inputs, outputs = rank
    (core, factors), _ = partial_tucker(layer.exact, [outputs, inputs], modes=[0, 1])
    return lambda: _tensor(np.einsum("qpyx,oq,ip->oiyx", core, *factors, optimize=True)), None


def tensorly_parafac(layer: Layer, rank: list[int]) -> Result:
    """Three-way CP over (output, input, position)."""
    weights, (outputs, inputs, positions) = parafac(
        layer.exact.reshape(*layer.exact.shape[:2], -1), rank[0]
    )

    def kernel() -> Tensor:
        full = np.einsum("r,or,ir,kr->oik", weights, outputs, inputs, positions, optimize=True)
        return _tensor(full.reshape(layer.exact.shape))

    return kernel, None


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float()


PEERS: dict[str, Callable[[Layer, list[int]], Result]] = {
    "AIMET spatial SVD": aimet_spatial_svd,
    "AIMET weight SVD": aimet_weight_svd,
    "AIMET channel pruning": aimet_channel_pruning,
    "tltorch CP": tltorch_cp,
    "tltorch Tucker": tltorch_tucker,
    "tltorch tensor train": tltorch_tt,
    "tensorly partial_tucker": tensorly_partial_tucker,
    "tensorly parafac": tensorly_parafac,
}


def load(path: str) -> Layer:
    """A layer as `compare_peers.py` wrote it."""
    stored = np.load(path)
    weight = torch.from_numpy(stored["weight"])
    conv = nn.Conv2d(
        weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), tuple(stored["stride"].tolist()),
        tuple(stored["padding"].tolist()), bias=False,
    )  # fmt: skip
    conv.weight.data = weight
    return Layer(conv, torch.from_numpy(stored["inputs"]), stored["samples"], stored["targets"])


def answer(layer: Layer, request: dict[str, Any]) -> dict[str, Any]:
    """Decompose once, timed; write the kernel and the layer's outputs by it to a file."""
    np.random.seed(request["seed"])  # where tensorly's starts come from
    torch.manual_seed(request["seed"])
    conv = layer.conv
    # tltorch switches tensorly to torch for all; tensorly itself defaults to numpy.
    backend = "numpy" if request["peer"].startswith("tensorly") else "pytorch"
    with torch.no_grad(), tensorly.backend_context(backend, local_threadsafe=True):
        start = time.perf_counter()
        kernel_of, run = PEERS[request["peer"]](layer, request["rank"])
        seconds = time.perf_counter() - start
        kernel = kernel_of()
        # A peer without a layer of its own leaves it to its users to make one of the factors.
        outputs = run(layer.inputs) if run else conv._conv_forward(layer.inputs, kernel, None)
    np.savez(request["result"], kernel=kernel.numpy(), outputs=outputs.numpy())
    return {"seconds": seconds}


def main() -> None:
    """Answer until there are no more requests."""
    torch.set_num_threads(1)
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    _REPLIES.write(json.dumps(versions) + "\n")
    path, layer = "", None
    for line in sys.stdin:
        request = json.loads(line)
        if request["layer"] != path or layer is None:
            path, layer = request["layer"], load(request["layer"])
        try:
            reply = answer(layer, request)
        except Exception as reason:
            message = str(reason).partition("\n")[0][:200]  # an assertion may have none
            reply = {"failure": f"{type(reason).__name__}: {message}"}
        _REPLIES.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()

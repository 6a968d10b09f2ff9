"""Batch norms in tuning: by fixed statistics, or by those of the batch of all processes.

By each process's part of the batch the result would not be that of one process with the whole.
torch's own ``SyncBatchNorm`` does not run on the CPU, and takes another module in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from factorize.system import processes


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """Let the batch norms of a model share their statistics, where there are several processes.

    Layers that compute more than a batch norm (subclasses with a ``forward`` of their own) stay as
    they are.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward
    ]
    if processes.count() == 1:
        layers = []
    try:
        for layer in layers:
            layer.__dict__["forward"] = partial(_forward, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def fix(model: nn.Module) -> None:
    """Let the batch norms of a model that is in train mode keep to their running statistics."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    """(N, C, ...) -> the same, normalised per channel over the samples of all processes."""
    if not layer.training:
        return _BatchNorm.forward(layer, x)
    wide = x.float() if x.dtype.itemsize < 4 else x
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    count = processes.total(wide.new_tensor(float(x.numel() // x.shape[1])))
    mean = processes.differentiable_total(wide.sum(axes)) / count
    centred = wide - mean.view(shape)
    var = processes.differentiable_total(centred.square().sum(axes)) / count
    if layer.running_mean is not None and layer.running_var is not None:
        with torch.no_grad():
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            share = layer.momentum
            if share is None:  # a cumulative average
                share = 1 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, share)
            layer.running_var.lerp_(var * (count / (count - 1)), share)
    y = centred * torch.rsqrt(var + layer.eps).view(shape)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)

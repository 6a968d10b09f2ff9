"""Parameters and multiply-accumulates of a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from factorize.tensor.call import batch_size, call, evaluating


def count(model: nn.Module, example_input: Any) -> tuple[int, int]:
    """Count the parameters and the MACs of a model.

    A MAC is one multiplication and the addition that goes with it. Counted are those of
    convolutions and matrix products, attention and recurrent layers included, per sample;
    biases, normalisation, activations and pooling count as nothing. This is the convention of
    ``ConvSpec.macs`` and of the figures published with torchvision's weights.

    Parameters
    ----------
    model
        Run once, in eval mode; its training flags are as before afterwards. A model and an
        input on the meta device are counted without any arithmetic.
    example_input
        One batch, on the model's device, passed on as `tensor.call.call` does.

    Returns
    -------
    params
        Elements of all parameters, each shared one once.
    macs
        Multiply-accumulates per sample.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    counter = FlopCounterMode(display=False)
    with evaluating(model), _countable(model), counter:
        call(model, example_input)
    return params, counter.get_total_flops() // 2 // batch_size(example_input)


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Take attention and recurrent layers apart: torch's counter counts a fused one as nothing."""
    mha = torch.backends.mha
    fused = mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # flags() sets that too
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(mha.set_fastpath_enabled, fused)
        mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield

"""How every stage calls a model: with an example input, in eval mode, without gradients.

An example input is a tensor, a tuple (positional arguments), a mapping (keyword arguments) or
anything else a model takes as its one argument, such as a detector's list of images.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from factorize.errors import DataError

POSITIONS, FEWEST = 2**16, 4
"""Of a batch that only goes forward on a CPU: positions (pixels), and samples at least. Activations
of more leave the cache, and each image takes longer."""


def call(model: Any, example_input: Any) -> Any:
    """Call a model: a tuple is its positional arguments, a mapping its keyword arguments.

    Anything else, a tensor or a list of images, is the single argument.
    """
    if isinstance(example_input, tuple):
        return model(*example_input)
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(example_input)


def batch_size(example_input: Any) -> int:
    """Count the samples: the first axis of the first tensor, or the length of a list.

    Raises
    ------
    DataError
        If there is no tensor with a batch axis in it.
    """
    value = example_input
    if isinstance(value, Tensor) and value.ndim > 0:
        return value.shape[0]
    if isinstance(value, list) and value:
        return len(value)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple) and value:
        return batch_size(value[0])
    raise DataError(
        "example input: must be a tensor with a batch axis, or a list, tuple or dict that starts "
        f"with one, got {type(value).__name__}. Pass one batch as the model takes it."
    )


def rows_of(inputs: Any, rows: Any) -> Any:
    """Some samples of a batch, in whatever form a model takes it.

    Parameters
    ----------
    rows
        A slice, or a mask (N,).
    """
    if isinstance(inputs, Tensor) and inputs.ndim:
        return inputs[rows.to(inputs.device) if isinstance(rows, Tensor) else rows]
    if isinstance(inputs, list):
        mask = isinstance(rows, Tensor)
        return list(compress(inputs, rows.tolist())) if mask else inputs[rows]
    if isinstance(inputs, tuple):
        return tuple(rows_of(value, rows) for value in inputs)
    if isinstance(inputs, Mapping):
        return {key: rows_of(value, rows) for key, value in inputs.items()}
    return inputs


def forward_batch(image: Tensor, device: torch.device | str = "cpu") -> int:
    """How many samples like this one (C, *sizes) are quickest where there is only a forward pass.

    On a CPU as many as its cache has room for the activations of; there is no limit elsewhere.
    """
    if torch.device(device).type != "cpu":
        return sys.maxsize
    return max(FEWEST, POSITIONS // max(prod(image.shape[1:]), 1))


def twice(inputs: Any) -> Any:
    """A batch of which each sample comes a second time, after all others."""
    if isinstance(inputs, Tensor) and inputs.ndim:
        return torch.cat((inputs, inputs))
    if isinstance(inputs, list):
        return [*inputs, *inputs]
    if isinstance(inputs, tuple):
        return tuple(map(twice, inputs))
    if isinstance(inputs, Mapping):
        return {key: twice(value) for key, value in inputs.items()}
    return inputs


def to_model(inputs: Any, model: nn.Module) -> Any:
    """Bring a batch to the device and the dtype a model computes in; integers stay integers."""
    home = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    dtype = model_dtype(model)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        kind = dtype if value.is_floating_point() else value.dtype
        return value.to(home or value.device, kind, non_blocking=True)

    return tree_map(moved, inputs)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each submodule gets its own training flag back afterwards."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype a model computes in: of its first floating parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def model_on(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Return the model itself where it is on the device already, else a copy there."""
    device = torch.device(device)
    if all(_same(tensor.device, device) for tensor in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).to(device)


def laid_out_(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Hold a model's tensors of four axes in a memory format, in place; returns the model.

    ``Module.to`` fails where there are kernels of five axes too.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return model


def input_on(example_input: Any, device: torch.device | str) -> Any:
    """Return the example input with each of its tensors on the device."""
    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, example_input)


def onnx_session(model: str | Path | bytes, threads: int | None = None) -> Any:
    """Open an ONNX file, or the bytes of one, in ONNX Runtime's CPU provider.

    Its threads spin while it runs, as is the runtime's default, and sleep between runs: sessions
    alive in one process would take each other's cores.
    """
    import onnxruntime

    source = model if isinstance(model, bytes) else str(model)
    options = session_options(threads)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def session_options(threads: int | None = None) -> Any:
    """Of a session that goes on with others in one process, see `onnx_session`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def onnx_feeds(session: Any, example_input: Any) -> dict[str, Any]:
    """Make the arrays for a session's inputs: by name from a mapping, else in order."""
    return named_feeds([entry.name for entry in session.get_inputs()], example_input)


def named_feeds(names: Sequence[str], example_input: Any) -> dict[str, Any]:
    """Make the arrays for the inputs of a file: by name from a mapping, else in order."""
    tensors = [v for v in tree_leaves(example_input) if isinstance(v, Tensor)]
    if isinstance(example_input, Mapping) and set(names) <= set(example_input):
        tensors = [example_input[name] for name in names]
    return {name: v.detach().cpu().numpy() for name, v in zip(names, tensors, strict=True)}


def _same(actual: torch.device, wanted: torch.device) -> bool:
    """Whether two devices are one; a device without an index means any of its type."""
    return actual == wanted or (actual.type == wanted.type and wanted.index is None)

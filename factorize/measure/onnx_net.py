"""An ONNX file as ONNX Runtime runs it, called like the module that it was made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from factorize.onnx_graph import Twin
from factorize.tensor.call import batch_size, call, evaluating, onnx_feeds, onnx_session, rows_of
from factorize.tensor.twins import joined


class OnnxNet(nn.Module):
    """Takes and gives what the original does. Gradients do not go through it.

    Parameters
    ----------
    original
        Whose form of outputs it has; in eval mode for one call.
    threads
        Of the runtime; None: all.
    """

    def __init__(
        self, file: str | Path, original: nn.Module, example_input: Any, threads: int | None = None
    ) -> None:
        super().__init__()
        self._session = onnx_session(file, threads)
        self._twin = original if isinstance(original, Twin) else None
        shapes = [entry.shape for entry in self._session.get_inputs()]
        self._batch = next((shape[0] for shape in shapes if shape), None)  # a name where it is free
        # Functions that measure a model ask its parameters for the device.
        self.home = nn.Parameter(torch.zeros(()), requires_grad=False)
        with evaluating(original):
            output = call(original, example_input)
        self._leaves, self._form = tree_flatten(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNet:
        """With the same session, which cannot be copied."""
        memo[id(self._session)] = self._session
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the file; so many samples at a time as it takes, where that is fixed."""
        given: Any = named or (inputs[0] if len(inputs) == 1 else inputs)
        size, samples = self._batch, batch_size(given)
        if not isinstance(size, int) or size == samples:
            made = self._run(given)
        else:  # the last ones are filled up
            rows = torch.arange(-(-samples // size) * size) % samples
            parts = [self._run(rows_of(given, some)) for some in rows.split(size)]
            made = [joined(values)[:samples] for values in zip(*parts, strict=True)]
        values = iter(made)
        leaves = [
            next(values).to(self.home.device) if isinstance(leaf, Tensor) else leaf
            for leaf in self._leaves
        ]
        return tree_unflatten(leaves, self._form)

    def _run(self, given: Any) -> list[Tensor]:
        fed = given if self._twin is None else self._twin.fed(given)
        return [
            torch.from_numpy(v) for v in self._session.run(None, onnx_feeds(self._session, fed))
        ]

"""An ONNX file as ONNX Runtime runs it, called like the module that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._session, self._twin = onnx_session(file, threads), None
        self._sizes = [entry.shape for entry in self._session.get_inputs()]
        if isinstance(original, Twin):
            self._twin = original
        # Functions that measure a model ask its parameters for the device.
        self.on_cpu = nn.Parameter(torch.zeros(()), requires_grad=False)
        with evaluating(original):
            output = call(original, example_input)
        self._leaves, self._form = tree_flatten(output)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the file; one sample at a time where it takes no more."""
        given: Any = named or (inputs[0] if len(inputs) == 1 else inputs)
        samples, most = batch_size(given), self._sizes[0][0] if self._sizes[0] else None
        if not isinstance(most, int) or most == samples:
            made = self._run(given)
        else:
            parts = [self._run(rows_of(given, slice(i, i + most))) for i in range(0, samples, most)]
            made = [joined(values) for values in zip(*parts, strict=True)]
        values = iter(made)
        leaves = [next(values) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._form)

    def _run(self, given: Any) -> list[Tensor]:
        fed: Mapping[str, Any] = {}
        if self._twin is not None:
            fed = {name: v.numpy() for name, v in self._twin.fed(given).items()}
        else:
            fed = onnx_feeds(self._session, given)
        return [torch.from_numpy(array) for array in self._session.run(None, dict(fed))]

"""A chain between other nodes, as a plain ONNX file: for runtimes that lay values out as they like.

Such a runtime would charge a chain by itself for the way from the plain layout and back to it. In a
net, neighbouring convolutions hand on the layout that suits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factorize.measure.onnx_chain import copies_of, input_shape, model_of
from factorize.onnx_graph import chain_nodes
from factorize.spec import ConvSpec, Size


def framed_model(
    stages: Sequence[ConvSpec], size: Size, batch: int, copies: int = 1, *, int8: bool = False
) -> bytes:
    """A model of copies of a chain side by side, between a convolution and poolings.

    The convolution, of one channel, makes what they read; each pooling takes a single value for
    each channel of what one of them makes. Both cost little beside a layer.

    Parameters
    ----------
    int8
        Whether it computes in integers, from uint8 to uint8.
    """
    if not stages[0].kernel:  # linear layers have but one layout
        nodes, weights, results = copies_of(stages, "x", copies)
        shape = input_shape(stages[0], size, batch)
        return model_of(nodes, weights, shape, results, int8=int8).SerializeToString()
    nodes, weights, results = copies_of(stages, "made", copies)
    after = size
    for stage in stages:
        after = stage.output_size(after)
    return _framed(stages[0].in_channels, size, batch, nodes, weights, results, after, int8)


def frame_model(channels: int, size: Size, batch: int, *, int8: bool = False) -> bytes:
    """The frame alone: the pooling right behind the convolution."""
    return _framed(channels, size, batch, [], [], ["made"], size, int8)


def _framed(
    channels: int, size: Size, batch: int, nodes: list[Any], weights: list[Any],
    results: Sequence[str], after: Size, int8: bool,
) -> bytes:  # fmt: skip
    from onnx import helper

    axes, ones = len(size), (1,) * len(size)
    maker = ConvSpec("", f"conv{axes}d", 1, channels, ones, ones, (0,) * axes, ones)
    made, its = chain_nodes([maker], "x", "made", "maker")
    taken = [
        helper.make_node("MaxPool", [name], [f"{name}.one"], kernel_shape=ones, strides=after)
        for name in results
    ]
    model = model_of(
        [*made, *nodes, *taken], [*its, *weights], (batch, 1, *size),
        [node.output[0] for node in taken], int8=int8,
    )  # fmt: skip
    return model.SerializeToString()

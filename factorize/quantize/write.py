"""The rounded net as an ONNX file: plain operators between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np

from factorize.onnx_graph import value_names
from factorize.quantize.rounded_net import RoundedNet


def write_rounded(net: RoundedNet) -> Any:
    """Make the ``onnx.ModelProto`` of a rounded net, from the one that it is the twin of.

    Weights are int8, by output channel; biases int32; activations uint8.
    """
    return _Writer(net).proto


class _Writer:
    def __init__(self, net: RoundedNet) -> None:
        import onnx

        self.net, self.file = net, net.twin.onnx_file
        self.proto = self.file.fresh()
        onnx.load_external_data_for_model(self.proto, str(self.file.path.parent))
        self.graph = self.proto.graph
        self.names = value_names(self.graph) | {node.name for node in self.graph.node}
        self.steps = {step.makes[0]: step for step in net.twin.onnx_steps}
        self.nodes: list[Any] = []
        self.integers: dict[str, str] = {}  # by value: its name behind the rounding
        self.scales: dict[str, tuple[str, str]] = {}  # and its grid's
        outputs = {value.name for value in self.graph.output}
        for value in self.file.inputs:
            self.round(str(value.name), str(value.name))
        for node in [*self.graph.node]:
            made: dict[str, str] = {name: self.free(f"{name}_exact") for name in node.output
                    if name in outputs and name in net.grids}  # fmt: skip
            self.add(node)
            for index, name in enumerate(node.output):
                if name in made:
                    node.output[index] = made[name]
                self.round(made.get(name, name) or name, name, last=name in made)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.drop_unread(outputs)

    def add(self, node: Any) -> None:
        """Add a node, reading what is rounded; a layer in integers gets its integers."""
        step = self.steps.get(node.output[0]) if node.output else None
        layer = self.net.layers.get(step.name) if step else None
        for index, name in enumerate(node.input):
            node.input[index] = self.integers.get(name, name)
        if step is not None and layer is not None:
            assert step.layer is not None
            _, swap = step.layer.tensors["weight"]
            codes, base = layer.codes.numpy(), step.name
            weight = self.constant(codes.T if swap else codes, f"{base}.weight_codes")
            scales = self.constant(layer.scales.numpy(), f"{base}.weight_scales")
            node.input[1] = self.dequantized(weight, scales, f"{base}.weight", int(swap))
            if layer.bias is not None:
                grid = self.net.grids[step.reads[0]]
                steps = layer.scales.numpy() * np.float32(grid.scale)
                whole = np.round(layer.bias.double().numpy() / steps.astype(np.float64))
                bias = self.constant(whole.astype(np.int32), f"{base}.bias_codes")
                its = self.constant(steps, f"{base}.bias_scales")
                del node.input[2:]
                node.input.append(self.dequantized(bias, its, f"{base}.bias", 0))
        self.nodes.append(node)

    def round(self, name: str, original: str, *, last: bool = False) -> None:
        """Round a value: its readers read what the codes stand for.

        Parameters
        ----------
        original
            What it is called in the net; the graph's output where it is the last.
        """
        import onnx

        grid = self.net.grids.get(original)
        if grid is None:
            return
        same = self.net.places.same.get(original)
        if same is None:
            scale = self.constant(np.float32(grid.scale), f"{original}_scale")
            zero = self.constant(np.uint8(grid.zero), f"{original}_zero")
            self.scales[original] = (scale, zero)
        else:
            self.scales[original] = self.scales[same]
        scale, zero = self.scales[original]
        codes = self.free(f"{original}_codes")
        back = original if last else self.free(f"{original}_rounded")
        self.integers[original] = back
        make = onnx.helper.make_node
        self.nodes += [
            make("QuantizeLinear", [name, scale, zero], [codes], self.free(f"{original}_quantize")),
            make("DequantizeLinear", [codes, scale, zero], [back], self.free(f"{back}_dequantize")),
        ]

    def dequantized(self, codes: str, scales: str, name: str, axis: int) -> str:
        """What a constant's codes stand for, by channel."""
        import onnx

        made = self.free(f"{name}_rounded")
        self.nodes.append(
            onnx.helper.make_node(
                "DequantizeLinear",
                [codes, scales],
                [made],
                self.free(f"{made}_dequantize"),
                axis=axis,
            )
        )
        return made

    def constant(self, array: Any, name: str) -> str:
        import onnx

        name = self.free(name)
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
        return name

    def free(self, name: str) -> str:
        """A name that nothing has yet."""
        tries = (name if i == 0 else f"{name}_{i}" for i in range(len(self.names) + 1))
        name = next(one for one in tries if one not in self.names)
        self.names.add(name)
        return name

    def drop_unread(self, outputs: set[str]) -> None:
        """Leave out float weights that nothing reads any more, and constants alike."""
        from factorize.onnx_graph.walk import reads

        read = {name for node in self.graph.node for name in reads(node)} | outputs
        for index in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[index].name not in read:
                del self.graph.initializer[index]
        for index in reversed(range(len(self.graph.node))):
            node = self.graph.node[index]
            if node.op_type == "Constant" and not read.intersection(node.output):
                del self.graph.node[index]

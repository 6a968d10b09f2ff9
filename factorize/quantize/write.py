"""The rounded net as an ONNX file: plain operators between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np

from factorize.onnx_graph import inlined, read_names, rename_reads, value_names
from factorize.quantize.rounded_net import RoundedLayer, RoundedNet


def write_rounded(net: RoundedNet) -> Any:
    """Make the ``onnx.ModelProto`` of a rounded net, from the one that it is the twin of.

    Weights are int8, by output channel; biases int32; activations uint8. A value that is rounded
    keeps its name behind the rounding; an input of the net, which keeps it before, has another.
    """
    return _Writer(net).proto


class _Writer:
    def __init__(self, net: RoundedNet) -> None:
        import onnx

        self.net, file = net, net.twin.onnx_file
        self.proto = file.fresh()
        onnx.load_external_data_for_model(self.proto, str(file.path.parent))
        self.proto = inlined(self.proto)
        self.proto.ir_version = max(self.proto.ir_version, 4)  # where an initializer is no input
        self.graph = self.proto.graph
        self.names = value_names(self.graph) | {node.name for node in self.graph.node}
        self.nodes: list[Any] = []
        self.scales: dict[str, tuple[str, str]] = {}  # by value: names of its scale and zero
        steps = {step.makes[0]: step for step in net.twin.onnx_steps}
        inputs: dict[str, str] = {}  # names behind the rounding
        for name in (str(value.name) for value in file.inputs):
            if name in net.grids:
                inputs[name] = self.free(f"{name}_rounded")
                self.round(name, name, inputs[name])
        folded = net.places.folded
        for node in [*self.graph.node]:
            if {*node.input[:1]} & folded.keys():  # a batch norm
                continue
            if node.output[0] in folded:
                node.output[0] = folded[node.output[0]]
            rename_reads(node, inputs)
            step = steps.get(node.output[0])
            if step and step.name in net.layers:
                self.fill(node, step, net.layers[step.name])
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                if name in net.grids:
                    node.output[index] = self.free(f"{name}_exact")
                    self.round(name, node.output[index], name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.drop_unread()

    def fill(self, node: Any, step: Any, layer: RoundedLayer) -> None:
        """Give a layer its integers."""
        swap = step.layer.tensors["weight"][1]
        codes = layer.codes.numpy().T if swap else layer.codes.numpy()
        node.input[1] = self.dequantized(
            f"{step.name}.weight", codes, layer.scales.numpy(), axis=int(swap)
        )
        if layer.bias is not None:
            steps = layer.scales.numpy() * np.float32(self.net.grids[step.reads[0]].scale)
            whole = np.round(layer.bias.double().numpy() / steps.astype(np.float64))
            del node.input[2:]
            node.input.append(
                self.dequantized(f"{step.name}.bias", whole.astype(np.int32), steps, axis=0)
            )

    def round(self, value: str, before: str, behind: str) -> None:
        """Round a value that is called so before it, and so behind it."""
        grid, same = self.net.grids[value], self.net.places.same.get(value)
        self.scales[value] = self.scales[same] if same else (
            self.constant(np.float32(grid.scale), f"{value}_scale"),
            self.constant(np.uint8(grid.zero), f"{value}_zero"),
        )  # fmt: skip
        codes = self.free(f"{value}_codes")
        self.add("QuantizeLinear", [before, *self.scales[value]], codes)
        self.add("DequantizeLinear", [codes, *self.scales[value]], behind)

    def dequantized(self, name: str, codes: Any, scales: Any, *, axis: int) -> str:
        """The name of what a constant's codes stand for, by channel."""
        made = self.free(f"{name}_rounded")
        # Without a zero, ONNX Runtime would compute a Gemm in float, its weight dequantized anew.
        parts = {"codes": codes, "scales": scales, "zeros": np.zeros(scales.shape, codes.dtype)}
        reads = [self.constant(values, f"{name}_{part}") for part, values in parts.items()]
        self.add("DequantizeLinear", reads, made, axis=axis)
        return made

    def add(self, kind: str, reads: list[str], makes: str, **attributes: Any) -> None:
        import onnx

        name = self.free(f"{makes}_{kind}")
        self.nodes.append(onnx.helper.make_node(kind, reads, [makes], name, **attributes))

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

    def drop_unread(self) -> None:
        """Leave out float weights that nothing reads any more, wherever they are listed."""
        graph, read = self.graph, read_names(self.graph, self.graph.node)
        constants = {tensor.name for tensor in graph.initializer}
        for found in (graph.initializer, graph.input):
            for index in reversed(range(len(found))):
                if found[index].name in constants - read:
                    del found[index]
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            if node.op_type == "Constant" and read.isdisjoint(node.output):
                del graph.node[index]

"""The networks of a student as an ONNX graph, for runtimes without these kernels.

The graph evaluates a batch of samples per cell; marching and compositing stay with the caller:

    cell        int64   [n]        row of a network, as `cell_index` of the student file has it
    local       float32 [n, b, 3]  positions in the cell, -1 to 1
    directions  float32 [n, b, 3]  unit view directions
    raw         float32 [n, b, 4]  red, green, blue, density: colour and the opacity of one step are
                                   their sigmoids

Weights are stored in half precision and used in single precision, as in the student file. Cells
that pruning has emptied are left out of both, so a row is the same network in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loom.errors import UserError
from loom.files import write_atomic
from torch import Tensor

from featdistill.models.kilo_layout import NetworkShape
from featdistill.models.student import Student
from featdistill.student_file import Written, packed_networks

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8  # what runtimes of 2022 read


def write_onnx(student: Student, path: Path) -> Written:
    """Write the networks as an ONNX file.

    Raises:
        UserError: The package onnx is missing, a weight does not fit into half precision, or the
            disk refuses.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            f"{path}: ONNX needs the package onnx", hint="uv pip install onnx"
        ) from error
    weights, _ = packed_networks(student, path)
    graph = _Graph(student.shape, weights)
    model = onnx.helper.make_model(
        graph.build(), opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    write_atomic(path, content)
    return Written(path, len(content), len(weights), len(student.weights) - len(weights))


class _Graph:
    """Nodes in the order of `kilo_torch.network`, and the tensors that they start from."""

    def __init__(self, shape: NetworkShape, weights: Tensor) -> None:
        self.shape = shape
        self.blocks = shape.blocks(weights)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def build(self) -> onnx.GraphProto:
        """Assemble the graph."""
        from onnx import TensorProto, helper

        position = self._encode("local", self.shape.position_frequencies)
        direction = self._encode("directions", self.shape.direction_frequencies)
        first = self._relu(self._layer(position, "position"))
        z = self._relu(self._layer(first, "trunk"))
        feature = self._layer(z, "feature")
        hidden = self._node("Concat", [feature, direction], axis=2)
        hidden = self._relu(self._layer(hidden, "colour_hidden"))
        colour = self._node("MatMul", [hidden, self._block("colour", (0, 2, 1))])
        density = self._node("MatMul", [z, self._block("density", (0, 1), axes=[2])])
        raw = self._node("Concat", [colour, density], axis=2)
        self._node("Add", [raw, self._block("output_bias", (0, 1), axes=[1])], output="raw")
        floats = TensorProto.FLOAT
        inputs = [
            helper.make_tensor_value_info("cell", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("local", floats, ["n", "b", 3]),
            helper.make_tensor_value_info("directions", floats, ["n", "b", 3]),
        ]
        outputs = [helper.make_tensor_value_info("raw", floats, ["n", "b", 4])]
        return helper.make_graph(self.nodes, "featdistill student", inputs, outputs, self.constants)

    def _node(self, kind: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _block(self, name: str, order: tuple[int, ...], axes: list[int] | None = None) -> str:
        """The rows of a block that `cell` names, in single precision, with axes of length 1."""
        from onnx import TensorProto

        values = getattr(self.blocks, name)
        values = values[:, :4] if name == "output_bias" else values
        stored = self._constant(name, values.numpy().transpose(order))
        rows = self._node("Gather", [stored, "cell"], axis=0)
        rows = self._node("Cast", [rows], to=TensorProto.FLOAT)
        if axes is None:
            return rows
        return self._node("Unsqueeze", [rows, self._constant(f"{name}_axes", np.array(axes))])

    def _layer(self, inputs: str, name: str) -> str:
        product = self._node("MatMul", [inputs, self._block(name, (0, 1, 2))])
        return self._node("Add", [product, self._block(f"{name}_bias", (0, 1), axes=[1])])

    def _relu(self, inputs: str) -> str:
        return self._node("Relu", [inputs])

    def _encode(self, inputs: str, frequencies: int) -> str:
        parts = [inputs]
        for k in range(frequencies):
            scale = self._constant(f"{inputs}_octave_{k}", np.array(2.0**k, np.float32))
            angle = self._node("Mul", [inputs, scale])
            parts += [self._node("Sin", [angle]), self._node("Cos", [angle])]
        return self._node("Concat", parts, axis=2)

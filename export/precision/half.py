"""The network of a graph in float16, with the rest in float32.

Libraries do not fit: `onnxruntime.transformers.float16` (and onnxconverter-common, which it comes from) rounds every
tensor between two nodes that it leaves in float32 to float16 and back. The proposal stage would get its boxes in
steps of half a pixel, and 236 casts more.

ONNX Runtime's CPU has no float16 kernels for most operators. It computes such nodes in float32 and omits the
rounding in between, at every level of optimisation: it does not show the numbers of a GPU, overflow included
(https://github.com/microsoft/onnxruntime/issues/8787). `emulate_half` turns a float16 graph into one that shows it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgerpn.errors import ExportError
from edgerpn.export.precision.blocks import ancestors

_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that stay float32 by the operator's definition: a Resize's region and scales."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

_SMALLEST_SCALE = np.float16(2**-24)
"""A quantizer's scale must be positive; this is the smallest half."""


def to_half(proto: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Converts some nodes of a graph to float16, with one cast where a tensor passes the border.

    Args:
        proto: A float32 graph; stays as it is.
        nodes: Names of the nodes; quantizers among them need opset 19.

    Returns:
        A new graph with the same inputs, outputs, opset and metadata.

    Raises:
        ExportError: A weight is too large for float16, or a node cannot work in it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    inside = [node for node in graph.node if node.name in nodes]
    half_inputs = {name for node in inside for name in _half_inputs(node)}
    types = _types(result)
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_inside = {name for node in inside for name in node.output if name in floats}
    read_outside = {name for node in graph.node if node.name not in nodes for name in node.input}
    read_outside.update(name for node in inside for name in node.input if name not in _half_inputs(node))
    read_outside.update(value.name for value in graph.output)
    entering = {name for name in half_inputs if name in floats and name not in made_inside and name not in constants}
    leaving = made_inside & read_outside
    renamed = {name: f"{name}_half" for name in (entering | leaving | (half_inputs & floats & constants.keys()))}

    _convert_weights(graph, [constants[name] for name in sorted(renamed.keys() & constants.keys())], renamed, inside)
    for node in inside:
        _convert_node(node, renamed)
    _insert_casts(graph, entering, leaving, renamed)
    _drop_unused(graph)
    _drop_shapes(graph, made_inside)
    return checked(result)


def emulate_half(proto: onnx.ModelProto, ends: Collection[str]) -> onnx.ModelProto:
    """Returns a graph that computes on any machine the numbers of a float16 network on a GPU.

    Weights have the values that they have in float16, and every tensor that float16 nodes store is rounded to it,
    with its limits; sums inside a node are float32, as in the tensor cores' usual kernels. The output of a dequantizer
    is not rounded, because integer kernels never store it.

    Args:
        proto: A graph with float16 nodes; stays as it is.
        ends: Names of the network's float32 outputs; the nodes after them stay as they are, for the portable NMS
            counts in float16 itself, exactly.

    Returns:
        A new graph with the same inputs, outputs, opset and metadata, and float32 in place of the network's float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    network = ancestors(result, ends)
    names = {node.name for node in network}
    used = {name for node in network for name in node.input}
    made = {name for node in network for name in node.output}
    halves = {name for name, kind in _types(result).items() if kind == TensorProto.FLOAT16 and name in made}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and tensor.name in used:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.name not in names:
            continue
        _set_target(node, TensorProto.FLOAT16, TensorProto.FLOAT)
        # A ReLU and the rounding before it may change places; the runtime can then fuse the ReLU.
        is_fused = readers.get(node.output[0]) == ["Relu"]
        if node.output[0] in halves and node.op_type != "DequantizeLinear" and not is_fused:
            nodes += _rounding(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_shapes(graph, halves)
    return checked(result)


def checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `proto` when ONNX's checker accepts it.

    Raises:
        ExportError: It refuses: an operator of the network cannot work in that precision.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the network cannot be converted to a lower precision: {str(error).strip()}. Use --precision fp32"
        ) from error
    return proto


def _rounding(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Two casts after `node`, whose output gets another name; ONNX Runtime keeps explicit casts."""
    name = node.output[0]
    node.output[0] = f"{name}_exact"
    return [
        helper.make_node("Cast", [node.output[0]], [f"{name}_rounded"], name=f"{name}_round", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_rounded"], [name], name=f"{name}_widen", to=TensorProto.FLOAT),
    ]


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return types


def _half_inputs(node: onnx.NodeProto) -> list[str]:
    """Inputs that may become float16."""
    fixed = _FLOAT_INPUTS.get(node.op_type, ())
    return [name for i, name in enumerate(node.input) if name and i not in fixed]


def _convert_weights(
    graph: onnx.GraphProto, tensors: list[onnx.TensorProto], renamed: dict[str, str], inside: list[onnx.NodeProto]
) -> None:
    """Adds float16 copies of the `tensors` under their new names."""
    scales = {node.input[1] for node in inside if node.op_type in _QUANTIZERS}
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore", under="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves[np.isfinite(values)]).all():
            raise ExportError(
                f"{tensor.name}: {np.abs(values).max():g} is beyond float16 (65504); use --precision fp32, or train "
                "with weight decay"
            )
        if tensor.name in scales:
            halves = np.maximum(halves, _SMALLEST_SCALE)
        graph.initializer.append(numpy_helper.from_array(np.asarray(halves), renamed[tensor.name]))


def _convert_node(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    fixed = _FLOAT_INPUTS.get(node.op_type, ())
    for i, name in enumerate(node.input):
        if i not in fixed:
            node.input[i] = renamed.get(name, name)
    for i, name in enumerate(node.output):
        node.output[i] = renamed.get(name, name)
    _set_target(node, TensorProto.FLOAT, TensorProto.FLOAT16)


def _set_target(node: onnx.NodeProto, old: int, new: int) -> None:
    """Turns a cast to `old` into a cast to `new`."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
            attribute.i = new


def _insert_casts(graph: onnx.GraphProto, entering: set[str], leaving: set[str], renamed: dict[str, str]) -> None:
    """Inserts one cast after the node that computes each tensor of the border."""
    made_at = {name: i for i, node in enumerate(graph.node) for name in node.output}
    casts: list[tuple[int, onnx.NodeProto]] = []
    for names, kind in ((entering, TensorProto.FLOAT16), (leaving, TensorProto.FLOAT)):
        for name in sorted(names):
            ends = (name, renamed[name]) if kind == TensorProto.FLOAT16 else (renamed[name], name)
            cast = helper.make_node("Cast", [ends[0]], [ends[1]], name=f"{ends[1]}_cast", to=kind)
            casts.append((made_at.get(ends[0], -1), cast))
    nodes = [cast for at, cast in casts if at < 0]
    for i, node in enumerate(graph.node):
        nodes += [node, *(cast for at, cast in casts if at == i)]
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes the constants that no node reads any more."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _drop_shapes(graph: onnx.GraphProto, names: set[str]) -> None:
    """Removes the recorded types of tensors whose type has changed; they are inferred again where needed."""
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)

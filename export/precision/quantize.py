"""The network of a graph in int8: explicit quantizers, in the form that the target can use.

Done with `onnxruntime.quantization`, which the export needs anyway. NVIDIA's ModelOpt (0.47) would do it too, but its
extra [onnx] pins older versions of onnx (1.21) and onnxruntime (1.24, the GPU build) than are installed here, and
brings CuPy for CUDA 12, onnxconverter-common and a dozen packages more.

TensorRT takes symmetric quantizers only (zero point 0) and fuses a convolution best when its inputs alone are
quantized: activation and weights, not the bias and not the output; a skip connection that starts at a quantized tensor
takes the quantized form too
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html).

ONNX Runtime's CPU computes in integers only between a dequantizer and a quantizer, and fuses a ReLU only when the zero
point is the least value. With the symmetric form it is slower than with float32. For that target activations are
unsigned, with whatever zero point fits, and outputs are quantized as well; weights are the same in both forms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import version_converter
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgerpn.errors import ExportError
from edgerpn.export.precision.blocks import NetworkNodes
from edgerpn.export.precision.calibration import CalibratedRanges
from edgerpn.export.precision.half import checked, to_half
from edgerpn.targets import ExportTarget

MIN_CHANNELS = 16
"""Convolutions with fewer input or output channels (of a group) stay as they are, as ModelOpt leaves them."""

HALF_OPSET = 19
"""First operator set whose quantizers take float16."""

_WITH_CONVOLUTIONS = ("Conv", "Relu", "Add", "MaxPool", "Resize")
"""onnxruntime: operators that stay in integers between convolutions."""


def convolutions(proto: onnx.ModelProto, network: NetworkNodes) -> list[onnx.NodeProto]:
    """Returns the convolutions to quantize: all of the network but narrow ones and those of logits and deltas."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    ends = {*network.logits, *network.deltas}
    return [
        node
        for node in proto.graph.node
        if node.op_type == "Conv"
        and node.name in network.block_of
        and node.output[0] not in ends
        and min(shapes.get(node.input[1], (0, 0))[:2]) >= MIN_CHANNELS
    ]


def tensors_to_calibrate(proto: onnx.ModelProto, network: NetworkNodes, target: ExportTarget) -> list[str]:
    """Returns the names of the tensors whose range `quantize` needs.

    Raises:
        ExportError: There is nothing to quantize.
    """
    nodes = convolutions(proto, network)
    if not nodes:
        raise ExportError(
            f"no convolution of the network has {MIN_CHANNELS} or more input and output channels, so there is nothing "
            "to quantize; use --precision fp16"
        )
    if target != "onnxruntime":
        return list(dict.fromkeys(node.input[0] for node in nodes))
    constants = {tensor.name for tensor in proto.graph.initializer}
    found: dict[str, None] = {}
    for node in proto.graph.node:
        if node.name in network.block_of and node.op_type in _WITH_CONVOLUTIONS:
            # Only the first input of a Resize is a picture; the other inputs of a convolution are weights.
            read = node.input if node.op_type == "Add" else node.input[:1]
            found.update(dict.fromkeys(name for name in (*read, *node.output[:1]) if name not in constants))
    return list(found)


def quantize(
    proto: onnx.ModelProto,
    network: NetworkNodes,
    ranges: CalibratedRanges,
    *,
    target: ExportTarget,
    without: Collection[str] = (),
) -> onnx.ModelProto:
    """Quantizes the network's convolutions.

    Args:
        proto: The float32 graph; stays as it is.
        network: Its network.
        ranges: Of `tensors_to_calibrate`.
        target: onnxruntime: unsigned activations between all operators, the rest of the network float32. Else
            symmetric int8 at the inputs of convolutions, the rest of the network float16.
        without: Blocks that are not quantized.

    Returns:
        A new graph with the same inputs, outputs and metadata; opset 19 or more for TensorRT.

    Raises:
        ExportError: The network cannot be converted.
    """
    chosen = [node.name for node in convolutions(proto, network) if network.block_of[node.name] not in without]
    if not chosen:
        raise ValueError(f"without: expected a block to be left to quantize, got {sorted(without)}")
    if target == "onnxruntime":
        nodes = [
            node.name
            for node in proto.graph.node
            if node.name in chosen
            or (node.op_type in _WITH_CONVOLUTIONS[1:] and network.block_of.get(node.name, "") not in {"", *without})
        ]
        return checked(_insert_quantizers(proto, nodes, ranges, _WITH_CONVOLUTIONS, is_symmetric=False))
    result = _insert_quantizers(proto, chosen, ranges, ("Conv",), is_symmetric=True)
    result = _at_least_opset(result, HALF_OPSET)
    old = {node.name for node in proto.graph.node}
    quantizers = {node.name for node in result.graph.node if node.name not in old}
    return to_half(result, network.nodes() | quantizers)


def _insert_quantizers(
    proto: onnx.ModelProto,
    nodes: Sequence[str],
    ranges: CalibratedRanges,
    operators: Sequence[str],
    *,
    is_symmetric: bool,
) -> onnx.ModelProto:
    result = onnx.shape_inference.infer_shapes(proto)
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if is_symmetric else QuantType.QUInt8,
        tensors_range=_shared(ranges, result),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(operators),
        extra_options={
            "ActivationSymmetric": is_symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(operators) if is_symmetric else [],
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    # The quantizer writes its own name into them.
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
    return result


def _shared(ranges: CalibratedRanges, proto: onnx.ModelProto) -> TensorsData:
    """Returns the ranges, in which a tensor before a ReLU has the range after it, which cuts off values below zero."""
    data = dict(ranges.tensors.items())
    for node in proto.graph.node:
        if node.op_type == "Relu" and node.input[0] in data and node.output[0] in data:
            data[node.input[0]] = data[node.output[0]]
    return TensorsData(ranges.tensors.calibration_method, data)


def _at_least_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    found = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if found >= opset:
        return proto
    converted = version_converter.convert_version(proto, opset)
    del converted.metadata_props[:]
    converted.metadata_props.extend(proto.metadata_props)
    return converted

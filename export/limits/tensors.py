"""Rules about element types, quantization, sizes and the file as a whole; see `limits_rules` for the sources' names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from edgerpn.export.limits.findings import Severity, Violation
from edgerpn.export.limits.graph_view import GraphView, Shape, attribute
from edgerpn.export.limits.operators import title
from edgerpn.targets import Target

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MAX_BYTES = 2**31 - 1


def opset(view: GraphView, limits: Target) -> Iterator[Violation]:
    """The operator set; see `edgerpn.targets.TARGETS`."""
    found = view.opsets.get("ai.onnx", 0)
    fix = "export with another --set opset=N"
    if found < limits.min_opset:
        limit = f"{limits.name} reads {limits.min_opset} and newer"
        yield _file("error", "opset", f"opset {found}", limit, fix)
    elif limits.max_opset is not None and found > limits.max_opset:
        limit = f"{limits.name} reads opset {limits.max_opset} at most"
        yield _file("error", "opset", f"opset {found}", limit, fix)
    elif limits.sure_opset is not None and found > limits.sure_opset:
        limit = f"{limits.name}: up to {limits.sure_opset} in every release"
        yield _file("warning", "opset", f"opset {found}", limit, fix + ", or try the build")
    if limits.sure_ir is not None and view.proto.ir_version > limits.sure_ir:
        limit = f"{limits.name}: files of ONNX IR version {limits.sure_ir} are known to be read"
        yield _file("warning", "ir-version", f"IR version {view.proto.ir_version}", limit, "save it with an older one")


def file_size(view: GraphView, limits: Target) -> Iterator[Violation]:
    """One protobuf file holds 2 GB (protobuf.dev/programming-guides/proto-limits); weights may lie in other files."""
    size = view.proto.ByteSize()
    if size > _MAX_BYTES:
        limit = f"{_MAX_BYTES / 1e9:.1f} GB, the limit of protobuf"
        yield _file("error", "file-size", f"{size / 1e9:.1f} GB", limit, "keep weights in external files")
    names = [name for name, tensor in view.tensors.items() if tensor.data_location == TensorProto.EXTERNAL]
    if names:
        yield _file(
            "error" if view.manifest is not None else "warning", "external-data",
            f"{len(names)} tensors lie in other files, the first is {names[0]}",
            "the manifest's hash covers one file" if view.manifest is not None else "the files must travel together",
            "save the model with its weights inside",
        )  # fmt: skip


def uint8(view: GraphView, limits: Target) -> Iterator[Violation]:
    """uint8 is a type of network inputs and outputs alone: an input goes through Cast before anything else.

    Source: NvInferRuntimeBase.h, kUINT8; RTX: "does not support UINT8 types for intermediate tensors". Quantization
    has its own rule.
    """
    if not limits.is_tensorrt:
        return
    ends = {value.name for value in (*view.proto.graph.input, *view.proto.graph.output)}
    for node in view.nodes:
        # Shape reads none of the data; TensorRT-RTX 1.7 compiles it.
        if node.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Shape"):
            continue
        for name in node.input:
            if view.dtypes.get(name) == TensorProto.UINT8 and name not in view.tensors:
                yield _uint8(title(node), f"takes the uint8 tensor {name}", limits)
    for node in view.nodes:
        inner = [name for name in node.output if view.dtypes.get(name) == TensorProto.UINT8 and name not in ends]
        if node.op_type in ("Cast", "Identity") and inner:
            yield _uint8(title(node), f"makes the uint8 tensor {inner[0]} inside the graph", limits)


def _uint8(node: str, found: str, limits: Target) -> Violation:
    return Violation(
        severity="error", rule="uint8-cast", node=node, found=found,
        limit=f"{limits.name} knows uint8 as an input or output of the network only",
        fix="cast the input to float32 or float16 before anything else",
    )  # fmt: skip


def float64_and_strings(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Doubles become floats, with values clamped; strings do not exist; int64 is native since 9.0.

    Source: operators.md on DOUBLE and its list of types; onnx-tensorrt changelog of 9.0 on INT64. RTX builds doubles.
    """
    if not limits.is_tensorrt:
        return
    # A cast makes a tensor of another type: one line for each tensor would repeat itself down the graph.
    doubles = sorted(name for name, dtype in view.dtypes.items() if dtype == TensorProto.DOUBLE)
    strings = sorted(name for name, dtype in view.dtypes.items() if dtype == TensorProto.STRING)
    if doubles:
        yield Violation(
            severity="warning", rule="float64", node=f"tensor {doubles[0]}", found=f"{len(doubles)} float64 tensors",
            limit=f"{limits.name} computes them in float32", fix="export float32 numbers",
        )  # fmt: skip
    if strings:
        yield Violation(
            severity="error", rule="string", node=f"tensor {strings[0]}", found=f"{len(strings)} tensors of text",
            limit=f"{limits.name} has no such type", fix="leave texts outside the graph",
        )  # fmt: skip


def mixed_types(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Inputs that an operator wants of one type: nothing is converted by itself, neither in ONNX nor in TensorRT.

    Source: ONNX's schemas; RTX: "must have same input types"; strongly typed networks have no implicit casts.
    """
    version = view.opsets.get("ai.onnx", 1)
    for node in view.nodes:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, max_inclusive_version=version):
            continue
        formal = onnx.defs.get_schema(node.op_type, max_inclusive_version=version).inputs
        if not formal:
            continue
        types: dict[str, dict[int, str]] = defaultdict(dict)
        for index, name in enumerate(node.input):
            parameter = formal[min(index, len(formal) - 1)]
            # A heterogeneous variadic input (of Loop, for one) takes any mixture.
            if name in view.dtypes and parameter.is_homogeneous:
                types[parameter.type_str].setdefault(view.dtypes[name], name)
        for found in types.values():
            if len(found) > 1 and any(dtype in _FLOATS for dtype in found):
                shown = ", ".join(f"{name} {_dtype(dtype)}" for dtype, name in found.items())
                yield Violation(
                    severity="error", rule="mixed-types", node=title(node), found=shown,
                    limit="inputs of one type", fix="put a Cast before it",
                )  # fmt: skip


def quantization(view: GraphView, limits: Target) -> Iterator[Violation]:
    """QuantizeLinear and DequantizeLinear: symmetric int8; float16 from opset 19 on.

    Source: docs.nvidia.com/deeplearning/tensorrt, inference-library/quantized-types-explicit-quantization;
    operators.md; RTX: "Non-zero zero point is not supported". It takes uint8 with a zero point of 0 or none at all,
    but has signed INT8 only, so that values above 127 steps would saturate; that has not been run. float16 tensors and
    scales: ONNX, QuantizeLinear of opset 19.
    """
    for node in view.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        has_zero_point = len(node.input) > 2 and bool(node.input[2])
        zero = view.constant(node.input[2]) if has_zero_point else None
        dtype = view.dtypes.get(node.input[2]) if has_zero_point else attribute(node, "output_dtype", 0) or None
        if dtype is None and node.op_type == "QuantizeLinear" and not has_zero_point:
            dtype = TensorProto.UINT8  # ONNX's default
        if limits.is_tensorrt and zero is not None and np.any(zero.astype(np.int64) != 0):
            yield _quantize(node, f"zero point {int(zero.reshape(-1)[0])}", "symmetric only, zero point 0")
        elif limits.is_tensorrt and dtype in (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4):
            yield _quantize(node, f"type {_dtype(dtype)}", "signed INT8; larger values would saturate")
        is_half = TensorProto.FLOAT16 in (view.dtypes.get(name) for name in node.input[:2])
        if is_half and view.opsets.get("ai.onnx", 0) < 19:
            yield Violation(
                severity="error", rule="quantize-float16", node=title(node),
                found=f"float16 at opset {view.opsets.get('ai.onnx', 0)}", limit="float16 from opset 19 on",
                fix="export with --set opset=19",
            )  # fmt: skip


def _quantize(node: onnx.NodeProto, found: str, limit: str) -> Violation:
    return Violation(
        severity="error", rule="quantize", node=title(node), found=found, limit=limit,
        fix="quantize symmetrically to int8; edgerpn export --target tensorrt --precision int8 does",
    )  # fmt: skip


def dynamic_shapes(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Open sizes other than the batch: a build needs a range for each, and a CUDA graph one size."""
    if not limits.is_tensorrt:
        return
    for value in view.proto.graph.input:
        shape = view.shapes.get(value.name)
        if shape is None or None in shape[1:]:
            yield Violation(
                severity="warning", rule="dynamic-shape", node=f"input {value.name}", found=f"shape {_shape(shape)}",
                limit="edgerpn build opens the batch alone", fix="export with fixed sizes",
            )  # fmt: skip


def interface(view: GraphView, limits: Target) -> Iterator[Violation]:
    """The inputs and outputs that the manifest promises, see `edgerpn.manifest`."""
    manifest = view.manifest
    if manifest is None:
        return
    batch, rows = manifest.input.batch, manifest.proposals.num_proposals
    wanted: dict[str, tuple[int, Shape]] = {
        manifest.input.name: (TensorProto.UINT8, (batch, *manifest.input.frame_hw, 3)),
        "boxes": (TensorProto.FLOAT, (batch, rows, 4)),
        "scores": (TensorProto.FLOAT, (batch, rows)),
        "count": (TensorProto.INT32, (batch,)),
    }
    graph = view.proto.graph
    found = {
        value.name: (value.type.tensor_type.elem_type, view.shapes.get(value.name))
        for value in (*graph.input, *graph.output)
        if value.name not in view.tensors
    }
    for name in sorted({*wanted, *found}):
        if found.get(name) != wanted.get(name):
            yield Violation(
                severity="error", rule="interface", node=f"tensor {name}", found=_tensor(found.get(name)),
                limit=f"{_tensor(wanted.get(name))}, by the manifest", fix="export the model again",
            )  # fmt: skip


def _file(severity: Severity, rule: str, found: str, limit: str, fix: str) -> Violation:
    return Violation(severity=severity, rule=rule, node="file", found=found, limit=limit, fix=fix)


def _tensor(value: tuple[int, Shape | None] | None) -> str:
    return "no such tensor" if value is None else f"{_dtype(value[0])} {_shape(value[1])}"


def _dtype(dtype: int) -> str:
    name: str = TensorProto.DataType.Name(dtype)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _shape(shape: Shape | None) -> str:
    return "unknown" if shape is None else "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"

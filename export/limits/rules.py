"""The limits that are checked on a graph, one function each.

The rules know the operators and types of our own exports. Others, in the graphs of other programs, are listed as not
checked. Sources, named at each rule: `operators.md` is onnx/onnx-tensorrt docs/operators.md (10.15); `RTX` means tried
with TensorRT-RTX 1.7.1, whose parser and builder run without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from edgerpn.export.limits.graph import GraphView, Shape, attribute, dtype_name
from edgerpn.manifest import Layout, Manifest
from edgerpn.runtime.backends.contract import tensors_of
from edgerpn.targets import TOPK_LIMIT, EngineLibrary, Target

Severity = Literal["error", "warning"]


class LayoutUse(NamedTuple):
    """The program for which a graph in another layout is."""

    program: str
    """Its name."""
    libraries: tuple[EngineLibrary | None, ...]
    """Libraries by which it runs graphs; None is ONNX Runtime."""
    by: str
    """The same, for people."""


LAYOUT_USES: dict[Layout, LayoutUse] = {
    "frigate": LayoutUse("Frigate", (None, "tensorrt"), "ONNX Runtime, which may use TensorRT on a GPU"),
    "deepstream": LayoutUse("DeepStream", ("tensorrt",), "TensorRT"),
}
"""Programs by their layouts."""

# fmt: off
CHECKED_OPERATORS = frozenset((
    # Operators of the portable graphs, in every TensorRT from 8.6 on.
    "Add", "And", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Equal", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "GridSample", "Identity", "Less", "LessOrEqual",
    "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape",
    "Resize",
    "Shape", "Sigmoid", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
    # Other backbones, heads and precisions, and common networks of other programs (operators.md).
    "AveragePool", "BatchNormalization", "ConvTranspose", "DequantizeLinear", "Erf", "Gemm", "GlobalAveragePool",
    "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MaxPool", "Pow",
    "QuantizeLinear", "ReduceMean", "Softmax", "Tanh", "Tile",
    "ArgMax", "ScatterND",
))
# fmt: on

_CHECKED_TYPES = frozenset(("float32", "float16", "bool", "int8", "int32", "int64", "uint8"))
_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")

_LOOPS = dict.fromkeys(("If", "Loop", "Scan"), "unroll it into a fixed number of steps")
_VARYING = {
    "NonMaxSuppression": "export with --set nms=portable: the same boxes from plain operations",
    "NonZero": "use a mask of fixed shape, or TopK with a fixed K",
    "RoiAlign": "export with --target tensorrt or tensorrt-rtx: the same features from GridSample",
}
"""Operators that TensorRT-RTX does not have, and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One place where a graph asks for more than a target can do."""

    severity: Severity
    """error: the graph does not compile, load or run there, or computes other numbers; warning: it does at a price, or
    it is not checked."""
    rule: str
    """Name of the rule."""
    node: str
    """Operator and name of the node, name of the tensor, or `file`."""
    found: str
    """The content of the graph."""
    limit: str
    """The limit of the target."""
    fix: str
    """The change that helps."""

    def text(self) -> str:
        """Returns the violation on three lines, for people."""
        return (
            f"{self.severity}: {self.rule}: {self.node}: {self.found}\n    limit: {self.limit}\n    fix:   {self.fix}"
        )


def opset(view: GraphView, target: Target) -> Iterator[Violation]:
    """Operator set and file version, see `edgerpn.targets.TARGETS`."""
    fix = "export with another --set opset=N"
    severity: Severity = "error"
    limit = None
    if view.opset < target.min_opset:
        limit = f"{target.name} reads {target.min_opset} and newer"
    elif target.max_opset is not None and view.opset > target.max_opset:
        limit = f"{target.name} reads opset {target.max_opset} at most"
    elif target.sure_opset is not None and view.opset > target.sure_opset:
        severity, limit = "warning", f"{target.name}: up to {target.sure_opset} in every release"
        fix += ", or try the build"
    if limit is not None:
        yield Violation(severity=severity, rule="opset", node="file", found=f"opset {view.opset}", limit=limit, fix=fix)
    if target.sure_ir is not None and view.proto.ir_version > target.sure_ir:
        yield Violation(
            severity="warning", rule="ir-version", node="file", found=f"IR version {view.proto.ir_version}",
            limit=f"{target.name}: files of ONNX IR version {target.sure_ir} are known to be read",
            fix="save it with an older one",
        )  # fmt: skip


def external_data(view: GraphView, target: Target) -> Iterator[Violation]:
    """Weights in other files, which the hash of a manifest does not cover."""
    names = [name for name, tensor in view.tensors.items() if tensor.data_location == TensorProto.EXTERNAL]
    if names:
        is_ours = view.manifest is not None
        yield Violation(
            severity="error" if is_ours else "warning", rule="external-data", node="file",
            found=f"{len(names)} tensors lie in other files, the first is {names[0]}",
            limit="the manifest's hash covers one file" if is_ours else "the files must travel together",
            fix="save the model with its weights inside",
        )  # fmt: skip


def interface(view: GraphView, target: Target) -> Iterator[Violation]:
    """The inputs and outputs that the manifest promises, see `edgerpn.manifest`."""
    manifest = view.manifest
    if manifest is None:
        return
    promised = tensors_of(manifest) if manifest.layout == "proposals" else _tensors_of_layout(manifest)
    wanted: dict[str, tuple[int, Shape]] = {name: (_TYPES[dtype], shape) for name, (dtype, shape) in promised.items()}
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


def _tensors_of_layout(manifest: Manifest) -> dict[str, tuple[str, Shape]]:
    """Element type and shape by name of a graph in the layout of another program."""
    batch, frame = manifest.input.batch, manifest.input.frame_shape
    is_planes = manifest.layout == "deepstream"
    frames = ("float32", (batch, frame[2], *frame[:2])) if is_planes else ("uint8", (batch, *frame))
    outputs = {
        spec.name: (spec.dtype, tuple(batch if size == "N" else int(size) for size in spec.shape))
        for spec in manifest.outputs
    }
    return {manifest.input.name: frames, **outputs}


def layout(view: GraphView, target: Target) -> Iterator[Violation]:
    """The libraries by which another program runs the graph in its layout, see `LAYOUT_USES`."""
    use = LAYOUT_USES.get(view.manifest.layout) if view.manifest is not None else None
    if use is not None and target.library not in use.libraries:
        yield Violation(
            severity="error", rule="layout", node="file", found=f"a graph for {use.program} alone",
            limit=f"{use.program} runs it by {use.by}, and nothing else does",
            fix="take the ONNX file that it was made from, or export without --layout",
        )  # fmt: skip


def open_sizes(view: GraphView, target: Target) -> Iterator[Violation]:
    """Open sizes other than the batch: a build needs a range for each, and a CUDA graph one size."""
    if not target.is_tensorrt:
        return
    for value in view.proto.graph.input:
        shape = view.shapes.get(value.name)
        if shape is None or None in shape[1:]:
            yield Violation(
                severity="warning", rule="dynamic-shape", node=f"input {value.name}", found=f"shape {_shape(shape)}",
                limit="edgerpn build opens the batch alone", fix="export with fixed sizes",
            )  # fmt: skip


def uint8(view: GraphView, target: Target) -> Iterator[Violation]:
    """uint8 is a type of network inputs and outputs alone: an input goes through Cast before anything else.

    Source: NvInferRuntimeBase.h, kUINT8; RTX: "does not support UINT8 types for intermediate tensors". Quantization
    has its own rule.
    """
    if not target.is_tensorrt:
        return
    ends = {value.name for value in (*view.proto.graph.input, *view.proto.graph.output)}
    for node in view.nodes:
        is_cast = node.op_type in ("Cast", "Identity")
        inner = [name for name in node.output if view.dtypes.get(name) == TensorProto.UINT8 and name not in ends]
        if is_cast and inner:
            yield _uint8(node, f"makes the uint8 tensor {inner[0]} inside the graph", target)
        # Shape does not read the data; TensorRT-RTX 1.7 compiles it.
        if is_cast or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Shape"):
            continue
        for name in node.input:
            if view.dtypes.get(name) == TensorProto.UINT8 and name not in view.tensors:
                yield _uint8(node, f"takes the uint8 tensor {name}", target)


def _uint8(node: onnx.NodeProto, found: str, target: Target) -> Violation:
    return Violation(
        severity="error", rule="uint8-cast", node=title(node), found=found,
        limit=f"{target.name} supports uint8 only as an input or output of the network",
        fix="cast the input to float32 or float16 before anything else",
    )  # fmt: skip


def quantization(view: GraphView, target: Target) -> Iterator[Violation]:
    """QuantizeLinear and DequantizeLinear: symmetric int8.

    Source: docs.nvidia.com/deeplearning/tensorrt, inference-library/quantized-types-explicit-quantization;
    operators.md; RTX: "Non-zero zero point is not supported". It takes uint8 with a zero point of 0 or none at all,
    but has signed INT8 only, so that values above 127 steps would saturate; that has not been run.
    """
    for node in view.nodes:
        if not target.is_tensorrt or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        has_zero_point = len(node.input) > 2 and bool(node.input[2])
        zero = view.constant(node.input[2]) if has_zero_point else None
        dtype = view.dtypes.get(node.input[2]) if has_zero_point else attribute(node, "output_dtype", 0) or None
        if dtype is None and node.op_type == "QuantizeLinear" and not has_zero_point:
            dtype = TensorProto.UINT8  # ONNX's default
        if zero is not None and np.any(zero.astype(np.int64) != 0):
            found, limit = f"zero point {int(zero.reshape(-1)[0])}", "symmetric only, zero point 0"
        elif dtype in (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4):
            found, limit = f"type {dtype_name(dtype)}", "signed INT8; larger values would saturate"
        else:
            continue
        yield Violation(
            severity="error", rule="quantize", node=title(node), found=found, limit=limit,
            fix="quantize symmetrically to int8; edgerpn export --target tensorrt --precision int8 does",
        )  # fmt: skip


def topk(view: GraphView, target: Target) -> Iterator[Violation]:
    """K of TopK: at most 3840 for TensorRT, and not above the number of elements that it chooses from.

    Source: the limit as for `TOPK_LIMIT`; RTX: "K exceeds the maximum value allowed (3840)", a K above the axis or a K
    read from the input's values does not build, one computed from shapes does. ONNX Runtime: a K above the axis fails
    when the graph is run.
    """
    for node in view.nodes:
        if node.op_type != "TopK" or len(node.input) < 2:
            continue
        value, size = view.constant(node.input[1]), view.axis_size(node)
        of = "" if size is None else f" of {size} elements"
        if value is None or value.size != 1:
            if target.is_tensorrt:
                yield Violation(
                    severity="warning", rule="topk-constant", node=title(node),
                    found=f"the graph computes K ({node.input[1]})",
                    limit=f"a constant K <= {TOPK_LIMIT}; whether this K keeps it is not checked",
                    fix="export with fixed sizes, so that K is a number in the file",
                )  # fmt: skip
            continue
        k = int(value.item())
        if target.is_tensorrt and k > TOPK_LIMIT:
            yield Violation(
                severity="error", rule="topk-limit", node=title(node), found=f"K = {k}{of}",
                limit=f"K <= {TOPK_LIMIT}",
                fix=f"export with --set pre_nms={TOPK_LIMIT} and --proposals {TOPK_LIMIT} or less",
            )  # fmt: skip
        if size is not None and k > size:
            yield Violation(
                severity="error", rule="topk-axis", node=title(node), found=f"K = {k}{of}",
                limit=f"K <= {size}, the number of elements",
                fix=f"take the best min(K, {size}) in the model; edgerpn export does",
            )  # fmt: skip


def resize(view: GraphView, target: Target) -> Iterator[Violation]:
    """Resize: no antialiasing, five coordinate rules, `stretch`.

    Source: operators.md; RTX refuses antialias=1, tf_crop_and_resize, half_pixel_symmetric and not_larger.
    """
    for node in view.nodes:
        if not target.is_tensorrt or node.op_type not in ("Resize", "Upsample"):
            continue
        for name, default, allowed in (
            ("antialias", 0, (0,)),
            ("coordinate_transformation_mode", "half_pixel", _COORDINATES),
            ("keep_aspect_ratio_policy", "stretch", ("stretch",)),
        ):
            value = attribute(node, name, default)
            if value not in allowed:
                yield Violation(
                    severity="error", rule="resize", node=title(node), found=f"{name} = {value}",
                    limit=f"{name} = {' or '.join(map(str, allowed))}", fix="export the resizing with that",
                )  # fmt: skip


def costly_operators(view: GraphView, target: Target) -> Iterator[Violation]:
    """Operators that a CUDA graph cannot hold; TensorRT-RTX does not have those of `_VARYING` at all.

    Source: RTX parses NonMaxSuppression and NonZero and then has "no runners that implement it", RoiAlign needs a
    plugin; it builds Loop, If and Scan. TensorRT runs all of them (INMSLayer considers the best 5000 boxes only,
    NvInfer.h), slowly (NVIDIA/TensorRT#4248), and a CUDA graph cannot hold data-dependent shapes or control flow
    (docs.pytorch.org/TensorRT/contributors/cuda_graphs.html, TensorRT's documentation; not tried). RoiAlign has a fixed
    shape, but comes as a plugin of libnvinfer_plugin (operators.md, changelog of 10.1).
    """
    for node in view.nodes:
        fix = (_VARYING | _LOOPS).get(node.op_type)
        if not target.is_tensorrt or fix is None:
            continue
        is_error = target.is_rtx and node.op_type in _VARYING
        if is_error:
            limit = "TensorRT-RTX does not have this operator"
        elif node.op_type in _LOOPS:
            limit = "runs, but step by step and outside CUDA graphs"
        elif node.op_type == "RoiAlign":
            limit = "needs the plugin library of TensorRT (libnvinfer_plugin)"
        else:
            limit = "its output varies in size: no CUDA graph, slow in TensorRT 10"
            limit += ", only the best 5000 boxes are considered" if node.op_type == "NonMaxSuppression" else ""
        yield Violation(
            severity="error" if is_error else "warning", node=title(node), found=f"operator {node.op_type}",
            rule="control-flow" if node.op_type in _LOOPS else "varying-shape", limit=limit, fix=fix,
        )  # fmt: skip


def plugins(view: GraphView, target: Target) -> Iterator[Violation]:
    """Operators of other domains: TensorRT-RTX has no plugins, and EdgeRPN loads none into TensorRT."""
    for node in view.nodes:
        if target.is_tensorrt and node.domain not in ("", "ai.onnx"):
            limit = "has no plugins" if target.is_rtx else "would need a plugin of this name, and edgerpn loads none"
            yield Violation(
                severity="error", rule="unknown-operator", node=title(node),
                found=f"operator {node.domain}.{node.op_type}", limit=f"{target.name} {limit}",
                fix="write it in standard operators of ONNX",
            )  # fmt: skip


def not_checked(view: GraphView, target: Target) -> Iterator[Violation]:
    """Operators and element types that our own graphs do not have, one line each."""
    if not target.is_tensorrt:
        return
    operators = sorted(
        {
            node.op_type
            for node in view.nodes
            if node.domain in ("", "ai.onnx")
            and (
                node.op_type not in CHECKED_OPERATORS | _VARYING.keys() | _LOOPS.keys()
                or attribute(node, "reduction", "none") != "none"
            )
        }
    )
    types = sorted({dtype_name(dtype) for dtype in view.dtypes.values()} - _CHECKED_TYPES)
    for what, names in (("operators", operators), ("element types", types)):
        if names:
            yield Violation(
                severity="warning", rule="not-checked", node="file", found=f"{what} {', '.join(names)}",
                limit=f"whether {target.name} has them is not checked", fix="try the build",
            )  # fmt: skip


def title(node: onnx.NodeProto) -> str:
    """Operator and name of a node."""
    return f"{node.op_type} {node.name or node.output[0]}"


def _tensor(value: tuple[int, Shape | None] | None) -> str:
    return "no such tensor" if value is None else f"{dtype_name(value[0])} {_shape(value[1])}"


def _shape(shape: Shape | None) -> str:
    return "unknown" if shape is None else "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"

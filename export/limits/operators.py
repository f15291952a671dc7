"""Rules about operators: counts, resizing, varying shapes, what a target does not have.

Sources of the rules, named in each: `operators.md` is onnx/onnx-tensorrt docs/operators.md (10.15); `RTX` means tried
with TensorRT-RTX 1.7.1, whose parser and builder run without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edgerpn.export.limits.findings import Violation
from edgerpn.export.limits.graph_view import GraphView, attribute
from edgerpn.targets import TOPK_LIMIT, Target

# fmt: off
UNSUPPORTED = frozenset((
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear",
    "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
    "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
    "QLinearMatMul", "RegexFullMatch", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat",
    "StringNormalizer", "StringSplit", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
    "SequenceInsert", "SequenceLength", "SequenceMap", "TfIdfVectorizer", "Unique",
))
# fmt: on
"""Operators without an importer (operators.md); RTX refuses Compress, DynamicQuantizeLinear and Unique."""

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


def title(node: onnx.NodeProto) -> str:
    """Operator and name of a node."""
    return f"{node.op_type} {node.name or node.output[0]}"


def topk(view: GraphView, limits: Target) -> Iterator[Violation]:
    """K of TopK: constant, at most 3840 for TensorRT, and not above the number of elements that it chooses from.

    Source: the limit as for `TOPK_LIMIT`; RTX: "K exceeds the maximum value allowed (3840)", a K above the axis or a K
    read from the input's values does not build, one computed from shapes does. ONNX Runtime: a K above the axis fails
    when the graph is run.
    """
    for node in view.nodes:
        if node.op_type != "TopK":
            continue
        value = view.constant(node.input[1]) if len(node.input) > 1 else None
        level, size = view.level(node), view.axis_size(node)
        if value is None or value.size != 1:
            yield from _varying_k(view, limits, node, level)
            continue
        k = int(value.item())
        of = view.level_text(level) or (f"{size} elements" if size is not None else "")
        if limits.is_tensorrt and k > TOPK_LIMIT:
            yield Violation(
                severity="error", rule="topk-limit", node=title(node), level=level,
                found=f"K = {k}" + (f" of {of}" if of else ""), limit=f"K <= {TOPK_LIMIT}",
                fix=f"export with --set pre_nms={TOPK_LIMIT} and --proposals {TOPK_LIMIT} or less",
            )  # fmt: skip
        if size is not None and k > size:
            yield Violation(
                severity="error", rule="topk-axis", node=title(node), level=level,
                found=f"K = {k} of {of}", limit=f"K <= {size}, the elements that there are",
                fix=f"take the best min(K, {size}) in the model; edgerpn export does",
            )  # fmt: skip


def _varying_k(view: GraphView, limits: Target, node: onnx.NodeProto, level: int | None) -> Iterator[Violation]:
    if not limits.is_tensorrt or len(node.input) < 2:
        return
    by_data = view.depends_on_data(node.input[1])
    yield Violation(
        severity="error" if by_data else "warning", rule="topk-constant", node=title(node), level=level,
        found=f"K ({node.input[1]}) is computed " + ("from the input's values" if by_data else "from shapes"),
        limit=f"a constant K <= {TOPK_LIMIT}" + ("" if by_data else "; whether K stays below it cannot be checked"),
        fix="export with fixed sizes, so that K is a number in the file",
    )  # fmt: skip


def resize(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Resize: no antialiasing, five coordinate rules, `stretch`; cubic is not on the list of full TensorRT.

    Source: operators.md; RTX refuses antialias=1, tf_crop_and_resize, half_pixel_symmetric and not_larger, and builds
    cubic.
    """
    if not limits.is_tensorrt:
        return
    for node in view.nodes:
        if node.op_type not in ("Resize", "Upsample"):
            continue
        mode = attribute(node, "mode", "nearest")
        coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
        policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
        if attribute(node, "antialias", 0):
            yield _resize(node, "antialias = 1", "no antialiasing", "export the resizing without antialiasing")
        if coordinates not in _COORDINATES:
            yield _resize(node, f"coordinate_transformation_mode {coordinates!r}", ", ".join(_COORDINATES),
                          "use half_pixel")  # fmt: skip
        if policy != "stretch":
            yield _resize(node, f"keep_aspect_ratio_policy {policy!r}", "stretch", "compute the size beforehand")
        if mode == "cubic" and not limits.is_rtx:
            yield Violation(
                severity="warning", rule="resize", node=title(node), found="mode 'cubic'",
                limit="nearest and linear are documented", fix="use linear, or try the build",
            )  # fmt: skip


def _resize(node: onnx.NodeProto, found: str, limit: str, fix: str) -> Violation:
    return Violation(severity="error", rule="resize", node=title(node), found=found, limit=limit, fix=fix)


def varying_shapes(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Operators whose output has a size that depends on the data: none in TensorRT-RTX, a price in TensorRT.

    Source: RTX parses NonMaxSuppression and NonZero and then has "no runners that implement it", RoiAlign wants a
    plugin. TensorRT runs them (INMSLayer considers the best 5000 boxes only, NvInfer.h), slowly
    (NVIDIA/TensorRT#4248), and a CUDA graph cannot hold data-dependent shapes (docs.pytorch.org/TensorRT/contributors/
    cuda_graphs.html). RoiAlign has a fixed shape, but comes as a plugin of libnvinfer_plugin (operators.md, changelog
    of 10.1).
    """
    if not limits.is_tensorrt:
        return
    fixes = {
        "NonMaxSuppression": "export with --set nms=portable: the same boxes from plain operations",
        "NonZero": "use a mask of fixed shape, or TopK with a fixed K",
        "RoiAlign": "leave regions to a second stage outside this graph",
    }
    for node in view.nodes:
        if node.op_type not in fixes:
            continue
        if limits.is_rtx:
            limit = "TensorRT-RTX does not have this operator"
        elif node.op_type == "RoiAlign":
            limit = "needs the plugin library of TensorRT (libnvinfer_plugin)"
        else:
            limit = "its output varies in size: no CUDA graph, slow in TensorRT 10"
            limit += ", only the best 5000 boxes are considered" if node.op_type == "NonMaxSuppression" else ""
        yield Violation(
            severity="error" if limits.is_rtx else "warning", rule="varying-shape", node=title(node),
            level=view.level(node), found=f"operator {node.op_type}", limit=limit, fix=fixes[node.op_type],
        )  # fmt: skip


def control_flow(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Loop, If and Scan build (RTX), but are steps that a CUDA graph cannot hold and that nothing overlaps.

    Source: RTX builds all three. That loops and conditions cannot be captured is TensorRT's documentation of CUDA
    graphs; it has not been tried.
    """
    for node in view.nodes:
        if limits.is_tensorrt and node.op_type in ("Loop", "If", "Scan"):
            yield Violation(
                severity="warning", rule="control-flow", node=title(node), found=f"operator {node.op_type}",
                limit="runs, but step by step and outside CUDA graphs", fix="unroll it into a fixed number of steps",
            )  # fmt: skip


def unknown_operators(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Operators of other domains, and standard ones that no TensorRT has.

    Source: operators.md; RTX has no plugins at all ("Plugin not found"). EdgeRPN loads none elsewhere. ONNX Runtime is
    asked itself, by `edgerpn.export.limits.check`.
    """
    if not limits.is_tensorrt:
        return
    for node in view.nodes:
        is_standard = node.domain in ("", "ai.onnx")
        if is_standard and node.op_type not in UNSUPPORTED:
            continue
        limit = "has no such operator" if is_standard else "would need a plugin of this name, and edgerpn loads none"
        limit = "has no plugins" if limits.is_rtx and not is_standard else limit
        yield Violation(
            severity="error", rule="unknown-operator", node=title(node),
            found=f"operator {node.domain or 'ai.onnx'}.{node.op_type}", limit=f"{limits.name} {limit}",
            fix="write it in standard operators of ONNX",
        )  # fmt: skip


def scatter(view: GraphView, limits: Target) -> Iterator[Violation]:
    """Scatter operators that add or take the maximum.

    Source: operators.md for ScatterND; ScatterElements takes a reduction since 10.0, as a plugin (onnx-tensorrt
    changelog of 10.0 and 10.3). RTX refuses both.
    """
    for node in view.nodes:
        reduction = attribute(node, "reduction", "none")
        if not limits.is_tensorrt or reduction == "none" or node.op_type not in ("ScatterND", "ScatterElements"):
            continue
        by_plugin = node.op_type == "ScatterElements" and not limits.is_rtx
        yield Violation(
            severity="warning" if by_plugin else "error", rule="scatter-reduction", node=title(node),
            found=f"reduction {reduction!r}",
            limit="comes as a plugin of libnvinfer_plugin" if by_plugin else "no reduction",
            fix="scatter without reduction, or use a matrix product",
        )  # fmt: skip

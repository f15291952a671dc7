"""What a target can do, checked on the ONNX graph before its compiler sees it: every violation, where, and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnxruntime

from edgerpn.errors import ExportError
from edgerpn.export.limits import operators as limits_rules
from edgerpn.export.limits import tensors as limits_types
from edgerpn.export.limits.findings import Violation
from edgerpn.export.limits.graph_view import GraphView, read_onnx
from edgerpn.manifest import Manifest
from edgerpn.targets import TARGETS, Target, TargetName

__all__ = ["Violation", "find_violations", "refuse_violations"]

Rule = Callable[[GraphView, Target], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    limits_types.opset,
    limits_types.file_size,
    limits_types.interface,
    limits_types.dynamic_shapes,
    limits_types.uint8,
    limits_types.mixed_types,
    limits_types.float64_and_strings,
    limits_types.quantization,
    limits_rules.topk,
    limits_rules.resize,
    limits_rules.varying_shapes,
    limits_rules.control_flow,
    limits_rules.unknown_operators,
    limits_rules.scatter,
)


def find_violations(
    model: onnx.ModelProto | str | os.PathLike[str], target: TargetName, manifest: Manifest | None = None
) -> tuple[Violation, ...]:
    """Looks for everything in a graph that a target cannot do, or does at a price.

    Args:
        model: The graph, or its file.
        target: What is to run it.
        manifest: What the graph is, by which its levels and its interface are known; of a file of ours it is read.

    Returns:
        Errors first, then warnings, each in the order of the rules and of the graph. Empty: nothing was found, which
        is no proof that the target takes it.

    Raises:
        EngineLoadError: The file is missing or not ONNX.
        ManifestError: Its manifest is malformed.
        ArtifactMismatchError: The file is not the one that its manifest describes.
    """
    if not isinstance(model, onnx.ModelProto):
        model, own = read_onnx(Path(model))
        manifest = manifest or own
    limits = TARGETS[target]
    view = GraphView(model, manifest)
    found = [violation for rule in RULES for violation in rule(view, limits)]
    # The checker and the library say the first thing that they trip over, which the rules may have said better.
    if not any(violation.severity == "error" for violation in found):
        found += _invalid(model)
    if not limits.is_tensorrt and not any(violation.severity == "error" for violation in found):
        found += _refused_by_onnxruntime(model)
    return tuple(sorted(found, key=lambda violation: violation.severity != "error"))


def refuse_violations(
    model: onnx.ModelProto, target: TargetName, manifest: Manifest | None, *, where: str
) -> tuple[Violation, ...]:
    """The same for a step that cannot go on with errors; returns the warnings.

    Args:
        model: The graph.
        target: What is to run it.
        manifest: What the graph is.
        where: Names the graph, in the error.

    Raises:
        ExportError: The graph asks for what the target cannot do; lists every violation.
    """
    found = find_violations(model, target, manifest)
    errors = [violation for violation in found if violation.severity == "error"]
    if errors:
        lines = "\n".join(violation.text() for violation in errors)
        raise ExportError(f"{where}: {len(errors)} things in the graph that {target} cannot do:\n{lines}")
    return found


def _has_external_data(model: onnx.ModelProto) -> bool:
    """Whether weights lie in other files, which neither the checker nor ONNX Runtime finds without a path."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def _invalid(model: onnx.ModelProto) -> list[Violation]:
    if _has_external_data(model):
        return []
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        return [_refusal("invalid", str(error), "what the ONNX checker accepts")]
    return []


def _refused_by_onnxruntime(model: onnx.ModelProto) -> list[Violation]:
    """What the installed ONNX Runtime says when it loads the graph; it is there, so it is asked."""
    if _has_external_data(model):
        return []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    state = onnxruntime.capi.onnxruntime_pybind11_state
    refusals = (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented, state.RuntimeException)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except refusals as error:
        return [_refusal("load", str(error), f"what ONNX Runtime {onnxruntime.__version__} on the CPU loads")]
    return []


def _refusal(rule: str, message: str, limit: str) -> Violation:
    first_line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return Violation(
        severity="error", rule=rule, node="file", found=first_line, limit=limit, fix="export the model again"
    )

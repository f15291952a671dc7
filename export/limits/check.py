"""Checks an ONNX graph against the limits of a target before the target's compiler reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnxruntime

from edgerpn.errors import ExportError
from edgerpn.export.limits import rules
from edgerpn.export.limits.graph import LIBRARY_FAILURES, GraphView, read_onnx
from edgerpn.export.limits.rules import Violation
from edgerpn.manifest import Manifest
from edgerpn.targets import TARGETS, Target, TargetName

Rule = Callable[[GraphView, Target], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    rules.opset,
    rules.external_data,
    rules.layout,
    rules.interface,
    rules.open_sizes,
    rules.uint8,
    rules.quantization,
    rules.topk,
    rules.resize,
    rules.costly_operators,
    rules.plugins,
    rules.not_checked,
)

_BROKEN = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""Errors of a rule about a graph that is not valid."""


def find_violations(
    model: onnx.ModelProto | str | os.PathLike[str], target: TargetName, manifest: Manifest | None = None
) -> tuple[Violation, ...]:
    """Finds everything in a graph that a target cannot do, does at a price, or that is not checked.

    Args:
        model: The graph, or its file.
        target: The target that will run it.
        manifest: The graph's manifest, which promises its interface; that of a file of ours is read.

    Returns:
        Errors first, then warnings, each in the order of the rules and of the graph. An empty result does not prove
        that the target takes the graph.

    Raises:
        EngineLoadError: The file is missing or not ONNX.
        ManifestError: Its manifest is malformed.
        ArtifactMismatchError: The file is not the one that its manifest describes.
    """
    if not isinstance(model, onnx.ModelProto):
        model, own = read_onnx(Path(model))
        manifest = manifest or own
    try:
        view = GraphView(model, manifest)
        found = [violation for rule in RULES for violation in rule(view, TARGETS[target])]
    except _BROKEN:
        # The rules rely on what the checker demands: outputs of a node, types that exist, whole tensors.
        found = _invalid(model)
        if not found:
            raise
    # The checker and the library report the first problem that they meet, which the rules may have reported better.
    if not any(violation.severity == "error" for violation in found):
        found += _invalid(model)
    if not TARGETS[target].is_tensorrt and not any(violation.severity == "error" for violation in found):
        found += _refused_by_onnxruntime(model)
    return tuple(sorted(found, key=lambda violation: violation.severity != "error"))


def refuse_violations(
    model: onnx.ModelProto, target: TargetName, manifest: Manifest | None, *, where: str
) -> tuple[Violation, ...]:
    """Raises when a graph has errors; returns the warnings.

    Args:
        model: The graph.
        target: The target that will run it.
        manifest: The graph's manifest, if it has one.
        where: Names the graph in the error.

    Raises:
        ExportError: The target cannot run the graph; lists every violation.
    """
    found = find_violations(model, target, manifest)
    errors = [violation for violation in found if violation.severity == "error"]
    if errors:
        lines = "\n".join(violation.text() for violation in errors)
        raise ExportError(f"{where}: {target} cannot run the graph, {len(errors)} violations:\n{lines}")
    return found


def _has_external_data(model: onnx.ModelProto) -> bool:
    """Returns whether weights are in other files, which the checker and ONNX Runtime find only by a path."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def _invalid(model: onnx.ModelProto) -> list[Violation]:
    if _has_external_data(model):
        return []
    try:
        onnx.checker.check_model(model, full_check=True)
    except LIBRARY_FAILURES as error:
        return [_refusal("invalid", str(error), "a graph that the ONNX checker accepts")]
    return []


def _refused_by_onnxruntime(model: onnx.ModelProto) -> list[Violation]:
    """Returns the refusal of the installed ONNX Runtime when it loads the graph."""
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
        return [_refusal("load", str(error), f"a graph that ONNX Runtime {onnxruntime.__version__} loads on the CPU")]
    return []


def _refusal(rule: str, message: str, limit: str) -> Violation:
    first_line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return Violation(
        severity="error", rule=rule, node="file", found=first_line, limit=limit, fix="export the model again"
    )

"""The command `edgerpn inspect`: describes a model file, and says whether it can run on this machine.

Operations are counted as 2 for each multiply-add of convolutions and matrix products, as in most model tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgerpn.manifest
from edgerpn import settings
from edgerpn.arguments import size_argument
from edgerpn.errors import EngineLoadError, MissingDependencyError, require
from edgerpn.export.model_names import find_any_model
from edgerpn.manifest import Manifest
from edgerpn.models import CHECKPOINT_SUFFIXES, is_checkpoint

if TYPE_CHECKING:
    import onnx

    from edgerpn.runtime.backends.tensorrt.compatibility import CompatibilityCheck
    from edgerpn.train.network.model import Rpn

_WIDTH = 110
_SUFFIXES = (*CHECKPOINT_SUFFIXES, ".onnx", ".engine", ".plan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="checkpoint, ONNX file or engine; or an installed model (general)"
    )
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which to count a checkpoint's operations"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Prints the description; returns the exit status: 1 for an engine that cannot run here, else 0."""
    file = find_any_model(arguments.model)
    _check_kind(file)
    report = inspect_checkpoint(file, arguments.size) if is_checkpoint(file) else inspect_artifact(file)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(_text_of(file, report))
    return 1 if report.get("manifest", {}).get("kind") == "engine" and not report["can_run_here"] else 0


def _check_kind(file: Path) -> None:
    if not file.exists():
        raise EngineLoadError(f"{file}: no such file")
    if not file.is_file() or file.suffix not in _SUFFIXES:
        raise EngineLoadError(f"{file}: expected a checkpoint, ONNX file or engine ({', '.join(_SUFFIXES)})")


def inspect_checkpoint(file: Path, hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """Describes a checkpoint.

    Args:
        file: The checkpoint.
        hw: Height and width at which to count operations, pixels; None: as trained.

    Returns:
        Settings, parameter and operation counts, levels with their receptive fields, and warnings.

    Raises:
        CheckpointError: The file is not a checkpoint.
    """
    from edgerpn.train.checkpoint import load_model

    model, checkpoint = load_model(file)
    hw = hw or checkpoint.settings.data.input_hw
    levels = _levels(model, hw)
    return {
        "checkpoint": str(file),
        "backbone": checkpoint.settings.model.backbone,
        "step": checkpoint.step,
        "recall": {name: round(value, 4) for name, value in checkpoint.metrics.items()},
        "network_hw": list(hw),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": round(count_flops(model, hw) / 1e9, 3),
        "anchors": sum(level["anchors"] for level in levels),
        "levels": levels,
        "warnings": _anchor_warnings(levels),
        "trained_on_sha256": checkpoint.data_sha256,
        "versions": checkpoint.versions,
        "settings": settings.to_dict(checkpoint.settings),
    }


def count_flops(model: Rpn, hw: tuple[int, int]) -> int:
    """Operations of backbone, neck and head for one image of `hw` (height, width) pixels, 2 a multiply-add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *hw))
    return counter.get_total_flops()


def _levels(model: Rpn, hw: tuple[int, int]) -> list[dict[str, Any]]:
    from edgerpn.train.network.receptive_field import receptive_fields_px

    config = model.config.anchors
    levels = []
    for field_px, stride, sizes, (rows, columns) in zip(
        receptive_fields_px(model), config.strides_px, config.sizes_px, config.level_hw(hw), strict=True
    ):
        largest = max(max(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in config.ratios_hw)
        levels.append(
            {
                "stride_px": stride,
                "cells": [rows, columns],
                "anchors": rows * columns * config.num_per_cell,
                "anchor_sizes_px": list(sizes),
                "largest_anchor_side_px": round(largest, 1),
                "receptive_field_px": field_px,
            }
        )
    return levels


def _anchor_warnings(levels: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"stride {level['stride_px']}: the largest anchor side is {level['largest_anchor_side_px']:g} px, but a cell "
        f"sees {level['receptive_field_px']:g} px, so it must guess where such an object ends"
        for level in levels
        if level["largest_anchor_side_px"] > level["receptive_field_px"]
    ]


def inspect_artifact(file: Path) -> dict[str, Any]:
    """Describes an exported model and compares it with this machine.

    Neither torch nor onnx is needed; without onnx the description of an ONNX file is its manifest.

    Returns:
        The manifest; for ONNX tensors, parameters and operations too; `checks` with key, expected, found, verdict
        (ok, no, unknown) and advice of each, and `can_run_here`, which is true when no verdict is no.

    Raises:
        ManifestError: The file or its manifest is missing or malformed, or an ONNX file is not the one described.
        EngineLoadError: The ONNX file is damaged, or the manifest describes something else.
    """
    graph: dict[str, Any] = {}
    if file.suffix.lower() == ".onnx":
        manifest, checks, proto = edgerpn.manifest.find(file), [_check_onnxruntime()], _load_onnx(file)
        if manifest.layout != "proposals":
            checks.append(_other_program(manifest.layout))
        if proto is not None:
            graph = _describe_graph(proto)
    else:
        manifest, checks = _inspect_engine(file)
    return {
        "artifact": str(file),
        "bytes": file.stat().st_size,
        **graph,
        "manifest": settings.to_dict(manifest),
        "checks": [dataclasses.asdict(check) for check in checks],
        "can_run_here": all(check.verdict != "no" for check in checks),
    }


def _inspect_engine(file: Path) -> tuple[Manifest, list[CompatibilityCheck]]:
    from edgerpn.runtime.backends.tensorrt import compatibility

    manifest = compatibility.read_manifest(file)
    host = compatibility.query_machine(compatibility.engine_spec(file, manifest))
    return manifest, compatibility.compare(file, manifest, host)


def _check_onnxruntime() -> CompatibilityCheck:
    """Checks for ONNX Runtime, the only need of an ONNX file."""
    from edgerpn.runtime.backends.tensorrt.compatibility import CompatibilityCheck

    try:
        library = require("onnxruntime", extra="onnxruntime", purpose="running ONNX models")
    except MissingDependencyError as error:
        return CompatibilityCheck(key="library", expected="ONNX Runtime", found=str(error), verdict="no")
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in library.get_available_providers())
    found = f"ONNX Runtime {library.__version__} with {providers}"
    return CompatibilityCheck(key="library", expected="ONNX Runtime", found=found, verdict="ok")


def _other_program(layout: str) -> CompatibilityCheck:
    """Says that a graph in the layout of another program does not run here."""
    from edgerpn.runtime.backends.tensorrt.compatibility import CompatibilityCheck

    advice = "run it there; here, run the ONNX file that it was made from, or export the model without --layout"
    return CompatibilityCheck(key="layout", expected=layout, found="proposals", verdict="no", advice=advice)


def _describe_graph(proto: onnx.ModelProto) -> dict[str, Any]:
    flops = count_onnx_flops(proto)
    return {
        "inputs": [_tensor(value) for value in proto.graph.input],
        "outputs": [_tensor(value) for value in proto.graph.output],
        "nodes": len(proto.graph.node),
        "parameters": sum(math.prod(tensor.dims) for tensor in proto.graph.initializer),
        "gflops": None if flops is None else round(flops / 1e9, 3),
    }


def _load_onnx(file: Path) -> onnx.ModelProto | None:
    """Reads the ONNX file; None on a device without the package onnx, where the manifest can still be read."""
    try:
        require("onnx", extra="export", purpose="counting operations")
    except MissingDependencyError:
        return None
    from edgerpn.export.limits.graph import parse_onnx

    return parse_onnx(file)


def _tensor(value: onnx.ValueInfoProto) -> str:
    from edgerpn.export.limits.graph import dtype_name

    kind = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
    return f"{value.name} {dtype_name(kind.elem_type)} [{shape}]"


def count_onnx_flops(proto: onnx.ModelProto) -> int | None:
    """Operations of the convolutions and matrix products for a batch of 1, 2 a multiply-add.

    None: a shape that counts is unknown.
    """
    from edgerpn.export.limits.graph import GraphView

    view = GraphView(proto, None)
    shapes = {name: [size or 1 for size in shape] for name, shape in view.shapes.items()}
    total = 0
    try:
        for node in view.proto.graph.node:
            if node.op_type == "Conv":
                total += 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
            elif node.op_type == "MatMul":
                total += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    except (IndexError, KeyError):
        return None
    return total


def _text_of(file: Path, report: dict[str, Any]) -> str:
    """Returns a report as text: its values, then the checks and the conclusion."""
    lines = _lines({key: value for key, value in report.items() if key not in ("checks", "can_run_here")})
    if "checks" in report:
        lines += [*table(report["checks"]), conclusion(file, report["checks"])]
    return "\n".join(lines)


def table(checks: Sequence[dict[str, str]]) -> list[str]:
    """Lines of the checks: verdict and key, then the expected and the found value, and the advice."""
    lines = []
    for check in checks:
        lines.append(f"{check['verdict']:<8} {check['key']}")
        for label, value in (("expected", check["expected"]), ("found", check["found"]), ("to do", check["advice"])):
            if value:
                indent = f"{'':9}{label:<9}"
                lines += textwrap.wrap(value, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
    return lines


def conclusion(file: Path, checks: Sequence[dict[str, str]]) -> str:
    """One line: whether the file can run here, and the checks that gave no answer."""
    failed = [check["key"] for check in checks if check["verdict"] == "no"]
    unknown = [check["key"] for check in checks if check["verdict"] == "unknown"]
    text = f"{file}: " + (f"cannot run here because of: {', '.join(failed)}" if failed else "can run here")
    return text + (f"; unknown: {', '.join(unknown)}" if unknown else "")


def _lines(report: dict[str, Any], indent: str = "") -> list[str]:
    """Returns a report as indented text, one `key: value` a line."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines.append(f"{indent}  - " + ", ".join(f"{k} {_text(v)}" for k, v in item.items()))
        else:
            lines.append(f"{indent}{key}: {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) if value else "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

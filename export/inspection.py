"""The command `edgerpn inspect`: what a checkpoint or an exported model is.

Operations are counted as 2 for each multiply-add of convolutions and matrix products, as in most model tables.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgerpn.manifest
from edgerpn import settings
from edgerpn.arguments import size_argument
from edgerpn.errors import EngineLoadError, MissingDependencyError, require
from edgerpn.manifest import DIGEST_KEY, METADATA_KEY, Manifest

if TYPE_CHECKING:
    import onnx

    from edgerpn.train.checkpoint import Checkpoint
    from edgerpn.train.network.model import Rpn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint, ONNX file or engine")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which to count a checkpoint's operations"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Prints what the model is; returns the exit status."""
    if arguments.model.suffix == ".pt":
        report = inspect_checkpoint(arguments.model, arguments.size)
    else:
        report = inspect_artifact(arguments.model)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0


def inspect_checkpoint(file: Path, hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """Describes a checkpoint.

    Args:
        file: The checkpoint.
        hw: Height and width at which to count operations, pixels; None: as trained.

    Returns:
        Settings, parameter and operation counts, levels with their receptive fields, and warnings.

    Raises:
        CheckpointError: The file is no checkpoint.
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
        "settings": _plain_settings(checkpoint),
    }


def _plain_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    return settings.to_dict(checkpoint.settings)


def count_flops(model: Rpn, hw: tuple[int, int]) -> int:
    """Operations of backbone, neck and head for one image of `hw` (height, width) pixels, 2 a multiply-add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *hw))
    return counter.get_total_flops()


def _levels(model: Rpn, hw: tuple[int, int]) -> list[dict[str, Any]]:
    from edgerpn.train.network.receptive_field import receptive_fields

    config = model.config.anchors
    levels = []
    for field, stride, sizes, (rows, columns) in zip(
        receptive_fields(model), config.strides_px, config.sizes_px, config.level_hw(hw), strict=True
    ):
        largest = max(max(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in config.ratios_hw)
        levels.append(
            {
                "stride_px": stride,
                "cells": [rows, columns],
                "anchors": rows * columns * config.num_per_cell,
                "anchor_sizes_px": list(sizes),
                "largest_anchor_side_px": round(largest, 1),
                "receptive_field_px": field.size_px,
            }
        )
    return levels


def _anchor_warnings(levels: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"stride {level['stride_px']}: the largest anchor side is {level['largest_anchor_side_px']:g} px, but a cell "
        f"sees {level['receptive_field_px']:g} px: it must guess where such an object ends"
        for level in levels
        if level["largest_anchor_side_px"] > level["receptive_field_px"]
    ]


def inspect_artifact(file: Path) -> dict[str, Any]:
    """Describes an exported model: its manifest, and for ONNX its tensors, parameters and operations.

    Raises:
        ManifestError: The file or its manifest is missing or malformed.
        EngineLoadError: The ONNX file is damaged.
    """
    proto = _load_onnx(file) if file.suffix == ".onnx" and file.is_file() else None
    manifest = _manifest(file, proto)
    report: dict[str, Any] = {"artifact": str(file), "bytes": file.stat().st_size}
    if proto is not None:
        report["inputs"] = [_tensor(value) for value in proto.graph.input]
        report["outputs"] = [_tensor(value) for value in proto.graph.output]
        report["nodes"] = len(proto.graph.node)
        report["parameters"] = sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)
        report["gflops"] = round(count_onnx_flops(proto) / 1e9, 3)
    return {**report, "manifest": settings.to_dict(manifest)}


def _load_onnx(file: Path) -> onnx.ModelProto | None:
    """The ONNX file, or None on a device without the onnx package, where the manifest still can be read."""
    try:
        library = require("onnx", extra="export", purpose="counting operations")
        protobuf = require("google.protobuf.message", extra="export", purpose="reading ONNX")
    except MissingDependencyError:
        return None
    try:
        # Weights in other files are not needed to count operations.
        return library.load(file, load_external_data=False)
    except protobuf.DecodeError as error:
        raise EngineLoadError(
            f"{file}: not an ONNX file, or damaged: {error}. Copy it again, or export again."
        ) from error


def _manifest(file: Path, proto: onnx.ModelProto | None) -> Manifest:
    """The manifest beside the file, or the one inside an ONNX file that travels alone."""
    if proto is not None and not edgerpn.manifest.manifest_path(file).is_file():
        from edgerpn.export.limits.graph_view import metadata

        properties = metadata(file, proto)
        if METADATA_KEY in properties:
            edgerpn.manifest.check_seal(file, properties.get(DIGEST_KEY))
            return edgerpn.manifest.parse(properties[METADATA_KEY], source=f"{file} (metadata)")
    return edgerpn.manifest.read(file)


def _tensor(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    kind = value.type.tensor_type
    shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(kind.elem_type).lower()} [{shape}]"


def count_onnx_flops(proto: onnx.ModelProto) -> int:
    """Operations of the convolutions and matrix products for a batch of 1, 2 a multiply-add."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    shapes.update({tensor.name: list(tensor.dims) for tensor in graph.initializer})
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return total


def _lines(report: dict[str, Any], indent: str = "") -> list[str]:
    """A report as indented text, one `key: value` a line."""
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

"""What the commands of `edgerpn` leave behind, as figures for the report of `gpu_check.py`."""

from __future__ import annotations

import json
from pathlib import Path

from gpu_session import Figures

from edgerpn import manifest
from edgerpn.errors import ManifestError


def is_open(graph: Path) -> bool:
    """Whether the batch of an ONNX file is open."""
    return manifest.read(graph).input.batch is None


def export_of(file: Path) -> Figures:
    """Of an ONNX file; nothing when it was not made."""
    try:
        spec = manifest.read(file)
    except ManifestError:
        return {}
    recall = dict(spec.recall.metrics) if spec.recall else {}
    stage = spec.proposals
    return {
        "mb": round(file.stat().st_size / 1e6, 3), "recall": recall, "nms_iterations": stage.nms_iterations,
        "nms_candidates": stage.nms_candidates, "opset": spec.opset,
    }  # fmt: skip


def engine_of(file: Path) -> Figures:
    """Of an engine; nothing when it was not built."""
    try:
        spec = manifest.read(file).engine
    except ManifestError:
        return {}
    if spec is None:
        return {}
    return {
        "mb": round(file.stat().st_size / 1e6, 3), "build_s": spec.build_s, "layers": spec.num_layers,
        "compute_capabilities": list(spec.compute_capabilities), "library_version": spec.library_version,
        "batches": [spec.profile.min_batch, spec.profile.opt_batch, spec.profile.max_batch],
    }  # fmt: skip


def _json(file: Path) -> Figures:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def lint_of(file: Path) -> Figures:
    """Of a target's check."""
    found = _json(file).get("target", {})
    return {key: found[key] for key in ("num_errors", "num_warnings") if key in found}


def parity_of(file: Path) -> Figures:
    """Of a comparison."""
    found = _json(file).get("comparison", {})
    return {
        key: found[key]
        for key in ("agrees", "num_images", "batch_sizes", "num_matched", "num_boundary", "num_unexplained", "iou",
                    "score_difference", "unmatched_share")
        if key in found
    }  # fmt: skip


def recall_of(file: Path) -> Figures:
    """Of a measurement of recall."""
    found = _json(file)
    return {key: found[key] for key in ("metrics", "num_images", "latency_ms") if key in found}

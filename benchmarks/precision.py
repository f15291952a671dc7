"""Costs and gains of float16 and int8: recall, file size, time in ONNX Runtime, engine size and build time.

    python -m benchmarks.precision --checkpoint best.pt --data DIR [--size 384x384] [--hardware NAME]

DIR is a folder with train.json (photographs for the ranges of int8), val.json (for recall) and images/. The checkpoint
is exported once for ONNX Runtime and once for TensorRT-RTX, and each graph is reduced to both precisions, without the
recall gate, so that the table shows every result. K is 1000, so that one graph gives AR@100 and AR@1000.

Recall is measured in ONNX Runtime on the CPU, with every value that a float16 network stores rounded to float16. The
timed sessions alternate frame by frame, so that drift of the machine affects all of them. TensorRT-RTX compiles
without a GPU; where its package is missing, its columns stay empty.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import edgerpn.manifest
from benchmarks.inference import make_session, take_turns
from edgerpn import files
from edgerpn.errors import MissingDependencyError
from edgerpn.export.engine.build import build_engine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.evaluate import evaluate_model
from edgerpn.export.export_config import Calibration, ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.photographs import calibration_images
from edgerpn.export.precision.blocks import find_network
from edgerpn.export.precision.calibration import frames, measure_ranges
from edgerpn.export.precision.gate import PrecisionVariants
from edgerpn.export.precision.quantize import tensors_to_calibrate
from edgerpn.letterbox import parse_hw
from edgerpn.manifest.parts import Precision
from edgerpn.targets import ExportTarget
from edgerpn.train.data.coco import read_coco

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TARGETS: tuple[ExportTarget, ...] = ("onnxruntime", "tensorrt-rtx")
NUM_PROPOSALS = 1000
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


@dataclasses.dataclass(kw_only=True)
class Row:
    """A line of the table."""

    target: ExportTarget
    precision: Precision
    ar100: float
    ar1000: float
    file_mb: float
    onnxruntime_ms: float | None = None
    engine_mb: float | None = None
    build_s: float | None = None


def main() -> int:
    """Measures, prints the table, writes the result; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a training run")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="train.json, val.json and images/")
    parser.add_argument("--size", type=parse_hw, help="network size (default: as trained)")
    parser.add_argument("--limit", type=int, default=500, help="validation images at most, default 500")
    parser.add_argument("--calibration-images", type=int, default=300, help="training images at most, default 300")
    parser.add_argument("--method", choices=("percentile", "entropy"), default="percentile", help="calibration")
    parser.add_argument("--runs", type=int, default=200, help="timed runs of each session, default 200")
    parser.add_argument(
        "--hardware", default=f"{platform.machine()}-{os.cpu_count()}core", help="name in the file name"
    )
    parser.add_argument("--results", type=Path, help="folder for NAME.md and NAME.json (default: write nothing)")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            rows += measure(arguments, target, Path(folder) / target)
    table = format_table(rows)
    print(table)
    if arguments.results:
        write(arguments, rows, table)
    return 0


def measure(arguments: argparse.Namespace, target: ExportTarget, folder: Path) -> list[Row]:
    """Measures one target; returns its rows."""
    val = read_coco(arguments.data / "val.json", arguments.data / "images", verify="header")
    images = [record.file for record in val.records[:: max(1, len(val.records) // 8)]][:8]
    config = ExportConfig(target=target, network_hw=arguments.size, batch=1, num_proposals=NUM_PROPOSALS)
    export_onnx(arguments.checkpoint, folder / "fp32.onnx", config, images=images)
    variants = {precision: reduce(arguments, folder, config, precision) for precision in PRECISIONS}
    rows = []
    for precision, (graph, measured) in variants.items():
        evaluation = evaluate_model(measured, arguments.data, limit=arguments.limit)
        figures = evaluation.metrics
        row = Row(
            target=target,
            precision=precision,
            ar100=figures["AR@100"],
            ar1000=figures["AR@1000"],
            file_mb=graph.stat().st_size / 1e6,
        )
        if target == "tensorrt-rtx":
            row.engine_mb, row.build_s = compile_engine(graph)
        rows.append(row)
    if target == "onnxruntime":
        for row, ms in zip(rows, time_sessions([g for g, _ in variants.values()], images, arguments.runs), strict=True):
            row.onnxruntime_ms = ms
    return rows


def reduce(
    arguments: argparse.Namespace, folder: Path, config: ExportConfig, precision: Precision
) -> tuple[Path, Path]:
    """Writes a variant; returns its file, and the file to measure in its place."""
    original = folder / "fp32.onnx"
    if precision == "fp32":
        return original, original
    proto, manifest = onnx.load(original), edgerpn.manifest.read(original)
    network, ranges = find_network(proto), None
    if precision == "int8":
        photographs = calibration_images(arguments.data, limit=arguments.calibration_images, log=print)
        names = tensors_to_calibrate(proto, network, config.target)
        method: Calibration = arguments.method
        ranges = measure_ranges(proto, names, photographs, manifest.input, method=method, log=print)
    config = dataclasses.replace(config, precision=precision, calibration=arguments.method)
    reduction = PrecisionVariants(proto=proto, network=network, config=config, ranges=ranges)
    graph = reduction.build()
    written = []
    for name, variant in ((precision, graph), (f"{precision}-measured", reduction.measurable(graph))):
        noted = manifest.replace(precision=precision)
        onnx.helper.set_model_props(variant, {edgerpn.manifest.METADATA_KEY: noted.to_json()})
        written.append(folder / f"{name}.onnx")
        onnx.save(variant, written[-1])
        edgerpn.manifest.write(noted, written[-1])
    return written[0], written[1]


def compile_engine(file: Path) -> tuple[float | None, float | None]:
    """Size in MB and seconds of a TensorRT-RTX build for four generations of GPUs; nothing without the library."""
    config = BuildConfig(backend="tensorrt-rtx", compute_capabilities=CAPABILITIES)
    try:
        result = build_engine(file, file.with_name(f"{file.stem}-rtx.engine"), config)
    except MissingDependencyError as error:
        print(f"skipped TensorRT-RTX: {error}")
        return None, None
    engine = result.manifest.engine
    return result.num_bytes / 1e6, engine.build_s if engine else None


def time_sessions(graphs: Sequence[Path], images: Sequence[Path], runs: int) -> list[float]:
    """Median milliseconds of each graph, with ONNX Runtime's default threads; the graphs alternate."""
    inputs = [frame[None] for frame in frames(images, edgerpn.manifest.read(graphs[0]).input)]
    calls = {file: partial(_run, make_session(file), inputs) for file in graphs}
    return [float(np.median(times)) for times in take_turns(calls, runs, warm_up=5).values()]


def _run(session: Any, inputs: Sequence[np.ndarray], number: int) -> None:
    session.run(None, {"frames": inputs[number % len(inputs)]})


def format_table(rows: Sequence[Row]) -> str:
    names = ("graph for", "precision", "AR@100", "AR@1000", "file MB", "ONNX Runtime ms", "RTX engine MB", "build s")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.target, row.precision, *(f"{100 * value:.2f}" for value in (row.ar100, row.ar1000))]
        cells += [f"{row.file_mb:.2f}", _cell(row.onnxruntime_ms), _cell(row.engine_mb), _cell(row.build_s)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write(arguments: argparse.Namespace, rows: Sequence[Row], table: str) -> None:
    """Writes the table with its conditions, and the figures as JSON."""
    facts: dict[str, Any] = {
        "hardware": arguments.hardware,
        "cores": os.cpu_count(),
        "checkpoint_sha256": files.sha256(arguments.checkpoint),
        "data_sha256": files.sha256(arguments.data / "val.json"),
        "size_hw": arguments.size,
        "num_proposals": NUM_PROPOSALS,
        "limit": arguments.limit,
        "calibration": arguments.method,
        "calibration_images": arguments.calibration_images,
        "runs": arguments.runs,
        "compute_capabilities": CAPABILITIES,
        "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
    }
    base = arguments.results / f"precision_{arguments.hardware}_{date.today().isoformat()}"
    content = {**facts, "rows": [dataclasses.asdict(row) for row in rows]}
    files.write_text(base.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    notes = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    files.write_text(
        base.with_suffix(".md"), f"# Precision\n\n`python -m benchmarks.precision`\n\n{table}\n\n{notes}\n"
    )
    print(f"wrote {base}.md and .json")


if __name__ == "__main__":
    sys.exit(main())

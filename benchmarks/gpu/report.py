"""The report of the GPU check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.session import Record

_QUANTILES = ("p50", "p90", "p99")


def report(about: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Markdown: what the machine is, and what every step gave."""
    parts = [f"# GPU check: {about['hardware']}", _facts(about), *_answers(records)]
    for title, rows in (
        ("Exports", _exports(records)),
        ("Engines", _engines(records)),
        ("Agreement with the ONNX file, and recall", _agreements(records)),
        ("Milliseconds", _latencies(records)),
        ("Back to back, ms for each batch", _pairs(records, "back_to_back_ms")),
        ("CUDA graphs", _pairs(records, "cuda_graph")),
        ("Memory, MiB", _pairs(records, "memory_mib")),
        ("Clocks afterwards", _pairs(records[-1:], "nvidia_smi")),
        ("Frames a second", _pairs(records, "frames_per_s")),
        ("Steps", _steps(records)),
    ):
        if len(rows) > 1:
            parts.append(f"## {title}\n\n{_table(rows)}")
    failed = [record for record in records if record.status == "failed" and record.output]
    parts += [f"### {record.name}: last lines\n\n```\n" + "\n".join(record.output) + "\n```" for record in failed]
    return "\n\n".join(parts) + "\n"


def _facts(about: Mapping[str, Any]) -> str:
    lines = []
    for name, value in about.items():
        shown = "; ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, Mapping) else value
        if shown not in (None, "", [], ()):
            lines.append(f"- {name}: {shown}")
    return "\n".join(lines)


def _answers(records: Sequence[Record]) -> list[str]:
    """The open question, and the limit."""
    parts = []
    for record in records:
        if record.name == "TensorRT-RTX accepts this GPU" and record.figures:
            lines = [f"- {key}: {value}" for key, value in record.figures.items()]
            parts.append("## Does TensorRT-RTX accept this GPU?\n\n" + "\n".join(lines))
        if "share" in record.figures:
            lines = [f"- {key}: {value}" for key, value in record.figures.items() if key != "latency_ms"]
            parts.append(f"## {record.name}\n\n" + "\n".join(lines))
    return parts


def _exports(records: Sequence[Record]) -> list[list[object]]:
    rows: list[list[object]] = [["export", "MB", "AR@100", "NMS rounds", "NMS candidates", "seconds"]]
    for record in _named(records, "export "):
        f = record.figures
        recall = f.get("recall", {}).get("AR@100")
        rows.append(
            [record.name[7:], f.get("mb"), recall, f.get("nms_iterations"), f.get("nms_candidates"), record.seconds]
        )
    return rows


def _engines(records: Sequence[Record]) -> list[list[object]]:
    rows: list[list[object]] = [["engine", "version", "for", "batches", "MB", "layers", "build s"]]
    for record in records:
        f = record.figures
        if "build_s" in f:
            capabilities, batches = ", ".join(f["compute_capabilities"]), ", ".join(map(str, f["batches"]))
            rows.append([record.name, f["library_version"], capabilities, batches, f["mb"], f["layers"], f["build_s"]])
    return rows


def _agreements(records: Sequence[Record]) -> list[list[object]]:
    rows: list[list[object]] = [["step", "images", "agrees", "without a counterpart", "min IoU", "AR@100", "AR@1000"]]
    for record in records:
        f = record.figures
        if "unmatched_share" in f:
            share = f"{f['unmatched_share']:.2%}"
            rows.append([record.name, f["num_images"], f["agrees"], share, f["iou"].get("min"), None, None])
        elif "metrics" in f:
            ar = [round(f["metrics"][name], 4) for name in ("AR@100", "AR@1000")]
            rows.append([record.name, f["num_images"], None, None, None, *ar])
    return rows


def _latencies(records: Sequence[Record]) -> list[list[object]]:
    rows: list[list[object]] = [["step", "what", *_QUANTILES, "rounds"]]
    for record in records:
        for label, values in record.figures.get("latency_ms", {}).items():
            if isinstance(values, Mapping):  # `edgerpn eval` has figures of its own under this name
                rows.append([record.name, label, *(values[q] for q in _QUANTILES), values["rounds"]])
    return rows


def _pairs(records: Sequence[Record], key: str) -> list[list[object]]:
    rows: list[list[object]] = [["step", "what", "value"]]
    for record in records:
        value = record.figures.get(key, {})
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[record.name, label, item] for label, item in pairs]
    return rows


def _steps(records: Sequence[Record]) -> list[list[object]]:
    rows: list[list[object]] = [["step", "status", "seconds", "reason"]]
    return [*rows, *([record.name, record.status, record.seconds, record.reason] for record in records)]


def _named(records: Sequence[Record], start: str) -> Iterable[Record]:
    return (record for record in records if record.name.startswith(start) and record.figures)


def _table(rows: Sequence[Sequence[object]]) -> str:
    lines = [_line(rows[0]), "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *map(_line, rows[1:])])


def _line(cells: Sequence[object]) -> str:
    shown = ["" if cell is None else " ".join(str(cell).split()).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(shown)} |"

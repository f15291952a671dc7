"""Checks and measurements that need an NVIDIA GPU, in one command; it reports every step that it skips.

This one builds its engines on the GPU's machine. `benchmarks.gpu.bundle` and `benchmarks.gpu.check` are for a machine
that has little installed and little time.

    python -m benchmarks.gpu [--checkpoint best.pt | --model model.onnx] [--data DIR] [--size 384x640]
                                   [--out FOLDER] [--backend tensorrt|tensorrt-rtx] [--exports A,B] [--quick]
                                   [--minutes 10]

DIR holds val.json and images/ (for parity and recall), and train.json when int8 is to be calibrated on what the model
was trained on. Without a checkpoint the default preset gets random weights. Without DIR the pictures are made up; then
recall is not measured, and only the float32 engines are judged by their proposals.

The steps, each in a process of its own (session.py), the most important first:

    hardware        GPU, driver, clocks, power, versions of every library
    acceptance      whether TensorRT-RTX loads an engine on this GPU's compute capability
    exports         fp32, fp16, int8; open batch; fixed camera size; NMS over all candidates; each checked for targets
    engines         built with TensorRT and TensorRT-RTX, whichever import
    for each        `edgerpn inspect`, parity with the ONNX file, AR, golden self-test, CUDA graph, latency: engine
                    alone (GPU events, with and without graph), with copies, end to end, PyTorch's memory in place; GPU
                    and process memory; two streams at once
    proposal stage  the network cut at the head's outputs beside the whole; its share may be 15 % at most
    peers           PyTorch eager and compiled, ONNX Runtime with CUDA and TensorRT

It ends within --minutes and skips the rest (use --quick or more minutes on a Jetson). It writes
gpu_HARDWARE_DATE.json and .md into --out after each step, and prints the table. Exit status: 1 when a step failed or a
limit is broken; else 2 when there is no GPU (it still makes exports, their checks and engines of TensorRT-RTX); else 0.

The steps that need a GPU have not run on one yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import EXPORTS
from benchmarks.gpu.plan import Options, Plan
from benchmarks.gpu.session import Record, Session
from edgerpn import files
from edgerpn.arguments import size_argument

NAMES = tuple(export.name for export in EXPORTS)
FACTS = (
    "gpu", "compute_capability", "gpu_memory_mib", "gpu_free_mib", "cuda_driver", "l4t", "nvidia_smi", "nvpmodel",
    "jetson_clocks", "cpu", "cores", "load_average", "system", "python", "modules", "packages", "pictures", "weights",
    "backbone", "checkpoint_sha256", "network_hw", "camera_hw",
)  # fmt: skip
"""Facts above the tables of the report."""
_QUANTILES = ("p50", "p90", "p99")


def main() -> int:
    """Runs all steps, writes and prints the report; returns the exit status."""
    arguments = _arguments()
    options = Options(
        checkpoint=_path(arguments.checkpoint),
        model=_path(arguments.model),
        data=_path(arguments.data),
        size=arguments.size,
        backend=arguments.backend,
        exports=arguments.exports,
        is_quick=arguments.quick,
    )
    given = ((options.checkpoint, "CHECKPOINT"), (options.model, "MODEL"), (options.data, "DATA"))
    names = {path: name for path, name in given if path}
    started = datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory(prefix="edgerpn-gpu-") as folder:
        work = arguments.work.resolve() if arguments.work else Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise SystemExit(
                f"--work {work}: expected a new or empty folder, because old results would pass as new ones"
            )

        def write() -> tuple[str, str]:
            hardware = str(plan.facts.get("gpu") or "no GPU")
            about = {"hardware": hardware, "date": started.isoformat(timespec="seconds"), "command": _command(names)}
            about |= {key: plan.facts[key] for key in FACTS if key in plan.facts}
            base = arguments.out / f"gpu_{_slug(hardware)}_{started.date().isoformat()}"
            return base.name, _write(base, about, list(session.records))

        def write_so_far() -> None:
            if plan.facts:  # of the machine, after which the report is named
                write()

        session = Session(work, minutes=arguments.minutes, names=names, on_record=write_so_far)
        plan = Plan(session=session, options=options)
        plan.run()
        name, text = write()
    print(f"\n{text}\nwrote {name}.json and {name}.md")
    return exit_status(session.records, has_gpu=plan.no_gpu is None)


def exit_status(records: Sequence[Record], *, has_gpu: bool) -> int:
    """1: a step failed; 2: there is no GPU; 0: all is done or skipped."""
    if any(record.status == "failed" for record in records):
        return 1
    return 0 if has_gpu else 2


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--checkpoint", type=Path, help="best.pt of a training run (default: random weights)")
    given.add_argument("--model", type=Path, help="exported model.onnx, to check this one graph alone")
    parser.add_argument("--data", type=Path, metavar="DIR", help="val.json, images/ and, for int8, train.json")
    parser.add_argument("--size", type=size_argument, metavar="HxW", help="network size (default: as trained)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="for the report (default: here)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keeps models and engines (default: they are removed)"
    )
    parser.add_argument("--backend", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto", help="library")
    parser.add_argument("--exports", type=_names, metavar="A,B", help=f"only these of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer exports and shorter measurements, no recall gate")
    parser.add_argument("--minutes", type=float, default=10, help="time for all steps (10)")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    return names


def _path(file: Path | None) -> str | None:
    return None if file is None else str(file.resolve())


def _command(names: dict[str, str]) -> str:
    """Returns the command line without folders."""
    words = [names.get(str(Path(word).resolve()), word) for word in sys.argv[1:]]
    for flag in ("--out", "--work"):
        if flag in words:
            words[words.index(flag) + 1] = "FOLDER"
    return " ".join(["python -m benchmarks.gpu", *words])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write(base: Path, about: dict[str, Any], records: Sequence[Record]) -> str:
    """Writes the report as it is now; returns its text."""
    base.parent.mkdir(parents=True, exist_ok=True)
    text = report(about, records)
    content = {"benchmark": "gpu_check", **about, "steps": [dataclasses.asdict(record) for record in records]}
    files.write_text(base.with_name(base.name + ".json"), json.dumps(content, indent=2) + "\n")
    files.write_text(base.with_name(base.name + ".md"), text)
    return text


def report(about: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Returns the report in Markdown: the machine, and the result of every step."""
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
    """Returns the open question, and the limit."""
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


if __name__ == "__main__":
    sys.exit(main())

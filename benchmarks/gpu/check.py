"""The runner and TensorRT-RTX on a GPU, in stages, from a folder made by `benchmarks.gpu.bundle`.

    python -m benchmarks.gpu.bundle FOLDER --checkpoint best.pt --data DIR --python 3.12     # anywhere
    cd FOLDER/site && python3 -m benchmarks.gpu.check ..                                     # on the GPU

Stage A needs PyTorch and CuPy and no TensorRT: a shim library (shim.py) enqueues our own work. Stage B is TensorRT-RTX
from the folder. Stage C is PyTorch and ONNX Runtime by themselves. Stages come in the order of their worth, each in a
process of its own with its own time limit, and each writes its result to results.jsonl and results.md at once, so that
a crash, a hang or an end of the time costs that stage alone.

`--stage A3 --stage B` runs some; `--skip-done` continues where an earlier call ended; `--rehearse` runs all stages on
the stand-in of the tests, without a GPU. Exit status: 1 when a stage failed, else 2 when nothing could be done (there
is no GPU), else 0. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu.bundle import MODELS, unpack
from benchmarks.gpu.session import Figures, Record, Session
from edgerpn import files


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step on the GPU."""

    key: str
    """Such as A1."""
    title: str
    step: str
    """Its function, see `benchmarks.gpu.child`."""
    limit_s: float
    request: Figures = field(default_factory=dict)
    """Further entries of its request."""


STAGES = (
    Stage(key="A1", title="machine, and our calls of the driver", step="driver", limit_s=150),
    Stage(key="A2", title="the runner on kernels of CuPy, bit by bit", step="ring", limit_s=90),
    Stage(key="A3", title="the detector in PyTorch, recorded by the runner", step="detector", limit_s=120),
    Stage(key="B1", title="TensorRT-RTX: import, verdict, first context", step="validity", limit_s=180),
    Stage(key="B2", title="TensorRT-RTX: golden frames, parity, graph", step="parity", limit_s=180),
    Stage(key="B3", title="TensorRT-RTX: times and share of the proposal stage", step="share", limit_s=150),
    Stage(key="A4", title="NMS and proposal stage in PyTorch", step="nms", limit_s=120),
    Stage(key="A5", title="threads, evicted plans, memory returned", step="threads", limit_s=120),
    Stage(key="A6", title="arrays of PyTorch and CuPy, side streams", step="arrays", limit_s=90),
    Stage(key="B4", title="TensorRT-RTX: the runtime end to end", step="runtime", limit_s=150),
    Stage(
        key="C1", title="PyTorch eager, fp16", step="pytorch", limit_s=90,
        request={"mode": "eager", "precision": "fp16"},
    ),
    Stage(
        key="C2", title="PyTorch compiled, fp16", step="pytorch", limit_s=180,
        request={"mode": "compiled", "precision": "fp16"},
    ),
    Stage(
        key="C3", title="ONNX Runtime with CUDA", step="onnxruntime", limit_s=120,
        request={"provider": "cuda", "label": "fp16"},
    ),
)  # fmt: skip
"""In the order in which they run."""


class Results:
    """Results of stages in a folder: a line of JSON for each, written through to the disk, and a page made of them."""

    def __init__(self, folder: Path) -> None:
        """Reads what earlier calls have left; a last line that was cut off does not count."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._page = folder / "results.jsonl", folder / "results.md"
        self.records: dict[str, tuple[str, Record]] = {}
        for line in self._lines.read_text(encoding="utf-8").splitlines() if self._lines.is_file() else ():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            key, date = content.pop("key"), content.pop("date")
            self.records[key] = date, Record(**content)

    def is_done(self, key: str) -> bool:
        """True if the last run of a stage ended without a failure."""
        return key in self.records and self.records[key][1].is_done

    def add(self, key: str, record: Record) -> None:
        """Keeps the result of a stage."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.records[key] = date, record
        is_cut_off = self._lines.is_file() and not self._lines.read_bytes().endswith(b"\n")
        with self._lines.open("a", encoding="utf-8") as file:
            file.write("\n" if is_cut_off else "")
            file.write(json.dumps({"key": key, "date": date, **dataclasses.asdict(record)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        files.write_text(self._page, self.page())

    def page(self) -> str:
        """Returns the results in Markdown, in the order of the stages."""
        order = [stage.key for stage in STAGES]
        rows = sorted(self.records.items(), key=lambda row: order.index(row[0]) if row[0] in order else len(order))
        parts = ["# GPU check in stages", "| stage | | seconds | date | |\n|---|---|---|---|---|\n" + "\n".join(
            f"| {key} {record.name} | {record.status} | {record.seconds} | {date} | {_cell(record.reason)} |"
            for key, (date, record) in rows
        )]  # fmt: skip
        for key, (_, record) in rows:
            lines = [*_bullets(record.figures, ""), *(["", "```", *record.output, "```"] if record.output else [])]
            if lines:
                parts.append("\n".join([f"## {key} {record.name}", "", *lines]))
        return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bullets(figures: Figures, indent: str) -> Iterable[str]:
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
            yield f"{indent}- {name}:"
            yield from _bullets(value, indent + "  ")
        elif isinstance(value, dict):
            yield f"{indent}- {name}: " + "; ".join(f"{key}: {_cell(str(item))}" for key, item in value.items())
        elif isinstance(value, list) and value:
            yield f"{indent}- {name}:"
            yield from (f"{indent}  - {_cell(str(item))}" for item in value)
        else:
            yield f"{indent}- {name}: {_cell(str(value))}"


def main() -> int:
    """Runs the stages; returns the exit status."""
    arguments = _arguments()
    results = Results(arguments.out)
    run_stages(arguments, results)
    print(f"\n{results.page()}")
    statuses = {record.status for _, record in results.records.values()}
    return 1 if "failed" in statuses else 0 if "done" in statuses else 2


def run_stages(arguments: argparse.Namespace, results: Results) -> None:
    """Runs the chosen stages, and keeps the result of each at once."""
    bundle, work = arguments.bundle.resolve(), (arguments.work or arguments.out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = unpack(bundle, MODELS, work / "models")
    if models is None:
        raise SystemExit(f"{arguments.bundle}: expected a folder of benchmarks.gpu.bundle, but {MODELS} is not in it")
    session = Session(work, minutes=arguments.minutes, names={str(bundle): "BUNDLE"})
    common = {
        "bundle": str(bundle), "work": str(work), "models": str(models), "rehearse": arguments.rehearse,
        "seconds": arguments.seconds, "onnx": str(models / "model.onnx"), "frames": str(models / "frames.npz"),
    }  # fmt: skip
    for stage in STAGES:
        if not _is_chosen(stage, arguments.stage):
            continue
        if arguments.skip_done and results.is_done(stage.key):
            print(f"done before      {stage.key} {stage.title}", flush=True)
            continue
        asked = {**common, **stage.request}
        results.add(stage.key, session.child(stage.title, stage.step, asked, limit_s=stage.limit_s))


def _is_chosen(stage: Stage, chosen: Sequence[str]) -> bool:
    return not chosen or any(stage.key.startswith(key.upper()) for key in chosen)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="FOLDER", help="made by benchmarks.gpu.bundle")
    parser.add_argument(
        "--stage", action="append", default=[], type=_stage, metavar="A|A1|...", help="only these; may be repeated"
    )
    parser.add_argument("--skip-done", action="store_true", help="leave out what an earlier call into --out has done")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help="results (gpu-check)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for unpacked files (default: work in --out)")
    parser.add_argument("--minutes", type=float, default=60, help="time for all stages (60)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each measurement (1)")
    parser.add_argument("--rehearse", action="store_true", help="on the tests' stand-in, without a GPU")
    return parser.parse_args()


def _stage(text: str) -> str:
    keys = [stage.key for stage in STAGES]
    if not any(key.startswith(text.upper()) for key in keys):
        raise argparse.ArgumentTypeError(f"expected a letter or one of {', '.join(keys)}, got {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())

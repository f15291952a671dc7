"""The report of a build, `model.engine.build.json` beside the engine: options, tries, phases, and the library's log."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgerpn import files, settings
from edgerpn.export.engine.libraries import BuildEnvironment
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.engine.process import BuildOutcome

NUM_QUOTED = 3
"""Errors of the library that an error of ours quotes."""

HINTS: tuple[tuple[str, str], ...] = (
    (
        r"insufficient workspace|within workspace limit",
        "give the builder more room: a larger workspace (--set workspace_mib=N), or no limit",
    ),
    (r"NonMaxSuppression|NonZero", "export with the portable NMS: edgerpn export --target tensorrt or tensorrt-rtx"),
    (
        r"no runners that implement|Plugin not found",
        "list the limits of this library: edgerpn check model.onnx --target",
    ),
    (
        r"driver version is insufficient|no CUDA-capable device|cudaError(No|Insufficient)|cudaError 35|"
        "CUDA initialization failure",
        "the library needs a GPU for this, or a newer NVIDIA driver: see nvidia-smi",
    ),
    (
        r"libnvinfer_lean",
        "version-compatible engines need TensorRT's lean runtime: install it, or leave the option out",
    ),
    (r"[Nn]o space left on device", "make room on the disk"),
)
"""Patterns of the libraries' messages, and advice; all that match are shown."""


def report_path(output: Path) -> Path:
    """Path of the report of a build: model.engine.build.json for model.engine."""
    return Path(f"{output}.build.json")


def is_report(file: Path) -> bool:
    """Returns whether a file is the report of a build."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "result" in values and "tries" in values


@dataclass(slots=True)
class BuildReport:
    """The course of one build; `to_dict` is the content of the file."""

    onnx: Path
    """File that is built from."""
    engine: Path
    """File to write."""
    onnx_sha256: str
    """Hash of the ONNX file."""
    environment: BuildEnvironment
    """Library and machine, as the child process found them."""
    config: BuildConfig
    """Options as the user set them."""
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""
    tries: list[tuple[BuildConfig, BuildOutcome]] = field(default_factory=list)
    """Options and outcome of each try."""
    notes: list[str] = field(default_factory=list)
    """Lines that were printed for people."""

    def note(self, line: str, log: Callable[[str], None]) -> None:
        """Prints a line by `log`, and keeps it."""
        self.notes.append(line)
        log(line)

    def to_dict(self, error: str | None) -> dict[str, Any]:
        """Plain values for JSON; `error` is that of a failed build."""
        last = self.tries[-1][1] if self.tries else BuildOutcome()
        return {
            "result": "failed" if error else "built",
            "error": error,
            "onnx": str(self.onnx),
            "onnx_sha256": self.onnx_sha256,
            "engine": str(self.engine),
            "started": self.started,
            "library": self.environment.library,
            "version": self.environment.version,
            "cuda": self.environment.cuda,
            "machine": dataclasses.asdict(self.environment.machine),
            "options": settings.to_dict(self.config),
            "notes": self.notes,
            "tries": [_try(config, outcome) for config, outcome in self.tries],
            "phases_s": last.events.get("phases", {}).get("seconds", {}),
            "layers": last.events.get("layers", {}).get("layers", []),
            "log": last.log.lines(),
            "num_log_lines": last.log.num_lines,
            "printed": last.printed,
        }

    def write(self, path: Path, error: str | None = None) -> None:
        """Writes the file in one step."""
        files.write_text(path, json.dumps(self.to_dict(error), indent=2) + "\n")


def _try(config: BuildConfig, outcome: BuildOutcome) -> dict[str, Any]:
    built = outcome.events.get("built", {})
    return {
        "workspace_mib": config.workspace_mib,
        "optimization_level": config.optimization_level,
        "result": "built" if built else outcome.describe_end(),
        "build_s": built.get("build_s"),
        "peak_mib": built.get("peak_mib"),
        "errors": outcome.log.complaints(NUM_QUOTED),
    }


def note_omissions(report: BuildReport, outcome: BuildOutcome, log: Callable[[str], None]) -> None:
    """Notes the parts of a finished build that failed or were left out beside its engine."""
    for kind in ("timing_cache", "layers"):
        note = outcome.events.get(kind, {}).get("note")
        if note:
            report.note(note, log)
    if report.config.profile and report.environment.machine.gpu is None:
        report.note("the layers were not timed (--profile): there is no NVIDIA GPU or driver here", log)


def explain(outcome: BuildOutcome) -> str:
    """Explains a failed try on several lines: its end, the last errors of the library, and advice."""
    quoted = [line[:500] for line in outcome.log.complaints(NUM_QUOTED)]
    if not quoted and outcome.status < 0:
        quoted = outcome.printed.splitlines()[-NUM_QUOTED:]
    text = "\n".join((*quoted, outcome.describe_end(), outcome.printed))
    hints = [hint for pattern, hint in HINTS if re.search(pattern, text)]
    if outcome.stalled_s is not None:
        hints.append(
            "build it again, because such a hang may not return; if it does, try another version of the library or the "
            "driver; --set stall_s=N allows N seconds, and 0 turns the watchdog off"
        )
    if outcome.is_out_of_memory:
        hints.append(
            "close other programs, set a smaller workspace_mib or optimization_level, or build a smaller batch"
        )
    lines = [outcome.describe_end()]
    lines += [f"  the library says: {line}" for line in dict.fromkeys(quoted) if line not in lines[0]]
    return "\n".join((*lines, *(f"  {hint}" for hint in dict.fromkeys(hints))))

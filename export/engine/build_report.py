"""The report of a build, `model.engine.build.json` beside the engine: options, tries, phases, and the library's log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgerpn import files, settings
from edgerpn.export.engine.build_config import BuildConfig
from edgerpn.export.engine.child import Outcome

NUM_QUOTED = 3
"""Errors of the library that an error of ours quotes."""

# What the libraries say, and what to do; every one that fits is told.
HINTS: tuple[tuple[str, str], ...] = (
    (
        r"insufficient workspace|within workspace limit",
        "give the builder more room: a larger workspace (--set workspace_mib=N), or none",
    ),
    (r"NonMaxSuppression|NonZero", "export with the portable NMS: edgerpn export --target tensorrt or tensorrt-rtx"),
    (
        r"no runners that implement|Plugin not found",
        "see what this library cannot do: edgerpn check model.onnx --target",
    ),
    (
        r"driver version is insufficient|no CUDA-capable device|cudaError(No|Insufficient)|cudaError 35",
        "the library wants a GPU for this, or a newer NVIDIA driver: look at nvidia-smi",
    ),
    (
        r"libnvinfer_lean",
        "version-compatible engines need TensorRT's lean runtime: install it, or leave the option out",
    ),
    (r"[Nn]o space left on device", "make room on the disk"),
)


@dataclass(slots=True)
class BuildReport:
    """What one build did; `to_dict` is what the file holds."""

    onnx: Path
    """What it was built from."""
    engine: Path
    """What it was to write."""
    onnx_sha256: str
    """Hash of the ONNX file."""
    probed: dict[str, Any]
    """Library, version, CUDA and machine, as the child process found them."""
    config: BuildConfig
    """Options as asked for."""
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""
    tries: list[tuple[BuildConfig, Outcome]] = field(default_factory=list)
    """What was tried, and how each try ended."""
    notes: list[str] = field(default_factory=list)
    """What people were told."""

    def tell(self, line: str, say: Callable[[str], None]) -> None:
        """Tells people a line, and keeps it."""
        self.notes.append(line)
        say(line)

    def to_dict(self, error: str | None) -> dict[str, Any]:
        """Plain values, ready for JSON; `error` is that of a failed build."""
        last = self.tries[-1][1] if self.tries else Outcome()
        return {
            "result": "failed" if error else "built",
            "error": error,
            "onnx": str(self.onnx),
            "onnx_sha256": self.onnx_sha256,
            "engine": str(self.engine),
            "started": self.started,
            **{key: self.probed[key] for key in ("library", "version", "cuda", "machine")},
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


def _try(config: BuildConfig, outcome: Outcome) -> dict[str, Any]:
    built = outcome.events.get("built", {})
    return {
        "workspace_mib": config.workspace_mib,
        "optimization_level": config.optimization_level,
        "result": "built" if built else outcome.describe_end(),
        "build_s": built.get("build_s"),
        "peak_mib": built.get("peak_mib"),
        "errors": outcome.log.complaints(NUM_QUOTED),
    }


def tell_notes(report: BuildReport, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Tells what a finished build could not do beside its engine."""
    for kind in ("timing_cache", "layers"):
        note = outcome.events.get(kind, {}).get("note")
        if note:
            report.tell(note, say)
    if report.config.profile and report.probed["machine"]["gpu"] is None:
        report.tell("the layers were not timed (--profile): there is no NVIDIA GPU or driver here", say)


def explain(outcome: Outcome) -> str:
    """Why a try failed, with the last errors of the library and what to do, on several lines."""
    quoted = [line[:500] for line in outcome.log.complaints(NUM_QUOTED)]
    if not quoted and outcome.status < 0:
        quoted = outcome.printed.splitlines()[-NUM_QUOTED:]
    said = "\n".join((*quoted, outcome.describe_end(), outcome.printed))
    hints = [hint for pattern, hint in HINTS if re.search(pattern, said)]
    if outcome.stood_still_s is not None:
        hints.append(
            "build it again, for such a hang need not come back; if it does, try another version of the library or the "
            "driver; --set stall_s=N allows N seconds, 0 any time"
        )
    if outcome.is_out_of_memory:
        hints.append(
            "close other programs, set a smaller workspace_mib or optimization_level, or build a smaller batch"
        )
    lines = [outcome.describe_end()]
    lines += [f"  the library says: {line}" for line in dict.fromkeys(quoted) if line not in lines[0]]
    return "\n".join((*lines, *(f"  {hint}" for hint in dict.fromkeys(hints))))

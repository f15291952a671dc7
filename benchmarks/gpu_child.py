"""One step of `gpu_check.py` in a process of its own: `python gpu_child.py STEP REQUEST.json RESULT.json`.

A step is a function that takes the request and a `Notes`, and notes figures as it goes, so that those before a crash
are not lost. A missing package, or `Skip`, makes it skipped; an error, or `Notes.broken`, makes it failed.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.errors import EdgeRpnError, MissingDependencyError

STEPS = {
    "hardware": "gpu_hardware",
    "acceptance": "gpu_hardware",
    "clocks": "gpu_hardware",
    "prepare": "gpu_models",
    "cut": "gpu_stage",
    "stage": "gpu_stage",
    "engine": "gpu_engine",
    "runner": "gpu_runner",
    "streams": "gpu_runner",
    "pytorch": "gpu_peers",
    "onnxruntime": "gpu_peers",
}
"""Name of each step, which is that of its function, and its module."""


class Skip(Exception):  # noqa: N818 - no error: the step has nothing to do here
    """The step cannot be done here; the message says why."""


class Notes:
    """Figures of a step, written to a file with every change."""

    def __init__(self, file: Path) -> None:
        """Writes that the step is running."""
        self._file = file
        self._content: dict[str, Any] = {}
        self._broken: list[str] = []
        self.end("running")

    def __call__(self, **figures: Any) -> None:
        """Keeps figures."""
        self._content.update(figures)
        self._write()

    def broken(self, text: str) -> None:
        """Says that something that must be so is not; the step goes on, and ends as failed."""
        self._broken.append(text)

    def end(self, status: str, reason: str = "") -> None:
        """Says how the step ended."""
        if status == "done" and self._broken:
            status, reason = "failed", "; ".join(self._broken)
        self._content |= {"status": status, "reason": reason}
        self._write()

    def _write(self) -> None:
        files.write_text(self._file, json.dumps(self._content))


def main() -> int:
    """Runs the step; returns the exit status: 0 also when it was skipped, or failed in an orderly way."""
    step, request, result = sys.argv[1:]
    notes = Notes(Path(result))
    try:
        function = getattr(importlib.import_module(STEPS[step]), step)
        function(json.loads(Path(request).read_text(encoding="utf-8")), notes)
    except ModuleNotFoundError as error:
        notes.end("skipped", f"the Python module {error.name} is not installed here")
    except (Skip, MissingDependencyError) as error:
        notes.end("skipped", str(error))
    except EdgeRpnError as error:
        notes.end("failed", f"{type(error).__name__}: {error}")
    else:
        notes.end("done")
    return 0


if __name__ == "__main__":
    # The steps import `Skip` from this file by its name, and mean the same class.
    sys.modules["gpu_child"] = sys.modules["__main__"]
    sys.exit(main())

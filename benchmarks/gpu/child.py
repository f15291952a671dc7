"""The process of one step: `python -m benchmarks.gpu.child STEP REQUEST.json RESULT.json`.

A step is a function of a request and a `Notes`. A missing package or `Skip` makes it skipped, an error or
`Notes.broken` makes it failed.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.session import Notes, Skip
from edgerpn.errors import EdgeRpnError, MissingDependencyError

STEPS = {
    "hardware": "hardware",
    "acceptance": "hardware",
    "clocks": "hardware",
    "driver": "driver",
    "ring": "ring",
    "threads": "ring",
    "arrays": "ring",
    "detector": "detector",
    "nms": "detector",
    "pytorch": "detector",
    "validity": "rtx",
    "parity": "rtx",
    "share": "rtx",
    "runtime": "rtx",
    "describe": "bundle",
    "prepare": "models",
    "cut": "engine",
    "network": "engine",
    "stage": "engine",
    "engine": "engine",
    "runner": "runner",
    "streams": "runner",
    "onnxruntime": "runner",
}
"""Module of each step; the step and its function have the same name."""


def main() -> int:
    """Runs the step; returns 0, also if it was skipped or failed with an error of ours."""
    step, request, result = sys.argv[1:]
    notes, asked = Notes(Path(result)), json.loads(Path(request).read_text(encoding="utf-8"))
    # Works in a deadlock too: it does not need Python's global lock.
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.4 * asked["limit_s"], repeat=True)
    try:
        function = getattr(importlib.import_module(f"benchmarks.gpu.{STEPS[step]}"), step)
        function(asked, notes)
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
    sys.exit(main())

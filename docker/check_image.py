"""A step of the image builds: every module of the runtime imports, and OpenCV reads GStreamer where it must.

    python3 check_image.py [--gstreamer]

Without a GPU: no driver is needed, since the runtime opens none when it is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import edgerpn.runtime
from edgerpn.errors import MissingDependencyError

OPTIONAL = {"cuda", "paho", "prometheus_client", "pycuda", "starlette", "uvicorn"}
"""Packages that an image may lack: the modules that need them are for settings that ask for them."""


def main() -> int:
    """Imports and checks; returns 1 with the reasons when something is wrong."""
    modules = [found.name for found in pkgutil.walk_packages(edgerpn.runtime.__path__, "edgerpn.runtime.")]
    problems = [problem for problem in map(problem_of, modules) if problem]
    if "--gstreamer" in sys.argv[1:]:
        import cv2

        lines = [line.strip() for line in cv2.getBuildInformation().splitlines() if "GStreamer" in line]
        if not any("YES" in line for line in lines):
            problems.append(f"OpenCV {cv2.__version__} in {cv2.__file__} has no GStreamer: {lines or 'not named'}")
    print(*problems, f"{len(modules)} modules, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


def problem_of(module: str) -> str:
    """Returns the reason why a module does not import; "" if it does, or needs an optional package."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        cause = error.__cause__ if isinstance(error, MissingDependencyError) else error
        missing = getattr(cause, "name", None) or ""
        return "" if missing.partition(".")[0] in OPTIONAL else f"{module}: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())

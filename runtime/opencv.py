"""The one place that imports OpenCV."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from edgerpn.errors import MissingDependencyError, numpy_remedy, require


def load_cv2() -> ModuleType:
    """Imports cv2.

    Silences the logs of FFmpeg and OpenCV, which can hold whole URLs with passwords; set OPENCV_FFMPEG_LOGLEVEL or
    OPENCV_LOG_LEVEL to see them.

    Raises:
        MissingDependencyError: OpenCV is not installed, or does not import; says how to install it.
    """
    # cv2 reads both once, when it starts.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        return require("cv2", extra="opencv-headless", purpose="reading frames")
    except MissingDependencyError as error:
        if numpy_remedy(error):
            raise
        raise MissingDependencyError(
            f"{error} That is for a PC. On a Jetson keep the system's OpenCV, which has GStreamer and the camera "
            "drivers: sudo apt install python3-opencv, and make the virtual environment with "
            "python3 -m venv --system-site-packages."
        ) from error


@contextmanager
def single_threaded() -> Iterator[None]:
    """Runs OpenCV in the caller's threads: waking its own for one small resize costs more than it gains.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    cv2 = load_cv2()
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(num_threads)


def has_windows(cv2: ModuleType) -> bool:
    """Returns whether this build of OpenCV opens windows."""
    found = re.search(r"^\s*GUI:\s*(\w+)", cv2.getBuildInformation(), re.MULTILINE)
    return found is not None and found.group(1) != "NONE"

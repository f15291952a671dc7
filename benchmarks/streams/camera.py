"""Starts and ends the RTSP camera of `camera_server.py`, and makes the pictures that it shows."""

from __future__ import annotations

import select
import subprocess
from pathlib import Path
from types import TracebackType

import cv2

from benchmarks.streams.stamp import MIN_SIZE_WH

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)
NUM_PICTURES = 50
_SERVER = "benchmarks.streams.camera_server"
_START_S = 30.0


class Camera:
    """An RTSP camera that can be killed and started again on the same port."""

    def __init__(self, pictures: Path, size_wh: tuple[int, int], fps: float) -> None:
        """Starts it.

        Args:
            pictures: Raw pictures, from `make_pictures`.
            size_wh: Their size, pixels.
            fps: Pictures a second.
        """
        self.fps = fps
        self._words = [
            *_words(),
            "--pictures",
            str(pictures),
            "--size",
            f"{size_wh[0]}x{size_wh[1]}",
            "--fps",
            str(fps),
        ]
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self._port}/cam"

    @property
    def pid(self) -> int:
        """Number of its process; 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Starts it, on the port of before.

        Raises:
            RuntimeError: It does not start.
        """
        self._process = subprocess.Popen(
            [*self._words, "--port", str(self._port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        is_ready = select.select([self._process.stdout], [], [], _START_S)[0]
        word, _, port = (self._process.stdout.readline() if is_ready else "").partition(" ")
        if word != "ready":
            self.kill()
            raise RuntimeError(f"{_SERVER} did not start within {_START_S:g} s")
        self._port = int(port)

    def kill(self) -> None:
        """Ends it like a power cut."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def why_not() -> str:
    """Returns the reason why no RTSP camera can start here; empty: one can."""
    try:
        done = subprocess.run([*_words(), "--check"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no RTSP server: {error}"
    lines = done.stderr.strip().splitlines()
    return f"no RTSP server ({lines[-1]}); apt-get install {PACKAGES}" if done.returncode else ""


def make_pictures(video: str, folder: Path, size_wh: tuple[int, int]) -> Path:
    """The first pictures of a video, raw and of another size.

    Raises:
        SystemExit: There is none, or the size does not suit H.264 and the stamp.
    """
    width, height = size_wh
    if width % 8 or height % 2 or width < MIN_SIZE_WH[0] or height < MIN_SIZE_WH[1]:
        least = "x".join(map(str, MIN_SIZE_WH))
        raise SystemExit(f"--camera-size {width}x{height}: expected {least} or more, multiples of 8 and 2")
    path = folder / f"pictures-{width}x{height}.i420"
    capture = cv2.VideoCapture(video)
    with path.open("wb") as file:
        for _ in range(NUM_PICTURES):
            is_there, picture = capture.read()
            if not is_there:
                break
            small = cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)
            file.write(cv2.cvtColor(small, cv2.COLOR_BGR2YUV_I420).tobytes())
    capture.release()
    if not path.stat().st_size:
        raise SystemExit(f"--source {video}: no picture can be read")
    return path


def _words() -> list[str]:
    # Its Python may be one that must not write beside the sources.
    return [SYSTEM_PYTHON, "-B", "-m", _SERVER]

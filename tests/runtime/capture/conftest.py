"""A local RTSP camera, a proxy that spoils its connection, and a player that waits for what should happen."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.runtime.capture import Capture, CaptureConfig, CapturedFrame, CaptureEvent, CaptureGroup, open_capture

STREAMS = Path(__file__).resolve().parents[2] / "streams"
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)
QUICK = {
    "gap_s": 0.4,
    "stall_s": 1.0,
    "open_timeout_s": 4.0,
    "backoff_first_s": 0.2,
    "backoff_max_s": 0.8,
    "healthy_s": 1.0,
}
"""Patience of a test; a recovery may then take backoff_max_s + 2 s."""

RECOVERY_S = QUICK["backoff_max_s"] + 2.0

_CHECK = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
names = ("x264enc", "rtph264pay", "videotestsrc", "jpegenc")
missing = [name for name in names if Gst.ElementFactory.find(name) is None]
raise SystemExit(f"missing elements: {missing}" if missing else 0)
"""


def load_module(path: Path) -> Any:
    """A helper beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


FaultProxy = load_module(STREAMS / "fault_proxy.py").FaultProxy
MjpegCamera = load_module(STREAMS / "mjpeg_server.py").MjpegCamera


class RtspCamera:
    """The process of `tests/streams/rtsp_server.py`."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.port = 0
        self.start()

    def start(self, **changes: Any) -> None:
        """Starts it, on the port of before."""
        self.options |= changes
        options = [text for key, value in self.options.items() for text in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, str(STREAMS / "rtsp_server.py"), "--port", str(self.port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], "the RTSP server does not start"
        word, _, port = self.process.stdout.readline().partition(" ")
        assert word == "ready"
        self.port = int(port)

    def command(self, text: str) -> None:
        """Gives a command; see the server."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Ends it like a power cut."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Player:
    """Takes everything from a capture, with the time at which it came."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.events: list[CaptureEvent] = []
        self.num_frames = 0

    def until(self, is_it: Callable[[CapturedFrame | CaptureEvent], bool], timeout_s: float) -> Any:
        """The first item that fits, and how long it took; fails when it does not come in time."""
        start_s = time.monotonic()
        while (left_s := start_s + timeout_s - time.monotonic()) > 0:
            item = self.capture.take(left_s)
            if isinstance(item, CaptureEvent):
                self.events.append(item)
            elif item is not None:
                self.num_frames += 1
            if item is not None and is_it(item):
                return item, time.monotonic() - start_s
            if item is None and self.capture.is_exhausted:
                break
        told = "\n".join(f"  {event.kind} {event.reason}: {event.message}" for event in self.events)
        raise AssertionError(
            f"it did not come within {timeout_s} s; {self.num_frames} frames and these events:\n{told}"
        )

    def event(self, kind: str, timeout_s: float = 8.0) -> Any:
        """The next event of a kind."""
        return self.until(lambda item: isinstance(item, CaptureEvent) and item.kind == kind, timeout_s)[0]

    def frame(self, timeout_s: float = 8.0) -> Any:
        """The next frame, and how long it took."""
        return self.until(lambda item: isinstance(item, CapturedFrame), timeout_s)

    def fresh_frame(self, timeout_s: float = RECOVERY_S) -> float:
        """Waits for a frame that is taken from now on; how long that took."""
        now_s = time.monotonic()
        return self.until(lambda item: isinstance(item, CapturedFrame) and item.monotonic_s > now_s, timeout_s)[1]

    def frames_for(self, seconds: float) -> list[tuple[int, Any, Any, int, tuple[int, ...]]]:
        """Index, media time, lag, drops and shape of the frames of the next seconds, without their pictures."""
        frames = []
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            item = self.capture.take(left_s)
            if isinstance(item, CaptureEvent):
                self.events.append(item)
            elif item is not None:
                frames.append((item.index, item.media_time_s, item.lag_ms, item.num_dropped, item.image.shape))
        return frames

    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [event.kind for event in self.events]


@pytest.fixture(scope="session")
def rtsp_packages() -> None:
    """Skips where the RTSP server cannot run, or fails if EDGERPN_REQUIRE_RTSP=1."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", _CHECK], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem and os.environ.get("EDGERPN_REQUIRE_RTSP") == "1":
        pytest.fail(f"EDGERPN_REQUIRE_RTSP=1, but the RTSP server cannot run: {problem}")
    if problem:
        pytest.skip(f"the RTSP server cannot run here ({problem}); apt-get install {PACKAGES}")


@pytest.fixture
def make_camera(rtsp_packages: None) -> Iterator[Callable[..., RtspCamera]]:
    """Starts RTSP cameras."""
    cameras: list[RtspCamera] = []

    def make(**options: Any) -> RtspCamera:
        cameras.append(RtspCamera(**options))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.kill()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Any]]:
    """Starts proxies that can spoil a connection."""
    proxies: list[Any] = []

    def make(port: int) -> Any:
        proxies.append(FaultProxy(port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.__exit__()


@pytest.fixture
def play() -> Iterator[Callable[..., Player]]:
    """Starts captures with little patience."""
    captures: list[Capture] = []

    def start(source: str, **settings: Any) -> Player:
        captures.append(open_capture(CaptureConfig(source=source, **{**QUICK, **settings})))
        return Player(captures[-1])

    yield start
    for capture in captures:
        capture.close()


@pytest.fixture
def make_mjpeg() -> Iterator[Callable[..., Any]]:
    """Starts cameras that serve pictures over HTTP."""
    cameras: list[Any] = []

    def make(**options: Any) -> Any:
        cameras.append(MjpegCamera(**options))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.__exit__()


@pytest.fixture
def make_group() -> Iterator[Callable[[], CaptureGroup]]:
    """Makes groups, and closes them."""
    groups: list[CaptureGroup] = []

    def make() -> CaptureGroup:
        groups.append(CaptureGroup())
        return groups[-1]

    yield make
    for group in groups:
        group.close()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless video of 60 frames, 96x64 at 25 per second; every pixel of frame i is 4 i."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, (96, 64))
    assert writer.isOpened()
    for index in range(60):
        writer.write(np.full((64, 96, 3), 4 * index, np.uint8))
    writer.release()
    return path


@pytest.fixture
def recovery_s() -> float:
    """Seconds within which frames must be back after a fault is gone."""
    return RECOVERY_S


@pytest.fixture
def quick() -> dict[str, Any]:
    """Settings with little patience."""
    return dict(QUICK)

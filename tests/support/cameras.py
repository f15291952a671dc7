"""Cameras and faulty networks as fixtures, which conftest files import."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.mjpeg_server import MjpegCamera

STREAMS = Path(__file__).resolve().parent
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)

QUICK = {
    "gap_s": 0.5,
    "stall_s": 2.0,
    "open_timeout_s": 6.0,
    "backoff_first_s": 0.2,
    "backoff_max_s": 0.8,
    "healthy_s": 1.0,
}
"""Short limits for cameras in tests."""

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


class RtspCamera:
    """The process of `rtsp_server.py`."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.port = 0
        self.start()

    def start(self, **changes: Any) -> None:
        """Starts the server, on its earlier port."""
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
        """Sends a command of `rtsp_server.py`."""
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


@pytest.fixture(scope="module")
def camera(rtsp_packages: None) -> Iterator[RtspCamera]:
    """An RTSP camera that the tests of a module share; it must not be changed."""
    shared = RtspCamera(gop=10)
    yield shared
    shared.kill()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Any]]:
    """Starts proxies that can disturb a connection."""
    proxies: list[Any] = []

    def make(port: int) -> Any:
        proxies.append(FaultProxy(port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.__exit__()


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

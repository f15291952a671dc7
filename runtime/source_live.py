"""Sources that do not wait for us: cameras, network streams and GStreamer pipelines. The newest frame wins."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from edgerpn.errors import StreamOpenError, StreamStalledError
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.source_files import FrameReader, open_capture

OPEN_TIMEOUT_S = 10.0
"""Seconds that a connection may take."""

STALL_S = 10.0
"""Seconds without a frame after which a live source counts as stalled."""

_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935}
_environment_lock = threading.Lock()
_logger = logging.getLogger(__name__)


class LiveSource:
    """A capture that a thread empties as fast as frames come; see `Source`.

    With `is_live` False (a GStreamer pipeline or a URL that plays a file) nothing is dropped: the thread waits
    until its frame has been taken.
    """

    is_images = False

    def __init__(self, cv2: ModuleType, capture: Any, *, name: str, is_live: bool, stall_s: float = STALL_S) -> None:
        """Takes over `capture`, which must be open, and reads its first frame.

        Raises:
            StreamOpenError: It opened but gives no frame.
        """
        self.name = name
        self.is_live = is_live
        self.drops = 0
        self._capture = capture
        self._stall_s = stall_s
        self._reader = FrameReader(cv2, capture, name=name, counts_time=not is_live)
        self.fps = self._reader.fps
        self.num_frames = None if is_live else self._reader.num_frames
        self._changed = threading.Condition()
        self._stop = False
        self._has_ended = False
        self._ended_after_s = 0.0
        self._failure: BaseException | None = None
        self._latest: Frame | None = self._reader.read()
        if self._latest is None:
            capture.release()
            raise StreamOpenError(f"{name}: opened, but it gives no picture (wrong path, codec, or a busy camera)")
        self._thread = threading.Thread(target=self._capture_frames, name="edgerpn-capture", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame | Event]:
        """Gives the newest frame each time.

        Raises:
            StreamStalledError: No frame came for `stall_s` seconds.
        """
        while (frame := self._take()) is not None:
            yield frame
        if not self._stop:
            message = f"{self.name}: the stream ended"
            yield Event(kind="ended", source=self.name, message=message, captured_at=time.time())

    def close(self) -> None:
        """Ends the iteration and the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        # A read that blocks cannot be interrupted: the daemon thread is then left behind, and releases the capture
        # itself should it ever come back.
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():
            _logger.warning("%s: the capture is blocked; left to end on its own", self.name)

    def _take(self) -> Frame | None:
        deadline = time.monotonic() + self._stall_s
        with self._changed:
            while self._latest is None and not self._stop and not self._has_ended:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise self._stalled(self._stall_s)
                self._changed.wait(remaining)
            if self._stop:
                return None
            frame, self._latest = self._latest, None
            self._changed.notify_all()
            if frame is None and self._failure is not None:
                raise self._failure
            if frame is None and self._ended_after_s >= self._stall_s * 0.9:
                # OpenCV reports a time-out and the end of a stream alike; the waiting tells them apart.
                raise self._stalled(self._ended_after_s)
            return frame

    def _stalled(self, waited_s: float) -> StreamStalledError:
        return StreamStalledError(
            f"{self.name}: no frame for {waited_s:.0f} s. The camera or the network is down or overloaded; run it again"
            " when it is back."
        )

    def _capture_frames(self) -> None:
        try:
            while not self._stop:
                start = time.monotonic()
                frame = self._reader.read()
                if frame is None:
                    self._ended_after_s = time.monotonic() - start
                    return
                self._put(frame)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that iterates
            self._failure = error
        finally:
            self._capture.release()
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _put(self, frame: Frame) -> None:
        with self._changed:
            while not self.is_live and self._latest is not None and not self._stop:
                self._changed.wait()
            if self._latest is not None:
                self.drops += 1
            self._latest = frame
            self._changed.notify_all()


def open_camera(index: int) -> LiveSource:
    """Opens /dev/video`index` (elsewhere than on Linux: the camera of that number)."""
    name = f"/dev/video{index}" if sys.platform == "linux" else f"camera {index}"
    if sys.platform == "linux" and not Path(name).exists():
        others = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise StreamOpenError(f"{name}: no such camera; cameras here: {others}")
    cv2 = load_cv2()
    capture = cv2.VideoCapture(index, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if not capture.isOpened():
        raise StreamOpenError(
            f"{name}: cannot be opened. Another program may be using it, this user may lack the group 'video', or it "
            "is not a capture device (many cameras have a second one for metadata)."
        )
    # One frame in the driver is enough, because ours is the newest-frame buffer.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return LiveSource(cv2, capture, name=name, is_live=True)


def open_url(url: str, name: str, *, open_timeout_s: float = OPEN_TIMEOUT_S, stall_s: float = STALL_S) -> LiveSource:
    """Opens a network stream; RTSP goes over TCP unless OPENCV_FFMPEG_CAPTURE_OPTIONS says otherwise.

    Args:
        url: With its credentials.
        name: Without them; the only form that is ever shown.
        open_timeout_s: Seconds that connecting may take.
        stall_s: Seconds without a frame after which the stream counts as stalled.
    """
    cv2 = load_cv2()
    timeouts = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(open_timeout_s * 1e3)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(stall_s * 1e3)),
    ]
    with _ffmpeg_options("rtsp_transport;tcp" if url.lower().startswith("rtsp") else None):
        capture = open_capture(cv2, url, timeouts)
    if not capture.isOpened():
        raise StreamOpenError(f"{name}: {_why_unreachable(url)}")
    # A server that knows the number of frames serves a file, which can wait.
    is_live = FrameReader(cv2, capture, name=name).num_frames is None
    return LiveSource(cv2, capture, name=name, is_live=is_live, stall_s=stall_s)


def open_gstreamer(pipeline: str, name: str) -> LiveSource:
    """Opens a GStreamer pipeline that ends in appsink; one with a filesrc never drops frames."""
    cv2 = load_cv2()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise StreamOpenError(
            f"{name}: this OpenCV ({cv2.__version__}) is built without GStreamer, as all OpenCV packages of PyPI "
            "are. Use the system's OpenCV (sudo apt install python3-opencv) in a virtual environment made with "
            "--system-site-packages, and uninstall opencv-python there."
        )
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        hint = "" if "appsink" in pipeline else " It must end in: ! videoconvert ! video/x-raw,format=BGR ! appsink"
        raise StreamOpenError(f"{name}: GStreamer cannot start this pipeline.{hint} Try it with gst-launch-1.0.")
    return LiveSource(cv2, capture, name=name, is_live="filesrc" not in pipeline)


@contextmanager
def _ffmpeg_options(options: str | None) -> Iterator[None]:
    """Sets OpenCV's options for FFmpeg while a stream is opened, unless the user has set them."""
    if options is None or _FFMPEG_OPTIONS in os.environ:
        yield
        return
    with _environment_lock:
        os.environ[_FFMPEG_OPTIONS] = options
        try:
            yield
        finally:
            os.environ.pop(_FFMPEG_OPTIONS, None)


def _why_unreachable(url: str) -> str:
    """What is wrong with a stream that did not open, found out by knocking at its port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme.lower())
    except ValueError:
        # The error's own text may hold a part of the password.
        return "not a valid URL; odd characters in a password must be percent-encoded"
    if "@" in url.split("://", 1)[-1].partition("@")[2]:
        return "the URL holds more than one @; the characters @ / # ? in a password must be percent-encoded (@ is %40)"
    if not host or not port or parts.scheme.lower() in ("udp", "rtp", "srt"):
        return "no video arrived there in time"
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except socket.gaierror:
        return "the host name is unknown here (a typing error, or no network)"
    except ConnectionRefusedError:
        return f"the host refuses connections to port {port} (wrong port, or the camera's server is off)"
    except (TimeoutError, socket.timeout):  # noqa: UP041 - two classes until Python 3.10
        return f"no answer from port {port} (camera off, wrong address, or a firewall)"
    except OSError as error:
        return f"cannot be reached: {error.strerror or 'network error'}"
    return f"port {port} answers, but gives no video: check the path, the user name and password, and the codec"

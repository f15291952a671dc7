"""Readers of frames inside a capture process, behind one interface."""

from __future__ import annotations

import os
import time
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerpn.files import native_path
from edgerpn.machine import available_cores
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.decoders import Choice, VideoFacts
from edgerpn.runtime.sources.failures import CaptureFailedError, check_device, probe_address
from edgerpn.runtime.sources.pipelines import Codec

Image = npt.NDArray[np.uint8]

# As FFmpeg tags them: of containers, of streams, and the types of MPEG transport streams.
_CODECS: dict[int, Codec] = {
    **{int.from_bytes(tag, "little"): "h264" for tag in (b"h264", b"H264", b"avc1", b"avc3")},
    **{int.from_bytes(tag, "little"): "h265" for tag in (b"hevc", b"HEVC", b"hvc1", b"hev1", b"H265")},
    **{int.from_bytes(tag, "little"): "mjpeg" for tag in (b"mjpe", b"MJPG", b"mjpg", b"jpeg")},
    0x1B: "h264",
    0x24: "h265",
}
# OpenCV's `grab` also fails for a damaged packet, and succeeds with the next one. After the end of a stream it fails at
# once each time.
_GRABS = 20
_GRABS_S = 1.0


class Reader(Protocol):
    """Reads one frame after the other; one thread uses it."""

    decoder: str
    """The decoder, and the reason for its choice."""
    fps: float
    """Frames per second as stated; 0: unknown."""
    num_frames: int
    """Frames in all; 0: unknown or endless."""
    is_live: bool
    """Whether the source continues while the run does not read it."""
    camera_hw: tuple[int, int] | None
    """Height and width of the camera's pictures, where hardware makes them smaller; None: it does not."""

    def grab(self) -> bool:
        """Waits for the next frame; returns False at the end."""
        ...

    def retrieve(self, into: Image | None) -> Image | None:
        """Decodes the grabbed frame, into `into` if the size fits.

        Returns:
            (H, W, 3) uint8 BGR, or (H, W, 4) BGRx where the settings allow it; None if it is broken.

        Raises:
            CaptureFailedError: The pictures have another type.
        """
        ...

    def media_time_s(self) -> float | None:
        """Returns the time stamp of the grabbed frame, seconds."""
        ...

    def close(self) -> None:
        """Closes file, device or connection."""
        ...


def plausible_rate(rate_hz: float) -> float:
    """Returns a stated rate, or 0: streams without one report 0, NaN or the 90 kHz clock of RTP."""
    return rate_hz if 0 < rate_hz <= 1000 else 0.0


class OpenCvReader:
    """Files, URLs, cameras and pipelines through `cv2.VideoCapture`; see `Reader`."""

    def __init__(self, cv2: ModuleType, config: CaptureConfig, choice: Choice) -> None:
        """Opens the source.

        Raises:
            CaptureFailedError: It does not open.
        """
        self._cv2 = cv2
        self._config = config
        kind = config.spec.kind
        start_s = time.monotonic()
        is_v4l2 = kind == "camera" and choice.decoder != "gstreamer"
        self._capture = _open_camera(cv2, config, choice) if is_v4l2 else _open(cv2, config, choice)
        if not self._capture.isOpened():
            raise _failed(config, time.monotonic() - start_s)
        self.fps = plausible_rate(float(self._capture.get(cv2.CAP_PROP_FPS)))
        count = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.num_frames = int(count) if 0 < count < 1e12 else 0
        has_file = kind == "path" or "filesrc" in choice.pipeline
        # A server that knows the number of frames serves a file, which waits for its reader.
        self.is_live = kind in ("camera", "csi") or not (has_file or self.num_frames)
        backend = self._capture.getBackendName()
        self.decoder = f"OpenCV {cv2.__version__} with {backend}: {choice.why}{self._granted(kind == 'camera')}"
        self.camera_hw = choice.camera_hw
        self._index = -1
        self._has_times = False

    def grab(self) -> bool:
        start_s = time.monotonic()
        for _ in range(_GRABS if self.is_live else 1):
            if self._capture.grab():
                self._index += 1
                return True
            if time.monotonic() - start_s > _GRABS_S:
                break
        return False

    def retrieve(self, into: Image | None) -> Image | None:
        ok, image = self._capture.retrieve(into)
        if not ok or image is None or not image.size:
            return None
        if image.dtype != np.uint8:
            message = f"the pictures are {image.dtype}, expected 8 bits a channel; let the source convert them"
            raise CaptureFailedError(message, reason="codec", is_final=True)
        if image.ndim == 2:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_GRAY2BGR)
        elif image.shape[2] == 4 and self._config.channels != "bgrx":
            # A pipeline of the user may end so.
            image = self._cv2.cvtColor(image, self._cv2.COLOR_BGRA2BGR)
        return image

    def media_time_s(self) -> float | None:
        """Returns the time stamp; frames of files without one get it from their number and the rate."""
        position_ms = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
        if position_ms > 0 or (self._has_times and self.is_live):
            self._has_times = True
            return position_ms / 1e3
        return None if self.is_live or not self.fps else self._index / self.fps

    def close(self) -> None:
        self._capture.release()

    def _granted(self, is_camera: bool) -> str:
        """Describes where the camera deviates from the requested settings."""
        if not is_camera:
            return ""
        get, cv2 = self._capture.get, self._cv2
        granted = (int(get(cv2.CAP_PROP_FRAME_WIDTH)), int(get(cv2.CAP_PROP_FRAME_HEIGHT)))
        asked = self._config.size_wh
        note = f"; {granted[0]}x{granted[1]} instead of {asked[0]}x{asked[1]}" if asked and asked != granted else ""
        if self._config.rate_hz and self.fps and abs(self._config.rate_hz - self.fps) > 0.5:
            note += f"; {self.fps:g} frames/s instead of {self._config.rate_hz:g}"
        return note


def _open(cv2: ModuleType, config: CaptureConfig, choice: Choice) -> Any:
    if config.spec.kind == "camera":
        check_device(config.spec)
    if choice.decoder == "gstreamer":
        return cv2.VideoCapture(choice.pipeline, cv2.CAP_GSTREAMER)
    if config.spec.kind == "path":
        threads = config.decoder_threads or max(1, available_cores() // 2)
        with native_path(config.spec.path) as path:
            return cv2.VideoCapture(path, cv2.CAP_FFMPEG, _num_threads(cv2, threads))
    # The parent's limits end first, which distinguishes a silent stream from an ended one.
    timeouts = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(config.longest_open_s * 1e3)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(config.longest_stall_s * 1e3) + 2000),
        *_num_threads(cv2, config.decoder_threads or 1),
    ]
    return cv2.VideoCapture(config.source, cv2.CAP_FFMPEG, timeouts)


def probe_video(cv2: ModuleType, config: CaptureConfig) -> VideoFacts:
    """Asks a URL or a file for its codec and size, by OpenCV's FFmpeg.

    Raises:
        CaptureFailedError: It does not open.
    """
    start_s = time.monotonic()
    capture = _open(cv2, config, Choice(decoder="ffmpeg", why=""))
    try:
        if not capture.isOpened():
            raise _failed(config, time.monotonic() - start_s)
        get = capture.get
        hw = int(get(cv2.CAP_PROP_FRAME_HEIGHT)), int(get(cv2.CAP_PROP_FRAME_WIDTH))
        # FFmpeg turns a film of a telephone, and hardware does not.
        is_known = min(hw) > 0 and not get(cv2.CAP_PROP_ORIENTATION_META)
        return VideoFacts(_CODECS.get(int(get(cv2.CAP_PROP_FOURCC))), hw if is_known else None)
    finally:
        capture.release()


def _num_threads(cv2: ModuleType, num_threads: int) -> list[int]:
    """Returns OpenCV's parameter, if this version has it."""
    return [cv2.CAP_PROP_N_THREADS, num_threads] if hasattr(cv2, "CAP_PROP_N_THREADS") else []


def _open_camera(cv2: ModuleType, config: CaptureConfig, choice: Choice) -> Any:
    check_device(config.spec)
    path = config.spec.device
    backend = cv2.CAP_V4L2 if choice.decoder == "v4l2" else cv2.CAP_ANY
    capture = cv2.VideoCapture(os.path.realpath(path), backend)
    # The pixel format first, because sizes and rates depend on it.
    if config.pixel_format:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*config.pixel_format))
    if config.size_wh is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.size_wh[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.size_wh[1])
    if config.rate_hz is not None:
        capture.set(cv2.CAP_PROP_FPS, config.rate_hz)
    # The driver needs one frame only, because the ring keeps the newest.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def _failed(config: CaptureConfig, elapsed_s: float) -> CaptureFailedError:
    kind = config.spec.kind
    if kind == "camera":
        message = "the camera does not open: another program may use it, or it is not a capture device"
        return CaptureFailedError(message, reason="busy")
    if kind == "path":
        is_empty = os.path.getsize(config.spec.path) == 0
        message = "the file is empty" if is_empty else "not a readable video (unknown codec, or cut short)"
        return CaptureFailedError(message, reason="codec", is_final=True)
    if kind != "url":
        hint = "" if "appsink" in config.source or kind == "csi" else "; it must end in appsink"
        return CaptureFailedError(f"GStreamer does not start the pipeline{hint}", reason="unknown")
    if is_late(config, elapsed_s):
        return too_late(config)
    return CaptureFailedError("", reason=probe_address(config.spec))


def is_late(config: CaptureConfig, elapsed_s: float) -> bool:
    """Returns whether the limit of opening ended an attempt that lasted so long without a frame."""
    return config.spec.kind == "url" and elapsed_s > 0.9 * config.longest_open_s


def too_late(config: CaptureConfig) -> CaptureFailedError:
    """Returns the error of a URL without a frame in time: its server may be slow, or not answer at all."""
    limit = f"{config.longest_open_s:g} s (open_timeout_s)"
    if probe_address(config.spec) != "unknown":
        return CaptureFailedError(f"no video arrived within {limit}", reason="timeout")
    message = f"the server accepts the connection, and sent no video within {limit}"
    return CaptureFailedError(message, reason="timeout", is_slow=True)

"""Video4Linux cameras: requested and granted settings, on a stand-in for OpenCV's class."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

from edgerpn.runtime.sources import CaptureConfig, readers
from edgerpn.runtime.sources.decoders import Choice
from edgerpn.runtime.sources.readers import OpenCvReader, _open_camera

V4L2 = Choice(decoder="v4l2", why="the source is a Video4Linux camera")


class Camera:
    """Replaces `cv2.VideoCapture` on a device, which test machines do not have."""

    def __init__(self, path: str, backend: int) -> None:
        self.calls: list[tuple[int, float]] = []
        self.path, self.backend = path, backend

    def set(self, setting: int, value: float) -> bool:
        self.calls.append((setting, value))
        # A camera without 1920x1080: it accepts the setting and keeps its own size.
        return True

    def get(self, setting: int) -> float:
        granted = {cv2.CAP_PROP_FRAME_WIDTH: 1280.0, cv2.CAP_PROP_FRAME_HEIGHT: 720.0, cv2.CAP_PROP_FPS: 25.0}
        return granted.get(setting, 0.0)

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def getBackendName(self) -> str:  # noqa: N802 - OpenCV's name
        return "V4L2"


def test_format_size_and_rate_are_requested_from_a_camera(tmp_path: Path) -> None:
    device = tmp_path / "camera"
    device.touch()
    # By a link, as udev names cameras; the format first, because sizes and rates depend on it.
    config = CaptureConfig(source="/dev/v4l/by-id/usb-cam", size_wh=(1920, 1080), rate_hz=30.0, pixel_format="MJPG")
    object.__setattr__(config, "source", str(device))
    opened: Any = SimpleNamespace(**{name: getattr(cv2, name) for name in dir(cv2) if name.startswith("CAP_")})
    opened.VideoCapture, opened.__version__ = Camera, "5"
    opened.VideoWriter_fourcc = cv2.VideoWriter_fourcc
    camera = _open_camera(opened, config, V4L2)
    assert (camera.path, camera.backend) == (str(device), cv2.CAP_V4L2)
    assert camera.calls == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_WIDTH, 1920),
        (cv2.CAP_PROP_FRAME_HEIGHT, 1080),
        (cv2.CAP_PROP_FPS, 30.0),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    ]


def test_deviations_from_the_requested_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_open_camera", lambda cv2, config, choice: Camera("/dev/video0", 0))
    config = CaptureConfig(source="/dev/video0", size_wh=(1920, 1080), rate_hz=30.0)
    found = OpenCvReader(cv2, config, V4L2)
    assert found.is_live
    assert found.decoder.endswith("; 1280x720 instead of 1920x1080; 25 frames/s instead of 30")

"""Capture by an OpenCV with GStreamer, which those of PyPI do not have: run by the system's Python.

Skipped where the system has no such OpenCV (on Debian: python3-opencv, gstreamer1.0-libav). The elements of a Jetson
cannot be tested this way.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgerpn

Make = Callable[..., Any]

PYTHON = "/usr/bin/python3"
DEADLINE_S = 120.0

_PLAY = """
import sys, time
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources import CaptureConfig, open_capture
config = CaptureConfig(
    source=sys.argv[1], channels=sys.argv[2], decoder="gstreamer", gap_s=5.0, stall_s=20.0
)
with open_capture(config) as capture:
    while (item := capture.take()) is not None:
        if isinstance(item, Frame):
            print("frame", item.connection, *item.image.shape, item.media_time_s, flush=True)
        else:
            print("event", item.kind, item.reason, item.decoder.replace(" ", "_"), flush=True)
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Lets the system's Python find our package; skips where its OpenCV has no GStreamer."""
    found = {**os.environ, "PYTHONPATH": str(Path(edgerpn.__file__).parent.parent), "PYTHONSAFEPATH": "1"}
    code = "import sys, cv2, numpy; sys.exit(sys.version_info < (3, 10) or not "
    code += "(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER) and 'GStreamer' in cv2.getBuildInformation()))"
    try:
        done = subprocess.run([PYTHON, "-c", code], env=found, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"{PYTHON} cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"{PYTHON} has no OpenCV with GStreamer")
    return found


@pytest.fixture
def doctor(environment: dict[str, str]) -> Callable[[str], dict[str, Any]]:
    """Runs `edgerpn doctor stream` on a source that GStreamer reads."""

    def run(source: str) -> dict[str, Any]:
        words = ["doctor", "stream", source, "--seconds", "2", "--json", "--set", "defaults.decoder=gstreamer"]
        words += ["--set", "defaults.open_timeout_s=8"]
        line = [PYTHON, "-m", "edgerpn", *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert "hunter2" not in done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def lines(environment: dict[str, str]) -> Iterator[Callable[[str], Iterator[list[str]]]]:
    """Yields frames and events of a source, each as the words of a line."""
    processes: list[subprocess.Popen[str]] = []

    def play(source: str, channels: str = "auto") -> Iterator[list[str]]:
        line = [PYTHON, "-c", _PLAY, source, channels]
        processes.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        for text in processes[-1].stdout:
            yield text.split()

    yield play
    for process in processes:
        process.kill()
        process.communicate()


def test_rtsp_is_decoded_by_gstreamer_with_the_cameras_times(make_camera: Make, doctor: Make) -> None:
    report = doctor(f"rtsp://127.0.0.1:{make_camera().port}/cam")
    figures = report["figures"]
    assert (figures["state"], figures["size_wh"], figures["stated_fps"]) == ("connected", [320, 240], 20)
    assert "GSTREAMER" in figures["decoder"]
    assert "requested (decoder=gstreamer)" in figures["decoder"]
    assert figures["num_missing"] is not None


@pytest.mark.timeout(180)
def test_a_change_of_size_is_followed_within_the_connection(make_camera: Make, lines: Make) -> None:
    camera = make_camera()
    seen = []
    for words in lines(f"rtsp://127.0.0.1:{camera.port}/cam"):
        seen.append(words[:3])
        if words[0] == "frame" and len(seen) == 20:
            camera.command("size 640x480")
        if words[:4] == ["frame", "1", "480", "640"]:
            break
    assert ["event", "resized", "none"] in seen
    assert ["event", "connected", "none"] in seen
    assert not [words for words in seen if words[1] == "reconnecting"]


@pytest.mark.parametrize(
    ("path", "login", "reason"),
    [("cam", "viewer:hunter2@", "unauthorised"), ("elsewhere", "viewer:right@", "not_found")],
)
def test_a_refusal_of_the_camera_is_named(path: str, login: str, reason: str, make_camera: Make, doctor: Make) -> None:
    camera = make_camera(user="viewer", password="right")
    report = doctor(f"rtsp://{login}127.0.0.1:{camera.port}/{path}")
    assert f"no video ({reason})" in report["findings"][0]["text"]


def test_a_pipeline_is_a_live_source(doctor: Make) -> None:
    pipeline = "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=20/1 ! videoconvert"
    figures = doctor(f"{pipeline} ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1")["figures"]
    assert (figures["state"], figures["size_wh"], figures["is_live"]) == ("connected", [320, 240], True)


@pytest.mark.parametrize(("channels", "num_channels"), [("bgrx", "4"), ("auto", "3")])
def test_a_pipeline_that_ends_in_four_channels(channels: str, num_channels: str, lines: Make) -> None:
    # As a Jetson's nvvidconv delivers them.
    pipeline = "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=20/1 ! videoconvert"
    frames = lines(f"{pipeline} ! video/x-raw,format=BGRx ! appsink drop=true max-buffers=1", channels)
    assert next(words for words in frames if words[0] == "frame")[2:5] == ["240", "320", num_channels]


@pytest.mark.parametrize(
    ("source", "element"), [("csi://0", "nvvidconv"), ("nosuchelement ! videoconvert ! appsink", "nosuchelement")]
)
def test_a_missing_element_is_named(source: str, element: str, doctor: Make) -> None:
    # Without its source such a pipeline would only appear slow.
    finding = doctor(source)["findings"][0]
    assert "no video (dependency)" in finding["text"]
    assert f'no element "{element}"' in finding["text"]


def test_a_file_is_read_whole(clip: Path, doctor: Make) -> None:
    figures = doctor(str(clip))["figures"]
    assert (figures["num_frames"], figures["is_live"]) == (60, False)

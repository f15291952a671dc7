"""A local RTSP camera, a proxy that disturbs its connection, and a player that waits for events and frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import Capture, CaptureConfig, CaptureGroup, open_capture
from tests.support import patience
from tests.support.cameras import QUICK, camera, make_camera, make_mjpeg, make_proxy, rtsp_packages  # noqa: F401 - fixtures
from tests.support.patience import DEADLINE_S


class Player:
    """Takes all frames and events of a capture."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.events: list[Event] = []
        self.num_frames = 0

    def until(self, is_it: Callable[[Frame | Event], bool], timeout_s: float) -> Any:
        """Returns the first item that fits, and the seconds that it took; fails after `timeout_s`."""
        start_s = time.monotonic()
        while (left_s := start_s + timeout_s - time.monotonic()) > 0:
            item = self.capture.take(left_s)
            if isinstance(item, Event):
                self.events.append(item)
            elif item is not None:
                self.num_frames += 1
            if item is not None and is_it(item):
                return item, time.monotonic() - start_s
            if item is None and self.capture.is_exhausted:
                break
        events = "\n".join(f"  {event.kind} {event.reason}: {event.message}" for event in self.events)
        raise AssertionError(f"nothing fits within {timeout_s} s; {self.num_frames} frames and these events:\n{events}")

    def event(self, kind: str, timeout_s: float = DEADLINE_S) -> Any:
        """Returns the next event of a kind."""
        return self.until(lambda item: isinstance(item, Event) and item.kind == kind, timeout_s)[0]

    def frame(self, timeout_s: float = DEADLINE_S) -> Any:
        """Returns the next frame, and the seconds that it took."""
        return self.until(lambda item: isinstance(item, Frame), timeout_s)

    def recovers(self) -> None:
        """Waits for a frame that is captured from now on, after attempts that the backoff limits."""
        now_s = time.monotonic()
        self.until(lambda item: isinstance(item, Frame) and item.monotonic_s > now_s, DEADLINE_S)
        assert all(event.delay_s <= QUICK["backoff_max_s"] for event in self.events if event.kind == "reconnecting")

    def frames_for(self, seconds: float) -> list[tuple[int, Any, Any, int, tuple[int, ...]]]:
        """Returns index, media time, lag, drops and shape of the frames of the next seconds, without their pictures."""
        frames = []
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            item = self.capture.take(left_s)
            if isinstance(item, Event):
                self.events.append(item)
            elif item is not None:
                frames.append((item.index, item.media_time_s, item.lag_ms, item.num_dropped, item.image.shape))
        return frames

    def kinds(self, *, is_patient: bool = False) -> list[str]:
        """Returns the kinds of all events so far.

        A busy machine causes gaps, and its first attempts to connect may take too long; `is_patient` leaves both out.
        """
        kinds: list[str] = [event.kind for event in self.events]
        if not is_patient:
            return kinds
        first = kinds.index("connected") if "connected" in kinds else 0
        early = [kind for kind in kinds[:first] if kind not in ("reconnecting", "stalled")]
        return early + [kind for kind in kinds[first:] if kind != "gap"]


@pytest.fixture
def play() -> Iterator[Callable[..., Player]]:
    """Starts captures with short limits."""
    captures: list[Capture] = []

    def start(source: str, **settings: Any) -> Player:
        captures.append(open_capture(CaptureConfig(source=source, **{**QUICK, **settings})))
        return Player(captures[-1])

    yield start
    for capture in captures:
        capture.close()
    patience.wait_for_captures()


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
    patience.wait_for_captures()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a lossless video of 60 frames, 96x64 at 25 per second; every pixel of frame i is 4 i."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, (96, 64))
    assert writer.isOpened()
    for index in range(60):
        writer.write(np.full((64, 96, 3), 4 * index, np.uint8))
    writer.release()
    return path

"""A local RTSP camera, a proxy that spoils its connection, and a player that waits for what should happen."""

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
from tests.support.cameras import make_camera, make_mjpeg, make_proxy, rtsp_packages  # noqa: F401 - fixtures
from tests.support.patience import DEADLINE_S

QUICK = {
    "gap_s": 0.5,
    "stall_s": 2.0,
    "open_timeout_s": 6.0,
    "backoff_first_s": 0.2,
    "backoff_max_s": 0.8,
    "healthy_s": 1.0,
}
"""Patience with cameras in tests; a recovery may then take backoff_max_s + 2 s."""

RECOVERY_S = QUICK["backoff_max_s"] + 2.0


class Player:
    """Takes everything from a capture, with the time at which it came."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.events: list[Event] = []
        self.num_frames = 0

    def until(self, is_it: Callable[[Frame | Event], bool], timeout_s: float) -> Any:
        """The first item that fits, and how long it took; fails when it does not come in time."""
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
        told = "\n".join(f"  {event.kind} {event.reason}: {event.message}" for event in self.events)
        raise AssertionError(
            f"it did not come within {timeout_s} s; {self.num_frames} frames and these events:\n{told}"
        )

    def event(self, kind: str, timeout_s: float = DEADLINE_S) -> Any:
        """The next event of a kind."""
        return self.until(lambda item: isinstance(item, Event) and item.kind == kind, timeout_s)[0]

    def frame(self, timeout_s: float = DEADLINE_S) -> Any:
        """The next frame, and how long it took."""
        return self.until(lambda item: isinstance(item, Frame), timeout_s)

    def recovers(self, limit_s: float = RECOVERY_S) -> None:
        """Waits for a frame that is taken from now on; fails when that takes longer than `limit_s`."""
        now_s = time.monotonic()
        _, waited_s = self.until(lambda item: isinstance(item, Frame) and item.monotonic_s > now_s, DEADLINE_S)
        patience.assert_within(waited_s, limit_s)

    def frames_for(self, seconds: float) -> list[tuple[int, Any, Any, int, tuple[int, ...]]]:
        """Index, media time, lag, drops and shape of the frames of the next seconds, without their pictures."""
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
        """The kinds of all events so far.

        A busy machine makes gaps of its own, and its first attempts to connect may take too long; `is_patient` leaves
        both out.
        """
        kinds: list[str] = [event.kind for event in self.events]
        if not is_patient:
            return kinds
        first = kinds.index("connected") if "connected" in kinds else 0
        early = [kind for kind in kinds[:first] if kind not in ("reconnecting", "stalled")]
        return early + [kind for kind in kinds[first:] if kind != "gap"]


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
    """Seconds within which frames must be back after a fault is gone, on a machine at rest."""
    return RECOVERY_S


@pytest.fixture(name="patience")
def _patience() -> Any:
    """Waits and limits that bear a busy machine."""
    return patience


@pytest.fixture
def quick() -> dict[str, Any]:
    """Settings with little patience."""
    return dict(QUICK)

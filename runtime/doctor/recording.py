"""Recording of one source for some seconds, by the same capture process as in `edgerpn run`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig, ProcessCapture, open_capture

SETTLE_S = 1.0
"""Seconds at the start of a connection that do not count: buffered frames arrive in a burst, and the decoder reports
pictures whose key frame it missed."""

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameNote:
    """The times of a frame, without its picture."""

    connection: int
    """Number of its connection, from 1."""
    media_time_s: float | None
    """Time in the stream, seconds."""
    monotonic_s: float
    """`time.monotonic()` at its capture."""
    num_dropped: int
    """Frames dropped before it."""
    size_wh: tuple[int, int]
    """Width and height, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """Frames, events and messages of a source; holds no picture and no password."""

    config: CaptureConfig
    """The source."""
    frames: list[FrameNote]
    """All frames taken."""
    events: list[Event]
    """All events."""
    messages: list[str]
    """The last lines of the decoder."""
    num_messages: int
    """Lines of the decoder later than `SETTLE_S` after the first frame."""
    elapsed_s: float
    """From the first frame to the end of the recording, seconds; 0: no frame."""
    cpu_cores: float | None
    """Cores that capture and decoder used; None: unknown."""

    @property
    def is_pictures(self) -> bool:
        """Whether the address gives single pictures, which are requested one by one."""
        return self.config.decoder == "picture" or any(_finds_picture(event) for event in self.events)


def record(config: CaptureConfig, seconds: float) -> Recording:
    """Opens the source, and records from its first frame on.

    A source that fails before its first frame gets no second attempt; one that fails later reconnects within the time.

    Args:
        config: The source.
        seconds: Length of the recording; a file may end earlier.
    """
    recorder = _Recorder()
    with open_capture(config) as capture:
        while not capture.is_exhausted and not recorder.is_over(seconds):
            item = capture.take(_POLL_S)
            if item is not None:
                recorder.take(item, capture)
            # Returns its memory to the capture process.
            del item
            recorder.settle(capture)
        return recorder.recording(config, capture)


class _Recorder:
    """Collects frames, events and messages."""

    def __init__(self) -> None:
        self.frames: list[FrameNote] = []
        self.events: list[Event] = []
        self.messages: list[str] = []
        self._start_s = 0.0
        self._cpu: tuple[int | None, float] = (None, 0.0)
        self._num_settled: int | None = None
        self._is_down = False

    def is_over(self, seconds: float) -> bool:
        if not self.frames:
            return self._is_down
        return time.monotonic() - self._start_s >= seconds

    def take(self, item: Frame | Event, capture: ProcessCapture) -> None:
        if isinstance(item, Frame):
            if not self.frames:
                self._start_s, self._cpu = time.monotonic(), _cpu_time(capture)
            self.frames.append(_note(item))
            self._is_down = False
            return
        self.events.append(item)
        if item.kind in ("reconnecting", "ended") and not _finds_picture(item):
            # The next process replaces the lines of a failed one.
            self.messages += capture.messages
            self._is_down = True

    def settle(self, capture: ProcessCapture) -> None:
        """Counts the decoder's messages of the start, once."""
        if self._num_settled is None and self.frames and time.monotonic() - self._start_s >= SETTLE_S:
            self._num_settled = capture.stats.num_messages

    def recording(self, config: CaptureConfig, capture: ProcessCapture) -> Recording:
        elapsed_s = max(time.monotonic() - self._start_s, 1e-3) if self.frames else 0.0
        num_messages = capture.stats.num_messages
        return Recording(
            config=config,
            frames=self.frames,
            events=self.events,
            messages=[*self.messages, *(() if self._is_down else capture.messages)],
            num_messages=num_messages - (num_messages if self._num_settled is None else self._num_settled),
            elapsed_s=elapsed_s,
            cpu_cores=_cores(self._cpu, _cpu_time(capture), elapsed_s) if self.frames else None,
        )


def _finds_picture(event: Event) -> bool:
    """Returns whether the next connection requests single pictures, and needs no new look at the source."""
    return event.kind == "reconnecting" and event.reason == "picture"


def _note(frame: Frame) -> FrameNote:
    height, width = frame.image.shape[:2]
    return FrameNote(
        connection=frame.connection,
        media_time_s=frame.media_time_s,
        monotonic_s=frame.monotonic_s,
        num_dropped=frame.num_dropped,
        size_wh=(width, height),
    )


def _cpu_time(capture: ProcessCapture) -> tuple[int | None, float]:
    """Returns the capture process's number, and the CPU time of it and its children, seconds."""
    pid = capture.stats.pid
    if pid is None:
        return None, 0.0
    try:
        children = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in _words(path)]
        return pid, sum(_ticks(one) for one in (pid, *children)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None, 0.0


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split()


def _ticks(pid: int) -> int:
    # The process name, in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _cores(before: tuple[int | None, float], after: tuple[int | None, float], elapsed_s: float) -> float | None:
    return (after[1] - before[1]) / elapsed_s if before[0] is not None and before[0] == after[0] else None

"""Listens to one source for some seconds, through the same capture process as `edgerpn run`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import Capture, CaptureConfig, open_capture

SETTLE_S = 1.0
"""Seconds at the start of a connection that do not count: what a server had kept comes in one go, and a decoder
complains about pictures whose key frame it has missed."""

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameNote:
    """When a frame came, without its picture."""

    connection: int
    """Number of the connection that it came by, from 1."""
    media_time_s: float | None
    """Time in the stream, seconds."""
    monotonic_s: float
    """`time.monotonic()` when it was read."""
    num_dropped: int
    """Frames before it that this process did not take in time."""
    size_wh: tuple[int, int]
    """Width and height, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What came from a source; holds no picture and no password."""

    config: CaptureConfig
    """The source."""
    frames: list[FrameNote]
    """Every frame taken."""
    events: list[Event]
    """Every event."""
    messages: list[str]
    """The last lines that the decoder wrote."""
    num_messages: int
    """Lines that it wrote from `SETTLE_S` after the first frame on."""
    elapsed_s: float
    """From the first frame to the end of listening, seconds; 0: there was none."""
    cpu_cores: float | None
    """Cores that capture and decoder kept busy; None: not found out."""


def record(config: CaptureConfig, seconds: float) -> Recording:
    """Opens the source once, and listens from its first frame on.

    A source that does not give a first frame is not tried again. One that fails later is, for as long as the time
    lasts.

    Args:
        config: The source.
        seconds: From the first frame on, at most; a file may end earlier.
    """
    listener = _Listener()
    with open_capture(config) as capture:
        while not capture.is_exhausted and not listener.is_over(seconds):
            item = capture.take(_POLL_S)
            if item is not None:
                listener.take(item, capture)
            # Its memory goes back to the capture process.
            del item
            listener.settle(capture)
        return listener.recording(config, capture)


class _Listener:
    """Collects what comes."""

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

    def take(self, item: Frame | Event, capture: Capture) -> None:
        if isinstance(item, Frame):
            if not self.frames:
                self._start_s, self._cpu = time.monotonic(), _cpu_time(capture)
            self.frames.append(_note(item))
            self._is_down = False
            return
        self.events.append(item)
        if item.kind in ("reconnecting", "ended"):
            # The lines of a process that has failed are gone when the next one starts.
            self.messages += capture.messages
            self._is_down = True

    def settle(self, capture: Capture) -> None:
        """Notes what a decoder says at the start, once."""
        if self._num_settled is None and self.frames and time.monotonic() - self._start_s >= SETTLE_S:
            self._num_settled = capture.stats.num_messages

    def recording(self, config: CaptureConfig, capture: Capture) -> Recording:
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


def _note(frame: Frame) -> FrameNote:
    height, width = frame.image.shape[:2]
    return FrameNote(
        connection=frame.connection,
        media_time_s=frame.media_time_s,
        monotonic_s=frame.monotonic_s,
        num_dropped=frame.num_dropped,
        size_wh=(width, height),
    )


def _cpu_time(capture: Capture) -> tuple[int | None, float]:
    """Number of the capture process, and the processor time that it and what it started have used, seconds."""
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
    # The name of the process, in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _cores(before: tuple[int | None, float], after: tuple[int | None, float], elapsed_s: float) -> float | None:
    return (after[1] - before[1]) / elapsed_s if before[0] is not None and before[0] == after[0] else None

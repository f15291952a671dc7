"""What each source has done so far, for people, pages and metrics."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from edgerpn.runtime.frame import Event, Result, SourceState
from edgerpn.runtime.sources import CaptureStats

_RECENT_S = 5.0
_RECENT_FRAMES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStats:
    """A snapshot of one source."""

    name: str
    """Name of the source, without passwords."""
    state: SourceState
    """starting, connected, quiet (connected, but no frame for `gap_s`), reconnecting or ended."""
    num_results: int
    """Frames whose proposals were emitted."""
    num_captured: int
    """Frames that came from the source."""
    num_dropped: int
    """Frames that nobody took in time."""
    num_stale: int
    """Frames that were too old to be a result."""
    num_refused: int
    """Frames that do not fit the model."""
    num_reconnects: int
    """Connections beyond the first."""
    num_decoder_messages: int
    """Lines that decoders wrote, of all connections; damaged video shows so."""
    fps: float
    """Results per second over the last five seconds."""
    age_p50_ms: float | None
    """Median age at emission of the last frames; None: none was emitted lately."""
    age_p99_ms: float | None
    """99th percentile of the same."""
    age_max_ms: float | None
    """Largest of the same."""
    inference_p50_ms: float | None
    """Median time of the batches that the last frames were in."""
    inference_p99_ms: float | None
    """99th percentile of the same."""
    frame_age_s: float | None
    """Seconds since the last frame came; None: none has."""
    size_wh: tuple[int, int] | None
    """Width and height of the last frame, pixels."""
    decoder: str
    """What decodes it, and why."""
    last_problem: str
    """The last event that was not a good one, for people."""
    pid: int | None
    """Number of its capture process."""


class SourceTally:
    """Counts of one source; written by the thread that emits, read by any."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.num_results = 0
        self.num_stale = 0
        self.num_refused = 0
        self._size_wh: tuple[int, int] | None = None
        self._decoder = ""
        self._last_problem = ""
        # Time, age and inference time of the last results; deques can be read while another thread appends, if
        # they are copied in one step.
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_RECENT_FRAMES)

    def count_result(self, result: Result) -> None:
        """Counts an emitted result."""
        self.num_results += 1
        self._size_wh = (result.image.shape[1], result.image.shape[0])
        self._recent.append((time.monotonic(), result.age_ms or 0.0, result.stage_ms["inference"]))

    def count_event(self, event: Event) -> None:
        """Counts an emitted event."""
        self.num_stale += event.kind == "stale"
        self._decoder = event.decoder or self._decoder
        self._size_wh = event.size_wh or self._size_wh
        if event.kind in ("gap", "stalled", "stale", "reconnecting", "error"):
            self._last_problem = event.message

    def snapshot(self, name: str, capture: CaptureStats) -> SourceStats:
        """The counts together with those of the capture."""
        now_s = time.monotonic()
        recent = list(self._recent.copy())
        lately = [item for item in recent if now_s - item[0] <= _RECENT_S]
        # The first of them may be younger than five seconds: at the start, and when there are many.
        span_s = min(_RECENT_S, now_s - recent[0][0]) if recent else _RECENT_S
        ages = np.array([item[1] for item in lately])
        p50, p99 = np.percentile(ages, [50, 99]).tolist() if lately else (None, None)
        times = [item[2] for item in lately]
        inference_p50, inference_p99 = np.percentile(times, [50, 99]).tolist() if lately else (None, None)
        return SourceStats(
            name=name,
            state=capture.state,
            num_results=self.num_results,
            num_captured=capture.num_frames,
            num_dropped=capture.num_dropped,
            num_stale=self.num_stale,
            num_refused=self.num_refused,
            num_reconnects=max(0, capture.num_connections - 1),
            num_decoder_messages=capture.num_messages,
            fps=len(lately) / max(span_s, 1e-3),
            age_p50_ms=p50,
            age_p99_ms=p99,
            age_max_ms=float(ages.max()) if lately else None,
            inference_p50_ms=inference_p50,
            inference_p99_ms=inference_p99,
            frame_age_s=capture.frame_age_s,
            size_wh=self._size_wh,
            decoder=self._decoder,
            last_problem=self._last_problem,
            pid=capture.pid,
        )

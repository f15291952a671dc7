"""Counts of a run and of each of its sources, for people, pages and metrics."""

from __future__ import annotations

import signal
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from edgerpn.runtime.frame import Event, Result, SourceState
from edgerpn.runtime.sources.capture import CaptureStats
from edgerpn.runtime.timing import LatencyHistogram

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
    """Frames that the source delivered."""
    num_dropped: int
    """Frames that the run did not take in time."""
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
    """The decoder, and the reason for its choice; empty for files."""
    last_problem: str
    """The last event of a problem, for people."""
    pid: int | None
    """Number of its capture process."""


class SourceCounts:
    """Counts of one source; written by the thread that emits, read by any."""

    def __init__(self) -> None:
        self.num_results = 0
        self.num_stale = 0
        self.num_refused = 0
        self._size_wh: tuple[int, int] | None = None
        self._decoder = ""
        self._last_problem = ""
        # Time, age and inference time of the last results; a deque that another thread appends to must be copied in
        # one step.
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_RECENT_FRAMES)

    def count_result(self, result: Result) -> None:
        self.num_results += 1
        self._size_wh = result.frame.size_hw[::-1]
        self._recent.append((time.monotonic(), result.age_ms or 0.0, result.stage_ms["inference"]))

    def count_event(self, event: Event) -> None:
        self.num_stale += event.kind == "stale"
        self._decoder = event.decoder or self._decoder
        self._size_wh = event.size_wh or self._size_wh
        if event.kind in ("gap", "stalled", "stale", "reconnecting", "damaged", "error"):
            self._last_problem = event.message

    def snapshot(self, name: str, capture: CaptureStats) -> SourceStats:
        """Returns the counts together with those of the capture."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The result of a run."""

    num_frames: int
    """Frames that went through the model and into every sink."""
    num_errors: int
    """Events `error`: images that could not be read or used, sources that failed."""
    num_damaged: int
    """Events `damaged`: images with a hole or without their end, used as far as they decode."""
    num_drops: int
    """Frames of live sources that were dropped for newer ones."""
    num_stale: int = 0
    """Frames that were too old to be a result."""
    elapsed_s: float
    """From the first read to the last closed file, seconds."""
    inference_median_ms: float | None
    """Median time of one inference, milliseconds; None without frames."""
    inference_p95_ms: float | None
    """95th percentile of the same."""
    backend: str
    """Library, version and device that ran the model."""
    targets: tuple[str, ...]
    """Files and folders written."""
    stop_signal: int | None
    """Number of the signal that ended the run; None: no signal did."""

    @property
    def fps(self) -> float:
        """Frames per second over the whole run."""
        return self.num_frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def text(self) -> str:
        """Returns the summary as one line for people."""
        parts = [f"{self.num_frames} frames in {self.elapsed_s:.2f} s ({self.fps:.1f} frames/s)"]
        if self.inference_median_ms is not None and self.inference_p95_ms is not None:
            parts.append(
                f"inference median {self.inference_median_ms:.1f} ms, 95th percentile {self.inference_p95_ms:.1f} ms"
            )
        parts.append(f"{self.num_drops} dropped")
        if self.num_stale:
            parts.append(f"{self.num_stale} stale")
        if self.num_errors:
            parts.append(f"{self.num_errors} unreadable")
        if self.num_damaged:
            parts.append(f"{self.num_damaged} damaged")
        parts.append(self.backend)
        if self.stop_signal is not None:
            parts.append(f"stopped by {signal.Signals(self.stop_signal).name}")
        parts.append(f"written: {', '.join(self.targets)}" if self.targets else "nothing written")
        return "; ".join(parts)


class RunCounts:
    """Counts of a run so far."""

    def __init__(self) -> None:
        self.num_frames = 0
        self.num_errors = 0
        self.num_damaged = 0
        self._inference = LatencyHistogram()

    def count_result(self, result: Result) -> None:
        self.num_frames += 1
        self._inference.add(result.stage_ms["inference"])

    def count_event(self, event: Event) -> None:
        self.num_errors += event.kind == "error"
        self.num_damaged += event.kind == "damaged"

    def summary(
        self,
        *,
        num_drops: int,
        num_stale: int,
        backend: str,
        targets: tuple[str, ...],
        elapsed_s: float,
        stop_signal: int | None,
    ) -> RunSummary:
        """Returns the counts together with the other figures of the run."""
        return RunSummary(
            num_frames=self.num_frames,
            num_errors=self.num_errors,
            num_damaged=self.num_damaged,
            num_drops=num_drops,
            num_stale=num_stale,
            elapsed_s=elapsed_s,
            inference_median_ms=self._inference.percentile_ms(50),
            inference_p95_ms=self._inference.percentile_ms(95),
            backend=backend,
            targets=targets,
            stop_signal=stop_signal,
        )

"""From what capture processes hand over to what sinks take."""

from __future__ import annotations

import time

from edgerpn.runtime.capture import CapturedFrame, CaptureEvent
from edgerpn.runtime.frame import Event, Frame


def to_frame(captured: CapturedFrame) -> Frame:
    """The same frame, with the same memory."""
    return Frame(
        image=captured.image,
        index=captured.index,
        media_time_s=captured.media_time_s,
        captured_at=captured.captured_at,
        monotonic_s=captured.monotonic_s,
        source=captured.source,
        decode_ms=captured.decode_ms,
        path=captured.path,
        lag_ms=captured.lag_ms,
        num_dropped=captured.num_dropped,
        num_skipped=captured.num_skipped,
    )


def to_event(captured: CaptureEvent) -> Event:
    """The same event."""
    return Event(
        kind=captured.kind,
        source=captured.source,
        message=captured.message,
        captured_at=captured.happened_at,
        path=captured.path,
        reason=captured.reason,
        fix=captured.fix,
        attempt=captured.attempt,
        delay_s=captured.delay_s,
        duration_s=captured.duration_s,
        size_wh=captured.size_wh,
        fps=captured.fps,
        num_frames=captured.num_frames,
        decoder=captured.decoder,
    )


def stale_event(frame: Frame, age_ms: float, limit_ms: float) -> Event:
    """What is emitted in place of the result of a frame that is too old."""
    return Event(
        kind="stale",
        source=frame.source,
        message=f"{frame.source}: frame {frame.index} is {age_ms:.0f} ms old, and max_age_ms is {limit_ms:g}",
        captured_at=time.time(),
        reason="age",
        fix="Use a smaller model, fewer sources or a rate cap (max_fps), or raise max_age_ms.",
        frame=frame.index,
        age_ms=age_ms,
    )


def refused_event(frame: Frame, problem: str) -> Event:
    """What is emitted when frames of a source do not fit the model."""
    return Event(
        kind="error",
        source=frame.source,
        message=f"{frame.source}: {problem}",
        captured_at=time.time(),
        reason="unsupported",
        path=frame.path,
    )


def removed_event(source: str) -> Event:
    """What is emitted when somebody takes a source out of the run."""
    return Event(
        kind="ended",
        source=source,
        message=f"{source}: removed from the run",
        captured_at=time.time(),
        reason="removed",
    )

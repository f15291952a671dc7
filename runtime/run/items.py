"""Events that a run of streams adds to those of its sources."""

from __future__ import annotations

from edgerpn.runtime.frame import Event, Frame


def stale_event(frame: Frame, age_ms: float, limit_ms: float) -> Event:
    """What is emitted in place of the result of a frame that is too old."""
    return Event(
        kind="stale",
        source=frame.source,
        message=f"{frame.source}: frame {frame.index} is {age_ms:.0f} ms old, and max_age_ms is {limit_ms:g}",
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
        reason="unsupported",
        path=frame.path,
    )


def removed_event(source: str) -> Event:
    """What is emitted when somebody takes a source out of the run."""
    return Event(
        kind="ended",
        source=source,
        message=f"{source}: removed from the run",
        reason="removed",
    )

"""Figures of a recording: rates, intervals, lag, and losses."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerpn.runtime.doctor.clock import ClockSkew
from edgerpn.runtime.doctor.key_frames import KeyFrames
from edgerpn.runtime.doctor.recording import SETTLE_S, FrameNote, Recording
from edgerpn.runtime.frame import Event
from edgerpn.runtime.sources.failures import is_noise

_MIN_SPAN_S = 3.0
"""Least seconds of a connection for a meaningful lag."""
NO_BREAKS = ("resized", "picture")
"""Reasons of a new connection that are no failure of the last one."""
_MAX_MESSAGES = 5
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamFigures:
    """Measurements of a source; None: unknown."""

    source: str
    """Name of the source, without passwords."""
    state: Literal["connected", "failed"]
    """failed: the source delivered no frame."""
    is_live: bool
    """Whether the source continues while the doctor does not read it."""
    size_wh: tuple[int, int] | None = None
    """Width and height of the last frame, pixels."""
    decoder: str = ""
    """The decoder, and the reason for its choice."""
    first_frame_s: float | None = None
    """From the start of the capture process to the first frame, seconds."""
    elapsed_s: float = 0.0
    """From the first frame to the end of the measurement, seconds."""
    num_frames: int = 0
    """Frames in that time."""
    fps: float | None = None
    """Arrived frames per second, of the longest connection."""
    stated_fps: float | None = None
    """Frames per second as the source states them."""
    interval_p50_ms: float | None = None
    """Median time between two arrivals."""
    interval_p99_ms: float | None = None
    """99th percentile of the same."""
    interval_max_ms: float | None = None
    """Longest of the same."""
    lag_p50_ms: float | None = None
    """Median delay of frames against the fastest ones, by the camera's clock."""
    lag_p99_ms: float | None = None
    """99th percentile of the same."""
    lag_growth_ms: float | None = None
    """Delay of the fastest frames of the last third against those of the first: a backlog that grows (or, if less than
    a few milliseconds per second, two clocks that drift apart)."""
    lag_span_s: float = 0.0
    """Time over which the lag was measured, seconds."""
    num_dropped: int = 0
    """Frames that this machine dropped."""
    num_missing: int | None = None
    """Frames that never arrived, by the times in the stream."""
    num_gaps: int = 0
    """Silences and holes of at least `gap_s`."""
    longest_gap_s: float = 0.0
    """The longest of them, seconds."""
    num_clock_jumps: int = 0
    """Jumps of the camera's clock."""
    num_stalls: int = 0
    """Silences of `stall_s`, each of which ended a connection."""
    num_reconnects: int = 0
    """Connections that ended, stalls included, except for those in `NO_BREAKS`."""
    num_resized: int = 0
    """Changes of size."""
    num_unreadable: int = 0
    """Unreadable pictures or files, and crashes."""
    num_messages: int = 0
    """Lines of the decoder after those at the start; damaged video causes them."""
    messages: tuple[str, ...] = ()
    """The last different ones, each with the count of its kind."""
    cpu_cores: float | None = None
    """Cores that capture and decoder used."""
    key_frames: KeyFrames = field(default_factory=KeyFrames)
    """Key frames, codec and bit rate."""
    clock: ClockSkew = field(default_factory=ClockSkew)
    """Difference between the camera's clock and ours."""


def figures_of(
    recording: Recording, key_frames: KeyFrames | None = None, clock: ClockSkew | None = None
) -> StreamFigures:
    """Computes the figures of a recording, and adds the results of the other checks."""
    config, events = recording.config, recording.events
    connected = next((event for event in events if event.kind == "connected"), None)
    ends = [event for event in events if event.kind == "reconnecting" and event.reason not in NO_BREAKS]
    gaps = [event for event in events if event.kind == "gap"]
    silences = [event for event in gaps if event.reason != "clock"]
    frames = _longest_connection(recording.frames)
    is_live = connected is None or connected.is_live
    counts = StreamFigures(
        source=config.label,
        state="connected" if recording.frames else "failed",
        is_live=is_live,
        num_gaps=len(silences),
        longest_gap_s=max((gap.duration_s for gap in silences), default=0.0),
        num_clock_jumps=len(gaps) - len(silences),
        num_stalls=_count(events, "stalled"),
        num_reconnects=len(ends),
        num_resized=_count(events, "resized"),
        num_unreadable=_count(events, "error"),
        num_messages=recording.num_messages,
        messages=_kinds_of_messages([line for line in recording.messages if not is_noise(line)]),
        key_frames=key_frames or KeyFrames(why_unknown="not measured"),
        clock=clock or ClockSkew(why_unknown="not measured"),
    )
    if connected is None or not recording.frames:
        return counts
    lag_s = _lags(frames) if is_live and config.spec.has_clock and not counts.num_clock_jumps else None
    return dataclasses.replace(
        counts,
        size_wh=recording.frames[-1].size_wh,
        decoder=connected.decoder,
        first_frame_s=connected.duration_s,
        elapsed_s=recording.elapsed_s,
        num_frames=len(recording.frames),
        stated_fps=connected.fps or None,
        num_dropped=sum(frame.num_dropped for frame in frames),
        num_missing=_missing(frames) if config.spec.has_clock and not counts.num_clock_jumps else None,
        cpu_cores=recording.cpu_cores,
        **_rates(frames),
        **(_lag_figures(frames, lag_s) if lag_s is not None else {}),
    )


def _count(events: list[Event], kind: str) -> int:
    return sum(event.kind == kind for event in events)


def _longest_connection(frames: list[FrameNote]) -> list[FrameNote]:
    """Returns the frames of the connection with most frames, without those of its start."""
    if not frames:
        return []
    (number, _), *_ = Counter(frame.connection for frame in frames).most_common(1)
    chosen = [frame for frame in frames if frame.connection == number]
    settled = [frame for frame in chosen if frame.monotonic_s - chosen[0].monotonic_s >= SETTLE_S]
    return settled if len(settled) >= len(chosen) // 2 else chosen


def _rates(frames: list[FrameNote]) -> dict[str, Any]:
    if len(frames) < 2:
        return {}
    arrivals_s = np.array([frame.monotonic_s for frame in frames])
    intervals_ms = np.diff(arrivals_s) * 1e3
    # Frames that this machine dropped did arrive.
    num_arrived = len(frames) - 1 + sum(frame.num_dropped for frame in frames[1:])
    p50, p99 = np.percentile(intervals_ms, [50, 99]).tolist()
    return {
        "fps": num_arrived / max(float(arrivals_s[-1] - arrivals_s[0]), 1e-6),
        "interval_p50_ms": p50,
        "interval_p99_ms": p99,
        "interval_max_ms": float(intervals_ms.max()),
    }


def _lags(frames: list[FrameNote]) -> npt.NDArray[np.float64] | None:
    """Returns arrival minus media time of each frame, seconds, with the least as zero; None without times."""
    times = [(frame.monotonic_s, frame.media_time_s) for frame in frames if frame.media_time_s is not None]
    if len(times) < 10 or len(times) < len(frames) or times[-1][0] - times[0][0] < _MIN_SPAN_S:
        return None
    offsets = np.array([arrival_s - media_s for arrival_s, media_s in times])
    return offsets - offsets.min()


def _lag_figures(frames: list[FrameNote], lag_s: npt.NDArray[np.float64]) -> dict[str, Any]:
    third = len(lag_s) // 3
    p50, p99 = (np.percentile(lag_s, [50, 99]) * 1e3).tolist()
    return {
        "lag_p50_ms": p50,
        "lag_p99_ms": p99,
        "lag_growth_ms": float(lag_s[-third:].min() - lag_s[:third].min()) * 1e3,
        "lag_span_s": frames[-1].monotonic_s - frames[0].monotonic_s,
    }


def _missing(frames: list[FrameNote]) -> int | None:
    """Counts missing frames by the times of the others, without own drops; None without a steady rate."""
    times_s = [frame.media_time_s for frame in frames]
    pairs = [
        (after - before, frame.num_dropped)
        for (before, after), frame in zip(pairwise(times_s), frames[1:], strict=True)
        if before is not None and after is not None
    ]
    if len(pairs) < 10:
        return None
    period_s = float(np.median([step_s / (1 + num_dropped) for step_s, num_dropped in pairs]))
    if period_s <= 0:
        return None
    return sum(max(0, round(step_s / period_s) - 1 - num_dropped) for step_s, num_dropped in pairs)


def _kinds_of_messages(lines: list[str]) -> tuple[str, ...]:
    """Returns the last lines that differ in more than numbers, each with the count of its kind."""
    counts = Counter(_NUMBER.sub("#", line) for line in lines)
    last = {_NUMBER.sub("#", line): line for line in lines}
    return tuple(
        f"{line} ({counts[kind]} like it)" if counts[kind] > 1 else line
        for kind, line in list(last.items())[-_MAX_MESSAGES:]
    )

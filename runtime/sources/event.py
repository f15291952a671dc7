"""What a capture hands over: frames, and events in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn.runtime.sources.failure_classes import Reason

EventKind = Literal["started", "connected", "gap", "stalled", "resized", "reconnecting", "ended", "error"]
State = Literal["starting", "connected", "quiet", "reconnecting", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureEvent:
    """Something that happened to a source; holds no password. Zeros and empty texts mean: does not apply.

    started: the first process runs. connected: the first frame of a connection is there. gap: frames were missing
    and come again. stalled: none came for `stall_s`, the process is killed. resized: another size from now on.
    reconnecting: the source is down, the next attempt is in `delay_s`. ended: nothing more will come. error: one
    picture could not be read, the process crashed, or trying again is pointless (then `ended` follows).
    """

    kind: EventKind
    """Which of the above."""
    source: str
    """Name of the source."""
    happened_at: float
    """Wall clock, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment."""
    message: str
    """What happened, for people."""
    reason: Reason = "none"
    """Class of the reason."""
    fix: str = ""
    """What to do about it."""
    attempt: int = 0
    """reconnecting: attempts that failed since frames came; connected: number of the connection, from 1."""
    delay_s: float = 0.0
    """reconnecting: seconds until the next attempt."""
    duration_s: float = 0.0
    """gap, stalled: seconds without frames; connected: from the start of the process to the first frame; clock jumps:
    seconds by which the camera's time is ahead of what it should be."""
    size_wh: tuple[int, int] | None = None
    """connected, resized: width and height, pixels."""
    fps: float = 0.0
    """connected: frames per second as the source states them; 0: it does not."""
    num_frames: int = 0
    """connected: frames in all, of a file."""
    decoder: str = ""
    """connected: what decodes, and why that was chosen."""
    is_live: bool = True
    """connected: whether the source goes on when nobody reads."""
    path: Path | None = None
    """error: file of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CapturedFrame:
    """One picture and when it was taken."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 BGR, read-only, in memory shared with the capture process. It stays valid as long as this
    array or a view of it is referenced, even after the source is closed; what is held back is missing in the ring,
    so copy what is kept for long."""
    source: str
    """Name of the source, without passwords."""
    index: int
    """Number of the frame in its source, from 0 and over all connections; gaps where frames were dropped or skipped."""
    connection: int
    """Number of the connection that it came by, from 1."""
    media_time_s: float | None
    """Time in the stream, seconds; its zero differs between connections. None: the source does not tell."""
    captured_at: float
    """Wall clock when the frame was read, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment, for ages."""
    decode_ms: float
    """Time to decode, milliseconds; of a live source only the conversion, because the rest is waiting."""
    lag_ms: float | None
    """How much later it arrived than the quickest frames of the last minutes, by the camera's clock, milliseconds:
    what network and decoder have held it back. Ages by `monotonic_s` do not hold it. None: not live, or unknown."""
    num_dropped: int = 0
    """Frames dropped between this one and the one before, because nobody took them in time."""
    num_skipped: int = 0
    """Frames left out in between because of `max_fps`."""
    path: Path | None = None
    """File of a picture."""

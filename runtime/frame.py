"""What travels through the runtime: frames and events from a source, results from the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals

EventKind = Literal["started", "connected", "gap", "stalled", "stale", "resized", "reconnecting", "ended", "error"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One picture and when it was taken."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 BGR, not to be changed. Of a capture process it lies in memory of which there is little: what
    holds back more than a few frames must copy them."""
    index: int
    """Number of the frame in its source, from 0; a live source leaves gaps where it dropped frames."""
    media_time_s: float | None
    """Time inside the video, seconds; nothing for images, and for cameras that do not tell."""
    captured_at: float
    """Wall clock when the frame was read, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment, for ages and intervals."""
    source: str
    """Name of the source, without passwords."""
    decode_ms: float
    """Time to read and decode it, milliseconds; of a live source only the conversion, because the rest is waiting."""
    path: Path | None = None
    """File of an image."""
    lag_ms: float | None = None
    """How much later than the quickest frames it arrived, milliseconds: what network and decoder have held it back.
    None: not live, or unknown."""
    num_dropped: int = 0
    """Frames dropped between this one and the one before it, because nobody took them in time."""
    num_skipped: int = 0
    """Frames left out in between because of a cap on the rate."""

    def age_ms(self, now_s: float) -> float:
        """Milliseconds from the moment it was taken, as far as that is known, to `now_s` (`time.monotonic()`)."""
        return (now_s - self.monotonic_s) * 1e3 + (self.lag_ms or 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a source in between its frames. Zeros and empty texts mean: does not apply.

    started: it is being opened. connected: the first frame of a connection is there. gap: frames were missing and
    come again. stalled: none came for so long that the connection is given up. stale: a frame was too old to be a
    result. resized: another size from now on. reconnecting: it is down, the next attempt is in `delay_s`. ended:
    nothing more will come. error: one picture could not be read or used, or trying again is pointless.
    """

    kind: EventKind
    """Which of the above."""
    source: str
    """Name of the source, without passwords."""
    message: str
    """What happened, for people."""
    captured_at: float
    """Wall clock of the event, UTC, seconds since the epoch."""
    path: Path | None = None
    """File of the picture that could not be read."""
    reason: str = "none"
    """Class of the reason, one of `edgerpn.runtime.sources.failure_classes.Reason` or `age`."""
    fix: str = ""
    """What to do about it."""
    attempt: int = 0
    """reconnecting: attempts that failed since frames came; connected: number of the connection, from 1."""
    delay_s: float = 0.0
    """reconnecting: seconds until the next attempt."""
    duration_s: float = 0.0
    """gap, stalled: seconds without frames; connected: from the start of the process to the first frame."""
    size_wh: tuple[int, int] | None = None
    """connected, resized: width and height, pixels."""
    fps: float = 0.0
    """connected: frames per second as the source states them."""
    num_frames: int = 0
    """connected: frames in all, of a file."""
    decoder: str = ""
    """connected: what decodes, and why that was chosen."""
    frame: int | None = None
    """stale: number of the frame in its source."""
    age_ms: float | None = None
    """stale: age of the frame when it would have been emitted, milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """The proposals of one frame of a stream."""

    proposals: Proposals
    """Boxes in pixels of the frame, best first."""
    frame: Frame
    """The frame they belong to."""
    stage_ms: Mapping[str, float]
    """Milliseconds spent in each stage: decode, preprocess, inference, postprocess; of streams also capture_lag (what
    held the frame back on its way to us) and wait (until the model took it)."""
    age_ms: float | None = None
    """Age of the frame at emission, milliseconds; None: not emitted yet."""

    @property
    def index(self) -> int:
        """Number of the frame in its source, from 0."""
        return self.frame.index

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The frame's picture, (H, W, 3) uint8 BGR."""
        return self.frame.image


class Source(Protocol):
    """Where frames come from; `edgerpn.runtime.sources.open_source.open_source` makes one.

    Iterating blocks until a frame or an event is there. `close` may be called from any thread and at any time:
    it ends the iteration soon, and does nothing the second time.
    """

    @property
    def name(self) -> str:
        """Name for people and records, without passwords."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames per second as the source states them; None when it does not, and for images."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether time goes on when nobody reads: then the newest frame wins and others are dropped."""
        ...

    @property
    def is_images(self) -> bool:
        """Whether every frame is a picture of its own, with its own size."""
        ...

    @property
    def num_frames(self) -> int | None:
        """Frames in all, as far as the source knows."""
        ...

    @property
    def drops(self) -> int:
        """Frames that were captured and never delivered."""
        ...

    def __iter__(self) -> Iterator[Frame | Event]:
        """The frames and events in order; call it once."""
        ...

    def close(self) -> None:
        """Lets go of the file, device or connection."""
        ...

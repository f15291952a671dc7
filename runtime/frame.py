"""The values that travel through the runtime: frames and events from a source, results from the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.zones import ZoneMap

EventKind = Literal[
    "started",
    "connected",
    "gap",
    "stalled",
    "stale",
    "resized",
    "reconnecting",
    "damaged",
    "ended",
    "error",
    "appeared",
    "left",
    "stationary",
    "entered_zone",
    "left_zone",
]

BREAKS: tuple[EventKind, ...] = ("stalled", "reconnecting", "ended")
"""Kinds of events after which no frame of their source follows soon."""

SourceState = Literal["starting", "connected", "quiet", "reconnecting", "ended"]
"""State of a source; quiet: connected, but no frame has come for `gap_s`."""

Reason = Literal[
    "none",
    "age",
    "busy",
    "clock",
    "codec",
    "crashed",
    "dependency",
    "end_of_stream",
    "lost",
    "not_found",
    "permission",
    "picture",
    "refused",
    "removed",
    "resized",
    "server",
    "silence",
    "slow",
    "timeout",
    "tls",
    "unauthorised",
    "unknown",
    "unreachable",
    "unsupported",
]
"""Class of the reason of an event; `edgerpn.runtime.sources.failures` has advice for each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One picture and the time of its capture."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 BGR, not to be changed; valid as long as this array or a view of it exists. The picture of a live
    source lies in memory shared with its capture process, which has few slots: whoever keeps several gets copies.
    Where a model takes BGRx, a camera's picture may be (H, W, 4); `bgr` has three channels always."""
    source: str
    """Name of the source, without passwords."""
    index: int
    """Number of the frame in its source, from 0 and over all connections; dropped and skipped frames leave gaps."""
    media_time_s: float | None
    """Time inside the video, seconds; its zero differs between connections. None: an image, or unknown."""
    captured_at: float
    """Wall clock when the frame was read, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment, for ages and intervals."""
    decode_ms: float
    """Time to read and decode it, milliseconds; of a live source only the conversion, because the rest is waiting."""
    path: Path | None = None
    """File of an image."""
    connection: int = 1
    """Number of the connection that delivered it, from 1."""
    lag_ms: float | None = None
    """Delay against the fastest frames of the last minutes by the camera's clock, milliseconds: the time that network
    and decoder held the frame back. None: not live, or the camera's clock is unknown."""
    num_dropped: int = 0
    """Frames dropped between this one and the previous one, because the model was busy."""
    num_skipped: int = 0
    """Frames left out in between because of `max_fps`."""
    camera_hw: tuple[int, int] | None = None
    """Height and width of the camera's picture, pixels, where a Jetson has made `image` smaller for a run whose outputs
    look at no pictures; None: `image` is the camera's picture."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the picture in whose pixels boxes are: that of the camera."""
        return self.camera_hw or (self.image.shape[0], self.image.shape[1])

    @property
    def bgr(self) -> npt.NDArray[np.uint8]:
        """The picture, (H, W, 3) uint8 BGR: `image` itself, or a copy without the fourth channel."""
        if self.image.shape[2] == 3:
            return self.image
        cv2 = load_cv2()
        # A view would be copied by each of its users, many times slower.
        converted: npt.NDArray[np.uint8] = cv2.cvtColor(self.image, cv2.COLOR_BGRA2BGR)
        return converted

    def age_ms(self, now_s: float) -> float:
        """Milliseconds from the capture of the frame to `now_s` (`time.monotonic()`), its known lag included."""
        return (now_s - self.monotonic_s) * 1e3 + (self.lag_ms or 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """An object that is followed from frame to frame, at its last sight; see `edgerpn.runtime.tracking`."""

    track_id: int
    """Number, from 1 in its source; a run uses it once, also when the source comes again."""
    age_s: float
    """Seconds since its first sight."""
    dwell_s: float
    """Seconds at its present place."""
    is_confirmed: bool
    """Whether it was seen in `confirm_frames` frames in a row."""
    label: str = ""
    """Name of its class, by all its proposals so far; empty: the model does not have classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A change of a source between two frames; holds no password. Zeros and empty texts mean: does not apply.

    started: the source is being opened. connected: the first frame of a connection has come. gap: frames were missing
    and come again. stalled: no frame came for `stall_s`, which ends the connection. stale: a frame was too old
    to be a result. resized: the frames have another size from now on. reconnecting: the source is down, the next
    attempt is in `delay_s`. damaged: a picture has a hole or lacks its end, and is used nevertheless. ended: no more
    frames will come. error: a picture could not be read or used, the capture process crashed, or another attempt is
    pointless (then `ended` follows). appeared: a track is confirmed. stationary: a track stands for `stationary_s`.
    left: a track has not been seen for `buffer_s`, or its source has ended or has another size. entered_zone,
    left_zone: a confirmed track is in a zone, or not any more; a track leaves its zones before it leaves.
    """

    kind: EventKind
    """One of the above."""
    source: str
    """Name of the source, without passwords."""
    message: str
    """One line for people."""
    happened_at: float = field(default_factory=time.time)
    """Wall clock of the event, UTC, seconds since the epoch."""
    reason: Reason = "none"
    """Class of the reason."""
    fix: str = ""
    """Advice for people."""
    path: Path | None = None
    """damaged, error: file of the picture."""
    attempt: int = 0
    """reconnecting: attempts that failed since frames came; connected: number of the connection, from 1."""
    delay_s: float = 0.0
    """reconnecting: seconds until the next attempt."""
    duration_s: float = 0.0
    """gap, stalled: seconds without frames; connected: from the start of the process to the first frame; clock jumps:
    seconds by which the camera's clock is ahead of its expected time; left_zone: seconds in the zone."""
    size_wh: tuple[int, int] | None = None
    """connected, resized: width and height, pixels."""
    fps: float = 0.0
    """connected: frames per second as the source states them; 0: unknown."""
    num_frames: int = 0
    """connected: frames in all, of a file."""
    decoder: str = ""
    """connected: the decoder, and the reason for its choice."""
    is_live: bool = True
    """connected: whether the source continues when the run does not read it."""
    frame: int | None = None
    """stale: number of the frame in its source; of a track: of its last sight, to which `happened_at` belongs too."""
    age_ms: float | None = None
    """stale: age of the frame when it would have been emitted, milliseconds."""
    track: Track | None = None
    """Of a track: the track at its last sight."""
    box_xyxy: tuple[float, float, float, float] | None = None
    """Of a track: the proposal of that sight, pixels of the frame."""
    zones: tuple[str, ...] = ()
    """Of a track: names of the zones in which that proposal stands."""
    zone: str = ""
    """entered_zone, left_zone: name of the zone."""


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
    zone_map: ZoneMap | None = None
    """Zones and masks of the source; the proposals hold no masked ones. None: the source has neither."""
    tracks: tuple[Track | None, ...] | None = None
    """The track of each proposal, None for one that belongs to none; None: the run follows no objects."""

    @property
    def index(self) -> int:
        """Number of the frame in its source, from 0."""
        return self.frame.index

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The frame's picture, (H, W, 3) uint8 BGR; see `Frame.bgr`."""
        return self.frame.bgr

    @property
    def zones(self) -> tuple[tuple[str, ...], ...] | None:
        """Names of the zones in which each proposal stands, computed at each access; None: the source has no zones."""
        if self.zone_map is None or not self.zone_map.names:
            return None
        return self.zone_map.zones_of(self.proposals.boxes, self.frame.size_hw)


@runtime_checkable
class Source(Protocol):
    """An opened file, folder or glob; `edgerpn.runtime.sources.file_sources.open_source` makes one.

    A thread of the run iterates over it once. `close` may be called from any thread and at any time: it ends the
    iteration soon, and does nothing the second time.
    """

    @property
    def name(self) -> str:
        """Name for people and records, without passwords; the frames carry it too."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames per second as the file states them; None when it does not, and for images."""
        ...

    @property
    def is_images(self) -> bool:
        """Whether every frame is a picture of its own, with its own size."""
        ...

    @property
    def num_frames(self) -> int | None:
        """Frames in all, if known."""
        ...

    def __iter__(self) -> Iterator[Frame | Event]:
        """Yields the frames and events in order."""
        ...

    def close(self) -> None:
        """Ends the iteration and closes the file."""
        ...

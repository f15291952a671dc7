"""What travels through the runtime: frames and events from a source, results from the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One picture and when it was taken."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 BGR; not shared with the source, so it may be kept."""
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
    """Time to read and decode it, milliseconds; for a camera this includes waiting for the frame."""
    path: Path | None = None
    """File of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that a source says in between its frames."""

    kind: Literal["error", "truncated", "ended"]
    """error: one item could not be read; truncated: a video stopped early; ended: a live stream ended."""
    source: str
    """Name of the source, without passwords."""
    message: str
    """What happened, for people."""
    captured_at: float
    """Wall clock, UTC, seconds since the epoch."""
    path: Path | None = None
    """File that could not be read."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """The proposals of one frame of a stream."""

    proposals: Proposals
    """Boxes in pixels of the frame, best first."""
    frame: Frame
    """The frame they belong to."""
    stage_ms: Mapping[str, float]
    """Milliseconds spent in each stage: decode, preprocess, inference, postprocess."""

    @property
    def index(self) -> int:
        """Number of the frame in its source, from 0."""
        return self.frame.index

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The frame's picture, (H, W, 3) uint8 BGR."""
        return self.frame.image


class Source(Protocol):
    """Where frames come from; `edgerpn.runtime.source.open_source` makes one.

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

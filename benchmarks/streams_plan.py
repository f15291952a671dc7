"""What the parts of `streams.py` are given, and what they give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams_statistics import Limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be measured, and how long."""

    model: Path
    """Exported graph."""
    video: str
    """Video file, long enough for every measurement."""
    folder: Path
    """Scratch folder, removed at the end."""
    bare_fps: float
    """Frames per second of the bare model in a loop, measured at the start."""
    no_camera: str
    """Why there is no RTSP camera; empty: there is one."""
    pictures: Path
    """What the camera shows."""
    camera_wh: tuple[int, int]
    """Its width and height, pixels."""
    numbers: Sequence[int]
    """Numbers of sources."""
    rounds: int
    """Rounds of each measurement of a rate."""
    seconds: float
    """Length of each such measurement."""
    source_fps: float
    """Pictures per second of each RTSP source in the part `files`."""
    rate: float
    """Pictures per second under overload; 0: `overload` times those of the bare model."""
    overload: float
    """See `rate`."""
    overload_s: float
    """Length of the overload, for each reader."""
    soak_s: float
    """Length of the soak."""
    cycle_s: float
    """Time from one death of the camera to the next."""
    warm_up_s: float
    """Start of the soak that does not count."""
    ultralytics_python: Path | None
    """Python that has Ultralytics and this package; None: that peer is left out."""
    outputs: str = ""
    """Text that the names of the dead consumers hold; empty: all are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a part found."""

    name: str
    """Its name on the command line."""
    rows: list[dict[str, Any]]
    """A table."""
    limits: list[Limit]
    """What must hold."""
    notes: list[str]
    """What to know when reading it."""
    skipped: str = ""
    """Why it was not run; empty: it was."""
    failed: str = ""
    """Why it broke off; empty: it did not."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Further figures."""

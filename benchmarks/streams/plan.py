"""The plan of a measurement, the results of its parts, their limits, and the arithmetic of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The measurements and their lengths."""

    model: Path
    """Exported graph."""
    video: str
    """Video file, long enough for every measurement."""
    folder: Path
    """Scratch folder, removed at the end."""
    bare_fps: float
    """Frames per second of the bare model in a loop, measured at the start."""
    no_camera: str
    """The reason why there is no RTSP camera; empty: there is one."""
    pictures: Path
    """Pictures of the camera, raw I420."""
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
    """The results of a part."""

    name: str
    """Its name on the command line."""
    rows: list[dict[str, Any]]
    limits: list[Limit]
    """Its limits."""
    notes: list[str]
    """Remarks for readers of the table."""
    skipped: str = ""
    """The reason why it was not run; empty: it was."""
    failed: str = ""
    """The error that ended it; empty: it did not fail."""
    figures: dict[str, Any] = field(default_factory=dict)


EDGE_S = 60.0
"""Length of the first and of the last part of a series that are compared; a fifth of short ones."""

_DIGITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A limit of one figure."""

    what: str
    """The figure, for people."""
    value: float
    sign: Literal[">=", "<="]
    """The good side."""
    bound: float

    @property
    def holds(self) -> bool:
        """True if it holds; not a number breaks it."""
        return self.value >= self.bound if self.sign == ">=" else self.value <= self.bound

    def as_row(self) -> dict[str, Any]:
        """For JSON and tables; `tolerance` is value over bound."""
        return {
            "what": self.what,
            "value": round(self.value, 4),
            "limit": f"{self.sign} {self.bound:.4g}",
            "tolerance": round(self.value / self.bound, 4) if self.bound else None,
            "holds": self.holds,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A straight line through samples, by least squares."""

    slope_per_s: float
    """Change per second."""
    error_per_s: float
    """Standard error of the slope."""
    duration_s: float
    """Time from the first sample to the last."""

    @property
    def growth(self) -> float:
        """Change over the whole time, by the line."""
        return self.slope_per_s * self.duration_s

    @property
    def growth_error(self) -> float:
        """Standard error of the same."""
        return self.error_per_s * self.duration_s

    @property
    def is_zero(self) -> bool:
        """True if zero lies within three standard errors."""
        return abs(self.growth) <= 3 * self.growth_error

    @property
    def worst(self) -> float:
        """The largest change, up or down, that three standard errors leave possible; not a number without an error."""
        return abs(self.growth) + 3 * self.growth_error


def trend(times_s: Values, values: Values) -> Trend:
    """The line through samples; of fewer than three its error, and so `worst`, is not a number."""
    if len(times_s) < 3:
        span_s = times_s[-1] - times_s[0] if len(times_s) else 0.0
        return Trend(slope_per_s=math.nan, error_per_s=math.nan, duration_s=span_s)
    x, y = np.asarray(times_s, float), np.asarray(values, float)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    rest = y - y.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / spread)
    # Constant values would have a slope of rounding errors otherwise.
    slope, error = (round(value, _DIGITS) + 0.0 for value in (slope, error))
    return Trend(slope_per_s=slope, error_per_s=error, duration_s=float(x[-1] - x[0]))


def ages(times_s: Values, ages_ms: Values) -> dict[str, float]:
    """Quantiles of ages, and the median of the first and of the last minute (a fifth of less than five minutes)."""
    if not len(ages_ms):
        return {"results": 0}
    x, y = np.asarray(times_s, float), np.asarray(ages_ms, float)
    edge_s = min(EDGE_S, (x[-1] - x[0]) / 5)
    p50, p99 = np.percentile(y, [50, 99]).tolist()
    return {
        "results": len(y),
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": float(y.max()),
        "first_minute_p50_ms": float(np.median(y[x <= x[0] + edge_s])),
        "last_minute_p50_ms": float(np.median(y[x >= x[-1] - edge_s])),
    }


def ratio(rows: Sequence[Mapping[str, float]], above: str, below: str) -> dict[str, float]:
    """Median, least and largest of the ratios of two figures that were measured alternately."""
    found = [row[above] / row[below] if row[below] else math.nan for row in rows]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}

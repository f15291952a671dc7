"""The pace of a camera, and the silences that are normal at that pace.

A camera may send 25 pictures a second, or one every 15 s, and become slow at night. A limit that the settings do not
state follows the pace; one that they state stays as it is.
"""

from __future__ import annotations

import statistics
from collections import deque

from edgerpn.runtime.sources.capture_config import GAP_S, MAX_OPEN_S, MAX_STALL_S, CaptureConfig

SILENCE_S = 10.0
"""Silence of a camera of unknown pace that ends a connection, before and after its first frame, seconds."""

_NUM_RECENT = 5
_GAP_PERIODS, _STALL_PERIODS = 3, 4
# A connection with so few pictures has not shown its pace.
_FEW = 3


class Pace:
    """Recent intervals between the frames of a source, and the limits that follow from them.

    One thread adds the intervals; any thread may read the limits.
    """

    def __init__(self, config: CaptureConfig) -> None:
        """Starts with the limits of the settings, or of a camera of unknown pace."""
        self._config = config
        self._recent_s: deque[float] = deque(maxlen=_NUM_RECENT)
        self._least_s = SILENCE_S
        # Pictures that are requested slowly come slowly.
        self.interval_s = 1 / config.rate_hz if config.rate_hz else 0.0
        """Median of the recent intervals, seconds; 0: unknown."""
        self.num_frames = 0
        """Frames of this connection."""

    @property
    def gap_s(self) -> float:
        """Silence that counts as a gap, seconds."""
        if self._config.gap_s is not None:
            return self._config.gap_s
        return min(max(GAP_S, _GAP_PERIODS * self.interval_s), self.stall_s)

    @property
    def stall_s(self) -> float:
        """Silence that ends a connection, seconds."""
        if self._config.stall_s is not None:
            return self._config.stall_s
        adapted_s = min(self._config.longest_stall_s, _STALL_PERIODS * self.interval_s)
        return max(self._least_s, adapted_s, 2 * (self._config.gap_s or 0.0))

    @property
    def open_s(self) -> float:
        """Time until the first frame of a connection, seconds."""
        given_s = self._config.open_timeout_s
        return min(MAX_OPEN_S, self._least_s) if given_s is None else given_s

    @property
    def is_adapted(self) -> bool:
        """Whether frames that come slowly and steadily have raised `stall_s`."""
        is_raised = _STALL_PERIODS * self.interval_s > SILENCE_S
        return self._config.stall_s is None and len(self._recent_s) > 1 and is_raised

    @property
    def is_slow(self) -> bool:
        """Whether a slow pace may explain the present silence: frames were few, or came nearly as slowly."""
        return self.num_frames <= _FEW or 2 * self.interval_s > self.stall_s

    def restart(self) -> None:
        """Begins a connection."""
        self._recent_s.clear()
        self.num_frames = 0

    def add(self, interval_s: float) -> None:
        """Adds a frame by the time since the previous one, or since the start of the connection."""
        self.num_frames += 1
        if self.num_frames == 1:
            return
        self._recent_s.append(interval_s)
        self.interval_s = statistics.median(self._recent_s)
        if len(self._recent_s) == _NUM_RECENT and _STALL_PERIODS * self.interval_s < SILENCE_S:
            # Slow at night, quick by day.
            self._least_s = SILENCE_S

    def widen(self, *, is_open: bool) -> float | None:
        """Doubles the limits after one of them ended a connection that may only be slow.

        Args:
            is_open: Whether frames had come, so that `stall_s` ended it; else it was the time until the first one.

        Returns:
            The new limit, seconds; None: the settings state it, or it is at its maximum.
        """
        before_s = self.stall_s if is_open else self.open_s
        self._least_s = min(MAX_STALL_S, 2 * self._least_s)
        limit_s = self.stall_s if is_open else self.open_s
        return limit_s if limit_s > before_s else None

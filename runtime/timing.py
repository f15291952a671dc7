"""Percentiles of durations in constant memory."""

from __future__ import annotations

import math

import numpy as np

_SMALLEST_MS = 1e-3
_RATIO = 1.01
_NUM_BINS = math.ceil(math.log(1e9) / math.log(_RATIO))


class LatencyHistogram:
    """Counts durations from 1 microsecond to 11 days in bins that grow by 1 %: percentiles are right within 1 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_NUM_BINS + 1, np.int64)
        self.total = 0

    def add(self, duration_ms: float) -> None:
        """Counts one duration."""
        position = math.log(max(duration_ms, _SMALLEST_MS) / _SMALLEST_MS) / math.log(_RATIO)
        self._counts[min(int(position), _NUM_BINS)] += 1
        self.total += 1

    def percentile_ms(self, percent: float) -> float | None:
        """Returns the duration that `percent` (0..100) of the counted ones do not exceed; None without any."""
        if not self.total:
            return None
        rank = max(1, math.ceil(self.total * percent / 100))
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return float(_SMALLEST_MS * _RATIO ** (index + 0.5))

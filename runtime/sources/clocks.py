"""Clocks of a stream: how late its frames are, where its clock jumps, and which frames a rate cap lets through."""

from __future__ import annotations

import math

_WINDOW_S = 60.0
_JUMP_S = 1.0
# Decoders repeat or reorder the first few time stamps by some frames.
_BACKWARD_S = 0.5


class LagMeter:
    """Compares the camera's clock with ours: the quickest frames of the last minutes count as on time.

    The minimum is taken over one to two minutes only, because the two clocks drift apart.
    """

    def __init__(self) -> None:
        """Starts without a baseline."""
        self._previous_s = self._current_s = math.inf
        self._since_s = self._media_s = -math.inf

    def add(self, media_s: float, now_s: float) -> tuple[float, float]:
        """Takes one frame's time stamp and its arrival.

        Returns:
            Its lag in seconds, 0 or more; and the seconds by which the camera's clock has jumped, mostly 0.
        """
        offset_s = now_s - media_s
        base_s = min(self._previous_s, self._current_s)
        jump_s = 0.0
        # Earlier than the quickest frame is impossible, unless the camera's clock went forward.
        if (offset_s < base_s - _JUMP_S and base_s < math.inf) or media_s < self._media_s - _BACKWARD_S:
            jump_s = base_s - offset_s
        self._media_s = media_s
        if jump_s or now_s - self._since_s > 2 * _WINDOW_S:
            self._reset(now_s)
        elif now_s - self._since_s > _WINDOW_S:
            self._previous_s, self._current_s, self._since_s = self._current_s, math.inf, now_s
        self._current_s = min(self._current_s, offset_s)
        return offset_s - min(self._previous_s, self._current_s), jump_s

    def _reset(self, now_s: float) -> None:
        self._previous_s = self._current_s = math.inf
        self._since_s = now_s


class RateCap:
    """Lets at most so many frames a second through, evenly spaced."""

    def __init__(self, max_fps: float) -> None:
        """Lets everything through when `max_fps` is 0."""
        self._period_s = 1 / max_fps if max_fps > 0 else 0.0
        self._due_s = -math.inf

    def lets_through(self, time_s: float) -> bool:
        """Whether a frame of this time is due; a clock that went back starts anew."""
        if not self._period_s:
            return True
        if abs(time_s - self._due_s) > 2 * self._period_s:
            self._due_s = time_s
        # A thousandth of the period early is on time: 30 of 60 frames must not become 20 by rounding.
        if time_s < self._due_s - self._period_s * 1e-3:
            return False
        self._due_s += self._period_s
        return True

"""The motion of one box: a Kalman filter of constant speed, in seconds and not in frames."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Box = npt.NDArray[np.float64]

_NOISE = 0.05
"""Standard deviation of a proposal's centre and size, in sizes of the box (the root of its area)."""
_ACCELERATION = 1.0
"""Standard deviation of the change of speed in a second, sizes per second; ByteTrack's, at 30 frames a second."""
_FIRST_SPEED = 2.0
"""Standard deviation of the speed at the first sight, sizes per second."""


class BoxMotion:
    """Centre and size of a box, and the speed of the centre.

    The size has no speed: when it is not seen for seconds, a box that grew would grow over the whole picture. All four
    numbers have the same noise and thus the same variances, three numbers in all. White noise of the acceleration
    makes two short predictions equal to a long one, so that it does not matter which frames were dropped.
    """

    def __init__(self, box_xyxy: Box) -> None:
        """Stands still at a box, (4,) float64, pixels."""
        self._state = _to_center(box_xyxy)
        self._speed = np.zeros(2)
        self._variance = (_NOISE * self._scale) ** 2
        self._covariance = 0.0
        self._speed_variance = (_FIRST_SPEED * self._scale) ** 2

    @property
    def box_xyxy(self) -> Box:
        """The box at the time of the last step, (4,) float64, pixels."""
        half = self._state[2:] / 2
        return np.concatenate([self._state[:2] - half, self._state[:2] + half])

    @property
    def _scale(self) -> float:
        return math.sqrt(max(float(self._state[2] * self._state[3]), 1.0))

    def predict(self, seconds: float) -> None:
        """Moves the box on by some time, 0 or more."""
        change = (_ACCELERATION * self._scale) ** 2 * seconds
        self._state[:2] += self._speed * seconds
        self._variance += (2 * self._covariance + self._speed_variance * seconds + change * seconds / 3) * seconds
        self._covariance += self._speed_variance * seconds + change * seconds / 2
        self._speed_variance += change

    def correct(self, box_xyxy: Box) -> None:
        """Takes over where the box was seen, (4,) float64, pixels."""
        total = self._variance + (_NOISE * self._scale) ** 2
        gain, speed_gain = self._variance / total, self._covariance / total
        change = _to_center(box_xyxy) - self._state
        self._state += gain * change
        self._speed += speed_gain * change[:2]
        self._speed_variance -= speed_gain * self._covariance
        self._covariance *= 1 - gain
        self._variance *= 1 - gain


def _to_center(box_xyxy: Box) -> Box:
    size = np.maximum(box_xyxy[2:] - box_xyxy[:2], 1.0)
    return np.concatenate([(box_xyxy[:2] + box_xyxy[2:]) / 2, size])

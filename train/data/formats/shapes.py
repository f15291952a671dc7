"""Boxes around the shapes of other tools, and sizes as they write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgerpn.train.data.annotations import numbers


def extent(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns left, top, width, height of the box around points; NaN if a coordinate is not finite."""
    if not all(map(math.isfinite, (*xs, *ys))):
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def rotated(xywh: Sequence[float], degrees: float, pivot: tuple[float, float]) -> tuple[float, float, float, float]:
    """Returns the box around a box that is turned clockwise about a point, which is given in units of the box.

    Args:
        xywh: Left, top, width, height.
        degrees: The angle.
        pivot: (0, 0) is the left upper corner, (0.5, 0.5) the centre.
    """
    x, y, width, height = xywh
    cos, sin = _cos_sin(degrees)
    centre_x, centre_y = x + pivot[0] * width, y + pivot[1] * height
    corners = [((u - pivot[0]) * width, (v - pivot[1]) * height) for u in (0, 1) for v in (0, 1)]
    return extent(
        [centre_x + dx * cos - dy * sin for dx, dy in corners], [centre_y + dx * sin + dy * cos for dx, dy in corners]
    )


def rotated_ellipse(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float
) -> tuple[float, float, float, float]:
    """Returns the box around an ellipse that is turned clockwise about its centre."""
    cos, sin = _cos_sin(degrees)
    half_width, half_height = math.hypot(radius_x * cos, radius_y * sin), math.hypot(radius_x * sin, radius_y * cos)
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def size_hw(height: Any, width: Any) -> tuple[int, int] | None:
    """Returns an annotated size; None if it is missing, 0 or not a number, as some tools write it."""
    found = numbers((height, width))
    if found is None or not all(1 <= value < 1e9 for value in found):
        return None
    return int(found[0]), int(found[1])


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Returns NaN for an angle that is not finite."""
    angle = math.radians(degrees) if math.isfinite(degrees) else math.nan
    return math.cos(angle), math.sin(angle)

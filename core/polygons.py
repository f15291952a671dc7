"""Polygons in a frame: the points inside them, and the share of a box that they cover.

Exact for any polygon whose outline does not cross itself, convex or not. All polygons of a frame are computed at once,
in float64. A point on the outline counts as inside: the lowest point of an object that the frame's edge cuts off lies
on that edge, and must be inside of a polygon that ends there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
Floats = npt.NDArray[np.float64]

MAX_POINTS = 100
"""Points of one polygon at most."""

_ON_OUTLINE = 1e-9


class Polygons:
    """Several polygons, in the coordinates of their points; immutable."""

    def __init__(self, outlines: Sequence[Floats]) -> None:
        """Takes at least one outline: (3 or more, 2), x and y of each point; see `outline_problem`."""
        counts = [len(points) for points in outlines]
        # A row for each side, a column for each box: reduceat is fast along rows.
        self._start_x, self._start_y = np.concatenate(outlines).T[:, :, None]
        ends = np.concatenate([np.roll(points, -1, axis=0) for points in outlines]).T[:, :, None]
        self._run, self._rise = ends[0] - self._start_x, ends[1] - self._start_y
        self._slope = np.divide(self._rise, self._run, out=np.zeros_like(self._run), where=self._run != 0)
        self._first = np.cumsum([0, *counts[:-1]])
        self._owner = np.repeat(np.arange(len(counts)), counts)

    def contain(self, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
        """Returns whether each polygon holds its point, outline included.

        A point is inside when a ray from it crosses the outline an odd number of times (Shimrat 1962).

        Args:
            x: (P, M); of M points for each of P polygons.
            y: (P, M).

        Returns:
            (P, M).
        """
        from_x, from_y = x[self._owner] - self._start_x, y[self._owner] - self._start_y
        # Twice the area of the triangle of side and point: its sign tells on which hand the point lies.
        turn = self._run * from_y - self._rise * from_x
        is_above = from_y >= 0
        crosses = (is_above != (from_y >= self._rise)) & ((turn > 0) == is_above)
        is_on_line = np.abs(turn) <= _ON_OUTLINE
        is_within = (from_x * (from_x - self._run) <= _ON_OUTLINE) & (from_y * (from_y - self._rise) <= _ON_OUTLINE)
        is_odd = np.logical_xor.reduceat(crosses, self._first)
        return is_odd | np.logical_or.reduceat(is_on_line & is_within, self._first)

    def shares(self, boxes_xyxy: npt.NDArray[np.floating]) -> Floats:
        """Returns the share of each box's area that each polygon covers.

        The area is the sum over the sides of what lies between a side and the lower edge of the box, inside the box.

        Args:
            boxes_xyxy: (M, 4); x1, y1, x2, y2. A box without area counts as one that is very small.

        Returns:
            (P, M) float64, 0..1.
        """
        left, top, right, bottom = boxes_xyxy.T.astype(np.float64)
        width, height = np.maximum(right - left, _ON_OUTLINE), np.maximum(bottom - top, _ON_OUTLINE)
        first_x = np.clip(self._start_x, left, left + width)
        last_x = np.clip(self._start_x + self._run, left, left + width)
        origin = self._start_y - self._slope * self._start_x - top
        means = _mean_clamped(origin + self._slope * first_x, origin + self._slope * last_x, height)
        areas = np.add.reduceat((last_x - first_x) * means, self._first)
        return np.clip(np.abs(areas) / (width * height), 0, 1)


def _mean_clamped(start: Floats, end: Floats, limit: Floats) -> Floats:
    """Returns the mean of clip(y, 0, limit), while y runs evenly from `start` to `end`."""
    rise = end - start
    is_level = np.abs(rise) < _ON_OUTLINE
    integral = _integral_clamped(end, limit) - _integral_clamped(start, limit)
    return np.where(is_level, np.clip(start, 0, limit), integral / np.where(is_level, 1, rise))


def _integral_clamped(y: Floats, limit: Floats) -> Floats:
    """Returns the integral of clip(y, 0, limit) from 0 to `y`."""
    return (np.maximum(y, 0) ** 2 - np.maximum(y - limit, 0) ** 2) / 2


def outline_problem(points: Sequence[Point]) -> str | None:
    """Returns why points are not the outline of a polygon, with the numbers of the points from 1; None: they are."""
    count = len(points)
    if not 3 <= count <= MAX_POINTS:
        return f"expected 3 to {MAX_POINTS} points, got {count}"
    sides = [(points[i], points[(i + 1) % count]) for i in range(count)]
    for i, (start, end) in enumerate(sides):
        if start == end:
            return f"points {i + 1} and {(i + 1) % count + 1} are the same one; give each point once"
    for i, (start, end) in enumerate(sides):
        if _turns_back(points[i - 1], start, end):
            return f"the outline turns back on itself at point {i + 1}"
    for i, side in enumerate(sides):
        for j in range(i + 2, count - (i == 0)):
            if _meet(*side, *sides[j]):
                where = f"the side from point {i + 1} meets that from point {j + 1}"
                return f"the outline crosses or touches itself: {where}"
    return None


def _turn(first: Point, second: Point, third: Point) -> float:
    """Returns a positive number, 0 or a negative one as the third point lies left of, on or right of the line."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])


def _turns_back(before: Point, corner: Point, after: Point) -> bool:
    along = (before[0] - corner[0]) * (after[0] - corner[0]) + (before[1] - corner[1]) * (after[1] - corner[1])
    return along > 0 and _turn(before, corner, after) == 0


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Returns whether the sides a-b and c-d have a common point (Cormen et al., Introduction to Algorithms, 33.1)."""
    turns = (_turn(c, d, a), _turn(c, d, b), _turn(a, b, c), _turn(a, b, d))
    if turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0:
        return True
    ends = ((c, d, a), (c, d, b), (a, b, c), (a, b, d))
    return any(turn == 0 and _is_between(*end) for turn, end in zip(turns, ends, strict=True))


def _is_between(start: Point, end: Point, point: Point) -> bool:
    """Returns whether a point of the line through `start` and `end` lies between them."""
    return all(min(start[i], end[i]) <= point[i] <= max(start[i], end[i]) for i in (0, 1))

"""Line charts as inline SVG, coloured by the report's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    """Shown at the line's end."""
    points: Sequence[tuple[float, float]]
    """x and y, by rising x."""
    smooth: bool = False
    """Shows a moving average over a faint line of the points themselves."""
    markers: bool = False
    """Shows a dot at each point."""


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    summary: str,
    wh: tuple[int, int] = (860, 340),
    css_class: str = "",
) -> str:
    """Draws lines over a common pair of axes.

    Args:
        series: One to three lines; points that are not finite are left out.
        x_label: Name of the horizontal axis, with its unit.
        y_label: Name of the vertical axis, with its unit.
        summary: What the chart shows, for those who cannot see it.
        wh: Width and height of the drawing; it scales to the page, and its text with it.
        css_class: Further classes of the element.

    Returns:
        An `<svg>` element, or a sentence when there is nothing to draw.
    """
    lines = [(item, _thin([p for p in item.points if all(map(math.isfinite, p))], limit=wh[0])) for item in series]
    lines = [(item, points) for item, points in lines if points]
    if not lines:
        return f"<p class='muted'>No values of {escape(y_label)} were recorded.</p>"
    width, height = wh
    # The right margin holds the names of the lines.
    frame = _Frame(left=64, top=30, right=width - (120 if len(lines) > 1 else 20), bottom=height - 46)
    scale = _scale([points for _, points in lines], frame)
    parts = [
        f"<svg class='chart {escape(css_class)}' viewBox='0 0 {width} {height}' role='img'",
        f" aria-label='{escape(summary)}'>",
        *_axes(scale, frame, x_label, y_label),
    ]
    for number, (item, points) in enumerate(lines, start=1):
        parts += _line(item, points, scale, number)
    if len(lines) > 1:
        parts += _names([(item.name, _ending(item, points)) for item, points in lines], scale, frame)
    return "".join([*parts, "</svg>"])


def moving_average(values: Sequence[float], *, weight: float) -> list[float]:
    """Exponential moving average from the first value on, free of the bias towards it that a plain one has.

    Args:
        values: Finite numbers.
        weight: Share of the past in each step, 0 (no smoothing) to below 1.
    """
    averages, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        averages.append(total / mass)
    return averages


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Edges of the plotting area in drawing units."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """Maps values to the drawing."""

    low_xy: tuple[float, float]
    high_xy: tuple[float, float]
    frame: _Frame

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies; values above the axis are held at its upper end."""
        frame, (x0, y0), (x1, y1) = self.frame, self.low_xy, self.high_xy
        across = (x - x0) / ((x1 - x0) or 1)
        up = min(1.0, max(0.0, (y - y0) / ((y1 - y0) or 1)))
        return frame.left + across * (frame.right - frame.left), frame.bottom - up * (frame.bottom - frame.top)


def _thin(points: Sequence[tuple[float, float]], *, limit: int) -> list[tuple[float, float]]:
    """Averages neighbouring points until at most `limit` are left."""
    size = math.ceil(len(points) / limit)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    weight = max(0.0, 1 - 30 / max(len(points), 1)) * 0.97
    averages = moving_average([y for _, y in points], weight=min(weight, 0.95))
    return [(x, y) for (x, _), y in zip(points, averages, strict=True)]


def _ending(item: Series, points: Sequence[tuple[float, float]]) -> float:
    return (_smoothed(points) if item.smooth else points)[-1][1]


def _scale(lines: Sequence[Sequence[tuple[float, float]]], frame: _Frame) -> _Scale:
    """Axes from 0 up to what nearly all values need, so that a spike at the start does not flatten the rest."""
    xs = [x for points in lines for x, _ in points]
    tops = []
    for points in lines:
        values = sorted(y for _, y in points)
        tops.append(values[min(len(values) - 1, int(0.99 * len(values)))])
    top = max([*tops, 0.0]) * 1.08 or 1.0
    return _Scale(
        low_xy=(min(xs), min(0.0, *(y for points in lines for _, y in points))), high_xy=(max(xs), top), frame=frame
    )


def _axes(scale: _Scale, frame: _Frame, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in ticks(scale.low_xy[1], scale.high_xy[1]):
        _, y = scale.place(scale.low_xy[0], value)
        parts.append(f"<line class='grid' x1='{frame.left:g}' x2='{frame.right:g}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{frame.left - 9:g}' y='{y + 4.5:.1f}' text-anchor='end'>{value:g}</text>")
    for value in ticks(scale.low_xy[0], scale.high_xy[0]):
        x, _ = scale.place(value, 0)
        parts.append(f"<line class='axis' x1='{x:.1f}' x2='{x:.1f}' y1='{frame.bottom:g}' y2='{frame.bottom + 5:g}'/>")
        parts.append(f"<text x='{x:.1f}' y='{frame.bottom + 22:g}' text-anchor='middle'>{value:g}</text>")
    bottom = f"y1='{frame.bottom:g}' y2='{frame.bottom:g}'"
    parts.append(f"<line class='axis' x1='{frame.left:g}' x2='{frame.right:g}' {bottom}/>")
    parts.append(f"<text x='{frame.right:g}' y='{frame.bottom + 42:g}' text-anchor='end'>{escape(x_label)}</text>")
    parts.append(f"<text x='4' y='{frame.top - 14:g}'>{escape(y_label)}</text>")
    return parts


def _line(item: Series, points: Sequence[tuple[float, float]], scale: _Scale, number: int) -> list[str]:
    parts = []
    if item.smooth:
        parts.append(f"<path class='raw s{number}' d='{_path(points, scale)}'/>")
        points = _smoothed(points)
    parts.append(f"<path class='s{number}' d='{_path(points, scale)}'/>")
    if item.markers:
        for x, y in points:
            cx, cy = scale.place(x, y)
            title = f"<title>{x:g}: {y:.4g}</title>"
            parts.append(f"<circle class='f{number}' cx='{cx:.1f}' cy='{cy:.1f}' r='5'>{title}</circle>")
    return parts


def _path(points: Sequence[tuple[float, float]], scale: _Scale) -> str:
    return "M" + "L".join("{:.1f} {:.1f}".format(*scale.place(x, y)) for x, y in points)


def _names(endings: Sequence[tuple[str, float]], scale: _Scale, frame: _Frame) -> list[str]:
    """The lines' names beside their ends, moved apart where they would overlap."""
    heights = [scale.place(scale.high_xy[0], value)[1] for _, value in endings]
    order = sorted(range(len(endings)), key=lambda index: heights[index], reverse=True)
    limit = frame.bottom + 4
    parts = []
    for index in order:
        y = min(heights[index] + 4.5, limit)
        limit = y - 20
        name = escape(endings[index][0])
        parts.append(f"<text class='label f{index + 1}' x='{frame.right + 10:g}' y='{y:.1f}'>{name}</text>")
    return parts

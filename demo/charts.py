"""Line charts as inline SVG, drawn by Matplotlib and coloured by the report's style sheet."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_VARIABLES = {
    "#010101": "var(--muted)",
    "#020202": "var(--line)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
    "#050505": "var(--series-3)",
}
"""Stand-ins that Matplotlib draws with, and the style sheet's colours, which follow the reader's light or dark mode."""
_TEXT, _GRID, *_LINES = _VARIABLES

_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",  # text in the font of the page, not as outlines
    "font.size": 10,
    "text.color": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    summary: str,
    wh_in: tuple[float, float] = (9, 3.5),
    smooth: bool = False,
    names_at_ends: bool = False,
) -> str:
    """Draws up to three lines over common axes that begin at 0.

    Args:
        series: x and y by the names of the lines; points that are not finite are left out.
        x_label: Name of the horizontal axis, with its unit.
        y_label: Name of the vertical axis, with its unit.
        summary: The chart in words, for readers who do not see it.
        wh_in: Width and height in inches; the chart scales to the page, and its text with it.
        smooth: Draws a moving average over the faint points themselves, instead of the points with markers.
        names_at_ends: Writes the names at the ends of the lines, in their colours, instead of a legend.

    Returns:
        An `<svg>` element, or a sentence when there is nothing to draw.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    lines = {name: np.array(points).T for name, points in finite.items() if points}
    if not lines:
        return f"<p class='muted'>No values of {escape(y_label)} were recorded.</p>"
    with mpl.rc_context({**_STYLE, "svg.hashsalt": summary}):
        figure = Figure(figsize=wh_in, layout="constrained")
        axes = figure.add_subplot(xlabel=x_label)
        axes.set_title(y_label, loc="left", fontsize=10)
        for color, (name, (x, y)) in zip(_LINES, lines.items(), strict=False):
            if smooth:
                axes.plot(x, y, color=color, linewidth=0.7, alpha=0.35)
                axes.plot(x, moving_average(y), color=color, label=name)
            else:
                axes.plot(x, y, color=color, label=name, marker="o" if len(x) <= 20 else None)
        # A spike at the start does not flatten the rest.
        top = max(float(np.percentile(y, 99)) for _, y in lines.values())
        axes.set_ylim(min(0.0, *(float(y.min()) for _, y in lines.values())), 1.08 * max(top, 0.0) or 1.0)
        if names_at_ends:
            # Names are 10 pt high, and the axes take about two thirds of the figure.
            share = 1.2 * 10 / (72 * wh_in[1] * 2 / 3)
            _write_names(axes, {name: (x[-1], y[-1]) for name, (x, y) in lines.items()}, share=share)
        elif len(lines) > 1:
            axes.legend()
        return _inline(figure, summary)


def _write_names(axes: Axes, ends: Mapping[str, tuple[float, float]], *, share: float) -> None:
    """Writes the names of lines right of their ends, at least this share of the axes apart in height."""
    low, high = axes.get_ylim()
    heights = spread([y for _, y in ends.values()], share * (high - low))
    for color, (name, (x, _)), height in zip(_LINES, ends.items(), heights, strict=False):
        axes.annotate(name, (x, height), (8, 0), textcoords="offset points", va="center", color=color)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Raises values until all are at least `gap` apart; their order stays."""
    order = sorted(range(len(values)), key=values.__getitem__)
    spread_values = list(values)
    for lower, upper in pairwise(order):
        spread_values[upper] = max(spread_values[upper], spread_values[lower] + gap)
    return spread_values


def moving_average(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Exponential moving average from the first value on, smoother the more values there are; unbiased at the start."""
    weight = min(0.95, max(0.0, 1 - 30 / max(len(values), 1)) * 0.97)
    averages, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        averages.append(total / mass)
    return np.array(averages)


def _inline(figure: Figure, summary: str) -> str:
    """Returns the figure as an element of an HTML page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its style element would hold for the whole page, and the names of its groups repeat from chart to chart.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;]+; ", "", svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    start = f"<svg class='chart' role='img' aria-label='{escape(summary)}' viewBox='{box[1] if box else ''}'>"
    svg = re.sub(r"<svg[^>]*>", start, svg, count=1)
    return re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], svg)

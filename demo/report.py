"""The report: one HTML page that holds everything it shows and needs neither network nor script."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from edgerpn import files
from edgerpn.demo.report_charts import Series, line_chart
from edgerpn.demo.report_pictures import Picture, picture_figure
from edgerpn.demo.report_style import style_sheet

_METRICS: tuple[tuple[str, str], ...] = (
    ("AR@10", "average recall, 10 proposals per image"),
    ("AR@100", "average recall, 100 proposals"),
    ("AR@300", "average recall, 300 proposals"),
    ("AR@1000", "average recall, 1000 proposals"),
    ("AR@100-small", "small objects (below 32 x 32 px), 100 proposals"),
    ("AR@100-medium", "medium objects (up to 96 x 96 px), 100 proposals"),
    ("AR@100-large", "large objects, 100 proposals"),
    ("recall@100-iou50", "share of objects covered at IoU 0.5, 100 proposals"),
    ("recall@100-iou70", "share of objects covered at IoU 0.7, 100 proposals"),
)
"""Names of metrics in the order of the table, and what they mean; others follow under their own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One large number."""

    label: str
    """What it is."""
    value: str
    """The number with its unit."""
    note: str = ""
    """A few words on how it came about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTiming:
    """How long one stage took per frame."""

    stage: str
    """Name: decode, preprocess, ..."""
    median_ms: float
    """Half of the frames took less."""
    p95_ms: float
    """One frame in twenty took more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything that a report shows, as plain data; empty parts are left out of the page."""

    title: str
    """Heading of the page."""
    introduction: str
    """A paragraph that says what this is."""
    headlines: Sequence[Headline] = ()
    """The numbers to see first."""
    history: Sequence[Mapping[str, float]] = ()
    """Rows of a training log: step, loss, objectness, box, learning_rate; rows of an evaluation hold AR@100."""
    metrics: Mapping[str, Mapping[str, float]] | None = None
    """Columns of the recall table: name of the model (checkpoint, ONNX), and its metrics, 0..1."""
    metrics_note: str = ""
    """What the recall was measured on."""
    pictures: Sequence[Picture] = ()
    """Images with proposals beside ground truth."""
    num_shown: int = 25
    """Proposals drawn on a picture at most."""
    timings: Sequence[StageTiming] = ()
    """Stages of the video run."""
    timings_note: str = ""
    """How the timings came about."""
    versions: Mapping[str, str] | None = None
    """What it was made with: name and version."""
    commands: Sequence[tuple[str, str]] = ()
    """Ways to go on: what it does, and the command line."""
    notes: Sequence[str] = ()
    """Sentences at the end."""


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Writes the report to `path` in one step.

    The page carries its style and pictures inside, follows the reader's light or dark setting and prints.
    """
    files.write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The report as HTML text; every text of `data` is escaped."""
    sections = (
        _headlines(data.headlines),
        _training(data.history),
        _recall(data.metrics or {}, data.metrics_note),
        _pictures(data.pictures, data.num_shown),
        _timings(data.timings, data.timings_note),
        _commands(data.commands),
        _versions(data.versions or {}),
        "".join(f"<p class='muted'>{escape(note)}</p>" for note in data.notes),
    )
    # The policy keeps the promise that the page asks nobody for anything.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(data.title)}</title>\n<style>{style_sheet()}</style></head>\n<body><main>"
        f"<header><h1>{escape(data.title)}</h1><p>{escape(data.introduction)}</p></header>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _headlines(headlines: Sequence[Headline]) -> str:
    if not headlines:
        return ""
    items = (
        f"<div><dt>{escape(item.label)}</dt><dd class='value'>{escape(item.value)}</dd>"
        + (f"<dd class='note'>{escape(item.note)}</dd>" if item.note else "")
        + "</div>"
        for item in headlines
    )
    return f"<dl class='headlines'>{''.join(items)}</dl>"


def _column(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), float(row[name])) for row in history if row.get(name) is not None]


def _training(history: Sequence[Mapping[str, float]]) -> str:
    losses = _column(history, "loss")
    if not losses:
        return ""
    names = {"loss": "total", "objectness": "objectness", "box": "boxes"}
    series = [Series(name=label, points=_column(history, name), smooth=True) for name, label in names.items()]
    summary = f"Training loss, from {losses[0][1]:.3g} to {losses[-1][1]:.3g} over {losses[-1][0]:g} steps"
    step, loss = "optimizer step", "training loss (no unit)"
    charts = [
        "<figure>",
        line_chart(series, x_label=step, y_label=loss, summary=summary, css_class="wide"),
        line_chart(series, x_label=step, y_label=loss, summary=summary, css_class="narrow", wh=(430, 300)),
        "<figcaption>Loss per logged step, faint, and its moving average.</figcaption></figure>",
        "<div class='small-charts'>",
    ]
    small = (("AR@100", "AR@100 on the validation images", True), ("learning_rate", "learning rate", False))
    for name, label, markers in small:
        points = _column(history, name)
        if points:
            line = [Series(name=label, points=points, markers=markers)]
            summary = f"{label}: {points[-1][1]:.3g} at step {points[-1][0]:g}"
            chart = line_chart(line, x_label=step, y_label=label, summary=summary, wh=(430, 240))
            charts.append(f"<figure>{chart}</figure>")
    return _section("Training", *charts, "</div>")


def _recall(metrics: Mapping[str, Mapping[str, float]], note: str) -> str:
    if not metrics:
        return ""
    meanings = dict(_METRICS)
    present = {name for column in metrics.values() for name in column}
    names = [name for name in meanings if name in present]
    names += sorted(present - meanings.keys())
    columns = list(metrics)
    head = "".join(f"<th scope='col' class='number'>{escape(column)}</th>" for column in columns)
    has_difference = len(columns) == 2
    if has_difference:
        head += "<th scope='col' class='number'>difference</th>"
    rows = []
    for name in names:
        values = [metrics[column].get(name, math.nan) for column in columns]
        cells = [_fraction(value) for value in values]
        if has_difference:
            cells.append(_difference(*values))
        body = "".join(f"<td class='number'>{cell}</td>" for cell in cells)
        meaning = f"<span class='meaning'>{escape(meanings[name])}</span>" if name in meanings else ""
        rows.append(f"<tr><th scope='row'><code>{escape(name)}</code>{meaning}</th>{body}</tr>")
    return _section(
        "Recall",
        _paragraph(note),
        "<div class='scroll'><table class='recall'>"
        "<caption>Average recall is the mean over IoU 0.50 to 0.95 in steps of 0.05.</caption>"
        f"<thead><tr><th scope='col'>metric</th>{head}</tr></thead>",
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _fraction(value: float) -> str:
    """Three digits; COCO's -1 means that there was no object of the kind."""
    return f"{value:.3f}" if math.isfinite(value) and value >= 0 else "none"


def _difference(first: float, second: float) -> str:
    if "none" in (_fraction(first), _fraction(second)):
        return "none"
    # One that rounds to zero should not carry a minus sign.
    return f"{second - first:+.4f}".replace("-0.0000", "+0.0000")


def _pictures(pictures: Sequence[Picture], num_shown: int) -> str:
    if not pictures:
        return ""
    key = (
        "<ul class='key'><li class='truth'><span class='swatch'></span>object, matched at IoU 0.5</li>"
        "<li class='missed'><span class='swatch'></span>object, not matched</li>"
        "<li>proposal, score 0<span class='ramp'></span>1</li></ul>"
    )
    figures = (
        picture_figure(picture, number=number, num_shown=num_shown) for number, picture in enumerate(pictures, start=1)
    )
    return _section("Proposals beside ground truth", key, *figures)


def _timings(timings: Sequence[StageTiming], note: str) -> str:
    if not timings:
        return ""
    longest = max((timing.p95_ms for timing in timings), default=0) or 1
    rows = []
    for timing in timings:
        widths = (100 * timing.p95_ms / longest, 100 * timing.median_ms / longest)
        bars = "".join(f"<i style='width:{width:.1f}%'></i>" for width in widths)
        rows.append(
            f"<tr><th scope='row'>{escape(timing.stage)}</th><td class='number'>{timing.median_ms:.2f}</td>"
            f"<td class='number'>{timing.p95_ms:.2f}</td>"
            f"<td class='bars'><span class='bar' aria-hidden='true'>{bars}</span></td></tr>"
        )
    return _section(
        "Time per frame",
        _paragraph(note),
        "<div class='scroll'><table><caption>Milliseconds per frame; dark bar: median, pale bar: 95th percentile."
        "</caption><thead><tr><th scope='col'>stage</th><th scope='col' class='number'>median</th>"
        "<th scope='col' class='number'>95 %</th><th scope='col'>compared</th></tr></thead>",
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    if not commands:
        return ""
    items = (f"<p>{escape(purpose)}</p><pre><code>{escape(command)}</code></pre>" for purpose, command in commands)
    return _section("Going on from here", *items)


def _versions(versions: Mapping[str, str]) -> str:
    if not versions:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td class='wrap'>{escape(version)}</td></tr>"
        for name, version in versions.items()
    )
    head = "<thead><tr><th scope='col'>what</th><th scope='col'>version</th></tr></thead>"
    return _section("Made with", f"<div class='scroll'><table>{head}<tbody>{rows}</tbody></table></div>")

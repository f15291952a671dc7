"""The report of a check as one HTML page, with pictures of the worst cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from edgerpn.errors import DataError
from edgerpn.images.header import Exif
from edgerpn.page import box_rect, head_cells, headlines, jpeg_uri, page, section, table
from edgerpn.train.check.report import CheckItem, CheckReport, Shown, size_names
from edgerpn.train.data.image_files import read_image

_WIDTH_PX = 480
_QUALITY = 80
_MARGIN = 0.25
"""Largest margin around a picture for boxes that reach out, as a share of its longer side."""
_MAX_CLASSES = 40
_LEAST_SIDE = 0.02
"""Shortest side of a case as it is drawn, as a share of the picture's longer side."""

Box = tuple[float, float, float, float]


def check_page(report: CheckReport) -> str:
    """Returns the page of a report."""
    (height, width), warnings = report.input_hw, sum(item.severity == "warning" for item in report.items)
    verdict = "This set has errors" if report.num_errors else "Training would accept this set"
    figures = [
        (name, f"{len(split.dataset.records)}", f"images, {split.boxes.num_objects} objects")
        for name, split in report.splits.items()
    ]
    figures += [
        ("errors", f"{report.num_errors}", "refused by training, or misleading"),
        ("warnings", f"{warnings}", "repaired, or unusual"),
    ]
    parts = [headlines(figures), _found(report.items)]
    parts += [_pictures(item) for item in report.items if item.shown]
    parts += [_sizes(report), _classes(report)]
    introduction = f"{report.layout}. {verdict} at {width} x {height}."
    return page(f"Check of {report.path.name}", introduction, parts)


def _found(items: Sequence[CheckItem]) -> str:
    if not items:
        return section("Findings", "<p>Nothing was found.</p>")
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("", "split", "finding", "consequence"))
    return section("Findings", table(head, map(_row, items), kind="findings"))


def _row(item: CheckItem) -> str:
    examples = "".join(f"<li>{escape(example)}</li>" for example in item.examples)
    more = f"<details><summary>examples</summary><ul>{examples}</ul></details>" if examples else ""
    return (
        f"<tr><td><span class='badge {item.severity}'>{item.severity}</span></td><td>{escape(item.split)}</td>"
        f"<td class='wrap'>{_prose(item.text)}{more}</td><td class='wrap'>{_prose(item.done)}</td></tr>"
    )


def _prose(text: str) -> str:
    """A text as HTML, with the commands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _pictures(item: CheckItem) -> str:
    """Pictures of an item; those that cannot be read are left out."""
    figures = []
    for shown in item.shown:
        try:
            files = [shown.file, *([shown.beside] if shown.beside is not None else [])]
            drawn = [_picture(file, shown.exif, shown if file is shown.file else None) for file in files]
        except DataError:
            continue
        kind = "pair" if len(drawn) > 1 else "single"
        caption = f"<figcaption>{escape(shown.caption)}</figcaption>"
        figures.append(f"<figure><div class='{kind}'>{''.join(drawn)}</div>{caption}</figure>")
    key = (
        (
            "<ul class='key'><li class='missed'><span class='swatch'></span>case</li>"
            "<li><span class='swatch'></span>other box</li></ul>"
        )
        if any(shown.flagged for shown in item.shown)
        else ""
    )
    title = f"{item.text.partition(':')[0]} ({item.split})"
    return (
        section(title[0].upper() + title[1:], key, f"<div class='gallery'>{''.join(figures)}</div>") if figures else ""
    )


def _picture(file: Path, exif: Exif, shown: Shown | None) -> str:
    """A picture with its boxes, and a margin for those that reach out.

    Raises:
        DataError: The image cannot be read.
    """
    image = read_image(file, exif)
    height, width = image.shape[:2]
    flagged, others = (shown.flagged, shown.others) if shown is not None else ((), ())
    left, top, right, bottom = _view(flagged, width, height)
    is_flagged = set(flagged)
    least_px = _LEAST_SIDE * max(width, height)
    rects = [*_rects((box for box in others if box not in is_flagged), "found"), *_rects(flagged, "missed", least_px)]
    small = image
    if width > _WIDTH_PX:
        size = (_WIDTH_PX, max(1, round(height * _WIDTH_PX / width)))
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return (
        f"<svg viewBox='{left:.0f} {top:.0f} {right - left:.0f} {bottom - top:.0f}' role='img' "
        f"aria-label='{escape(file.name)} with {len(flagged)} cases'>"
        f"<image width='{width}' height='{height}' href='{jpeg_uri(encoded.tobytes())}'/>{''.join(rects)}</svg>"
    )


def _rects(boxes: Iterable[Box], kind: str, least_px: float = 0.0) -> Iterator[str]:
    """Rectangles of boxes; one whose sides are shorter than `least_px` is drawn larger, around its place."""
    for x1, y1, x2, y2 in boxes:
        dx, dy = (max(0.0, (least_px - side) / 2) for side in (x2 - x1, y2 - y1))
        shown = (x1 - dx, y1 - dy, x2 + dx, y2 + dy)
        yield box_rect(shown, "edge") + box_rect(shown, kind)


def _view(boxes: Sequence[Box], width: int, height: int) -> tuple[float, float, float, float]:
    """Returns the part of the plane to show: the image, and around it the boxes that reach out, as far as sensible."""
    margin = _MARGIN * max(width, height)
    corners = np.array([(0, 0, width, height), *boxes], np.float64)
    low, high = np.nan_to_num(corners[:, :2]).min(axis=0), np.nan_to_num(corners[:, 2:]).max(axis=0)
    left, top = np.maximum(low, -margin).tolist()
    right, bottom = np.minimum(high, (width + margin, height + margin)).tolist()
    return left, top, right, bottom


def _sizes(report: CheckReport) -> str:
    """Table of the sizes of objects at the network's input."""
    if not report.splits:
        return ""
    columns = {name: split.boxes.sizes for name, split in report.splits.items()}
    rows = [(name, [counts[row] for counts in columns.values()]) for row, name in enumerate(size_names())]
    height, width = report.input_hw
    note = f"Square root of the area of the objects, letterboxed to {width} x {height}."
    fits = "; ".join(
        f"{name}: {split.boxes.anchors.at_50:.0%} of the objects overlap an anchor by half, "
        f"{split.boxes.anchors.at_70:.0%} by seven tenths"
        for name, split in report.splits.items()
        if split.boxes.anchors is not None
    )
    extra = f"<p class='muted'>{escape(fits)}.</p>" if fits else ""
    return section("Sizes of objects", _bars("size", list(columns), rows, note), extra)


def _classes(report: CheckReport) -> str:
    names = dict.fromkeys(name for split in report.splits.values() for name in split.boxes.classes)
    counts = {name: [split.boxes.classes.get(name, 0) for split in report.splits.values()] for name in names}
    most = sorted(counts, key=lambda name: -sum(counts[name]))
    if not most:
        return ""
    rest = f" The {len(most) - _MAX_CLASSES} rarest are not shown." if len(most) > _MAX_CLASSES else ""
    note = f"Objects of each class. Training does not distinguish them.{rest}"
    rows = [(name, counts[name]) for name in most[:_MAX_CLASSES]]
    return section("Classes", _bars("class", list(report.splits), rows, note))


def _bars(what: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]], caption: str) -> str:
    """A table of counts, with a bar for the first column."""
    totals = [max(sum(values[column] for _, values in rows), 1) for column in range(len(columns))]
    longest = max((values[0] / totals[0] for _, values in rows), default=0) or 1
    lines = []
    for name, values in rows:
        cells = "".join(
            f"<td class='number'>{value}</td><td class='number share'>{value / total:.1%}</td>"
            for value, total in zip(values, totals, strict=True)
        )
        bar = f"<i style='width:{100 * values[0] / totals[0] / longest:.1f}%'></i>"
        lines.append(
            f"<tr><th scope='row'>{escape(name)}</th>{cells}<td class='bars'><span class='bar single' "
            f"aria-hidden='true'>{bar}</span></td></tr>"
        )
    names = [text for column in columns for text in (column, "share")]
    return table(head_cells(what, *names) + f"<th scope='col'>{escape(columns[0])}</th>", lines, caption=caption)

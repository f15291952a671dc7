"""The contact sheet: one page with small pictures of images spread over all, and their best boxes."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from edgerpn.page import box_rect, headlines, jpeg_uri, page, section
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import box_colors, box_strengths, box_texts, class_color, score_color

_MAX_PROBLEMS = 50
_MAX_CLASSES = 24
# From this strength on a dark edge keeps a box visible on bright ground.
_STRONG = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SheetEntry:
    """One image on the sheet."""

    name: str
    """Name of the image."""
    jpeg: bytes
    """The small picture."""
    size_wh: tuple[int, int]
    """Its width and height, pixels."""
    proposals: Proposals
    """The boxes to show, in its pixels, best first."""
    picture: str | None
    """Address of the large picture; None: there is none."""

    def to_json(self) -> str:
        """Returns the entry as JSON, for the work folder."""
        values = {
            "name": self.name,
            "jpeg": base64.b64encode(self.jpeg).decode("ascii"),
            "size_wh": self.size_wh,
            "boxes": self.proposals.boxes.tolist(),
            "scores": self.proposals.scores.tolist(),
            "picture": self.picture,
        }
        if self.proposals.labels is not None:
            values["labels"] = self.proposals.labels.tolist()
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str, class_names: tuple[str, ...] = ()) -> SheetEntry:
        """Returns the entry of such a text."""
        values = json.loads(text)
        boxes, scores, labels = values.pop("boxes"), values.pop("scores"), values.pop("labels", None)
        proposals = Proposals(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            labels=None if labels is None else np.array(labels, np.int32),
            class_names=class_names,
        )
        jpeg = base64.b64decode(values.pop("jpeg"))
        return cls(jpeg=jpeg, proposals=proposals, size_wh=tuple(values.pop("size_wh")), **values)


def is_on_sheet(index: int, total: int, limit: int) -> bool:
    """Whether the image number `index` of `total` is shown on a sheet of at most `limit` images.

    Every image at the start, later every second, fourth, eighth, ...: the images of a larger total are among those of a
    smaller one, so that the choice needs no total in advance.
    """
    step = 1
    while -(-total // step) > limit:
        step *= 2
    return index % step == 0


def sheet_page(
    title: str,
    entries: Sequence[SheetEntry],
    *,
    introduction: str,
    figures: Sequence[tuple[str, str, str]],
    problems: Sequence[str],
) -> str:
    """Returns the page.

    Args:
        title: Its title.
        entries: The images, in order.
        introduction: A sentence about the run.
        figures: Large numbers: label, number, note.
        problems: A line for each image that could not be read.
    """
    # The shape of most pictures.
    cell = float(np.median([entry.size_wh[0] / entry.size_wh[1] for entry in entries] or [1.0]))
    pictures = (
        f"<div class='sheet' style='--cell:{min(2.0, max(0.5, cell)):.3f}'>{''.join(map(_figure, entries))}</div>"
    )
    key = _key(entries[0].proposals.class_names if entries else ())
    unreadable = [f"<li>{escape(problem)}</li>" for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        unreadable.append(f"<li>and {len(problems) - _MAX_PROBLEMS} more, see images.json</li>")
    sections = (
        headlines(figures),
        section("Not readable", f"<ul>{''.join(unreadable)}</ul>") if problems else "",
        section("Images", key, pictures),
    )
    return page(title, introduction, sections)


def read_entries(folder: Path, total: int, limit: int, class_names: tuple[str, ...] = ()) -> list[SheetEntry]:
    """Returns the entries in the work folder that belong on the sheet of `total` images; `class_names` of the model."""
    if not folder.is_dir():
        return []
    numbers = sorted(int(path.stem) for path in folder.glob("*.json"))
    chosen = (number for number in numbers if is_on_sheet(number, total, limit))
    texts = ((folder / f"{number}.json").read_text(encoding="utf-8") for number in chosen)
    return [SheetEntry.from_json(text, class_names) for text in texts]


def _key(class_names: Sequence[str]) -> str:
    """Explains the colours: those of strengths, or those of the classes."""
    if class_names:
        colors = (_css(class_color(label), 1.0) for label in range(len(class_names)))
        items = (
            f"<li><span class='swatch' style='border-color:{color}'></span>{escape(name)}</li>"
            for name, color in itertools.islice(zip(class_names, colors, strict=True), _MAX_CLASSES)
        )
        more = len(class_names) - _MAX_CLASSES
        rest = f"<li>and {more} more</li>" if more > 0 else ""
        return f"<ul class='key'>{''.join(items)}{rest}<li>point at a box to see its name and score</li></ul>"
    ramp = ",".join(_css(score_color(strength), strength) for strength in (0, 0.25, 0.5, 0.75, 1))
    return (
        "<ul class='key'><li>weaker<span class='ramp' style='background:"
        f"linear-gradient(90deg,{ramp})'></span>stronger; point at a box to see its score</li></ul>"
    )


def _figure(entry: SheetEntry) -> str:
    width, height = entry.size_wh
    name, proposals = escape(entry.name), entry.proposals
    scores = proposals.scores
    strengths = box_strengths(scores).tolist()
    # The best box comes last, so that it lies on top.
    ranked = zip(proposals.boxes, box_texts(proposals), box_colors(proposals, strengths), strengths, strict=True)
    boxes = "".join(
        (box_rect(box, "edge") if strength >= _STRONG else "") + box_rect(box, stroke=_css(color, strength), title=text)
        for box, text, color, strength in reversed(list(ranked))
    )
    found = f"{len(scores)} shown, best {scores[0]:.2f}" if len(scores) else "nothing found"
    picture = (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{name}: {found}'>"
        f"<image width='{width}' height='{height}' href='{jpeg_uri(entry.jpeg)}'/>{boxes}</svg>"
    )
    if entry.picture:
        picture = f"<a href='{escape(quote(entry.picture))}'>{picture}</a>"
    return f"<figure>{picture}<figcaption><b>{name}</b> {found}</figcaption></figure>"


def _css(color_bgr: tuple[int, int, int], strength: float) -> str:
    blue, green, red = color_bgr
    # Weak boxes are pale, as in the pictures.
    return f"#{red:02x}{green:02x}{blue:02x}{round(255 * (0.35 + 0.65 * strength)):02x}"

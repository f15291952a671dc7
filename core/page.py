"""Reports as one HTML page that holds everything it shows and needs neither network nor script.

The parts take plain data and return HTML; every text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources


def page(title: str, introduction: str, sections: Iterable[str]) -> str:
    """Returns the whole page, with its style and pictures inside; it follows the reader's light or dark setting."""
    style = resources.files("edgerpn").joinpath("page.css").read_text(encoding="utf-8")
    # The policy ensures that the page loads nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(section for section in sections if section)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style></head>
<body><main><header><h1>{escape(title)}</h1><p>{escape(introduction)}</p></header>
{body}
</main></body></html>
"""


def section(title: str, *parts: str) -> str:
    """A part of the page with a heading; `parts` are HTML."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: str, rows: Iterable[str], *, caption: str = "", kind: str = "") -> str:
    """A table that scrolls on narrow screens; `head` and `rows` are HTML, `kind` is a class of the style sheet."""
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f"<div class='scroll'><table class='{kind}'>{caption}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def head_cells(*names: str) -> str:
    """Header cells; all but the first head columns of numbers."""
    first, *others = (escape(name) for name in names)
    cells = "".join(f"<th scope='col' class='number'>{name}</th>" for name in others)
    return f"<th scope='col'>{first}</th>{cells}"


def text_pairs(title: str, value: str, rows: Mapping[str, str]) -> str:
    """A part of the page with a table of names and texts; `value` is the head of the texts."""
    lines = (
        f"<tr><th scope='row'>{escape(name)}</th><td class='wrap'>{escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return section(title, table(f"<th scope='col'>name</th><th scope='col'>{value}</th>", lines))


def headlines(figures: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: label, number with its unit, and a few words on how it came about."""
    items = (
        f"<div><dt>{escape(label)}</dt><dd class='value'>{escape(value)}</dd><dd class='note'>{escape(note)}</dd></div>"
        for label, value, note in figures
    )
    return f"<dl class='headlines'>{''.join(items)}</dl>"


def jpeg_uri(jpeg: bytes) -> str:
    """Returns a JPEG file as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def box_rect(box_xyxy: Iterable[float], kind: str = "", *, stroke: str = "", title: str = "") -> str:
    """A box of an SVG picture, in its pixels, with a class of the style sheet or a colour; `title` is a tooltip."""
    x1, y1, x2, y2 = map(float, box_xyxy)
    look = f"class='{kind}'" if kind else f"stroke='{stroke}'"
    inside = f"<title>{escape(title)}</title>" if title else ""
    place = f"x='{x1:.1f}' y='{y1:.1f}' width='{max(0, x2 - x1):.1f}' height='{max(0, y2 - y1):.1f}'"
    return f"<rect {look} {place}>{inside}</rect>"

"""Report pages: one HTML file that holds everything it shows and needs neither network nor script.

The parts take plain data and return HTML; every text is escaped.
"""

from __future__ import annotations

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
    """A heading, and HTML below it."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: str, rows: Iterable[str], *, caption: str = "", kind: str = "") -> str:
    """A table of ready cells and rows; `kind` is its class in the style sheet."""
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


def headlines(figures: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: label, number with its unit, and a few words on how it came about."""
    items = (
        f"<div><dt>{escape(label)}</dt><dd class='value'>{escape(value)}</dd><dd class='note'>{escape(note)}</dd></div>"
        for label, value, note in figures
    )
    return f"<dl class='headlines'>{''.join(items)}</dl>"


def commands(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A section of purposes and command lines."""
    items = (f"<p>{escape(purpose)}</p><pre><code>{escape(command)}</code></pre>" for purpose, command in lines)
    return section(title, *items)


def facts_table(title: str, facts: Mapping[str, str], *, heads: tuple[str, str] = ("name", "value")) -> str:
    """A section of names and texts, such as packages and their versions."""
    rows = (
        f"<tr><th scope='row'>{escape(name)}</th><td class='wrap'>{escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    return section(title, table("".join(f"<th scope='col'>{head}</th>" for head in heads), rows))

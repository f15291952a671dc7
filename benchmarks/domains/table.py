"""The rows of the benchmark as Markdown: a table for each number of proposals, methods down, domains across."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.domains.methods import BUDGETS
from benchmarks.recall.__main__ import spread

Row = dict[str, Any]

_SECTIONS = {
    "all": "Without training on the domain: all images of a held-out set, val.json of the others",
    "part": "After training on the domain: the part that is not trained on (`own-prior`: boxes of the other part)",
}
_NOTE = """\
AR@k is class-agnostic recall over IoU 0.50 to 0.95, of the k best of at most 1000 proposals of an image. Mean: the
held-out sets, each counting equally; with several seeds, their range. PF-RPN (CVPR 2026) publishes AR@100/300/900 in
the same way without training on the domain: all classes as one, boxes of unlabelled objects neither right nor wrong,
the mean over data sets. Ours differs in the data: our sets instead of its 19 (13 of ODinW, 6 of CD-FSOD), with images
of at most 416 px on the long side, up to 160 of them, out of train, validation and test splits. So figures can be put
beside the published ones, and say nothing about which method is better.
"""


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    sets = {row["set"]: row["held_out"] for row in rows}
    names = [*(name for name in sets if sets[name]), *(name for name in sets if not sets[name])]
    held_out = [name for name in names if sets[name]]
    lines = ["# Recall on many domains", "", *sorted({row["machine"] for row in rows}), "", _NOTE]
    for part, title in _SECTIONS.items():
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if part in row:
                groups.setdefault(_label(row, part), []).append(row)
        if not groups:
            continue
        lines += [f"## {title}", ""]
        for budget in BUDGETS:
            lines += [f"| {budget} | seeds | mean of {len(held_out)} held out | {' | '.join(names)} |"]
            lines += [f"|---|---:|---:|{'---:|' * len(names)}"]
            for label, group in groups.items():
                figures = [_cell([row[part][budget] for row in group if row["set"] == name]) for name in names]
                seeds = len({row["seed"] for row in group})
                mean = _mean(group, held_out, part, budget)
                lines.append(f"| {label} | {seeds} | {mean} | {' | '.join(figures)} |")
            lines.append("")
    return "\n".join(lines)


def _label(row: Row, part: str) -> str:
    if not row["images"]:
        return str(row["method"]) if part == "all" else f"{row['method']}, not trained"
    few = f", at most {row['train_images']} marked" if row["train_images"] else ""
    return f"{row['images']} images from {row['method']}{few}"


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" if values else "-"


def _mean(group: list[Row], names: list[str], part: str, budget: str) -> str:
    """Returns the mean over sets and its range over the seeds that have all of them."""
    of_seed: dict[int, dict[str, float]] = {}
    for row in group:
        of_seed.setdefault(row["seed"], {})[row["set"]] = row[part][budget]
    means = [statistics.mean(figures[name] for name in names) for figures in of_seed.values() if {*names} <= {*figures}]
    return spread(means) if names and means else "-"

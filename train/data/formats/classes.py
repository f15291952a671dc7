"""Selection of classes by name (`--classes`)."""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import ProblemKind
from edgerpn.train.data.formats.content import Content

OTHER_CLASS = ProblemKind("box of a class that --classes does not select", "dropped")

_MAX_SHOWN = 40


def select_classes(content: Content, names: Sequence[str]) -> Content:
    """Returns a set, whose malformed entries have been repaired, with the boxes of some classes; all images stay."""
    ids = ids_by_name(content.root)
    wanted = [number for name in names for number in ids.get(name, ())]
    boxes = content.root["annotations"]
    kept = [row for row, box in enumerate(boxes) if box.get("category_id") in wanted]
    problems = copy.deepcopy(content.problems)
    dropped = {number: name for name, numbers in ids.items() if name not in names for number in numbers}
    for row in sorted(set(range(len(boxes))) - set(kept)):
        category = boxes[row].get("category_id")
        problems.add(OTHER_CLASS, dropped.get(category, "unknown") if isinstance(category, (int, str)) else "unknown")
    listed = content.root.get("categories") or []
    categories = [entry for entry in listed if isinstance(entry, dict) and entry.get("id") in wanted]
    box_names = content.box_names
    return Content(
        root={**content.root, "annotations": [boxes[row] for row in kept], "categories": categories},
        sha256=hashlib.sha256(f"{content.sha256} {sorted(names)}".encode(errors="surrogatepass")).hexdigest(),
        box_names=None if box_names is None else tuple(box_names[row] for row in kept),
        problems=problems,
        is_repaired=content.is_repaired,
    )


def ids_by_name(root: Mapping[str, Any]) -> dict[str, list[int | str]]:
    """Returns the ids of each class; several classes may have one name."""
    rows = root.get("categories")
    ids: dict[str, list[int | str]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("id"), (int, str)):
            ids.setdefault(str(row.get("name")), []).append(row["id"])
    return ids


def check_classes(names: Sequence[str], known: Collection[str], where: Path) -> None:
    """Refuses names that no class has.

    Raises:
        DataError: Names them with similar ones, and lists the classes.
    """
    by_lower = {name.lower(): name for name in known}
    texts = []
    for name in names:
        if name not in known:
            near = [by_lower[text] for text in difflib.get_close_matches(name.lower(), by_lower, n=3)]
            texts.append(f"{name!r} (did you mean {' or '.join(map(repr, near))}?)" if near else repr(name))
    if texts:
        shown = ", ".join(map(repr, itertools.islice(known, _MAX_SHOWN))) or "no list of classes"
        more = f" and {len(known) - _MAX_SHOWN} more" if len(known) > _MAX_SHOWN else ""
        raise DataError(f"{where}: --classes: no class named {', '.join(texts)}; it has {shown}{more}")

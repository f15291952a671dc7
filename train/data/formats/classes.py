"""Selection of classes by name (`--classes`)."""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import operator
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import ProblemKind, class_ids
from edgerpn.train.data.formats.content import Content

OTHER_CLASS = ProblemKind("box of a class that --classes does not select", "dropped")

_MAX_SHOWN = 40


def select_classes(content: Content, names: Sequence[str]) -> Content:
    """Returns a set, whose malformed entries have been repaired, with the boxes of some classes; all images stay."""
    wanted = [number for name, number in class_ids(content.root) if name in names]
    boxes, box_names = content.root["annotations"], content.box_names or ()
    is_kept = [box.get("category_id") in wanted for box in boxes]
    problems = copy.deepcopy(content.problems)
    for name in itertools.compress(box_names, map(operator.not_, is_kept)):
        problems.add(OTHER_CLASS, name)
    listed = content.root.get("categories") or []
    categories = [entry for entry in listed if isinstance(entry, dict) and entry.get("id") in wanted]
    return replace(
        content,
        root={
            **content.root,
            "annotations": list(itertools.compress(boxes, is_kept)),
            "categories": categories,
        },
        sha256=selected_sha256(content.sha256, names),
        box_names=tuple(itertools.compress(box_names, is_kept)),
        problems=problems,
    )


def selected_sha256(sha256: str, names: Sequence[str]) -> str:
    """Returns the digest of a set after the selection of classes, from the one before."""
    return hashlib.sha256(f"{sha256} {sorted(names)}".encode(errors="surrogatepass")).hexdigest()


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

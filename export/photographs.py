"""Photographs that the export measures and compares on: which files are some, and how to take a few of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Endings of files that are looked at in a folder of photographs."""

Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, at even distances from the first to the last, in their order."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]

"""Sources that other packages add: entry points of the group `edgerpn.sources`, named by the scheme of their URLs."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "edgerpn.sources"
"""Group of the entry points."""


def find_entry(scheme: str) -> EntryPoint | None:
    """The entry point for URLs of a scheme (lower case), or None; nothing of the package is imported."""
    return next((entry for entry in _entries(tuple(sys.path)) if entry.name.lower() == scheme), None)


def known_schemes() -> tuple[str, ...]:
    """The schemes that other packages add, in alphabetical order."""
    return tuple(sorted({entry.name.lower() for entry in _entries(tuple(sys.path))}))


# Reading the metadata of all packages takes tens of milliseconds, and kinds of sources are asked for often.
@lru_cache(maxsize=4)
def _entries(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))

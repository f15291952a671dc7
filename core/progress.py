"""Progress bars that are silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Bar(Protocol):
    """What a progress bar offers; tqdm's bars fit."""

    def update(self, n: float = 1) -> object:
        """Moves the bar on by `n` units."""
        ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Shows `s` behind the bar."""
        ...

    def close(self) -> None:
        """Ends the bar; its last state stays on the screen."""
        ...


class _SilentBar:
    """Does nothing, for pipes and for machines without tqdm."""

    def update(self, n: float = 1) -> None:
        """Does nothing."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class progress:  # noqa: N801 - used as a function: `with progress(10, "reading") as bar`
    """Context manager that gives a `Bar` on stderr, silent unless stderr is a terminal and tqdm is there."""

    def __init__(self, total: float | None, label: str, *, unit: str = "it") -> None:
        """Prepares a bar of `total` units (None: unknown) named `label`."""
        self._bar: Bar = _make_bar(total, label, unit)

    def __enter__(self) -> Bar:
        """Returns the bar."""
        return self._bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the bar, whatever happened."""
        self._bar.close()


def track(items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "it") -> Iterable[Item]:
    """Yields `items` one by one while a bar named `label` moves."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(total, label, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def _make_bar(total: float | None, label: str, unit: str) -> Any:
    if not sys.stderr.isatty():
        return _SilentBar()
    try:
        # Pure Python, but not part of a plain install: a device without it simply shows no bar.
        from tqdm import tqdm
    except ImportError:
        return _SilentBar()
    return tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True, leave=False, file=sys.stderr)

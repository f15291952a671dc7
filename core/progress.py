"""Progress bars, silent unless standard error is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Bar(Protocol):
    """The interface of a progress bar; tqdm's bars fit."""

    def update(self, n: float = 1) -> object:
        """Advances the bar by `n` units."""
        ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Shows `s` behind the bar."""
        ...

    def close(self) -> None:
        """Ends the bar."""
        ...


class _SilentBar:
    """Does nothing, for pipes and machines without tqdm."""

    def update(self, n: float = 1) -> None: ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None: ...

    def close(self) -> None: ...


class progress:  # noqa: N801 - used as a function: `with progress(10, "reading") as bar`
    """Context manager for a `Bar` on standard error; silent without a terminal or without tqdm."""

    def __init__(self, total: float | None, label: str, *, unit: str = "it") -> None:
        """Creates a bar of `total` units (None: unknown) named `label`."""
        self._bar: Bar = _make_bar(total, label, unit)

    def __enter__(self) -> Bar:
        return self._bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()


def track(items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "it") -> Iterable[Item]:
    """Yields `items` and advances a bar named `label`."""
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
        # Not part of a plain install: a device without it shows no bar.
        from tqdm import tqdm
    except ImportError:
        return _SilentBar()
    return tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True, leave=False, file=sys.stderr)

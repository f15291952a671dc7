"""What the page shows and steers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgerpn.runtime.sinks import SinkStats


@dataclass(frozen=True, kw_only=True, slots=True)
class PageInfo:
    """What the page says about the run."""

    model: str
    """Name of the model."""
    backend: str
    """What runs it."""


class Streams(Protocol):
    """A run of streams; any thread may use it."""

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model."""
        ...

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """A snapshot of each source, by name: the fields of `edgerpn.runtime.run.SourceStats`."""
        ...

    def sink_stats(self) -> Sequence[SinkStats]:
        """A snapshot of each output that has a queue."""
        ...

    def add(self, table: Mapping[str, Any]) -> str:
        """Adds a source; its name.

        Args:
            table: Keys and values as in a TOML table of a source.

        Raises:
            ConfigError: A value is wrong.
            StreamOpenError: The source is a text that names nothing.
            ValueError: There is a source of this name, or there are too many.
            RuntimeError: The run is about to end.
        """
        ...

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; False when there is none of this name."""
        ...

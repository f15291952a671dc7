"""The interface between the page and the run that it shows and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgerpn.runtime.sinks import SinkStats


class Streams(Protocol):
    """A run of streams; any thread may call it."""

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model."""
        ...

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Takes a snapshot of each source, by name: the fields of `edgerpn.runtime.run.SourceStats`."""
        ...

    def sink_stats(self) -> Sequence[SinkStats]:
        """Takes a snapshot of each output that has a queue."""
        ...

    def add(self, table: Mapping[str, Any]) -> str:
        """Adds a source and returns its name.

        Args:
            table: Keys and values of a source's TOML table.

        Raises:
            ConfigError: A value is wrong.
            StreamOpenError: The source is not a camera, URL, pipeline or path.
            ValueError: A source of this name exists, or there are too many.
            RuntimeError: The run is about to end.
        """
        ...

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; returns False when no source has this name."""
        ...

"""A run as its web page sees it: figures of everything, and sources that come and go by HTTP."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgerpn.errors import ConfigError
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig
from edgerpn.runtime.sinks import QueuedSink, SinkStats


class RemoteStreams:
    """A `Streams` of `edgerpn.runtime.web.streams_protocol`; any thread may use it."""

    def __init__(
        self,
        runner: StreamRunner,
        sinks: Sequence[QueuedSink],
        make_source: Callable[[Mapping[str, Any]], SourceConfig],
        *,
        max_sources: int,
    ) -> None:
        """Shows `runner` and `sinks`.

        Args:
            runner: Given sources, and asked for figures.
            sinks: Asked for figures.
            make_source: Settings of a source from a table, with the defaults of the run; raises `EdgeRpnError`.
            max_sources: Sources at most.
        """
        self._runner = runner
        self._sinks = sinks
        self._make_source = make_source
        self._max_sources = max_sources
        self._changing = threading.Lock()
        self._added: dict[str, SourceConfig] = {}

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model."""
        return self._runner.busy_s

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """The fields of `SourceStats` of each source."""
        return {name: dataclasses.asdict(stats) for name, stats in self._runner.stats().items()}

    def sink_stats(self) -> Sequence[SinkStats]:
        """A snapshot of each output that has a queue."""
        return [sink.stats() for sink in self._sinks]

    def add(self, table: Mapping[str, Any]) -> str:
        """Adds a source; its name. Errors as in the contract."""
        source = self._make_source(table)
        with self._changing:
            if len(self._runner.stats()) >= self._max_sources:
                raise ValueError(f"there are {self._max_sources} sources, and no more are allowed")
            self._runner.add(source)
            self._added[source.label] = source
        return source.label

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; one of the settings comes back when they are read again."""
        with self._changing:
            self._added.pop(name, None)
            return self._runner.remove(name)

    def apply(self, config: StreamsConfig) -> None:
        """Takes over settings that were read again, and keeps the sources that came by HTTP and are in no file.

        Nobody adds or removes a source meanwhile, which may be two seconds for each one that ends.

        Raises:
            ConfigError: They are too many; all stays as it was.
        """
        with self._changing:
            named = {source.label for source in config.sources}
            kept = [source for name, source in self._added.items() if name not in named]
            sources = (*config.sources, *kept)
            if len(sources) > self._max_sources:
                raise ConfigError(
                    [
                        f"sources: expected at most {self._max_sources}, got {len(config.sources)} of the settings and "
                        f"{len(kept)} that were added by HTTP"
                    ]
                )
            self._runner.apply(dataclasses.replace(config, sources=sources))

"""The duties of a long run between its results: reload settings, notify systemd, add and remove sources by HTTP."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from edgerpn.errors import ConfigError, EdgeRpnError
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.streams_config import MAX_SOURCES, SourceConfig, StreamsConfig
from edgerpn.runtime.sinks.contract import Sink, SinkStats
from edgerpn.runtime.sinks.sink_queue import QueuedSink
from edgerpn.runtime.threads import NoThreadError, start_thread

_STATUS_S = 10.0
_LOG_S = 60.0
_logger = logging.getLogger(__name__)


class Service:
    """Pass `tick` to the runner, and call `begin` when the run is ready."""

    def __init__(
        self,
        load: Callable[[], StreamsConfig],
        notifier: Notifier,
        *,
        on_tick: Callable[[], None] | None = None,
        logs_status: bool = True,
    ) -> None:
        """Prepares.

        Args:
            load: Reads the settings again; raises `EdgeRpnError` when they are wrong.
            notifier: Gets every state.
            on_tick: Called at each tick.
            logs_status: Whether to log one line on all sources every minute.
        """
        self.apply: Callable[[StreamsConfig], None] | None = None
        """Takes over settings that were read again; None: the runner does."""
        self._load = load
        self._on_tick = on_tick
        self._logs_status = logs_status
        self._notifier = notifier
        self._runner: StreamRunner | None = None
        self._is_reload_wanted = False
        self._reloading: threading.Thread | None = None
        self._alive_s = self._status_s = self._log_s = time.monotonic()

    def begin(self, runner: StreamRunner) -> None:
        """Marks the run as ready."""
        self._runner = runner
        self._notifier.ready(f"{len(runner.stats())} sources")

    def want_reload(self) -> None:
        """Requests the settings to be read again soon; safe in a signal handler."""
        self._is_reload_wanted = True

    def end(self) -> None:
        """Marks the run as ending."""
        self._notifier.stopping()

    def tick(self) -> None:
        """Does what is due; cheap when nothing is."""
        runner = self._runner
        if runner is None:
            return
        if self._on_tick is not None:
            self._on_tick()
        now_s = time.monotonic()
        if self._is_reload_wanted and not (self._reloading is not None and self._reloading.is_alive()):
            self._is_reload_wanted = False
            # In a thread, because sources take their time to end while the others continue.
            self._reloading = threading.Thread(target=self._reload, args=(runner,), name="edgerpn-reload", daemon=True)
            try:
                start_thread(self._reloading)
            except NoThreadError as error:
                _log_no_reload(error)
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s and now_s - self._alive_s >= watchdog_s / 4 and runner.busy_s < watchdog_s:
            self._alive_s = now_s
            self._notifier.alive()
        if now_s - self._status_s >= _STATUS_S:
            self._status_s = now_s
            self._notifier.status(status_text(runner))
        if self._logs_status and now_s - self._log_s >= _LOG_S:
            self._log_s = now_s
            _logger.info("%s", status_text(runner))

    def _reload(self, runner: StreamRunner) -> None:
        self._notifier.reloading()
        try:
            (self.apply or runner.apply)(_checked(self._load()))
            _logger.info("settings read again: %s", status_text(runner))
        except (EdgeRpnError, RuntimeError) as error:
            _log_no_reload(error)
        finally:
            self._notifier.ready(status_text(runner))


def _log_no_reload(error: Exception) -> None:
    _logger.error("settings not taken over, the run continues as before: %s", error)


def status_text(runner: StreamRunner) -> str:
    """Describes all sources in one line."""
    stats = list(runner.stats().values())
    num_up = sum(source.state in ("connected", "quiet") for source in stats)
    ages = [source.age_p99_ms for source in stats if source.age_p99_ms is not None]
    parts = [
        f"{num_up} of {len(stats)} sources up",
        f"{sum(source.fps for source in stats):.1f} results/s",
        f"{sum(source.num_dropped for source in stats)} dropped",
        f"{sum(source.num_stale for source in stats)} stale",
        f"{sum(source.num_reconnects for source in stats)} reconnects",
    ]
    if ages:
        parts.append(f"age p99 {max(ages):.0f} ms")
    return ", ".join(parts)


def _checked(config: StreamsConfig) -> StreamsConfig:
    """Returns `config`; raises `ConfigError` when it has too many sources."""
    if len(config.sources) > MAX_SOURCES:
        raise ConfigError([f"sources: expected at most {MAX_SOURCES}, got {len(config.sources)}"])
    return config


class Notifier:
    """Sends the state of the run to systemd (Type=notify), over the socket that NOTIFY_SOCKET names, if any.

    Source: sd_notify(3) and systemd.service(5).
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Reads the address of the socket and the watchdog's limit."""
        address = environment.get("NOTIFY_SOCKET", "")
        # An abstract address is written with an @ for its leading zero.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout_us = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(timeout_us) / 1e6 if is_for_us and timeout_us.isdigit() else 0.0
        """Seconds without a ping after which systemd ends the run; 0: no watchdog."""

    def ready(self, status: str) -> None:
        """Reports that the run is ready, also after a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Reports that the run reads its settings again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def alive(self) -> None:
        """Feeds the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Describes the run in one line."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Reports that the run is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A missing service manager must not end the run.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode("utf-8", "replace"), self._address)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageInfo:
    """The facts about the run on its web page."""

    model: str
    """Name of the model."""
    backend: str
    """Library, version and device that run it."""


class PageHub(Sink, Protocol):
    """Takes results and events for the page, without ever blocking."""

    def tick(self) -> None:
        """Called between results."""
        ...


class Page(Protocol):
    """A web page of a run, as `edgerpn.runtime.web` serves it."""

    @property
    def hub(self) -> PageHub:
        """The sink of the page."""
        ...

    def begin(self, streams: RemoteStreams, info: PageInfo) -> None:
        """Shows the run."""
        ...


class RemoteStreams:
    """A run as its web page sees it: figures of everything, and sources added and removed by HTTP; thread-safe."""

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
            runner: Gets the sources, and has their figures.
            sinks: Outputs with queues.
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
        """Returns the fields of `SourceStats` of each source."""
        return {name: dataclasses.asdict(stats) for name, stats in self._runner.stats().items()}

    def sink_stats(self) -> Sequence[SinkStats]:
        """Returns a snapshot of each output that has a queue."""
        return [sink.stats() for sink in self._sinks]

    def add(self, table: Mapping[str, Any]) -> str:
        """Adds a source and returns its name.

        Args:
            table: Keys and values as in a TOML table of a source.

        Raises:
            ConfigError: A value is wrong.
            StreamOpenError: The source's text is not a source.
            ValueError: Another source has this name, or there are too many.
            RuntimeError: The run is about to end.
        """
        source = self._make_source(table)
        with self._changing:
            if len(self._runner.stats()) >= self._max_sources:
                raise ValueError(f"there are {self._max_sources} sources, and no more are allowed")
            self._runner.add(source)
            self._added[source.label] = source
        return source.label

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; one of the settings returns when they are read again."""
        with self._changing:
            self._added.pop(name, None)
            return self._runner.remove(name)

    def apply(self, config: StreamsConfig) -> None:
        """Takes over settings that were read again, and keeps the sources that were added by HTTP.

        No source can be added or removed meanwhile, which may be two seconds for each one that ends.

        Raises:
            ConfigError: There would be too many sources; nothing changes.
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

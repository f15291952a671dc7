"""What a long run does between its results: settings read again, the watchdog fed, its state told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgerpn.errors import ConfigError, EdgeRpnError
from edgerpn.runtime.run.notify import Notifier
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.streams_config import MAX_SOURCES, StreamsConfig

_STATUS_S = 10.0
_LOG_S = 60.0
_logger = logging.getLogger(__name__)


class Service:
    """Give `tick` to the runner, and call `begin` when it is ready to run."""

    def __init__(
        self, load: Callable[[], StreamsConfig], notifier: Notifier, *, on_tick: Callable[[], None] | None = None
    ) -> None:
        """Prepares.

        Args:
            load: Reads the settings again; raises `EdgeRpnError` when they are not good.
            notifier: Told of every state.
            on_tick: Called at each tick.
        """
        self.apply: Callable[[StreamsConfig], None] | None = None
        """Takes over settings that were read again; None: the runner does."""
        self._load = load
        self._on_tick = on_tick
        self._notifier = notifier
        self._runner: StreamRunner | None = None
        self._is_reload_wanted = False
        self._reloading: threading.Thread | None = None
        self._alive_s = self._status_s = self._log_s = time.monotonic()

    def begin(self, runner: StreamRunner) -> None:
        """The run is ready."""
        self._runner = runner
        self._notifier.ready(f"{len(runner.stats())} sources")

    def want_reload(self) -> None:
        """Has the settings read again soon; safe in a signal handler."""
        self._is_reload_wanted = True

    def end(self) -> None:
        """The run is about to end."""
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
            # In a thread, because sources take their time to end, and the others go on meanwhile.
            self._reloading = threading.Thread(target=self._reload, args=(runner,), name="edgerpn-reload", daemon=True)
            self._reloading.start()
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s and now_s - self._alive_s >= watchdog_s / 4 and runner.busy_s < watchdog_s:
            self._alive_s = now_s
            self._notifier.alive()
        if now_s - self._status_s >= _STATUS_S:
            self._status_s = now_s
            self._notifier.status(status_text(runner))
        if now_s - self._log_s >= _LOG_S:
            self._log_s = now_s
            _logger.info("%s", status_text(runner))

    def _reload(self, runner: StreamRunner) -> None:
        self._notifier.reloading()
        try:
            (self.apply or runner.apply)(_checked(self._load()))
            _logger.info("settings read again: %s", status_text(runner))
        except (EdgeRpnError, RuntimeError) as error:
            _logger.error("settings not taken over, the run goes on as before: %s", error)  # noqa: TRY400 - no bug
        finally:
            self._notifier.ready(status_text(runner))


def status_text(runner: StreamRunner) -> str:
    """One line on all sources."""
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
    """The same; raises `ConfigError` when a run may not have that many sources."""
    if len(config.sources) > MAX_SOURCES:
        raise ConfigError([f"sources: expected at most {MAX_SOURCES}, got {len(config.sources)}"])
    return config

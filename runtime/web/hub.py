"""The page's end in the run: a sink that takes results and events, and what the server asks about the run."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks import SinkStats
from edgerpn.runtime.web.feed import Feed
from edgerpn.runtime.web.http_config import HttpConfig
from edgerpn.runtime.web.metrics import Metrics
from edgerpn.runtime.web.pictures import Pictures
from edgerpn.runtime.web.streams_protocol import PageInfo, Streams

UP_STATES = ("connected", "quiet")
"""States of a source that is not down."""
SILENT_S = 60.0
"""Seconds without a sign of the emitting thread from which the run counts as stuck; an output may hold it up for half
of that."""
HISTORY = 180
"""Samples that are kept of each source, one a second."""

SAMPLED = (
    "fps", "inference_p50_ms", "inference_p99_ms", "age_p50_ms", "age_p99_ms", "num_dropped", "num_stale",
    "num_reconnects",
)  # fmt: skip
"""What is sampled, in order."""

_FRESH_S = 0.25
_logger = logging.getLogger(__name__)

Sample = tuple[int, tuple[float | None, ...]]


class Hub:
    """A sink for the run, a model for the page. Its sink's methods are for one thread, the others for any.

    `write` and `event` never wait for anybody, and cost microseconds as long as nobody watches.
    """

    target = ""

    def __init__(
        self, config: HttpConfig, *, on_picture: Callable[[str], None], on_close: Callable[[], None] = lambda: None
    ) -> None:
        """Starts the thread that draws.

        Args:
            config: What pictures may cost, and when the model counts as hung.
            on_picture: Called with the name of a source that has a new picture.
            on_close: Called when the run closes its sinks.
        """
        self.info = PageInfo(model="", backend="")
        self.pictures = Pictures(config, on_picture)
        self.feed = Feed()
        self.metrics = Metrics()
        self._config = config
        self._on_close = on_close
        self._streams: Streams | None = None
        self._alive_s = time.monotonic()
        self._lock = threading.Lock()
        self._stats: tuple[float, Mapping[str, Mapping[str, Any]]] = (0.0, {})
        self.last_sample = 0
        self._history: dict[str, deque[Sample]] = {}

    def write(self, result: Result) -> None:
        """Takes a result; its picture is copied if somebody watches."""
        self._alive_s = time.monotonic()
        try:
            self.metrics.observe(result)
            self.pictures.offer(result)
            self.feed.put_result(result)
        except Exception:
            # Whatever is wrong with the page, the run goes on.
            _logger.exception("the web page lacks a result of %s", result.frame.source)

    def event(self, event: Event) -> None:
        """Takes an event."""
        self._alive_s = time.monotonic()
        try:
            self.pictures.note(event)
            self.feed.put_event(event)
            if event.reason == "removed":
                self.metrics.forget(event.source)
        except Exception:
            # As above.
            _logger.exception("the web page lacks an event of %s", event.source)

    def close(self) -> None:
        """Begins to end the server; does not wait for it."""
        self._on_close()

    def begin(self, streams: Streams, info: PageInfo) -> None:
        """The run is ready."""
        self.info = info
        self._alive_s = time.monotonic()
        self._streams = streams

    def tick(self) -> None:
        """The emitting thread is alive."""
        self._alive_s = time.monotonic()

    @property
    def streams(self) -> Streams | None:
        """The run; None: the model is still being loaded."""
        return self._streams

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """A snapshot of each source, at most a quarter of a second old, however many ask."""
        streams = self._streams
        if streams is None:
            return {}
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._stats[0] >= _FRESH_S:
                self._stats = (now_s, streams.stats())
            return self._stats[1]

    def sink_stats(self) -> Sequence[SinkStats]:
        """A snapshot of each output that has a queue."""
        return self._streams.sink_stats() if self._streams is not None else ()

    def sample(self) -> None:
        """Adds a point to the charts; once a second."""
        number = int(time.monotonic())
        stats = self.stats()
        with self._lock:
            self._history = {name: self._history.get(name, deque(maxlen=HISTORY)) for name in stats}
            for name, view in stats.items():
                self._history[name].append((number, tuple(_rounded(view[key]) for key in SAMPLED)))
            self.last_sample = number

    def samples(self, name: str, *, after: int) -> list[list[float | None]]:
        """Points of the charts of a source whose number is larger than `after`: number, then the sampled values."""
        with self._lock:
            history = list(self._history.get(name, ()))
        return [[number, *values] for number, values in history if number > after]

    def health(self) -> tuple[bool, str]:
        """Whether the process does its work, and one word on it."""
        if self._streams is None:
            return True, "starting"
        if self._streams.busy_s >= self._config.hung_s:
            return False, "model_hangs"
        if time.monotonic() - self._alive_s >= SILENT_S:
            return False, "run_hangs"
        return True, "ok"

    def down(self) -> list[str]:
        """Names of the sources that are not up."""
        return [name for name, view in self.stats().items() if view["state"] not in UP_STATES]


def _rounded(value: float | None) -> float | None:
    return value if value is None else round(value, 2)

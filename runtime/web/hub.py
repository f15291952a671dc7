"""The link between run and page: a sink for results and events, and the state that the server asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.run.service import PageInfo, RemoteStreams
from edgerpn.runtime.sinks import SinkStats
from edgerpn.runtime.web.feed import RecordFeed
from edgerpn.runtime.web.metrics import PageMetrics
from edgerpn.runtime.web.pictures import PictureFeed

UP_STATES = ("connected", "quiet")
"""States of a source that is up."""
SILENT_S = 60.0
"""Seconds without a sign of the emitting thread after which the run counts as hung; an output may block it for half
of that."""
HISTORY = 180
"""Samples kept of each source, one a second."""

SAMPLED = (
    "fps", "inference_p50_ms", "inference_p99_ms", "age_p50_ms", "age_p99_ms", "num_dropped", "num_stale",
    "num_reconnects",
)  # fmt: skip
"""Sampled figures, in order."""

_FRESH_S = 0.25
_logger = logging.getLogger(__name__)

Sample = tuple[int, tuple[float | None, ...]]


class Hub:
    """A sink for the run, a model for the page. One thread calls its sink methods; any thread may call the others.

    `write` and `event` never wait, and cost microseconds while no client watches.
    """

    target = ""

    def __init__(
        self, config: HttpConfig, *, on_picture: Callable[[str], None], on_close: Callable[[], None] = lambda: None
    ) -> None:
        """Starts the thread that draws.

        Args:
            config: Limits of pictures, and the time after which the model counts as hung.
            on_picture: Called with the name of a source that has a new picture.
            on_close: Called when the run closes its sinks.
        """
        self.info = PageInfo(model="", backend="")
        self.pictures = PictureFeed(config, on_picture)
        self.feed = RecordFeed()
        self.metrics = PageMetrics()
        self._config = config
        self._on_close = on_close
        self.streams: RemoteStreams | None = None
        """The run; None: the model is still loading."""
        self._alive_s = time.monotonic()
        self._lock = threading.Lock()
        self._stats: tuple[float, Mapping[str, Mapping[str, Any]]] = (0.0, {})
        self.last_sample = 0
        self._history: dict[str, deque[Sample]] = {}

    def write(self, result: Result) -> None:
        """Takes a result; copies its picture if a client watches."""
        self._alive_s = time.monotonic()
        try:
            self.metrics.observe(result)
            self.pictures.offer(result)
            self.feed.put_result(result)
        except Exception:
            # No failure of the page may end the run.
            _logger.exception("the web page lacks a result of %s", result.frame.source)

    def event(self, event: Event) -> None:
        """Takes an event of a source."""
        self._alive_s = time.monotonic()
        try:
            self.pictures.note(event)
            self.feed.put_event(event)
            if event.reason == "removed":
                self.metrics.forget(event.source)
        except Exception:
            # No failure of the page may end the run.
            _logger.exception("the web page lacks an event of %s", event.source)

    def close(self) -> None:
        """Starts to end the server; does not wait for it."""
        self._on_close()

    def begin(self, streams: RemoteStreams, info: PageInfo) -> None:
        """Takes over the run, which is ready."""
        self.info = info
        self._alive_s = time.monotonic()
        self.streams = streams

    def tick(self) -> None:
        """Notes that the emitting thread is alive."""
        self._alive_s = time.monotonic()

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns a snapshot of each source, at most a quarter of a second old, however many clients ask."""
        streams = self.streams
        if streams is None:
            return {}
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._stats[0] >= _FRESH_S:
                self._stats = (now_s, streams.stats())
            return self._stats[1]

    def sink_stats(self) -> Sequence[SinkStats]:
        """Takes a snapshot of each output that has a queue."""
        return self.streams.sink_stats() if self.streams is not None else ()

    def sample(self) -> None:
        """Adds a sample of each source to the charts; to be called once a second."""
        number = int(time.monotonic())
        stats = self.stats()
        with self._lock:
            self._history = {name: self._history.get(name, deque(maxlen=HISTORY)) for name in stats}
            for name, view in stats.items():
                self._history[name].append((number, tuple(_rounded(view[key]) for key in SAMPLED)))
            self.last_sample = number

    def samples(self, name: str, *, after: int) -> list[list[float | None]]:
        """Returns a source's samples whose number is larger than `after`: number, then the sampled values."""
        with self._lock:
            history = list(self._history.get(name, ()))
        return [[number, *values] for number, values in history if number > after]

    def health(self) -> tuple[bool, str]:
        """Returns whether the process works, and its state in one word."""
        if self.streams is None:
            return True, "starting"
        if self.streams.busy_s >= self._config.hung_s:
            return False, "model_hangs"
        if time.monotonic() - self._alive_s >= SILENT_S:
            return False, "run_hangs"
        return True, "ok"

    def down(self) -> list[str]:
        """Lists the names of the sources that are not up."""
        return [name for name, view in self.stats().items() if view["state"] not in UP_STATES]


def _rounded(value: float | None) -> float | None:
    return value if value is None else round(value, 2)

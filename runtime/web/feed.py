"""Queues of records for listening clients, and a memory of the last events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.record import event_record, json_line

QUEUE_RECORDS = 256
"""Maximum records in a listener's queue; beyond it the oldest are dropped."""
MAX_EVENTS = 500
"""Maximum number of remembered events."""

RecordType = Literal["frame", "event"]


class RecordListener:
    """One client's queue: the emitting thread fills it, the server's thread empties it."""

    def __init__(self, sources: Iterable[str], types: Iterable[RecordType], wake: Callable[[], None]) -> None:
        """Accepts records of some sources and types.

        Args:
            sources: Names; empty: all.
            types: Types of records; empty: all.
            wake: Called in the emitting thread when the queue is no longer empty.
        """
        self.num_dropped = 0
        self._sources = frozenset(sources)
        self._types = frozenset(types) or frozenset(("frame", "event"))
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[tuple[RecordType, bytes]] = deque()
        self._num_untold = 0

    def wants(self, source: str, kind: RecordType) -> bool:
        """Returns whether this client requested such a record."""
        return kind in self._types and (not self._sources or source in self._sources)

    def put(self, kind: RecordType, line: bytes) -> None:
        """Queues a record; drops the oldest when the queue is full."""
        with self._lock:
            was_empty = not self._queue
            if len(self._queue) >= QUEUE_RECORDS:
                self._queue.popleft()
                self.num_dropped += 1
                self._num_untold += 1
            self._queue.append((kind, line))
        if was_empty:
            self._wake()

    def take(self) -> tuple[list[tuple[RecordType, bytes]], int]:
        """Empties the queue; returns its records, and how many were dropped since the last call."""
        with self._lock:
            taken, dropped = list(self._queue), self._num_untold
            self._queue.clear()
            self._num_untold = 0
        return taken, dropped


class RecordFeed:
    """All listeners, and the last events; any thread may call it."""

    def __init__(self) -> None:
        self._listeners: tuple[RecordListener, ...] = ()
        self._changing = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._last_id = 0
        self._dropped_of_gone = 0

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    @property
    def num_dropped(self) -> int:
        """Records dropped because clients were too slow, also past clients."""
        return self._dropped_of_gone + sum(listener.num_dropped for listener in self._listeners)

    def join(self, listener: RecordListener) -> None:
        with self._changing:
            self._listeners = (*self._listeners, listener)

    def leave(self, listener: RecordListener) -> None:
        with self._changing:
            self._listeners = tuple(other for other in self._listeners if other is not listener)
            self._dropped_of_gone += listener.num_dropped

    def put_result(self, result: Result) -> None:
        """Passes a result to the listeners of its source."""
        self._pass_on(result.frame.source, "frame", result)

    def put_event(self, event: Event) -> None:
        """Remembers an event, unless it is one of a track, and passes it to the listeners of its source."""
        # Tracks come and go, and would push out what happened to the sources.
        if event.track is None:
            self._remember(event_record(event))
        self._pass_on(event.source, "event", event)

    def events(self, *, after: int = 0) -> list[dict[str, Any]]:
        """Lists the last events, oldest first: records with an `id` and their number of repeats (`repeated`).

        Args:
            after: Only those whose id is larger.
        """
        with self._changing:
            return [dict(event) for event in self._events if event["id"] > after]

    def _pass_on(self, source: str, kind: RecordType, item: Result | Event) -> None:
        listeners = [listener for listener in self._listeners if listener.wants(source, kind)]
        if listeners:
            line = json_line(item)
            for listener in listeners:
                listener.put(kind, line)

    def _remember(self, record: dict[str, Any]) -> None:
        """Appends an event, or merges it into the last of its source if both are stale frames, which are frequent."""
        with self._changing:
            self._last_id += 1
            entry = {"id": self._last_id, "repeated": 1, **record}
            if record["event"] == "stale":
                last = next((event for event in reversed(self._events) if event["source"] == record["source"]), None)
                if last is not None and last["event"] == "stale":
                    entry["repeated"] = last["repeated"] + 1
                    self._events.remove(last)
            self._events.append(entry)

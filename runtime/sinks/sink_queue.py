"""A sink behind its own bounded queue and thread, so that it cannot delay the run; with their settings."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from edgerpn.errors import SinkError, check_setting
from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.runtime.frame import BREAKS, Event, Result
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record, RecordMaker, RecordSink, Sink, SinkStats
from edgerpn.runtime.threads import NoThreadError, start_thread

_logger = logging.getLogger(__name__)

STOP_S = 2.0
"""Seconds for closing all sinks together after a signal."""
REPEAT_S = 60.0
"""Seconds between two log lines about the failures of one sink."""

_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 30.0
_RETRY_CLOSING_S = 0.1
_GRACE_S = 0.5
_POLL_S = 0.05
_SLICE_S = 0.1

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Settings that every output has, for its queue and thread; sinks of other packages derive theirs from it."""

    queue: int = 0
    """Results and events that may wait; 0: 1000 records, 8 results with pictures, or the newest of each source."""
    policy: Literal["auto", "block", "drop_oldest"] = "auto"
    """When the queue is full: block makes the run wait, for at most `block_s`; drop_oldest never does; auto: block
    where all sources are files and the sink is not a network, otherwise drop_oldest."""
    block_s: float = 30.0
    """Seconds for which one result waits for room at most; then the oldest is dropped."""
    on_error: Literal["auto", "continue", "stop"] = "auto"
    """When a delivery fails: continue counts and logs it, and tries again where that can help; stop ends the run;
    auto: stop where all sources are files and the sink is not a network, otherwise continue."""
    drain_s: float = 10.0
    """Seconds without progress after which the end of a run stops waiting for queued items."""

    def __post_init__(self) -> None:
        check_setting(self.queue >= 0, "queue", "0 or more", self.queue)
        check_setting(self.block_s >= 0, "block_s", "0 or more seconds", self.block_s)
        check_setting(self.drain_s >= 0, "drain_s", "0 or more seconds", self.drain_s)


class SinkQueue(Generic[Item]):
    """A bounded first-in-first-out queue; any thread may call its methods.

    Taken items are "in hand" until `finish` or `put_back`. In the end every item counts as either written or dropped.
    """

    def __init__(self, capacity: int, *, key: Callable[[Item], object] | None = None) -> None:
        """Holds at most `capacity` items, not counting those in hand.

        Args:
            capacity: Number of items that may wait.
            key: An item takes the place of the waiting one with the same key, which is dropped; None: each item waits.
        """
        self._capacity = capacity
        self._key = key
        self._items: deque[Item] = deque()
        self._num_in_hand = 0
        self._is_closing = False
        self._is_abandoned = False
        self._is_hurried = False
        self._changed = threading.Condition()
        self.num_written = 0
        self.num_dropped = 0
        self.progress_s = 0.0

    @property
    def num_queued(self) -> int:
        """Items that wait or are in hand."""
        return len(self._items) + self._num_in_hand

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._is_closing

    def put(self, item: Item, *, block_s: float) -> None:
        """Appends an item; when full, waits at most `block_s` for room, and then drops the oldest, a break last.

        After `close` the item itself is dropped.
        """
        deadline = time.monotonic() + block_s
        with self._changed:
            while len(self._items) >= self._capacity and not (self._is_closing or self._is_hurried):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                # In slices, because `hurry` must not take the lock.
                self._changed.wait(min(left_s, _SLICE_S))
            if self._is_closing:
                self.num_dropped += 1
                return
            if not self._replace(item):
                self._items.append(item)
            self._drop_excess()
            self._changed.notify_all()

    def take(self, max_items: int, wait_s: float) -> list[Item]:
        """Takes the oldest items; blocks until there is one, and then at most `wait_s` for `max_items`.

        Returns:
            1 to `max_items` items; an empty list once the queue is closed and empty.
        """
        with self._changed:
            while not self._items and not self._is_closing:
                self._changed.wait()
            deadline = time.monotonic() + wait_s
            while len(self._items) < min(max_items, self._capacity) and not self._is_closing:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            taken = [self._items.popleft() for _ in range(min(max_items, len(self._items)))]
            self._num_in_hand += len(taken)
            self._changed.notify_all()
            return taken

    def finish(self, *, num_written: int, num_dropped: int = 0) -> None:
        """Counts items in hand as written or lost."""
        with self._changed:
            self._num_in_hand -= num_written + num_dropped
            if num_written:
                self.progress_s = time.monotonic()
            self.num_written += num_written
            self.num_dropped += num_dropped

    def put_back(self, items: Sequence[Item]) -> None:
        """Puts items in hand back to the front, in order; drops the oldest beyond the capacity, as `put` does."""
        with self._changed:
            self._num_in_hand -= len(items)
            if self._is_abandoned:
                self.num_dropped += len(items)
                return
            self._items.extendleft(reversed(items))
            self._drop_excess()

    def pause(self, seconds: float) -> None:
        """Waits; `close` ends it early."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, timeout=seconds)

    def hurry(self) -> None:
        """Makes `put` never wait from now on. Takes no lock: a signal handler may call it."""
        self._is_hurried = True

    def close(self) -> None:
        """Accepts no further items; queued ones can still be taken."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def abandon(self) -> int:
        """Closes, drops the queued items and returns their number."""
        with self._changed:
            self._is_closing = self._is_abandoned = True
            num_lost = len(self._items)
            self._items.clear()
            self.num_dropped += num_lost
            self._changed.notify_all()
            return num_lost

    def _replace(self, item: Item) -> bool:
        if self._key is None:
            return False
        keys = [self._key(waiting) for waiting in self._items]
        key = self._key(item)
        if key not in keys:
            return False
        self._items[keys.index(key)] = item
        self.num_dropped += 1
        return True

    def _drop_excess(self) -> None:
        while len(self._items) > self._capacity:
            # Without the end of a source, its video would stay open and unfinished until the end of the run.
            place = next((i for i, item in enumerate(self._items) if not _is_break(item)), 0)
            del self._items[place]
            self.num_dropped += 1


class FailureLog:
    """Counts the failures of one sink; logs the first, then one line every `repeat_s`, and the recovery."""

    def __init__(self, name: str, *, repeat_s: float = REPEAT_S) -> None:
        self._name = name
        self._repeat_s = repeat_s
        self._said_at: float | None = None
        self._num_unsaid = 0
        self.num_errors = 0
        self.last_error = ""
        self.is_failing = False

    def failed(self, error: BaseException, *, is_raised: bool = False) -> None:
        """Counts a failure; logs it unless it ends the run, which reports it then."""
        self.num_errors += 1
        self.last_error = str(error) or type(error).__name__
        self.is_failing = True
        if is_raised:
            return
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < self._repeat_s:
            self._num_unsaid += 1
            return
        more = f" (and {self._num_unsaid} failures before that)" if self._num_unsaid else ""
        _logger.warning("%s: %s%s", self._name, self.last_error, more, extra={"source": self._name})
        self._said_at, self._num_unsaid = now, 0

    def worked(self, num_dropped: int) -> None:
        """Notes a success; logs the first one after a failure."""
        if self.is_failing:
            self.is_failing = False
            message = "%s: works again; %d records or pictures lost since the start"
            _logger.info(message, self._name, num_dropped, extra={"source": self._name})


class QueuedSink:
    """Passes results and events to a sink from its own thread.

    Makes a record when its result arrives, so that `age_ms` is the age at emission. A sink of pictures
    gets a copy of a live source's picture, because the capture reuses the memory of the original.
    """

    def __init__(
        self,
        sink: Sink | RecordSink,
        config: OutputConfig,
        *,
        kind: str,
        is_live: bool,
        maker: RecordMaker | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            sink: Used and closed by that thread only.
            config: Length and policy of the queue, and the effect of a failure.
            kind: Kind of sink, for its name in logs.
            is_live: Whether a source is live, which decides the `auto` settings.
            maker: Shared by the sinks of a run, so that each record is made once.

        Raises:
            NoThreadError: The system gives no more threads; the sink is closed.
        """
        self.target = sink.target
        self.name = f"{kind} {sink.target}".strip()
        is_patient = not is_live and not getattr(sink, "is_lossy", False)
        is_final = getattr(sink, "is_final", False)
        is_blocking = config.policy == "block" or (config.policy == "auto" and is_patient)
        self._block_s = config.block_s if is_blocking else 0.0
        self._is_strict = config.on_error == "stop" or (config.on_error == "auto" and (is_patient or is_final))
        self._config = config
        self._sink = sink
        self._record_sink = sink if isinstance(sink, RecordSink) else None
        self._maker = maker or RecordMaker()
        self._wants: Callable[[Result], bool] | None = getattr(sink, "wants", None)
        self.takes_pictures = not self._record_sink and getattr(sink, "takes_pictures", True)
        self._has_embeddings = getattr(config, "embeddings", "off") == "base64"
        takes_latest = getattr(sink, "takes_latest", False) and not is_blocking
        suggested = getattr(sink, "queue_records", 1000) if self._record_sink else 100 if takes_latest else 8
        self._queue: SinkQueue[Record | Result | Event] = SinkQueue(
            config.queue or suggested, key=_slot_of if takes_latest else None
        )
        self._log = FailureLog(self.name)
        self._failure: Exception | None = None
        self._closing_since_s = 0.0
        self.is_closed = False
        self._retry_s = _RETRY_FIRST_S
        bind_to_process(self)
        self._thread = threading.Thread(target=self._run, name=f"sink {kind}", daemon=True)
        try:
            start_thread(self._thread)
        except NoThreadError:
            # Nobody else has the sink to close it.
            sink.close()
            raise

    def write(self, result: Result) -> None:
        """Queues one result; waits for room only under the policy `block`.

        Raises:
            SinkError: An earlier delivery failed, and by the settings this ends the run.
        """
        if self._record_sink:
            self._put(self._maker.make(result, has_embeddings=self._has_embeddings))
        elif self._wants is None or self._wants(result):
            self._put(_with_own_picture(result) if self.takes_pictures else _without_picture(result))

    def event(self, event: Event) -> None:
        """Queues one event, like `write`."""
        self._put(self._maker.make(event) if self._record_sink else event)

    def pass_on(self, record: Record) -> None:
        """Queues a record that another sink has made; a failure that ends the run is raised to the run alone."""
        self._queue.put(record, block_s=self._block_s)

    @property
    def progress_s(self) -> float:
        """`time.monotonic()` of the last delivery, also by an output behind the sink, or else of `begin_close`."""
        return max(self._closing_since_s, self._queue.progress_s, getattr(self._sink, "progress_s", 0.0))

    def stats(self) -> SinkStats:
        trouble = getattr(self._sink, "trouble", "")
        return SinkStats(
            name=self.name,
            queued=self._queue.num_queued,
            written=self._queue.num_written,
            dropped=self._queue.num_dropped + getattr(self._sink, "num_lost", 0),
            errors=self._log.num_errors,
            last_error=trouble or self._log.last_error,
            is_failing=bool(trouble) or self._log.is_failing,
        )

    def hurry(self) -> None:
        """Makes `write` drop items instead of waiting; for a signal handler, before `close`."""
        self._queue.hurry()

    def begin_close(self) -> None:
        """Accepts no further items; the thread delivers the queued ones and closes the sink. Does not block."""
        if is_foreign(self):
            return
        if not self._queue.is_closing:
            self._closing_since_s = time.monotonic()
        self._queue.close()

    def close(self, timeout_s: float | None = None) -> None:
        """Delivers the queued items and closes the sink; does nothing the second time.

        Args:
            timeout_s: Seconds until the rest is dropped; None: waits while something is delivered every `drain_s`.

        Raises:
            SinkError: A delivery or the end of a file failed, and by the settings this ends the run.
        """
        _close_queues([self], timeout_s)
        self.raise_failure()

    def drain(self, deadline_s: float | None) -> None:
        """Waits until the thread has closed the sink, after `begin_close`.

        Args:
            deadline_s: `time.monotonic()` at which to stop waiting; None: when nothing is delivered for `drain_s`.
        """
        if deadline_s is not None:
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
            return
        while self._thread.is_alive():
            if time.monotonic() - self.progress_s > self._config.drain_s:
                return
            self._thread.join(_POLL_S)

    def give_up(self) -> None:
        """Drops the queued items and interrupts the sink's current call, unless the thread has ended."""
        if not self._thread.is_alive():
            return
        num_lost = self._queue.abandon()
        interrupt = getattr(self._sink, "interrupt", None)
        if interrupt is not None:
            interrupt()
        _logger.warning("%s: closing takes too long; %d queued records or pictures are lost", self.name, num_lost)

    def raise_failure(self) -> None:
        """Raises the failure that ends the run, once; also that of an output behind the sink.

        Raises:
            SinkError: There was one.
        """
        raise_behind = getattr(self._sink, "raise_failure", None)
        if raise_behind is not None:
            raise_behind()
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, SinkError):
            raise failure
        raise SinkError(f"{self.name}: {type(failure).__name__}: {failure}") from failure

    def join(self, timeout_s: float) -> None:
        """Waits for the thread after `give_up`; logs a warning when it hangs."""
        self._thread.join(max(0.0, timeout_s))
        if self._thread.is_alive():
            _logger.warning("%s: does not answer; the run ends without it", self.name)

    def _put(self, entry: Record | Result | Event) -> None:
        self.raise_failure()
        if is_foreign(self):
            raise SinkError(f"{self.name}: opened before a fork; its thread is not in this process")
        self._queue.put(entry, block_s=self._block_s)

    def _run(self) -> None:
        max_items = getattr(self._sink, "batch_records", 256) if self._record_sink else 1
        wait_s = getattr(self._sink, "batch_wait_s", 0.0)
        while batch := self._queue.take(max_items, wait_s):
            self._attempt(batch)
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - a sink of another package may raise anything
            self._note(error)

    def _attempt(self, batch: list[Record | Result | Event]) -> None:
        """Delivers a batch; undelivered items go back to the queue, for another attempt after a pause."""
        try:
            self._deliver(batch)
        except NotDeliveredError as error:
            self._note(error)
            done = min(max(error.num_done, 0), len(batch))
            lost = min(max(error.num_lost, 0), len(batch) - done)
            self._queue.finish(num_written=done, num_dropped=lost)
            self._queue.put_back(batch[done + lost :])
            if done:
                self._retry_s = _RETRY_FIRST_S
            self._pause(self._retry_s if error.retry_s is None else error.retry_s)
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(error)
            self._queue.finish(num_written=0, num_dropped=len(batch))
        else:
            self._queue.finish(num_written=len(batch))
            self._log.worked(self._queue.num_dropped)
            self._retry_s = _RETRY_FIRST_S

    def _deliver(self, batch: Sequence[Record | Result | Event]) -> None:
        if self._record_sink is not None:
            self._record_sink.write_records([entry for entry in batch if isinstance(entry, Record)])
            return
        assert not isinstance(self._sink, RecordSink)
        for entry in batch:
            if isinstance(entry, Result):
                self._sink.write(entry)
            elif not isinstance(entry, Record):
                self._sink.event(entry)

    def _note(self, error: Exception) -> None:
        self._log.failed(error, is_raised=self._is_strict)
        if self._is_strict:
            self._failure = self._failure or error
            # The next `write` raises, so nothing more would be delivered.
            self._queue.abandon()

    def _pause(self, seconds: float) -> None:
        if self._queue.is_closing:
            # `close` sets the limit; until then a broker that comes back still gets the rest.
            time.sleep(_RETRY_CLOSING_S)
        else:
            self._queue.pause(seconds * random.uniform(0.5, 1.0))


def close_sinks(sinks: Sequence[Sink], *, timeout_s: float | None = None) -> None:
    """Closes sinks; those behind queues at the same time.

    Args:
        sinks: Those that are not behind a queue are closed first, without a time limit.
        timeout_s: Seconds for all queues together, `STOP_S` after a signal; None: as `QueuedSink.close`.

    Raises:
        SinkError: The first failure; the others are logged.
    """
    queued = [sink for sink in sinks if isinstance(sink, QueuedSink)]
    for sink in queued:
        sink.begin_close()
    failures = [_failure_of(sink.close) for sink in sinks if not isinstance(sink, QueuedSink)]
    _close_queues(queued, timeout_s)
    failures += [_failure_of(sink.raise_failure) for sink in queued]
    found = [failure for failure in failures if failure is not None]
    for failure in found[1:]:
        _logger.warning("%s", failure)
    if found:
        raise found[0]


def _close_queues(sinks: Sequence[QueuedSink], timeout_s: float | None) -> None:
    """Closes all at once, so that a hanging one takes no time from the others."""
    open_ones = [sink for sink in sinks if not sink.is_closed and not is_foreign(sink)]
    for sink in open_ones:
        sink.is_closed = True
        sink.begin_close()
    grace_s = _GRACE_S if timeout_s is None else min(_GRACE_S, timeout_s / 4)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s - grace_s
    for sink in open_ones:
        sink.drain(deadline_s)
    for sink in open_ones:
        sink.give_up()
    deadline_s = time.monotonic() + grace_s
    for sink in open_ones:
        sink.join(deadline_s - time.monotonic())


def _failure_of(call: Callable[[], None]) -> SinkError | OSError | None:
    try:
        call()
    except (SinkError, OSError) as error:
        return error
    return None


def _slot_of(entry: Record | Result | Event) -> object:
    """Returns what is equal for the results of one source only."""
    return entry.frame.source if isinstance(entry, Result) else entry


def _is_break(item: object) -> bool:
    return isinstance(item, Event) and item.kind in BREAKS


def _without_picture(result: Result) -> Result:
    # Of the same size, and of one pixel in memory.
    image = np.broadcast_to(np.zeros(1, np.uint8), result.frame.image.shape)
    return dataclasses.replace(result, frame=dataclasses.replace(result.frame, image=image))


def _with_own_picture(result: Result) -> Result:
    if result.frame.image.flags.writeable:
        # Only the memory of captures is read-only; the picture of a file is the frame's own.
        return result
    image = result.frame.image.copy()
    image.flags.writeable = False
    return dataclasses.replace(result, frame=dataclasses.replace(result.frame, image=image))

"""A sink behind its own queue and thread, so that it cannot hold up the run."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.buffer import Buffer
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record, RecordMaker, RecordSink, SinkStats
from edgerpn.runtime.sinks.failure_log import FailureLog
from edgerpn.runtime.sinks.output_config import OutputConfig
from edgerpn.runtime.sinks.sink import Sink

_logger = logging.getLogger(__name__)

STOP_S = 2.0
"""Seconds for closing all sinks together after a signal."""

_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 30.0
_RETRY_CLOSING_S = 0.1
_GRACE_S = 0.5
_POLL_S = 0.05


class QueuedSink:
    """Gives results and events to a sink from a thread of its own.

    Records are made when a result arrives, so that their age is that of the emission. A sink that is not a
    `RecordSink` gets results with a copy of the picture, because the original may lie in memory that the capture
    needs again.
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
            sink: Used by that thread only, and closed by it.
            config: Length and policy of the queue, and what a failure means.
            kind: What sort of sink it is, for names.
            is_live: Whether a source is live, which is what `auto` settings depend on.
            maker: Shared between the sinks of a run, so that a record is made once.
        """
        self.target = sink.target
        self.name = f"{kind} {sink.target}".strip()
        is_patient = not is_live and not getattr(sink, "is_lossy", False)
        is_final = getattr(sink, "is_final", False)
        self._is_blocking = config.policy == "block" or (config.policy == "auto" and is_patient)
        self._is_strict = config.on_error == "stop" or (config.on_error == "auto" and (is_patient or is_final))
        self._config = config
        self._sink = sink
        self._record_sink = sink if isinstance(sink, RecordSink) else None
        self._maker = maker or RecordMaker()
        suggested = getattr(sink, "queue_records", 1000) if self._record_sink else 8
        self._buffer: Buffer[Record | Result | Event] = Buffer(config.queue or suggested)
        self._log = FailureLog(self.name)
        self._failure: Exception | None = None
        self._closing_since_s = 0.0
        self.is_closed = False
        self._retry_s = _RETRY_FIRST_S
        self._thread = threading.Thread(target=self._run, name=f"sink {kind}", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Queues one result; waits for room only under the policy `block`.

        Raises:
            SinkError: An earlier delivery failed, and the settings say that this ends the run.
        """
        self._put(self._maker.make(result) if self._record_sink else _with_own_picture(result))

    def event(self, event: Event) -> None:
        """Queues one event, like `write`."""
        self._put(self._maker.make(event) if self._record_sink else event)

    def stats(self) -> SinkStats:
        """What was done so far."""
        trouble = getattr(self._sink, "trouble", "")
        return SinkStats(
            name=self.name,
            queued=self._buffer.num_queued,
            written=self._buffer.num_written,
            dropped=self._buffer.num_dropped,
            errors=self._log.num_errors,
            last_error=trouble or self._log.last_error,
            is_failing=bool(trouble) or self._log.is_failing,
        )

    def hurry(self) -> None:
        """Makes `write` drop rather than wait from now on; for a signal handler, before `close`."""
        self._buffer.hurry()

    def begin_close(self) -> None:
        """Takes no more; the thread delivers what is queued and closes the sink. Does not block."""
        if not self._buffer.is_closing:
            self._closing_since_s = time.monotonic()
        self._buffer.close()

    def close(self, timeout_s: float | None = None) -> None:
        """Delivers what is queued and closes the sink; does nothing the second time.

        Args:
            timeout_s: Seconds until the rest is given up; None: as long as something is delivered every `drain_s`.

        Raises:
            SinkError: A delivery or the end of a file failed, and the settings say that this ends the run.
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
            if time.monotonic() - max(self._closing_since_s, self._buffer.progress_s) > self._config.drain_s:
                return
            self._thread.join(_POLL_S)

    def give_up(self) -> None:
        """Drops what is queued and asks the sink to end the call at hand, unless the thread has ended."""
        if not self._thread.is_alive():
            return
        num_lost = self._buffer.abandon()
        interrupt = getattr(self._sink, "interrupt", None)
        if interrupt is not None:
            interrupt()
        _logger.warning("%s: closing takes too long; %d queued records or pictures are lost", self.name, num_lost)

    def raise_failure(self) -> None:
        """Raises the failure that ends the run, once.

        Raises:
            SinkError: There was one.
        """
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, SinkError):
            raise failure
        raise SinkError(f"{self.name}: {type(failure).__name__}: {failure}") from failure

    def join(self, timeout_s: float) -> None:
        """Waits for the thread after `give_up`, and leaves it behind when it hangs."""
        self._thread.join(max(0.0, timeout_s))
        if self._thread.is_alive():
            _logger.warning("%s: does not answer and is left behind", self.name)

    def _put(self, entry: Record | Result | Event) -> None:
        self.raise_failure()
        self._buffer.put(entry, block_s=self._config.block_s if self._is_blocking else 0.0)

    def _run(self) -> None:
        max_items = getattr(self._sink, "batch_records", 256) if self._record_sink else 1
        wait_s = getattr(self._sink, "batch_wait_s", 0.0)
        while batch := self._buffer.take(max_items, wait_s):
            self._attempt(batch)
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - a sink of somebody else may raise anything
            self._note(error)

    def _attempt(self, batch: list[Record | Result | Event]) -> None:
        """Delivers a batch; what could not be delivered now goes back to the queue, and after a pause comes again."""
        try:
            self._deliver(batch)
        except NotDeliveredError as error:
            self._note(error)
            done = min(max(error.num_done, 0), len(batch))
            self._buffer.finish(num_written=done)
            self._buffer.put_back(batch[done:])
            if done:
                self._retry_s = _RETRY_FIRST_S
            self._pause(self._retry_s if error.retry_s is None else error.retry_s)
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        except Exception as error:  # noqa: BLE001 - as above
            self._note(error)
            self._buffer.finish(num_written=0, num_dropped=len(batch))
        else:
            self._buffer.finish(num_written=len(batch))
            self._log.worked(self._buffer.num_dropped)
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
        self._log.failed(error)
        if self._is_strict:
            self._failure = self._failure or error
            # Nothing more will be asked for: the next `write` raises.
            self._buffer.abandon()

    def _pause(self, seconds: float) -> None:
        if self._buffer.is_closing:
            # `close` sets the limit; until then a broker that comes back shall get what is left.
            time.sleep(_RETRY_CLOSING_S)
        else:
            self._buffer.pause(seconds * random.uniform(0.5, 1.0))


def close_sinks(sinks: Sequence[Sink], *, timeout_s: float | None = None) -> None:
    """Closes sinks, those behind queues at the same time.

    Args:
        sinks: Any; those that are not behind a queue are closed first and take the time that they take.
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
    """Together, so that one that hangs takes no time from the others."""
    open_ones = [sink for sink in sinks if not sink.is_closed]
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


def _with_own_picture(result: Result) -> Result:
    image = result.frame.image.copy()
    image.flags.writeable = False
    return dataclasses.replace(result, frame=dataclasses.replace(result.frame, image=image))

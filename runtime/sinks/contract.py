"""The interfaces of sinks: of records, and of results with their pictures.

A sink of another package is a class with one of two shapes, `RecordSink` or `Sink`. It takes its settings as the only
argument and names their class in `config_class`; a class with `needs_is_live = True` also takes the keyword `is_live`.
The run finds it as an entry point of the group `edgerpn.sinks`; the entry point's name is the `kind` in the settings.
See `edgerpn.runtime.sinks.kinds`.

Every sink runs in a thread of its own and gets one call at a time, except for `interrupt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from edgerpn.errors import SinkError
from edgerpn.manifest import Manifest
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.record import json_line

RecordKind = Literal["proposals", "events", "classes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One result or event as JSON, made when it was emitted; holds no picture and no password."""

    source: str
    """Name of the source."""
    kind: RecordKind
    """Subject of the line."""
    line: bytes
    """The record of `edgerpn.runtime.sinks.record` as ASCII, with its line end."""


class Sink(Protocol):
    """Takes the results of one run, in order, from one thread.

    Optional attributes: `takes_latest` (bool, default False), whether only the newest result of each source waits where
    a full queue would drop one; the sources then take turns, and other results count as dropped; `wants(result)`
    (bool), asked by the emitting thread before a result is queued and its picture copied; `takes_pictures` (bool,
    default True), whether it looks at them: else its frames are black and take no memory; `num_lost` (int), items that
    the sink took and lost; `trouble` and `interrupt()` as those of `RecordSink`. A class with
    `makes_records = True` makes records for another output, the table `to` of its settings: its keyword `open_to`
    opens that one, and the sink closes it; `raise_failure()` of such a sink raises the failure of that output that ends
    the run, and its `progress_s` (float) is that output's.
    """

    @property
    def target(self) -> str:
        """The file or folder written, for the summary; empty when the sink leaves nothing behind."""
        ...

    def write(self, result: Result) -> None:
        """Takes one result; it may keep the frame but must not change it.

        Raises:
            SinkError: The result cannot be written.
        """
        ...

    def event(self, event: Event) -> None:
        """Takes an event of a source between two frames; most sinks ignore it."""
        ...

    def close(self) -> None:
        """Finishes open files, also after an error elsewhere; does nothing the second time.

        Raises:
            SinkError: A file is not whole.
        """
        ...


@runtime_checkable
class RecordSink(Protocol):
    """Takes records of all sources, in the order in which they were emitted.

    Optional attributes: `batch_records` (int, default 256), the most records of one call; `batch_wait_s` (float,
    default 0), seconds to wait for that many; `queue_records` (int, default 1000), length of the queue unless the
    settings give one; `is_lossy` (bool, default False), whether full queues and failures cost records, not time;
    `is_final` (bool, default False), whether a failure is permanent and, under `auto`, ends the run; `trouble` (str),
    the reason why it waits at the moment, empty if it does not; `interrupt()`, called from another thread when closing
    takes too long: ends the present call soon.
    """

    @property
    def target(self) -> str:
        """Destination of the records, for people, without passwords; empty when the sink leaves nothing behind."""
        ...

    def write_records(self, records: Sequence[Record]) -> None:
        """Delivers some records; may block.

        Raises:
            NotDeliveredError: The last ones were not delivered; the queue offers them again after a pause.
            SinkError: They cannot be delivered, now or later, and count as lost.
        """
        ...

    def close(self) -> None:
        """Finishes open files and connections; does nothing the second time.

        Raises:
            SinkError: A file is not whole.
        """
        ...


@runtime_checkable
class ModelUser(Protocol):
    """Settings of a sink that needs certain outputs of the run's model."""

    def check_model(self, manifest: Manifest) -> None:
        """Looks at the model, before any output is opened.

        Raises:
            ConfigError: It does not have them.
            SinkError: A file of the settings does not fit them.
        """
        ...


class NotDeliveredError(SinkError):
    """A sink cannot deliver its records now, but may be able to later.

    Attributes:
        num_done: Number of records that were delivered, from the first.
        num_lost: Number of records after these that cannot be delivered, now or later.
        retry_s: Seconds until the next attempt; None: growing pauses, from 1 to 30.
    """

    def __init__(self, message: str, *, num_done: int = 0, num_lost: int = 0, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.num_done = num_done
        self.num_lost = num_lost
        self.retry_s = retry_s


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkStats:
    """The counts of a sink behind a queue."""

    name: str
    """Kind and target, without passwords."""
    queued: int
    """Results and events that wait or are being written."""
    written: int
    """Delivered results and events."""
    dropped: int
    """Results and events lost: the queue was full, they could not be delivered, or closing took too long."""
    errors: int
    """Failed calls."""
    last_error: str
    """Message of the last failed call; empty: no call failed."""
    is_failing: bool
    """Whether the last call failed, or waits because of a failure."""


class RecordMaker:
    """Makes the record of a result or event once, however many sinks take it; for one emitting thread."""

    def __init__(self) -> None:
        self._last: tuple[object, dict[bool, Record]] | None = None

    def make(self, item: Result | Event, *, has_embeddings: bool = False) -> Record:
        """Returns the record of `item`; its age is the time from capture until the first call."""
        # Keeps the proposals, not the result, whose picture may lie in memory that the capture needs again.
        key = item.proposals if isinstance(item, Result) else item
        last = self._last
        if last is None or last[0] is not key:
            self._last = last = (key, {})
        records = last[1]
        if has_embeddings not in records:
            is_result = isinstance(item, Result)
            records[has_embeddings] = Record(
                source=item.frame.source if isinstance(item, Result) else item.source,
                kind="proposals" if is_result else "events",
                line=json_line(item, has_embeddings=has_embeddings),
            )
        return records[has_embeddings]

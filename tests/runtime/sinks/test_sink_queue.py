"""A sink behind a queue never delays the run, and counts every item."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks import NotDeliveredError, OutputConfig, QueuedSink, Record, close_sinks, sink_queue
from edgerpn.runtime.sinks.sink_queue import FailureLog

MakeResult = Callable[..., Result]


class Notebook:
    """A record sink that keeps lines, waits at a gate and fails on demand."""

    target = "notebook"

    def __init__(self, *, batch_records: int = 256) -> None:
        self.batch_records = batch_records
        self.frames: list[int] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_inside = threading.Event()
        self.is_interrupted = False
        self.failures: list[Exception] = []
        self.num_closed = 0

    def write_records(self, records: Sequence[Record]) -> None:
        self.is_inside.set()
        self.gate.wait()
        if self.is_interrupted:
            raise NotDeliveredError("interrupted")
        if self.failures:
            failure = self.failures.pop(0)
            self._keep(records[: getattr(failure, "num_done", 0)])
            raise failure
        self._keep(records)

    def _keep(self, records: Sequence[Record]) -> None:
        self.batches.append(len(records))
        self.frames += [json.loads(record.line).get("frame", -1) for record in records]

    def interrupt(self) -> None:
        self.is_interrupted = True
        self.gate.set()

    def close(self) -> None:
        self.num_closed += 1


class Album:
    """A sink of pictures."""

    target = ""
    takes_pictures = True

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.events: list[Event] = []

    def write(self, result: Result) -> None:
        self.results.append(result)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


class SlowAlbum(Album):
    """Waits at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.is_inside = threading.Event(), threading.Event()

    def write(self, result: Result) -> None:
        self.is_inside.set()
        self.gate.wait()
        super().write(result)


def queued(sink: Any, *, is_live: bool = True, **settings: Any) -> QueuedSink:
    return QueuedSink(sink, OutputConfig(**settings), kind="test", is_live=is_live)


def test_everything_arrives_in_order_and_close_waits_for_it(make_result: MakeResult, make_event: Any) -> None:
    book = Notebook(batch_records=7)
    sink = queued(book)
    for index in range(100):
        sink.write(make_result(index))
    sink.event(make_event("ended"))
    sink.close()
    sink.close()
    assert book.frames == [*range(100), -1]
    assert max(book.batches) <= 7
    assert book.num_closed == 1
    stats = sink.stats()
    assert (stats.name, stats.written, stats.queued, stats.dropped, stats.errors) == ("test notebook", 101, 0, 0, 0)


def test_writes_do_not_wait_for_a_dead_consumer_and_the_oldest_are_dropped_and_counted(
    make_result: MakeResult,
) -> None:
    book = Notebook(batch_records=1)
    book.gate.clear()
    sink = queued(book, queue=10)
    sink.write(make_result(0))
    assert book.is_inside.wait(40)
    results = [make_result(index) for index in range(1, 501)]
    write_all(sink, results)
    # The gate is closed all the while.
    assert (sink.stats().queued, sink.stats().dropped) == (11, 490)
    book.gate.set()
    sink.close()
    assert book.frames == [0, *range(491, 501)]
    assert sink.stats().written + sink.stats().dropped == 501


def write_all(sink: QueuedSink, results: list[Result]) -> None:
    for result in results:
        sink.write(result)


def test_of_each_source_the_newest_result_waits_and_the_sources_take_turns(make_result: MakeResult) -> None:
    class Glance(SlowAlbum):
        takes_latest = True

    for is_live, expected in ((True, "a0 a2 b2 c2"), (False, "a0 a1 b1 c1 a2 b2 c2")):
        glance = Glance()
        sink = QueuedSink(glance, OutputConfig(), kind="test", is_live=is_live)
        sink.write(make_result(0, source="a"))
        assert glance.is_inside.wait(40)
        for index in (1, 2):
            for source in "abc":
                sink.write(make_result(index, source=source))
        dropped = sink.stats().dropped
        glance.gate.set()
        close_sinks([sink])
        assert " ".join(f"{result.frame.source}{result.index}" for result in glance.results) == expected
        assert dropped == sink.stats().dropped == (3 if is_live else 0)


def test_a_full_queue_of_pictures_keeps_the_ends_of_sources(make_result: MakeResult, make_event: Any) -> None:
    reel = SlowAlbum()
    sink = queued(reel, queue=3)
    sink.write(make_result(0))
    assert reel.is_inside.wait(40)
    for index in range(1, 10):
        sink.write(make_result(index))
        sink.event(make_event("ended" if index == 2 else "gap"))
    reel.gate.set()
    sink.close()
    assert [result.index for result in reel.results] == [0, 9]
    assert [event.kind for event in reel.events] == ["ended", "gap"]
    assert sink.stats().dropped == 15


def test_a_queue_full_of_ends_is_bounded_too(make_event: Any) -> None:
    queue = sink_queue.SinkQueue[Event](2)
    for number in range(5):
        queue.put(make_event("ended", source=str(number)), block_s=0.0)
    assert [event.source for event in queue.take(5, 0.0)] == ["3", "4"]


def test_under_block_nothing_is_dropped_by_a_slow_consumer(make_result: MakeResult, until: Any) -> None:
    book = Notebook(batch_records=1)
    book.gate.clear()
    sink = queued(book, is_live=False, queue=2)
    writer = threading.Thread(target=write_all, args=(sink, [make_result(index) for index in range(20)]))
    writer.start()
    until(lambda: sink.stats().queued == 3)
    assert writer.is_alive()
    book.gate.set()
    writer.join(40)
    sink.close()
    assert book.frames == list(range(20))


def test_block_gives_up_after_its_limit(make_result: MakeResult) -> None:
    book = Notebook(batch_records=1)
    book.gate.clear()
    sink = queued(book, policy="block", block_s=0.15, queue=1)
    sink.write(make_result(0))
    assert book.is_inside.wait(40)
    sink.write(make_result(1))
    start = time.monotonic()
    sink.write(make_result(2))
    assert time.monotonic() - start > 0.1
    assert sink.stats().dropped == 1
    book.gate.set()
    sink.close()
    assert book.frames == [0, 2]


def test_a_stop_signal_ends_blocking(make_result: MakeResult, until: Any) -> None:
    book = Notebook(batch_records=1)
    book.gate.clear()
    sink = queued(book, policy="block", queue=1)
    writer = threading.Thread(target=write_all, args=(sink, [make_result(index) for index in range(5)]))
    writer.start()
    until(lambda: sink.stats().queued == 2)
    sink.hurry()
    writer.join(40)
    assert not writer.is_alive()
    book.gate.set()
    sink.close()


def test_closing_after_a_signal_keeps_to_its_limit_and_counts_the_rest(
    make_result: MakeResult, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    books = [Notebook(batch_records=1) for _ in range(3)]
    sinks = [queued(book) for book in books]
    for book in books:
        book.gate.clear()
    for sink in sinks:
        for index in range(5):
            sink.write(make_result(index))
    assert all(book.is_inside.wait(40) for book in books)
    close_sinks(sinks, timeout_s=0.4)
    assert all(book.is_interrupted for book in books)
    until(lambda: [book.num_closed for book in books] == [1, 1, 1])
    for sink in sinks:
        assert (sink.stats().written, sink.stats().dropped, sink.stats().queued) == (0, 5, 0)
    assert caplog.text.count("closing takes too long; 4 queued records or pictures are lost") == 3


def test_a_consumer_that_hangs_for_ever_is_left_behind(
    make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    album = Album()
    gate = threading.Event()
    album.write = lambda result: (gate.wait(), None)[1]  # type: ignore[method-assign]
    sink = queued(album, drain_s=0.1)
    sink.write(make_result(0))
    sink.write(make_result(1))
    sink.close()
    assert "does not answer; the run ends without it" in caplog.text
    gate.set()


def test_only_undelivered_records_are_delivered_again(make_result: MakeResult, until: Any) -> None:
    book = Notebook(batch_records=8)
    book.gate.clear()
    book.failures = [NotDeliveredError("full", num_done=3, retry_s=0.0), NotDeliveredError("full", retry_s=0.0)]
    sink = queued(book)
    for index in range(10):
        sink.write(make_result(index))
    book.gate.set()
    until(lambda: sink.stats().written == 10)
    assert book.frames == list(range(10))
    stats = sink.stats()
    assert (stats.dropped, stats.errors, stats.last_error, stats.is_failing) == (0, 2, "full", False)
    sink.close()


def test_a_record_that_cannot_be_delivered_is_lost_alone(make_result: MakeResult, until: Any) -> None:
    book = Notebook(batch_records=8)
    book.gate.clear()
    # The first attempt may have one record alone, the second has as many as a batch holds.
    book.failures = [
        NotDeliveredError("away", retry_s=0.0),
        NotDeliveredError("too large", num_done=3, num_lost=1, retry_s=0.0),
    ]
    sink = queued(book)
    for index in range(10):
        sink.write(make_result(index))
    book.gate.set()
    until(lambda: sink.stats().queued == 0)
    assert book.frames == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert (sink.stats().written, sink.stats().dropped) == (9, 1)
    sink.close()


def test_while_nothing_is_delivered_the_queue_stays_bounded(make_result: MakeResult, until: Any) -> None:
    book = Notebook(batch_records=4)
    book.failures = [NotDeliveredError("away", retry_s=0.02)] * 20
    sink = queued(book, queue=5)
    for index in range(50):
        sink.write(make_result(index))
        assert sink.stats().queued <= 9
    until(lambda: not book.failures and not sink.stats().queued)
    assert book.frames == [45, 46, 47, 48, 49]
    assert sink.stats().dropped == 45
    sink.close()


@pytest.mark.parametrize("failure", [SinkError("no"), KeyError("bug of a plugin")])
def test_an_error_never_ends_a_live_run(
    make_result: MakeResult, until: Any, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    book = Notebook()
    book.failures = [failure]
    sink = queued(book)
    sink.write(make_result(0))
    until(lambda: sink.stats().dropped == 1)
    sink.write(make_result(1))
    sink.close()
    assert book.frames == [1]
    assert sink.stats().errors == 1
    assert str(failure) in caplog.text


@pytest.mark.parametrize(("is_live", "settings"), [(False, {}), (True, {"on_error": "stop"})])
def test_an_error_ends_the_run_when_the_settings_say_so(
    make_result: MakeResult, until: Any, is_live: bool, settings: dict[str, Any]
) -> None:
    book = Notebook()
    book.failures = [SinkError("disk full")]
    sink = queued(book, is_live=is_live, **settings)
    sink.write(make_result(0))
    until(lambda: sink.stats().errors == 1)
    with pytest.raises(SinkError, match="disk full"):
        sink.write(make_result(1))
    sink.close()
    assert book.num_closed == 1


def test_the_error_of_the_last_delivery_is_raised_by_close(make_result: MakeResult) -> None:
    book = Notebook()
    book.gate.clear()
    book.failures = [ValueError("bug")]
    sink = queued(book, is_live=False)
    sink.write(make_result(0))
    book.gate.set()
    with pytest.raises(SinkError, match="test notebook: ValueError: bug"):
        sink.close()


def test_pictures_are_copied_so_that_the_capture_gets_its_memory_back(make_result: MakeResult, until: Any) -> None:
    album = Album()
    sink = queued(album)
    memory = np.full((48, 64, 3), 7, np.uint8)
    shared = memory.view()
    shared.flags.writeable = False
    result = make_result(0)
    result = dataclasses.replace(result, frame=dataclasses.replace(result.frame, image=shared))
    sink.write(result)
    # As the capture does when it reuses the slot.
    memory[:] = 200
    until(lambda: album.results)
    sink.close()
    assert (album.results[0].image == 7).all()
    assert not np.shares_memory(album.results[0].image, shared)
    with pytest.raises(ValueError, match="read-only"):
        album.results[0].image[0] = 0


def test_a_sink_that_looks_at_no_pictures_gets_black_ones_without_memory(make_result: MakeResult) -> None:
    album = Album()
    album.takes_pictures = False
    sink = queued(album)
    for index in range(2):
        sink.write(make_result(index))
    sink.close()
    for result in album.results:
        assert (result.image.shape, result.image.max(), result.image.strides) == ((48, 64, 3), 0, (0, 0, 0))


def test_a_record_is_as_old_as_at_its_emission_and_made_once_for_all_sinks(make_result: MakeResult) -> None:
    from edgerpn.runtime.sinks.contract import RecordMaker

    maker = RecordMaker()
    result = make_result(0)
    first = maker.make(result)
    time.sleep(0.02)
    assert maker.make(result) is first
    assert maker.make(make_result(1)) is not first


def test_failures_are_logged_once_a_minute_and_so_is_their_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now_s = [1000.0]
    monkeypatch.setattr(sink_queue, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    log = FailureLog("mqtt broker", repeat_s=60.0)
    for _ in range(50):
        log.failed(SinkError("away"))
    assert len(caplog.records) == 1
    now_s[0] += 61.0
    log.failed(SinkError("away"))
    assert caplog.records[-1].message == "mqtt broker: away (and 49 failures before that)"
    log.worked(12)
    log.worked(12)
    assert [record.message for record in caplog.records[2:]] == [
        "mqtt broker: works again; 12 records or pictures lost since the start"
    ]
    assert log.num_errors == 51


def test_many_writers_lose_nothing_that_is_not_counted(make_result: MakeResult) -> None:
    book = Notebook(batch_records=3)
    sink = queued(book, queue=4)
    results = [[make_result(100 * writer + index) for index in range(100)] for writer in range(4)]
    writers = [threading.Thread(target=write_all, args=(sink, own)) for own in results]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    sink.close()
    stats = sink.stats()
    assert stats.written == len(book.frames) == len(set(book.frames))
    assert stats.written + stats.dropped == 400

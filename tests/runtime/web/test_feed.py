"""Queues of listeners, the memory of events, and the end of the page that the run holds."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Frame, Result, Track
from edgerpn.runtime.sinks import SinkStats
from edgerpn.runtime.web import HttpConfig, PageInfo, hub
from edgerpn.runtime.web.feed import MAX_EVENTS, QUEUE_RECORDS, RecordFeed, RecordListener
from edgerpn.runtime.web.metrics import PageMetrics, families


def event(kind: Any = "gap", source: str = "door") -> Event:
    return Event(kind=kind, source=source, message=f"{source}: {kind}", happened_at=time.time())


def result(index: int, source: str = "door") -> Result:
    frame = Frame(
        image=np.zeros((4, 4, 3), np.uint8), index=index, media_time_s=None, captured_at=time.time(),
        monotonic_s=time.monotonic(), source=source, decode_ms=0.0,
    )  # fmt: skip
    proposals = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    return Result(proposals=proposals, frame=frame, stage_ms={"inference": 1.0}, age_ms=1.0)


def test_a_slow_listener_loses_the_oldest_records_and_learns_how_many() -> None:
    feed = RecordFeed()
    wakes: list[int] = []
    listener = RecordListener([], [], lambda: wakes.append(1))
    feed.join(listener)
    for index in range(QUEUE_RECORDS + 10):
        feed.put_result(result(index))
    assert len(wakes) == 1
    records, dropped = listener.take()
    assert (len(records), dropped, listener.num_dropped) == (QUEUE_RECORDS, 10, 10)
    assert [json.loads(line)["frame"] for _, line in records] == list(range(10, QUEUE_RECORDS + 10))
    assert listener.take() == ([], 0)
    feed.put_event(event())
    assert len(wakes) == 2
    feed.leave(listener)
    feed.put_event(event())
    assert len(listener.take()[0]) == 1
    assert (feed.num_dropped, feed.num_listeners) == (10, 0)


def test_a_listener_gets_the_records_it_asked_for() -> None:
    feed = RecordFeed()
    door, events = RecordListener(["door"], ["frame"], lambda: None), RecordListener([], ["event"], lambda: None)
    feed.join(door)
    feed.join(events)
    for source in ("door", "yard"):
        feed.put_result(result(1, source))
        feed.put_event(event(source=source))
    assert [json.loads(line)["source"] for _, line in door.take()[0]] == ["door"]
    assert [(kind, json.loads(line)["source"]) for kind, line in events.take()[0]] == [
        ("event", "door"),
        ("event", "yard"),
    ]


def test_the_last_events_are_remembered_and_no_more() -> None:
    feed = RecordFeed()
    for _ in range(MAX_EVENTS + 5):
        feed.put_event(event())
    found = feed.events()
    assert [found[0]["id"], found[-1]["id"], len(found)] == [6, MAX_EVENTS + 5, MAX_EVENTS]
    assert [entry["id"] for entry in feed.events(after=MAX_EVENTS + 3)] == [MAX_EVENTS + 4, MAX_EVENTS + 5]


def test_events_of_tracks_reach_listeners_and_push_no_event_of_a_source_out() -> None:
    feed = RecordFeed()
    listener = RecordListener([], [], lambda: None)
    feed.join(listener)
    track = Track(track_id=1, age_s=0.0, dwell_s=0.0, is_confirmed=True)
    feed.put_event(dataclasses.replace(event("appeared"), track=track))
    feed.put_event(event("gap"))
    assert [json.loads(line)["event"] for _, line in listener.take()[0]] == ["appeared", "gap"]
    assert [record["event"] for record in feed.events()] == ["gap"]


def test_stale_frames_in_a_row_are_one_entry_with_a_count_and_leave_the_others_there() -> None:
    feed = RecordFeed()
    feed.put_event(event("connected"))
    for _ in range(1000):
        feed.put_event(event("stale"))
        feed.put_event(event("stale", "yard"))
    feed.put_event(event("gap"))
    feed.put_event(event("stale"))
    told = [(entry["source"], entry["event"], entry["repeated"]) for entry in feed.events()]
    assert told == [
        ("door", "connected", 1),
        ("door", "stale", 1000),
        ("yard", "stale", 1000),
        ("door", "gap", 1),
        ("door", "stale", 1),
    ]


class Streams:
    """A run in which nothing happens."""

    busy_s = 0.0

    def stats(self) -> dict[str, Any]:
        return {}

    def sink_stats(self) -> list[SinkStats]:
        return []

    def add(self, table: Any) -> str:
        raise RuntimeError

    def remove(self, name: str) -> bool:
        return False


@pytest.fixture
def made_hub() -> Any:
    made = hub.Hub(HttpConfig(), on_picture=lambda source: None)
    yield made
    made.pictures.close()


def test_a_run_without_results_and_ticks_counts_as_hung(made_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_hub.health() == (True, "starting")
    made_hub.begin(Streams(), PageInfo(model="m", backend="b"))
    assert made_hub.health() == (True, "ok")
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + hub.SILENT_S + 1)
    assert made_hub.health() == (False, "run_hangs")
    made_hub.tick()
    assert made_hub.health() == (True, "ok")


def test_failures_of_the_page_do_not_reach_the_run(
    made_hub: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(made_hub.feed, "put_result", fail)
    monkeypatch.setattr(made_hub.feed, "put_event", fail)
    made_hub.write(result(1))
    made_hub.event(event())
    assert caplog.text.count("the web page lacks") == 2


def test_two_outputs_of_one_name_are_two_lines_of_metrics() -> None:
    same = SinkStats(name="mqtt a", queued=1, written=2, dropped=3, errors=4, last_error="", is_failing=False)
    found = families({}, [same, same], up_states=(), gauges={}, counters={}, info={})
    body, _ = PageMetrics().text("", found)
    lines = [line for line in body.decode().splitlines() if line.startswith("edgerpn_output_written_total")]
    assert lines == [
        'edgerpn_output_written_total{output="mqtt a"} 2.0',
        'edgerpn_output_written_total{output="mqtt a #2"} 2.0',
    ]

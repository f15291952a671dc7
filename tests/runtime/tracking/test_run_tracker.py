"""Tracks of a run: the time of each kind of source, gaps, other sizes, ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Frame, Result
from edgerpn.runtime.tracking import run_tracker
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.run_tracker import IMAGE_S, RunTracker
from edgerpn.runtime.zones import ZoneConfig, ZoneMap
from tests.support.classes import classed

Show = Callable[..., tuple[Result, list[Event]]]


@pytest.fixture
def tracker() -> RunTracker:
    return RunTracker(TrackConfig(confirm_frames=1), is_live=lambda name: name.startswith("live"))


@pytest.fixture
def show(tracker: RunTracker, propose: Callable[..., Proposals]) -> Show:
    """Shows one object that stands still."""

    def make(
        source: str, index: int, *, media_time_s: float | None = None, monotonic_s: float = 0.0, lag_ms: float = 0.0,
        width: int = 64, zone_map: ZoneMap | None = None, label: str = "",
    ) -> tuple[Result, list[Event]]:  # fmt: skip
        frame = Frame(
            image=np.zeros((48, width, 3), np.uint8), source=source, index=index, media_time_s=media_time_s,
            captured_at=1000.0 + index, monotonic_s=monotonic_s, decode_ms=0.0, lag_ms=lag_ms,
        )  # fmt: skip
        proposals = propose((5, 5))
        if label:
            proposals = classed(proposals, [label])
        return tracker.follow(Result(proposals=proposals, frame=frame, stage_ms={}, zone_map=zone_map))

    return make


def track_of(shown: tuple[Result, list[Event]]) -> tuple[int, float]:
    assert shown[0].tracks is not None
    assert shown[0].tracks[0] is not None
    return shown[0].tracks[0].track_id, round(shown[0].tracks[0].age_s, 6)


def test_each_kind_of_source_has_its_own_time(show: Show) -> None:
    show("film.mp4", 0, media_time_s=3.0, monotonic_s=100.0)
    assert track_of(show("film.mp4", 8, media_time_s=4.0, monotonic_s=900.0)) == (1, 1.0)
    show("photos", 0)
    assert track_of(show("photos", 3)) == (1, 3 * IMAGE_S)
    # The camera's own time begins again with each connection.
    show("live", 0, media_time_s=50.0, monotonic_s=100.0)
    assert track_of(show("live", 5, media_time_s=0.0, monotonic_s=102.0, lag_ms=500.0)) == (1, 1.5)


def test_the_events_of_a_track_tell_what_a_consumer_needs(show: Show, tracker: RunTracker) -> None:
    result, (appeared,) = show("live", 7, monotonic_s=1.0)
    assert (appeared.kind, appeared.reason, appeared.frame, appeared.happened_at) == ("appeared", "none", 7, 1007.0)
    assert appeared.message == "live: track 1 appeared"
    assert appeared.track == (result.tracks or ())[0]
    assert appeared.box_xyxy == (5.0, 5.0, 45.0, 45.0)
    show("live", 9, monotonic_s=2.5)
    (left,) = tracker.end("live", "removed")
    assert (left.kind, left.reason, left.frame, left.happened_at) == ("left", "removed", 9, 1009.0)
    assert left.message == "live: track 1 left after 1.5 s"
    assert tracker.end("live", "removed") == tracker.end("never", "removed") == []
    (named,) = show("reef", 0, label="fish")[1]
    assert named.message == "reef: track 1 (fish) appeared"
    # Another source of this name, whose time may be any.
    assert track_of(show("live", 0, monotonic_s=1.0)) == (2, 0.0)


def test_the_events_of_a_track_name_its_zones(show: Show, tracker: RunTracker) -> None:
    lower = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
    zones = ZoneMap([ZoneConfig(name="lower", points=lower)], [], mask_share=0.5)
    _, (appeared,) = show("live", 0, zone_map=zones)
    (left,) = tracker.end("live", "removed")
    assert appeared.zones == left.zones == ("lower",)
    assert show("live", 1)[1][0].zones == ()


def test_a_track_in_a_zone_enters_it_and_leaves_it_at_its_end_at_the_latest(show: Show, tracker: RunTracker) -> None:
    lower = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
    zones = ZoneMap([ZoneConfig(name="lower", points=lower)], [], mask_share=0.5)
    shown = [show("live", index, monotonic_s=index / 10, zone_map=zones)[1] for index in range(4)]
    assert [[event.kind for event in events] for events in shown] == [["appeared"], [], ["entered_zone"], []]
    (entered,) = shown[2]
    assert entered.message == "live: track 1 entered zone lower"
    assert (entered.zone, entered.zones, entered.frame, entered.box_xyxy) == ("lower", ("lower",), 2, (5, 5, 45, 45))
    exited, left = tracker.end("live", "removed")
    assert (exited.kind, exited.zone, exited.reason, exited.frame) == ("left_zone", "lower", "removed", 3)
    assert exited.message == "live: track 1 left zone lower after 0.3 s"
    assert exited.duration_s == pytest.approx(0.3)
    assert left.kind == "left"


def test_a_zone_that_the_settings_lose_is_left(show: Show) -> None:
    whole = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    zones = ZoneMap([ZoneConfig(name="whole", points=whole)], [], mask_share=0.5)
    for index in range(4):
        show("live", index, monotonic_s=index / 10, zone_map=zones)
    events = [event for index in range(4, 8) for event in show("live", index, monotonic_s=index / 10)[1]]
    assert [(event.kind, event.zone, event.frame) for event in events] == [("left_zone", "whole", 6)]


def test_tracks_of_a_camera_that_is_silent_leave_after_the_buffer(show: Show, tracker: RunTracker) -> None:
    show("live", 0, monotonic_s=100.0)
    show("film.mp4", 0, media_time_s=0.0, monotonic_s=100.0)
    assert tracker.expire(102.0) == []
    (left,) = tracker.expire(104.5)
    assert (left.source, left.kind, left.reason) == ("live", "left", "silence")
    assert tracker.expire(200.0) == []
    # It begins where it ended.
    assert track_of(show("live", 1, monotonic_s=200.0)) == (2, 0.0)
    assert track_of(show("film.mp4", 1, media_time_s=0.04, monotonic_s=200.0)) == (1, 0.04)


def test_frames_of_another_size_begin_new_tracks(show: Show) -> None:
    show("live", 0, monotonic_s=100.0)
    result, events = show("live", 1, monotonic_s=100.1, width=80)
    assert [(event.kind, event.reason) for event in events] == [("left", "resized"), ("appeared", "none")]
    assert track_of((result, events)) == (2, 0.0)
    assert show("live", 2, monotonic_s=100.2, width=80)[1] == []


def test_all_tracks_leave_with_the_run(show: Show, tracker: RunTracker) -> None:
    show("live", 0)
    show("film.mp4", 0, media_time_s=0.0)
    assert [(event.source, event.reason) for event in tracker.end_all()] == [
        ("live", "end_of_stream"), ("film.mp4", "end_of_stream")
    ]  # fmt: skip
    assert tracker.end_all() == []


def test_a_run_in_which_sources_come_and_go_does_not_grow_and_uses_no_number_twice(
    show: Show, tracker: RunTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tracker, "_MAX_NAMES", 2)

    def first_number(name: str) -> int:
        number, _ = track_of(show(name, 0))
        tracker.end(name, "removed")
        return number

    assert [first_number(name) for name in ("live a", "live b", "live a", "live b", "live a")] == [1, 1, 2, 2, 3]
    # Of the names that are forgotten only the largest number is known: 2 of b, then 3 of a.
    assert [first_number(name) for name in ("live c", "live d", "live e", "live b")] == [1, 3, 4, 4]

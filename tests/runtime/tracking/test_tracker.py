"""Tracks keep their numbers: over crossings, gaps, dropped frames and weak proposals."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Track
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.tracker import Moment, TrackChange, Tracker
from tests.support.classes import classed

Propose = Callable[..., Proposals]


class Film:
    """A tracker, and what it said."""

    def __init__(self, **settings: float) -> None:
        self.tracker = Tracker(TrackConfig(**settings))  # type: ignore[arg-type]
        self.changes: list[TrackChange] = []
        self.tracks: tuple[Track | None, ...] = ()

    def show(self, proposals: Proposals, time_s: float) -> list[int | None]:
        """Shows a frame; returns the numbers of the proposals' tracks."""
        self.tracks, changes = self.tracker.follow(proposals, Moment(time_s, round(time_s * 25), 1000 + time_s))
        self.changes += changes
        return [None if track is None else track.track_id for track in self.tracks]

    def kinds(self) -> list[tuple[str, int]]:
        return [(change.kind, change.track.track_id) for change in self.changes]


def times(stop_s: float, rate_hz: float = 25) -> Iterable[float]:
    return (step / rate_hz for step in range(round(stop_s * rate_hz)))


def test_objects_that_pass_each_other_keep_their_numbers(propose: Propose) -> None:
    film = Film()
    for time_s in times(3):
        # They overlap by half of their height when they meet.
        ids = film.show(propose((100 * time_s, 50), (300 - 100 * time_s, 70)), time_s)
        assert ids == [1, 2]
    assert film.kinds() == [("appeared", 1), ("appeared", 2)]


def test_a_track_is_confirmed_by_frames_in_a_row_and_a_flicker_never_is(propose: Propose) -> None:
    film = Film(confirm_frames=3)
    for number, time_s in enumerate(times(1)):
        film.show(propose((0, 0), (200, 200)) if number % 3 else propose((0, 0)), time_s)
        assert [track.is_confirmed for track in film.tracks if track] == [number >= 2, False][: len(film.tracks)]
    assert film.kinds() == [("appeared", 1)]
    assert film.changes[0].seen == Moment(0.08, 2, 1000.08)
    film.tracker.end()
    assert Film(confirm_frames=1).show(propose((0, 0)), 0.0) == [1]


def test_a_weak_proposal_continues_a_track_and_never_begins_one(propose: Propose) -> None:
    film = Film(high_score=0.5, low_score=0.2)
    for time_s in times(0.4):
        film.show(propose((0, 0)), time_s)
    assert film.show(propose((2, 0), (200, 0), scores=[0.3, 0.3]), 0.4) == [1, None]
    assert film.show(propose((2, 0), scores=[0.1]), 0.44) == [None]
    # A track that was not seen in the last frame waits for a good one.
    assert film.show(propose((2, 0), scores=[0.3]), 0.48) == [None]
    assert film.show(propose((2, 0), scores=[0.6]), 0.52) == [1]


def test_near_copies_and_proposals_beyond_the_top_have_no_track(propose: Propose) -> None:
    assert Film(top=2).show(propose((0, 0), (2, 0), (100, 0), (200, 0)), 0.0) == [1, None, 2, None]
    assert Film().show(propose(), 0.0) == []


@pytest.mark.parametrize(("hidden_s", "number"), [(0.5, 1), (1.9, 1), (2.5, 2)])
def test_an_object_that_is_hidden_keeps_its_number_for_the_buffer(
    propose: Propose, hidden_s: float, number: int
) -> None:
    film = Film(buffer_s=2.0)
    for time_s in times(1):
        film.show(propose((20 * time_s, 0)), time_s)
    for time_s in times(hidden_s):
        film.show(propose(), 1 + time_s)
    back_s = 1 + hidden_s
    for time_s in times(0.2):
        assert film.show(propose((20 * (back_s + time_s), 0)), back_s + time_s) == [number]
    expected = [("appeared", 1)] if number == 1 else [("appeared", 1), ("left", 1), ("appeared", 2)]
    assert film.kinds() == expected
    if number == 2:
        left = film.changes[1]
        assert left.track.age_s == pytest.approx(0.96)
        assert left.seen.frame == 24
        np.testing.assert_allclose(left.box_xyxy, [19.2, 0, 59.2, 40], atol=1e-4)


def test_dropped_frames_and_a_gap_without_any_frame_mint_no_numbers(propose: Propose) -> None:
    rng = np.random.default_rng(1)
    film = Film()
    for time_s in times(8):
        if time_s > 0.5 and (rng.random() < 0.7 or 4 < time_s < 5.5):
            continue
        assert film.show(propose((60 * time_s, 0), (60 * time_s, 100)), time_s) == [1, 2]


def test_a_time_that_runs_back_counts_as_the_same_time(propose: Propose) -> None:
    film = Film()
    for time_s in (5.0, 5.1, 3.2, 4.9, 5.2):
        assert film.show(propose((0, 0)), time_s) == [1]
    assert film.tracks[0] is not None
    assert film.tracks[0].age_s == pytest.approx(0.2)


def test_a_time_that_begins_again_begins_new_tracks(propose: Propose) -> None:
    film = Film(confirm_frames=1)
    for time_s in (100.0, 100.1):
        film.show(propose((0, 0)), time_s)
    for time_s in (-0.2, 1.8):
        assert film.show(propose((0, 0)), time_s) == [2]
    assert film.kinds() == [("appeared", 1), ("left", 1), ("appeared", 2)]
    assert film.tracks[0] is not None
    assert film.tracks[0].age_s == pytest.approx(2.0)


def test_a_long_buffer_keeps_a_bounded_number_of_tracks_the_latest_ones(propose: Propose) -> None:
    film = Film(confirm_frames=1, buffer_s=3600)
    for number, time_s in enumerate(times(0.88)):
        film.show(propose(*((50 * column, 50 * number) for column in range(25))), time_s)
    assert [number for kind, number in film.kinds() if kind == "left"] == list(range(1, 51))
    assert film.show(propose((50, 50 * 2)), 0.88) == [52]


def test_a_track_is_stationary_once_at_each_place_with_its_dwell_time(propose: Propose) -> None:
    film = Film(stationary_s=2.0)
    for time_s in times(10):
        # Stands 4 s, moves for 1 s, stands again; and trembles all the time.
        x = 100 * min(max(time_s - 4, 0), 1) + 2 * (round(time_s * 25) % 2)
        film.show(propose((x, 0)), time_s)
    stood = [change for change in film.changes if change.kind == "stationary"]
    assert [change.track.dwell_s for change in stood] == pytest.approx([2.0, 2.0], abs=0.05)
    assert stood[0].seen.time_s == pytest.approx(2.0)
    assert 6.8 < stood[1].seen.time_s < 7.2
    assert film.tracks[0] is not None
    assert film.tracks[0].dwell_s == pytest.approx(5, abs=0.2)


def test_an_object_of_two_classes_has_one_track(propose: Propose) -> None:
    film = Film()
    assert film.show(classed(propose((0, 0), (1, 0)), ["crab", "fish"], [0.9, 0.8]), 0.0) == [1, None]


def test_a_track_has_the_class_with_the_largest_sum_of_scores(propose: Propose) -> None:
    film = Film()
    sights = [("crab", 0.9), ("fish", 0.8), ("fish", 0.3), ("crab", 0.1)]
    labels = []
    for number, (name, score) in enumerate(sights):
        film.show(classed(propose((0, 0)), [name], [score]), number / 25)
        assert film.tracks[0] is not None
        labels.append(film.tracks[0].label)
    assert labels == ["crab", "crab", "fish", "fish"]
    assert [change.track.label for change in (*film.changes, *film.tracker.end())] == ["fish", "fish"]


def test_the_end_makes_confirmed_tracks_leave_and_numbers_continue(propose: Propose) -> None:
    film = Film()
    for time_s in times(0.2):
        film.show(propose((0, 0), (100, 0)) if time_s else propose((0, 0)), time_s)
    assert [change.track.track_id for change in film.tracker.end()] == [1, 2]
    assert film.tracker.end() == []
    assert film.show(propose((0, 0)), 0.2) == [3]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"low_score": 0.5}, r"low_score: expected 0 to high_score \(0.4\), got 0.5"),
        ({"high_score": 1.5}, "high_score: expected 0 to 1"),
        ({"top": 0}, "top: expected 1 to 300"),
        ({"min_iou": 1.0}, "min_iou: expected above 0, below 1"),
        ({"buffer_s": 0.0}, "buffer_s: expected above 0, to 3600"),
        ({"stationary_s": float("inf")}, "stationary_s: expected above 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrackConfig(**setting)  # type: ignore[arg-type]

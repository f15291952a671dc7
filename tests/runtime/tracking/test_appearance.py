"""Lost tracks are found again by their embeddings, where these tell objects apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.tracker import Moment, Tracker

Show = Callable[..., list[int | None]]

# All share most of their vector, as objects of one picture do.
RED, BLUE, GREEN = (np.array(vector) / np.linalg.norm(vector) for vector in ([1, 0, 0, 3], [0, 1, 0, 3], [0, 0, 1, 3]))


@pytest.fixture
def make_show(propose: Callable[..., Proposals]) -> Callable[..., Show]:
    """Makes a tracker that is shown (place, look) pairs; the numbers of their tracks come back."""

    def make(**settings: float) -> Show:
        tracker = Tracker(TrackConfig(**settings))  # type: ignore[arg-type]

        def show(time_s: float, *objects: tuple[tuple[float, float], np.ndarray], size: float = 40) -> list[int | None]:
            plain = propose(*(place for place, _ in objects), size=size)
            looks = np.array([look for _, look in objects]).reshape(len(objects), 4)
            tracks, _ = tracker.follow(Proposals(plain.boxes, plain.scores, embeddings=looks), Moment(time_s, 0, 0.0))
            return [None if track is None else track.track_id for track in tracks]

        return show

    return make


@pytest.fixture
def show(make_show: Callable[..., Show]) -> Show:
    """A tracker that knows a red and a blue object, 1 and 2, which are then hidden for half a second."""
    return hide_two(make_show())


def hide_two(show: Show) -> Show:
    for step in range(10):
        assert show(step / 25, ((0, 0), RED), ((300, 0), BLUE)) == [1, 2]
    assert show(0.9) == []
    return show


def test_an_object_that_turned_while_it_was_hidden_keeps_its_number_by_its_look(show: Show) -> None:
    assert show(0.94, ((20, 35), RED)) == [1]
    # From there on it is followed as before.
    assert show(0.98, ((21, 36), RED)) == [1]


def test_another_object_near_the_place_of_a_lost_one_gets_a_new_number(show: Show) -> None:
    assert show(0.94, ((20, 35), BLUE)) == [3]
    assert show(0.98, ((320, 35), GREEN), ((20, 35), BLUE)) == [4, 3]


def test_an_object_is_not_found_where_it_cannot_be_or_in_another_size(show: Show) -> None:
    # A lost object may go half its size at once, and its size each second.
    assert show(0.94, ((60, 0), RED)) == [3]
    assert show(0.98, ((290, 20), BLUE), size=100) == [4]
    assert show(3.0, ((0, 100), RED)) == [5]


def test_objects_that_change_places_while_hidden_are_told_apart(make_show: Callable[..., Show]) -> None:
    show = make_show()
    for step in range(10):
        assert show(step / 25, ((0, 0), RED), ((50, 0), BLUE)) == [1, 2]
    assert show(0.9) == []
    assert show(0.94, ((22, 30), BLUE), ((28, -30), RED)) == [2, 1]


def test_a_similarity_of_one_switches_looks_off(make_show: Callable[..., Show]) -> None:
    assert hide_two(make_show(min_similarity=1))(0.94, ((20, 35), RED)) == [3]


def test_new_tracks_are_not_found_by_their_look(make_show: Callable[..., Show]) -> None:
    show = make_show()
    assert show(0.0, ((0, 0), RED)) == [1]
    assert show(0.04, ((0, 35), RED)) == [2]


def test_a_wrong_similarity_is_refused() -> None:
    with pytest.raises(ValueError, match="min_similarity: expected above 0, to 1, got 0"):
        TrackConfig(min_similarity=0)

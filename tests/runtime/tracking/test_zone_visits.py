"""Entries and exits of zones: once for each visit, with the time inside, and not for a box that trembles."""

from __future__ import annotations

import pytest

from edgerpn.runtime.frame import Track
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.zone_visits import Crossing, ZoneVisits


def track(age_s: float, track_id: int = 1) -> Track:
    return Track(track_id=track_id, age_s=age_s, dwell_s=0.0, is_confirmed=True)


def walk(visits: ZoneVisits, path: list[str]) -> list[tuple[float, Crossing]]:
    """Shows a track each second in the zones of a word, a letter each; the crossings with their second."""
    return [(second, one) for second, word in enumerate(path) for one in visits.see(track(second), tuple(word))]


def test_an_entry_and_an_exit_need_sights_in_a_row_and_the_stay_lasts_from_first_to_last_sight() -> None:
    visits = ZoneVisits(num_sights=2)
    assert walk(visits, ["", "a", "", "a", "a", "", "a", "a", "", ""]) == [
        (4, Crossing(zone="a", stay_s=None)), (9, Crossing(zone="a", stay_s=4.0))
    ]  # fmt: skip
    assert visits.end(track(9)) == []


def test_zones_that_overlap_are_entered_and_left_each_for_itself() -> None:
    assert walk(ZoneVisits(num_sights=1), ["a", "ab", "b", ""]) == [
        (0, Crossing(zone="a", stay_s=None)), (1, Crossing(zone="b", stay_s=None)),
        (2, Crossing(zone="a", stay_s=1.0)), (3, Crossing(zone="b", stay_s=1.0)),
    ]  # fmt: skip


def test_a_track_that_ends_leaves_the_zones_that_it_entered_and_is_forgotten() -> None:
    visits = ZoneVisits(num_sights=2)
    walk(visits, ["a", "a", "ab"])
    assert visits.end(track(2)) == [Crossing(zone="a", stay_s=2.0)]
    assert visits.end(track(2)) == []
    assert visits.end(track(2, track_id=7)) == []


def test_the_frames_of_a_crossing_are_checked() -> None:
    with pytest.raises(ValueError, match="zone_frames: expected 1 to 100, got 0"):
        TrackConfig(zone_frames=0)

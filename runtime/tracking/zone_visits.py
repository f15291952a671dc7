"""The visits of tracks to the zones of one source: entries, and exits with the time in between.

A box trembles, and so does its place on an outline: a track enters or leaves a zone when it was seen on the other side
in several frames in a row, as with Frigate's `inertia`. The time counts from the first to the last sight inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgerpn.runtime.frame import Track


@dataclass(slots=True, eq=False)
class _Visit:
    since_s: float
    last_s: float
    num_inside: int = 0
    """Sights in a row, before the entry."""
    num_outside: int = 0
    """Sights in a row, after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """A track has entered or left a zone."""

    zone: str
    """Name of the zone."""
    stay_s: float | None
    """Seconds in the zone; None: it has entered."""


class ZoneVisits:
    """Where the tracks of one source are; a track's own age is its clock."""

    def __init__(self, num_sights: int) -> None:
        """Starts without tracks; `num_sights` in a row are needed for an entry and for an exit."""
        self._num_sights = num_sights
        self._visits: dict[int, dict[str, _Visit]] = {}

    def see(self, track: Track, zones: tuple[str, ...]) -> list[Crossing]:
        """Takes a sight of a track, and the names of the zones in which it stands."""
        visits = self._visits.setdefault(track.track_id, {})
        crossings = [self._inside(visits, name, track.age_s) for name in zones]
        crossings += [self._outside(visits, name) for name in list(visits) if name not in zones]
        return [crossing for crossing in crossings if crossing is not None]

    def end(self, track: Track) -> list[Crossing]:
        """Returns the exits of a track that has left, and forgets it."""
        visits = self._visits.pop(track.track_id, {})
        return [_exit(name, visit) for name, visit in visits.items() if self._has_entered(visit)]

    def _inside(self, visits: dict[str, _Visit], name: str, now_s: float) -> Crossing | None:
        visit = visits.setdefault(name, _Visit(now_s, now_s))
        visit.last_s, visit.num_outside = now_s, 0
        visit.num_inside += 1
        return Crossing(zone=name, stay_s=None) if visit.num_inside == self._num_sights else None

    def _outside(self, visits: dict[str, _Visit], name: str) -> Crossing | None:
        visit = visits[name]
        visit.num_outside += 1
        has_entered = self._has_entered(visit)
        if has_entered and visit.num_outside < self._num_sights:
            return None
        del visits[name]
        return _exit(name, visit) if has_entered else None

    def _has_entered(self, visit: _Visit) -> bool:
        return visit.num_inside >= self._num_sights


def _exit(name: str, visit: _Visit) -> Crossing:
    return Crossing(zone=name, stay_s=visit.last_s - visit.since_s)

"""The tracks of all sources of a run: results get their tracks, and changes become events.

Time is that of the source. A file's is the time inside the video, so its tracks do not depend on the speed of the run;
images, which have none, follow each other every `IMAGE_S`. A live source's is the monotonic clock at the moment when
the frame left the camera, which continues over connections. Frames that were dropped are thus time that has passed,
not sights that failed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.runtime.frame import Event, Frame, Reason, Result
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.tracker import Moment, TrackChange, Tracker
from edgerpn.runtime.tracking.zone_visits import Crossing, ZoneVisits
from edgerpn.runtime.zones import ZoneMap

IMAGE_S = 0.04
"""Seconds between two images of a folder."""

_LATE_S = 2.0
"""Seconds for which a frame of a live source may be on its way: in the model, or waiting for it."""
_MAX_NAMES = 1000
"""Removed sources whose last number is known; a source that comes later begins above the numbers of all others."""


@dataclass(slots=True, eq=False)
class _Source:
    name: str
    tracker: Tracker
    size_hw: tuple[int, int]
    visits: ZoneVisits
    last_s: float = 0.0
    zone_map: ZoneMap | None = None

    def events(self, changes: Iterable[TrackChange], reason: Reason = "none") -> list[Event]:
        events = []
        for change in changes:
            exits = self.visits.end(change.track) if change.kind == "left" else []
            events += [self._event(part, reason) for part in (*_crossed(change, exits), change)]
        return events

    def visit(self, result: Result, moment: Moment) -> list[Event]:
        """Returns the entries and exits of the confirmed tracks of a result."""
        tracks = {
            row: track for row, track in enumerate(result.tracks or ()) if track is not None and track.is_confirmed
        }
        boxes = result.proposals.boxes[list(tracks)].astype(np.float64)
        zones = self._zones_of(boxes)
        return [
            self._event(change, "none")
            for track, box, names in zip(tracks.values(), boxes, zones, strict=True)
            for change in _crossed(TrackChange("left", track, box, moment), self.visits.see(track, names))
        ]

    def _zones_of(self, boxes_xyxy: npt.NDArray[np.float64]) -> tuple[tuple[str, ...], ...]:
        if self.zone_map is None:
            return ((),) * len(boxes_xyxy)
        return self.zone_map.zones_of(boxes_xyxy, self.size_hw)

    def _event(self, change: TrackChange, reason: Reason) -> Event:
        track = change.track
        texts = {
            "appeared": "appeared",
            "stationary": f"stands still for {track.dwell_s:.1f} s",
            "left": f"left after {track.age_s:.1f} s",
            "entered_zone": f"entered zone {change.zone}",
            "left_zone": f"left zone {change.zone} after {change.stay_s:.1f} s",
        }
        label = f" ({track.label})" if track.label else ""
        x1, y1, x2, y2 = change.box_xyxy.tolist()
        return Event(
            kind=change.kind,
            source=self.name,
            message=f"{self.name}: track {track.track_id}{label} {texts[change.kind]}",
            happened_at=change.seen.captured_at,
            reason=reason,
            frame=change.seen.frame,
            track=track,
            box_xyxy=(x1, y1, x2, y2),
            zones=self._zones_of(change.box_xyxy[None])[0],
            zone=change.zone,
            duration_s=change.stay_s,
        )


class RunTracker:
    """Trackers by source; for the thread that emits results."""

    def __init__(self, config: TrackConfig, *, is_live: Callable[[str], bool]) -> None:
        """Makes the tracker of a source with its first result.

        Args:
            config: Settings of all trackers.
            is_live: Whether the source of this name continues when the run does not read it.
        """
        self._config = config
        self._is_live = is_live
        self._sources: dict[str, _Source] = {}
        # By the names of removed sources, the oldest first; and the largest number of those that are no longer in it.
        self._last_ids: dict[str, int] = {}
        self._forgotten_id = 0

    def follow(self, result: Result) -> tuple[Result, list[Event]]:
        """Returns the result with its tracks, and the events that belong before it."""
        frame = result.frame
        size_hw = frame.size_hw
        source = self._sources.get(frame.source)
        if source is None:
            source = self._sources[frame.source] = _Source(
                frame.source,
                Tracker(self._config, after_id=self._last_ids.pop(frame.source, self._forgotten_id)),
                size_hw,
                ZoneVisits(self._config.zone_frames),
            )
        events: list[Event] = []
        if size_hw != source.size_hw:
            # Nothing is where it was.
            events += source.events(source.tracker.end(), "resized")
            source.size_hw = size_hw
        source.last_s, source.zone_map = frame.monotonic_s, result.zone_map
        moment = Moment(self._time_s(frame), frame.index, frame.captured_at)
        tracks, changes = source.tracker.follow(result.proposals, moment)
        result = dataclasses.replace(result, tracks=tracks)
        return result, events + source.events(changes) + source.visit(result, moment)

    def expire(self, now_s: float) -> list[Event]:
        """Ends the tracks of live sources that give no frames; `now_s` is `time.monotonic()`."""
        due_s = now_s - self._config.buffer_s - _LATE_S
        silent = [source for source in self._sources.values() if source.last_s < due_s and self._is_live(source.name)]
        return [event for source in silent for event in source.events(source.tracker.end(), "silence")]

    def end(self, name: str, reason: Reason) -> list[Event]:
        """Ends the tracks of a source; numbers continue if it comes again, or another one under its name."""
        source = self._sources.get(name)
        if source is None:
            return []
        events = source.events(source.tracker.end(), reason)
        if reason == "removed":
            del self._sources[name]
            self._last_ids[name] = source.tracker.last_id
            if len(self._last_ids) > _MAX_NAMES:
                self._forgotten_id = max(self._forgotten_id, self._last_ids.pop(next(iter(self._last_ids))))
        return events

    def end_all(self) -> list[Event]:
        """Ends all sources, as the run ends."""
        return [event for name in self._sources for event in self.end(name, "end_of_stream")]

    def _time_s(self, frame: Frame) -> float:
        if self._is_live(frame.source):
            return frame.monotonic_s - (frame.lag_ms or 0.0) / 1e3
        return frame.index * IMAGE_S if frame.media_time_s is None else frame.media_time_s


def _crossed(change: TrackChange, crossings: Iterable[Crossing]) -> list[TrackChange]:
    """Returns the entries and exits of a track, at the sight of `change`."""
    return [
        change._replace(kind="entered_zone", zone=crossing.zone)
        if crossing.stay_s is None
        else change._replace(kind="left_zone", zone=crossing.zone, stay_s=crossing.stay_s)
        for crossing in crossings
    ]

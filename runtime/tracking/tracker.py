"""Follows the objects of one source: ByteTrack's association on proposals and in seconds.

1. Proposals from `high_score` on continue confirmed tracks, also those that were not seen lately.
2. Weaker ones, from `low_score` on, continue confirmed tracks that were seen in the last frame and now have none: an
   object that is half hidden, or blurred, still has a weak proposal.
3. Where the model gives embeddings, the rest of the good ones continue confirmed tracks that look like them and may be
   there by now: an object that turned while it was hidden. This step is ours.
4. The rest of the good ones continue new tracks, or begin one. A new track that misses a frame ends.

Source: Zhang et al. 2022, "ByteTrack: Multi-Object Tracking by Associating Every Detection Box" (arXiv:2110.06864).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals, pairwise_iou
from edgerpn.runtime.frame import Track
from edgerpn.runtime.tracking.appearance import Appearance, Vectors, are_in_reach, blend
from edgerpn.runtime.tracking.assignment import best_pairs
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.motion import Box, BoxMotion

_WEAK_IOU = 0.5
"""Smallest IoU of a weak proposal with a track, as in ByteTrack."""
_Vote = tuple[str, float] | None
"""Name and score of a proposal's class; None: the model does not have classes."""
_MAX_TRACKS = 500
"""Tracks of a source, which bounds memory and time when the buffer is long; more than the proposals of a frame."""


TrackChangeKind = Literal["appeared", "left", "stationary", "entered_zone", "left_zone"]


class Moment(NamedTuple):
    """A frame's number and times."""

    time_s: float
    """Time in the source, seconds."""
    frame: int
    """Number of the frame."""
    captured_at: float
    """Wall clock, UTC, seconds since the epoch."""


class TrackChange(NamedTuple):
    """A change of a confirmed track."""

    kind: TrackChangeKind
    """Becomes the kind of an event."""
    track: Track
    """The track when it was last seen."""
    box_xyxy: Box
    """Its last proposal, (4,) float64, pixels."""
    seen: Moment
    """When that was."""
    zone: str = ""
    """entered_zone, left_zone: name of the zone."""
    stay_s: float = 0.0
    """left_zone: seconds in it."""


class Tracker:
    """The tracks of one source."""

    def __init__(self, config: TrackConfig, *, after_id: int = 0) -> None:
        """Starts without tracks; the first has the number after `after_id`."""
        self._config = config
        self._tracks: list[_Followed] = []
        self.last_id = after_id
        """Number of the newest track."""
        self._time_s = -math.inf
        self._appearance = Appearance()

    def follow(self, proposals: Proposals, moment: Moment) -> tuple[tuple[Track | None, ...], list[TrackChange]]:
        """Takes the proposals of the next frame.

        A time before that of the last frame counts as the same time. A time that is earlier by more than the buffer
        belongs to another film, and ends all tracks.

        Returns:
            The track of each proposal, None for most; and the changes of confirmed tracks.
        """
        changes = self.end() if moment.time_s < self._time_s - self._config.buffer_s else []
        before_s, self._time_s = self._time_s, max(moment.time_s, self._time_s)
        moment = moment._replace(time_s=self._time_s)
        changes += self._leave(lambda track: self._time_s - track.seen.time_s > self._config.buffer_s)
        for track in self._tracks:
            track.motion.predict(self._time_s - before_s)
        followed, unclaimed = self._associate(proposals, before_s)
        self._tracks = [track for track in self._tracks if track.is_confirmed or track in followed.values()]
        boxes = proposals.boxes.astype(np.float64)
        votes = _votes(proposals)
        for row in unclaimed:
            self.last_id += 1
            followed[row] = _Followed(self.last_id, boxes[row], moment, self._config)
            self._tracks.append(followed[row])
        for row, track in followed.items():
            changes += track.see(boxes[row], moment, votes[row])
            if proposals.embeddings is not None:
                track.look = blend(track.look, proposals.embeddings[row])
        changes += self._leave_oldest(len(self._tracks) - _MAX_TRACKS)
        return tuple(followed[row].now() if row in followed else None for row in range(len(proposals))), changes

    def end(self) -> list[TrackChange]:
        """Ends all tracks; numbers continue, and any time may follow."""
        self._time_s = -math.inf
        return self._leave(lambda track: True)

    def _associate(self, proposals: Proposals, before_s: float) -> tuple[dict[int, _Followed], list[int]]:
        """Returns the track that each proposal continues, by row; and the rows of good ones that continue none."""
        config = self._config
        # An object has one track, whatever its class seems to be.
        rows = proposals.nms_rows(config.nms_iou, limit=config.top, by_class=False)
        good = [row for row in rows if proposals.scores[row] >= config.high_score]
        weak = [row for row in rows if config.low_score <= proposals.scores[row] < config.high_score]
        confirmed = [track for track in self._tracks if track.is_confirmed]
        followed = _match(confirmed, proposals, good, config.min_iou)
        seen_last = [track for track in confirmed if track.seen.time_s == before_s and track not in followed.values()]
        followed |= _match(seen_last, proposals, weak, max(config.min_iou, _WEAK_IOU))
        if proposals.embeddings is not None and config.min_similarity < 1:
            self._appearance.learn(proposals.embeddings[good])
            lost = [track for track in confirmed if track.look is not None and track not in followed.values()]
            followed |= self._find_again(lost, proposals, [row for row in good if row not in followed])
        new = [track for track in self._tracks if not track.is_confirmed]
        followed |= _match(new, proposals, [row for row in good if row not in followed], config.min_iou)
        return followed, [row for row in good if row not in followed]

    def _find_again(self, lost: Sequence[_Followed], proposals: Proposals, rows: Sequence[int]) -> dict[int, _Followed]:
        """Returns the lost tracks that proposals of some rows continue, by row: the most similar pairs in reach."""
        if not lost or not rows or proposals.embeddings is None:
            return {}
        similarities = self._appearance.similarities(
            np.array([track.look for track in lost]), proposals.embeddings[rows]
        )
        can_be = (similarities >= self._config.min_similarity) & are_in_reach(
            np.array([track.box_xyxy for track in lost]),
            np.array([track.motion.box_xyxy for track in lost]),
            np.array([self._time_s - track.seen.time_s for track in lost]),
            proposals.boxes[rows].astype(np.float64),
        )
        return {rows[column]: lost[row] for row, column in best_pairs(np.where(can_be, similarities, 0.0))}

    def _leave_oldest(self, count: int) -> list[TrackChange]:
        """Ends the tracks that were not seen for the longest time."""
        oldest = sorted(self._tracks, key=lambda track: track.seen.time_s)[: max(0, count)]
        return self._leave(lambda track: track in oldest) if oldest else []

    def _leave(self, has_left: Callable[[_Followed], bool]) -> list[TrackChange]:
        left = [track for track in self._tracks if has_left(track)]
        self._tracks = [track for track in self._tracks if track not in left]
        return [track.change("left") for track in left if track.is_confirmed]


class _Followed:
    """One track."""

    def __init__(self, track_id: int, box_xyxy: Box, moment: Moment, config: TrackConfig) -> None:
        """Begins at a proposal, which `see` takes too."""
        self.motion = BoxMotion(box_xyxy)
        self.is_confirmed = False
        self.seen = moment
        self.look: Vectors | None = None
        self._id = track_id
        self._config = config
        self._begun_s = self._here_s = moment.time_s
        self._num_seen = 0
        self.box_xyxy = self._place = box_xyxy
        self._is_stationary = False
        self._scores: dict[str, float] = {}

    def see(self, box_xyxy: Box, moment: Moment, vote: _Vote) -> list[TrackChange]:
        """Takes the proposal of this frame."""
        if vote is not None:
            name, class_score = vote
            self._scores[name] = self._scores.get(name, 0.0) + class_score
        self.motion.correct(box_xyxy)
        self.box_xyxy, self.seen = box_xyxy, moment
        self._num_seen += 1
        changes = []
        if not self.is_confirmed and self._num_seen >= self._config.confirm_frames:
            self.is_confirmed = True
            changes.append(self.change("appeared"))
        # Not the proposal itself, which jumps now and then.
        if _ious([self.motion.box_xyxy], self._place[None])[0, 0] < self._config.stationary_iou:
            self._place, self._here_s, self._is_stationary = self.motion.box_xyxy, moment.time_s, False
        is_stationary = self.is_confirmed and moment.time_s - self._here_s >= self._config.stationary_s
        if is_stationary and not self._is_stationary:
            self._is_stationary = True
            changes.append(self.change("stationary"))
        return changes

    def now(self) -> Track:
        """Returns the track as of its last sight."""
        return Track(
            track_id=self._id,
            age_s=self.seen.time_s - self._begun_s,
            dwell_s=self.seen.time_s - self._here_s,
            is_confirmed=self.is_confirmed,
            label=max(self._scores, key=self._scores.__getitem__, default=""),
        )

    def change(self, kind: Literal["appeared", "left", "stationary"]) -> TrackChange:
        return TrackChange(kind, self.now(), self.box_xyxy, self.seen)


def _votes(proposals: Proposals) -> list[_Vote]:
    """Returns the class of each proposal, with its score."""
    names = proposals.names
    if names is None or proposals.class_scores is None:
        return [None] * len(proposals)
    return list(zip(names, proposals.class_scores.tolist(), strict=True))


def _match(
    tracks: Sequence[_Followed], proposals: Proposals, rows: Sequence[int], min_iou: float
) -> dict[int, _Followed]:
    """Returns the tracks that proposals of some rows continue, by row: the pairs with the largest sum of IoUs."""
    if not tracks or not rows:
        return {}
    ious = _ious([track.motion.box_xyxy for track in tracks], proposals.boxes[rows])
    return {rows[column]: tracks[row] for row, column in best_pairs(np.where(ious >= min_iou, ious, 0.0))}


def _ious(first: Sequence[Box], second: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return pairwise_iou(np.array(first), second)

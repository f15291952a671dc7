"""Settings of tracks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgerpn.errors import check_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """How proposals become tracks; a run follows objects when it has these settings.

    A track needs no class and no second model. Scores are those of proposals: with the model `general` an object often
    has 0.4, and so has a piece of floor.
    """

    high_score: float = 0.4
    """Score from which a proposal begins a track, and is the first choice to continue one; 0 to 1."""
    low_score: float = 0.2
    """Score from which a proposal may continue a track that has no better one; 0 to `high_score`."""
    top: int = 30
    """Maximum number of proposals of a frame that are looked at, the best ones; 1 to 300."""
    nms_iou: float = 0.5
    """IoU with a better proposal above which a proposal is a near copy and never part of a track; above 0, to 1."""
    min_iou: float = 0.3
    """Smallest IoU of a proposal with the expected place of a track that it continues; above 0, below 1. For proposals
    below `high_score` it is 0.5 at least."""
    min_similarity: float = 0.4
    """Smallest likeness of a proposal with a track whose place it does not overlap, by their embeddings, from which it
    continues the track nevertheless; a cosine without what all objects of the source share, above 0, to 1; 1: no
    likeness suffices. A model without embeddings does not use it."""
    confirm_frames: int = 3
    """Frames in a row in which an object must be seen until its track is confirmed; 1 to 100."""
    buffer_s: float = 2.0
    """Seconds for which a track that is not seen keeps its number; above 0, to 3600."""
    stationary_s: float = 10.0
    """Seconds at one place after which a track is stationary; above 0."""
    stationary_iou: float = 0.6
    """Smallest IoU with the first box at a place that still counts as this place; above 0, below 1."""
    zone_frames: int = 3
    """Sights in a row inside of a zone until a confirmed track has entered it, and outside until it has left; 1 to
    100."""

    def __post_init__(self) -> None:
        check_setting(0 <= self.high_score <= 1, "high_score", "0 to 1", self.high_score)
        check_setting(
            0 <= self.low_score <= self.high_score, "low_score", f"0 to high_score ({self.high_score})", self.low_score
        )
        check_setting(1 <= self.top <= 300, "top", "1 to 300", self.top)
        check_setting(0 < self.nms_iou <= 1, "nms_iou", "above 0, to 1", self.nms_iou)
        check_setting(0 < self.min_iou < 1, "min_iou", "above 0, below 1", self.min_iou)
        check_setting(0 < self.min_similarity <= 1, "min_similarity", "above 0, to 1", self.min_similarity)
        check_setting(1 <= self.confirm_frames <= 100, "confirm_frames", "1 to 100", self.confirm_frames)
        check_setting(0 < self.buffer_s <= 3600, "buffer_s", "above 0, to 3600", self.buffer_s)
        check_setting(0 < self.stationary_s < math.inf, "stationary_s", "above 0", self.stationary_s)
        check_setting(0 < self.stationary_iou < 1, "stationary_iou", "above 0, below 1", self.stationary_iou)
        check_setting(1 <= self.zone_frames <= 100, "zone_frames", "1 to 100", self.zone_frames)

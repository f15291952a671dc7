"""Likeness of lost tracks and proposals, by their embeddings.

The embeddings of one source resemble each other, whatever they show: between two objects of the model `general` the
cosine is 0.83 in the median, and 0.91 between two sights of one. The mean of the source is therefore subtracted first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]

_NEW_SHARE = 0.1
"""Share of a new proposal in the look of its track."""
_LEAST_SHARE = 0.02
"""Share of a new frame in the mean of its source, which follows the light of the day."""
_REACH, _REACH_PER_S, _REACH_S = 0.5, 1.0, 2.0
"""Distance from a track's last or expected place, in sizes of its object, that it may have gone: at once, and more for
each second since it was seen, up to `_REACH_S`. Farther away many objects look alike."""
_MAX_GROWTH = 2.0
"""Factor by which an object's size, the square root of its area, may have changed."""


def blend(look: Vectors | None, embedding: npt.NDArray[np.float32]) -> Vectors:
    """Returns the look (C,) of a track after one more proposal; `look` is None before the first."""
    new = embedding.astype(np.float64)
    return new if look is None else look + _NEW_SHARE * (new - look)


class Appearance:
    """Compares tracks and proposals of one source."""

    def __init__(self) -> None:
        """Has seen nothing."""
        self._mean: Vectors = np.zeros(1)
        self._num_frames = 0

    def learn(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Takes the embeddings (M, C) of a frame's good proposals into the mean of the source; M may be 0."""
        if len(embeddings):
            self._num_frames += 1
            new = embeddings.mean(axis=0, dtype=np.float64)
            share = max(1 / self._num_frames, _LEAST_SHARE)
            self._mean = self._mean + share * (new - self._mean)

    def similarities(self, looks: Vectors, embeddings: npt.NDArray[np.float32]) -> Vectors:
        """Returns the cosines (L, M) of looks (L, C) and embeddings (M, C), both without the mean of the source."""
        cosines: Vectors = _directions(looks - self._mean) @ _directions(embeddings - self._mean).T
        return cosines


def are_in_reach(
    last_xyxy: Vectors, expected_xyxy: Vectors, unseen_s: Vectors, boxes_xyxy: Vectors
) -> npt.NDArray[np.bool_]:
    """Returns which boxes (M, 4) may be the objects of which tracks, (L, M), by place, time and size.

    Args:
        last_xyxy: (L, 4), boxes of their last sights.
        expected_xyxy: (L, 4), where they would be by their speed.
        unseen_s: (L,), seconds since then.
        boxes_xyxy: (M, 4), pixels as all of them.
    """
    ways = [
        np.linalg.norm(_centers(places)[:, None] - _centers(boxes_xyxy), axis=2)
        for places in (last_xyxy, expected_xyxy)
    ]
    sizes = _sizes(last_xyxy)[:, None]
    growth = np.abs(np.log(_sizes(boxes_xyxy) / sizes))
    reach = _REACH + _REACH_PER_S * np.minimum(unseen_s, _REACH_S)[:, None]
    is_near: npt.NDArray[np.bool_] = np.minimum(*ways) <= sizes * reach
    return is_near & (growth <= np.log(_MAX_GROWTH))


def _directions(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _centers(boxes_xyxy: Vectors) -> Vectors:
    centers: Vectors = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    return centers


def _sizes(boxes_xyxy: Vectors) -> Vectors:
    sizes: Vectors = np.sqrt(np.maximum((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1), 1.0))
    return sizes

"""Matches two sets of proposals of the same frame one to one, to measure the agreement of two models.

Two models that are the same up to rounding still disagree where a decision falls within rounding: an overlap at the NMS
threshold, a score at the cut after K. Such proposals are counted separately, as `boundary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.manifest.parts import Precision
from edgerpn.proposals import FEATURES, Outputs, pairwise_iou

Boxes = npt.NDArray[np.float32]
"""(M, 4) float32 x1, y1, x2, y2, pixels."""
Scores = npt.NDArray[np.float32]
"""(M,) float32, 0..1, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """Differences that two models may have."""

    min_iou: float
    """Matched boxes overlap by at least this, 0..1."""
    max_score_difference: float
    """Scores of matched boxes differ by at most this."""
    max_unmatched_share: float
    """Largest share of proposals, 0..1, without a counterpart."""
    min_cosine: float
    """Embeddings and features of matched boxes have at least this cosine, except for a share of
    `max_unmatched_share`."""


EXACT = Tolerance(min_iou=0.99, max_score_difference=1e-3, max_unmatched_share=0.02, min_cosine=0.999)
"""Two float32 forms of one network; proposals without a counterpart must lie at a threshold."""

TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": EXACT,
    "fp16": Tolerance(min_iou=0.9, max_score_difference=0.02, max_unmatched_share=0.1, min_cosine=0.99),
    "int8": Tolerance(min_iou=0.8, max_score_difference=0.05, max_unmatched_share=0.2, min_cosine=0.95),
}
"""The same graph in two libraries, by the precision of its network: their kernels round differently, and a box
that NMS keeps or drops changes others."""


def match(
    expected: tuple[Boxes, Scores], found: tuple[Boxes, Scores], tolerance: Tolerance = EXACT
) -> tuple[list[tuple[int, int]], list[float]]:
    """Pairs proposals one to one, largest overlap first, within a tolerance.

    Args:
        expected: Boxes (M, 4) and scores (M,).
        found: Boxes (P, 4) and scores (P,).
        tolerance: Differences that a pair may have.

    Returns:
        Index pairs (expected, found), and the IoU of each.
    """
    if not len(expected[1]) or not len(found[1]):
        return [], []
    iou = pairwise_iou(expected[0], found[0])
    close = np.abs(expected[1][:, None] - found[1][None]) <= tolerance.max_score_difference
    candidates = np.argwhere((iou >= tolerance.min_iou) & close)
    order = np.argsort(-iou[candidates[:, 0], candidates[:, 1]], kind="stable")
    pairs: list[tuple[int, int]] = []
    used_expected: set[int] = set()
    used_found: set[int] = set()
    for e, f in candidates[order].tolist():
        if e not in used_expected and f not in used_found:
            pairs.append((e, f))
            used_expected.add(e)
            used_found.add(f)
    return pairs, [float(iou[e, f]) for e, f in pairs]


def pair_cosines(
    expected: Outputs, found: Outputs, frame: int, pairs: Sequence[tuple[int, int]]
) -> npt.NDArray[np.float64]:
    """Returns the smaller cosine of embeddings and of features of each pair; none when a model has neither.

    Args:
        expected: Outputs of one model.
        found: Outputs of the other for the same frames.
        frame: Number of the frame in both.
        pairs: Its pairs, of `match`.
    """
    rows = np.array(pairs, np.intp).reshape(-1, 2)
    cosines = [
        _cosines(first[frame][rows[:, 0]], second[frame][rows[:, 1]])
        for first, second in ((getattr(side, name) for side in (expected, found)) for name in FEATURES)
        if first is not None and second is not None
    ]
    return np.min(cosines, axis=0) if cosines else np.zeros(0)


def _cosines(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosines (M,) of the rows of two arrays; 1 where both are zero."""
    a, b = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (first, second))
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-30)
    cosines[(norms[0] == 0) & (norms[1] == 0)] = 1.0
    return cosines


def unlike_share(cosines: npt.NDArray[np.float64], tolerance: Tolerance) -> float:
    """Returns the share of pairs, 0..1, whose cosine is too small.

    A few are no mistake: anchors of two cells may predict one box with one score, and rounding decides between them.
    """
    return float((cosines < tolerance.min_cosine).mean()) if len(cosines) else 0.0


def pair_classes(
    expected: Outputs, found: Outputs, frame: int, pairs: Sequence[tuple[int, int]], tolerance: Tolerance
) -> npt.NDArray[np.bool_]:
    """Returns whether the class of each pair is the same, and its score within the tolerance.

    Args:
        expected: Outputs of one model.
        found: Outputs of the other for the same frames.
        frame: Number of the frame in both.
        pairs: Its pairs, of `match`.
        tolerance: Its `max_score_difference` counts.

    Returns:
        (M,) bool; empty when a model does not have classes.
    """
    if expected.labels is None or found.labels is None or expected.class_scores is None or found.class_scores is None:
        return np.zeros(0, np.bool_)
    first, second = np.array(pairs, np.intp).reshape(-1, 2).T
    difference = np.abs(expected.class_scores[frame][first] - found.class_scores[frame][second])
    is_same: npt.NDArray[np.bool_] = expected.labels[frame][first] == found.labels[frame][second]
    return is_same & (difference <= tolerance.max_score_difference)


def other_class_share(is_same_class: npt.NDArray[np.bool_]) -> float:
    """Returns the share of pairs, 0..1, with another class.

    A few are no mistake: where two classes have nearly the same score, rounding decides between them.
    """
    return float((~is_same_class).mean()) if len(is_same_class) else 0.0

"""Matches two sets of proposals of the same frame one to one, to measure the agreement of two models.

Two models that are the same up to rounding still disagree where a decision falls within rounding: an overlap at the NMS
threshold, a score at the cut after K. Such proposals are counted separately, as `boundary`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.manifest.parts import Precision
from edgerpn.proposals import pairwise_iou

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


EXACT = Tolerance(min_iou=0.99, max_score_difference=1e-3, max_unmatched_share=0.02)
"""Two float32 forms of one network; proposals without a counterpart must lie at a threshold."""

TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": EXACT,
    "fp16": Tolerance(min_iou=0.9, max_score_difference=0.02, max_unmatched_share=0.1),
    "int8": Tolerance(min_iou=0.8, max_score_difference=0.05, max_unmatched_share=0.2),
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

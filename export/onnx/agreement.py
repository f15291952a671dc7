"""Agreement of two models on one frame: pairs of proposals, and the reasons why others have no counterpart.

Two models that are the same up to rounding still disagree where a decision falls within rounding. A proposal that only
one of them has is called a boundary case when one of these explains it:

    1. its score is at the cut after K: it is no better than the last proposal of the other model, which has K
    2. its score is at the score threshold, at the cut of its level before NMS, or at the cut of the rescored boxes
    3. a side is at the minimum size
    4. it overlaps another proposal by nearly the NMS threshold, or one of the other model with the same score by more:
       either may suppress the other
    5. it overlaps a better boundary case of the other model by more than that, which suppressed it there; with soft
       NMS, any boundary case of the other model by more than `soft_nms_iou`, which may have taken its score
    6. soft NMS: the other model has the same box with another score, and it overlaps another proposal so far that a box
       between the two may have been dropped in one model, at the NMS threshold, and have taken score in the other

With classes the thresholds are those of the class stage, whose results do not show which proposals went into it. A
proposal at a threshold before it thus stays unexplained, and a small share of such proposals is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ParityError
from edgerpn.manifest.parts import Precision, ProposalSpec
from edgerpn.matching import Boxes, Scores, Tolerance, match
from edgerpn.proposals import pairwise_iou

if TYPE_CHECKING:
    from edgerpn.train.network.proposal_stage import ProposalConfig

FrameProposals = tuple[Boxes, Scores]
"""Boxes and scores of the valid proposals of one frame."""

THRESHOLD_MARGIN: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 3e-2}
"""An overlap this near to the NMS threshold may fall on either side of it."""

TIE = 0.01
"""Scores that differ by less than this share of the tolerance are equal up to rounding."""

MIN_SIDE_PX = 1e-3
"""Boxes with a side below this are never proposals, whatever the settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalThresholds:
    """The thresholds that decide whether a box is a proposal."""

    capacity: int
    """K."""
    nms_iou: float
    """Overlap above which a box is dropped."""
    soft_nms_iou: float = 1.0
    """Overlap with a better box above which a box loses score."""
    score_threshold: float = 0.0
    """Score below which a box is dropped."""
    min_size_px: float = 0.0
    """Side below which a box is dropped, network pixels."""
    scale_xy: tuple[float, float] = (1.0, 1.0)
    """Network pixels for each pixel of the boxes, along x and y."""
    margin: float = THRESHOLD_MARGIN["fp32"]
    """See `THRESHOLD_MARGIN`."""

    @classmethod
    def of(
        cls,
        proposals: ProposalConfig | ProposalSpec,
        *,
        has_classes: bool = False,
        scale_xy: tuple[float, float] = (1.0, 1.0),
        precision: Precision = "fp32",
    ) -> ProposalThresholds:
        """Returns the thresholds of a proposal stage, or with classes those of the class stage behind it."""
        class_nms_iou = proposals.class_nms_iou if has_classes else None
        return cls(
            capacity=proposals.num_proposals,
            nms_iou=proposals.nms_iou if class_nms_iou is None else class_nms_iou,
            soft_nms_iou=proposals.soft_nms_iou if class_nms_iou is None else 1.0,
            score_threshold=proposals.score_threshold,
            min_size_px=max(proposals.min_size_px, MIN_SIDE_PX),
            scale_xy=scale_xy,
            margin=THRESHOLD_MARGIN[precision],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameAgreement:
    """Proposals of two models for one frame, paired."""

    expected: FrameProposals
    """Proposals of the first model."""
    found: FrameProposals
    """Proposals of the second model."""
    pairs: tuple[tuple[int, int], ...]
    """Row of the first and of the second model of each proposal that both have."""
    ious: tuple[float, ...]
    """Overlap of each pair."""
    score_differences: tuple[float, ...]
    """Difference of the scores of each pair."""
    boundary: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows of the first and of the second model that the other may lack by rounding."""
    unexplained: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows of the first and of the second model that no threshold explains."""

    @property
    def num_boundary(self) -> int:
        """Boundary cases of both models."""
        return len(self.boundary[0]) + len(self.boundary[1])

    @property
    def num_unexplained(self) -> int:
        """Unexplained proposals of both models."""
        return len(self.unexplained[0]) + len(self.unexplained[1])

    @property
    def unmatched_share(self) -> float:
        """Share of proposals without a counterpart, 0..1, of the model that has more of them."""
        largest = max(len(self.expected[1]), len(self.found[1]))
        return (largest - len(self.pairs)) / largest if largest else 0.0


def pair_proposals(
    expected: FrameProposals,
    found: FrameProposals,
    tolerance: Tolerance,
    thresholds: ProposalThresholds,
    *,
    cut_scores: tuple[float, ...] = (),
) -> FrameAgreement:
    """Pairs the proposals of two models for one frame, and explains the rest.

    Args:
        expected: Boxes (M, 4) and scores (M,) of the first model, best first.
        found: Boxes (P, 4) and scores (P,) of the second, in the same pixels.
        tolerance: Differences that a pair may have.
        thresholds: The thresholds that decide about proposals.
        cut_scores: Scores at the cuts, see `edgerpn.export.onnx.parity.run_reference`; empty where they are unknown.
    """
    pairs, ious = match(expected, found, tolerance)
    differences = tuple(abs(float(expected[1][e] - found[1][f])) for e, f in pairs)
    left = (
        sorted(set(range(len(expected[1]))) - {e for e, _ in pairs}),
        sorted(set(range(len(found[1]))) - {f for _, f in pairs}),
    )
    sides = (expected, found)
    explained: tuple[set[int], set[int]] = (set(), set())
    for side, own in enumerate(sides):
        for row in left[side]:
            other = sides[1 - side]
            if _at_a_threshold(own, other, row, tolerance, thresholds, cut_scores) or _is_rescored(
                own, other, row, tolerance, thresholds
            ):
                explained[side].add(row)
    _spread(sides, left, explained, tolerance, thresholds)
    return FrameAgreement(
        expected=expected,
        found=found,
        pairs=tuple(pairs),
        ious=tuple(ious),
        score_differences=differences,
        boundary=(tuple(sorted(explained[0])), tuple(sorted(explained[1]))),
        unexplained=(
            tuple(row for row in left[0] if row not in explained[0]),
            tuple(row for row in left[1] if row not in explained[1]),
        ),
    )


def _at_a_threshold(
    own: FrameProposals,
    other: FrameProposals,
    row: int,
    tolerance: Tolerance,
    thresholds: ProposalThresholds,
    cut_scores: tuple[float, ...],
) -> bool:
    """Cases 1 to 4 of the module docstring."""
    score, slack = float(own[1][row]), tolerance.max_score_difference
    if len(other[1]) == thresholds.capacity and score <= float(other[1][-1]) + slack:
        return True
    # Nothing has a score below 0, so a threshold of 0 drops nothing.
    scores = (*cut_scores, thresholds.score_threshold) if thresholds.score_threshold else cut_scores
    if any(abs(score - threshold) <= slack for threshold in scores):
        return True
    box = own[0][row].astype(np.float64)
    sides_px = (box[2:] - box[:2]) * np.array(thresholds.scale_xy)
    # A side may differ by as much as the overlap of a pair allows.
    if (sides_px <= thresholds.min_size_px * (2 - tolerance.min_iou)).any():
        return True
    others = np.delete(own[0], row, axis=0)
    overlaps = pairwise_iou(own[0][row : row + 1], np.concatenate((other[0], others)))[0]
    is_tie = np.abs(other[1] - score) <= slack * TIE
    theirs = overlaps[: len(is_tie)]
    if (is_tie & (theirs > thresholds.nms_iou) & (theirs < tolerance.min_iou)).any():
        return True
    return bool((np.abs(overlaps - thresholds.nms_iou) <= thresholds.margin).any())


def _is_rescored(
    own: FrameProposals, other: FrameProposals, row: int, tolerance: Tolerance, thresholds: ProposalThresholds
) -> bool:
    """Case 6 of the module docstring.

    1 - IoU obeys the triangle inequality. A box that overlaps this one by `soft_nms_iou` or more and was dropped for an
    overlap of `nms_iou` with a third, which is a proposal, so leaves at least their sum less 1 between this and the
    third.
    """
    if thresholds.soft_nms_iou >= 1:
        return False
    box = own[0][row : row + 1]
    is_same: npt.NDArray[np.bool_] = pairwise_iou(box, other[0])[0] >= tolerance.min_iou
    # The best box of a frame loses no score.
    if not is_same.any() or (row == 0 and is_same[0]):
        return False
    others = np.delete(own[0], row, axis=0)
    least = thresholds.soft_nms_iou + thresholds.nms_iou - 1 - thresholds.margin
    return bool((pairwise_iou(box, others)[0] >= least).any())


def _spread(
    sides: tuple[FrameProposals, FrameProposals],
    left: tuple[list[int], list[int]],
    explained: tuple[set[int], set[int]],
    tolerance: Tolerance,
    thresholds: ProposalThresholds,
) -> None:
    """Case 5 of the module docstring, repeated while it explains more."""
    is_soft = thresholds.soft_nms_iou < 1
    least = min(thresholds.nms_iou, thresholds.soft_nms_iou) - thresholds.margin
    is_new = True
    while is_new:
        is_new = False
        for side in (0, 1):
            own, other = sides[side], sides[1 - side]
            suppressors = sorted(explained[1 - side])
            rows = [row for row in left[side] if row not in explained[side]]
            if not rows or not suppressors:
                continue
            overlaps: npt.NDArray[np.bool_] = pairwise_iou(own[0][rows], other[0][suppressors]) > least
            # Scores that soft NMS has lowered do not show which box was the better one.
            is_better = other[1][suppressors][None] >= own[1][rows][:, None] - tolerance.max_score_difference
            for row in np.array(rows)[(overlaps & (is_better | is_soft)).any(axis=1)].tolist():
                explained[side].add(row)
                is_new = True


def valid_rows(outputs: Sequence[np.ndarray | None], row: int, where: str) -> FrameProposals:
    """Returns the proposals of one frame of a batch.

    Args:
        outputs: In the order of `edgerpn.proposals.Outputs`; None for one that the graph does not have.
        row: Number of the frame.
        where: Names frame and model in errors.

    Raises:
        ParityError: The padding behind them is not zero.
    """
    boxes, scores, counts, *others = outputs
    if boxes is None or scores is None or counts is None:
        raise TypeError(f"outputs: expected boxes, scores and count, got {outputs}")
    boxes, scores, count = boxes[row], scores[row], int(counts[row])
    if any(array[count:].any() for array in (boxes, scores, *(a[row] for a in others if a is not None))):
        raise ParityError(f"{where}: rows beyond count ({count}) are not zero")
    return boxes[:count], scores[:count]


def level_cut_scores(logits: Sequence[np.ndarray], pre_nms: int) -> tuple[float, ...]:
    """Returns the score of the last anchor that enters NMS, for each level of one image that has more of them.

    Args:
        logits: Objectness (A,) of each level.
        pre_nms: Anchors of a level that enter NMS at most.
    """
    last = [float(np.partition(level, -pre_nms)[-pre_nms]) for level in logits if len(level) > pre_nms]
    return tuple(1 / (1 + math.exp(-logit)) for logit in last)


def describe_disagreement(agreement: FrameAgreement, names: tuple[str, str], tolerance: Tolerance) -> str:
    """Describes the first unexplained proposal (else the first boundary case), with the nearest of the other model."""
    sides = (agreement.expected, agreement.found)
    rows = agreement.unexplained if agreement.num_unexplained else agreement.boundary
    side = 0 if rows[0] else 1
    own, other, row = sides[side], sides[1 - side], rows[side][0]
    box = ", ".join(f"{value:.2f}" for value in own[0][row])
    text = f"Proposal {row} of {names[side]}, [{box}] with score {float(own[1][row]):.5f}, has no counterpart"
    if not len(other[1]):
        return f"{text}: {names[1 - side]} has no proposals."
    overlaps = pairwise_iou(own[0][row : row + 1], other[0])[0]
    nearest = int(overlaps.argmax())
    return (
        f"{text}; the nearest has IoU {float(overlaps[nearest]):.4f} and score {float(other[1][nearest]):.5f}, "
        f"expected IoU >= {tolerance.min_iou} and scores within {tolerance.max_score_difference}."
    )

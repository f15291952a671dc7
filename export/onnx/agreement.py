"""How far two models agree on one frame: pairs, and what has no counterpart with the reason where there is one.

Two models that are the same up to rounding still disagree where a decision falls within rounding. A proposal that only
one of them has is called a boundary case when one of these explains it:

    1. its score is at the cut after K: it is no better than the last proposal of the other model, whose K are full
    2. its score is at the score threshold, at the cut of its level before NMS, or at the one behind what is rescored
    3. a side is at the minimum size
    4. it overlaps another proposal by nearly the NMS threshold, or one of the other model with the same score by more:
       either may suppress the other
    5. it overlaps a better boundary case of the other model by more than that, which suppressed it there; with soft
       NMS, any boundary case of the other model by more than `soft_nms_iou`, which may have taken its score
    6. soft NMS: the other model has the same box with another score, and it overlaps another proposal so far that a box
       between the two may have been dropped in one model, at the NMS threshold, and have taken score in the other
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ParityError
from edgerpn.manifest.parts import Precision, ProposalSpec
from edgerpn.matching import Boxes, Scores, Tolerance, match, pairwise_iou
from edgerpn.train.network.proposal_stage import ProposalConfig

Rows = tuple[Boxes, Scores]
"""Valid proposals of one frame."""

THRESHOLD_MARGIN: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 3e-2}
"""An overlap this near to the NMS threshold may fall on either side of it."""

TIE = 0.01
"""Scores that differ by less than this part of the tolerance are the same but for rounding."""

MIN_SIDE_PX = 1e-3
"""Boxes with a side below this are never proposals, whatever the settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """The thresholds at which a proposal comes or goes."""

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
        scale_xy: tuple[float, float] = (1.0, 1.0),
        precision: Precision = "fp32",
    ) -> Decisions:
        """The thresholds of a proposal stage."""
        return cls(
            capacity=proposals.num_proposals,
            nms_iou=proposals.nms_iou,
            soft_nms_iou=proposals.soft_nms_iou,
            score_threshold=proposals.score_threshold,
            min_size_px=max(proposals.min_size_px, MIN_SIDE_PX),
            scale_xy=scale_xy,
            margin=THRESHOLD_MARGIN[precision],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameAgreement:
    """What two models gave for one frame, paired."""

    expected: Rows
    """Proposals of the first model."""
    found: Rows
    """Proposals of the second model."""
    pairs: tuple[tuple[int, int], ...]
    """Rows of the first and of the second that are the same proposal."""
    ious: tuple[float, ...]
    """Overlap of each pair."""
    score_differences: tuple[float, ...]
    """Difference of the scores of each pair."""
    boundary: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows of the first and of the second that the other may have left out by rounding."""
    unexplained: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows of the first and of the second that no threshold explains."""

    @property
    def num_boundary(self) -> int:
        """Boundary cases of both."""
        return len(self.boundary[0]) + len(self.boundary[1])

    @property
    def num_unexplained(self) -> int:
        """Unexplained ones of both."""
        return len(self.unexplained[0]) + len(self.unexplained[1])

    @property
    def unmatched_share(self) -> float:
        """Proposals without a counterpart, of the model that has more of them, 0..1."""
        largest = max(len(self.expected[1]), len(self.found[1]))
        return (largest - len(self.pairs)) / largest if largest else 0.0


def agree(
    expected: Rows,
    found: Rows,
    tolerance: Tolerance,
    decisions: Decisions,
    *,
    cuts: tuple[float, ...] = (),
) -> FrameAgreement:
    """Pairs the proposals of two models for one frame, and explains the rest.

    Args:
        expected: Boxes (M, 4) and scores (M,) of the first model, best first.
        found: Boxes (P, 4) and scores (P,) of the second, in the same pixels.
        tolerance: What a pair may differ by.
        decisions: Where proposals come and go.
        cuts: Scores at the cuts, see `edgerpn.export.onnx.parity.run_reference`; empty where they are not known.
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
            if _at_a_threshold(own, other, row, tolerance, decisions, cuts) or _is_rescored(
                own, other, row, tolerance, decisions
            ):
                explained[side].add(row)
    _spread(sides, left, explained, tolerance, decisions)
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
    own: Rows, other: Rows, row: int, tolerance: Tolerance, decisions: Decisions, cuts: tuple[float, ...]
) -> bool:
    """Cases 1 to 4 of the module docstring."""
    score, slack = float(own[1][row]), tolerance.max_score_difference
    if len(other[1]) == decisions.capacity and score <= float(other[1][-1]) + slack:
        return True
    # Nothing has a score below 0, so a threshold of 0 drops nothing.
    thresholds = (*cuts, decisions.score_threshold) if decisions.score_threshold else cuts
    if any(abs(score - threshold) <= slack for threshold in thresholds):
        return True
    box = own[0][row].astype(np.float64)
    sides_px = (box[2:] - box[:2]) * np.array(decisions.scale_xy)
    # A side may differ by as much as the overlap of a pair allows.
    if (sides_px <= decisions.min_size_px * (2 - tolerance.min_iou)).any():
        return True
    overlaps = pairwise_iou(own[0][row : row + 1], np.concatenate((other[0], own[0])))[0]
    is_tie = np.abs(other[1] - score) <= slack * TIE
    theirs = overlaps[: len(is_tie)]
    if (is_tie & (theirs > decisions.nms_iou) & (theirs < tolerance.min_iou)).any():
        return True
    return bool((np.abs(overlaps - decisions.nms_iou) <= decisions.margin).any())


def _is_rescored(own: Rows, other: Rows, row: int, tolerance: Tolerance, decisions: Decisions) -> bool:
    """Case 6 of the module docstring.

    1 - IoU obeys the triangle inequality. A box that overlaps this one by `soft_nms_iou` or more and was dropped for an
    overlap of `nms_iou` with a third, which is a proposal, so leaves at least their sum less 1 between this and the
    third.
    """
    if decisions.soft_nms_iou >= 1:
        return False
    box = own[0][row : row + 1]
    is_same: npt.NDArray[np.bool_] = pairwise_iou(box, other[0])[0] >= tolerance.min_iou
    # The best box of a frame loses no score.
    if not is_same.any() or (row == 0 and is_same[0]):
        return False
    others = np.delete(own[0], row, axis=0)
    least = decisions.soft_nms_iou + decisions.nms_iou - 1 - decisions.margin
    return bool((pairwise_iou(box, others)[0] >= least).any())


def _spread(
    sides: tuple[Rows, Rows],
    left: tuple[list[int], list[int]],
    explained: tuple[set[int], set[int]],
    tolerance: Tolerance,
    decisions: Decisions,
) -> None:
    """Case 5 of the module docstring, as long as it explains more."""
    is_soft = decisions.soft_nms_iou < 1
    least = min(decisions.nms_iou, decisions.soft_nms_iou) - decisions.margin
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
            # Scores that soft NMS has lowered do not tell which box was the better one.
            is_better = other[1][suppressors][None] >= own[1][rows][:, None] - tolerance.max_score_difference
            for row in np.array(rows)[(overlaps & (is_better | is_soft)).any(axis=1)].tolist():
                explained[side].add(row)
                is_new = True


def valid_rows(outputs: Sequence[np.ndarray], row: int, where: str) -> Rows:
    """The proposals of one frame of a batch.

    Args:
        outputs: boxes (N, K, 4), scores (N, K), count (N,).
        row: Number of the frame.
        where: Names frame and model, in errors.

    Raises:
        ParityError: The padding behind them is not zero.
    """
    boxes, scores, count = outputs[0][row], outputs[1][row], int(outputs[2][row])
    if boxes[count:].any() or scores[count:].any():
        raise ParityError(f"{where}: rows beyond count ({count}) are not zero")
    return boxes[:count], scores[:count]


def level_cuts(logits: Sequence[np.ndarray], pre_nms: int) -> tuple[float, ...]:
    """The score of the last anchor that enters NMS, for each level of one image that has more of them.

    Args:
        logits: Objectness (A,) of each level.
        pre_nms: Anchors of a level that enter NMS at most.
    """
    last = [float(np.partition(level, -pre_nms)[-pre_nms]) for level in logits if len(level) > pre_nms]
    return tuple(1 / (1 + math.exp(-logit)) for logit in last)


def describe(agreement: FrameAgreement, names: tuple[str, str], tolerance: Tolerance) -> str:
    """The first unexplained proposal (or else the first boundary case), with the nearest one of the other model."""
    sides = (agreement.expected, agreement.found)
    rows = agreement.unexplained if agreement.num_unexplained else agreement.boundary
    side = 0 if rows[0] else 1
    own, other, row = sides[side], sides[1 - side], rows[side][0]
    box = ", ".join(f"{value:.2f}" for value in own[0][row])
    text = f"Proposal {row} of {names[side]}, [{box}] with score {float(own[1][row]):.5f}, has no counterpart"
    if not len(other[1]):
        return f"{text}: {names[1 - side]} gives none at all."
    overlaps = pairwise_iou(own[0][row : row + 1], other[0])[0]
    nearest = int(overlaps.argmax())
    return (
        f"{text}; the nearest has IoU {float(overlaps[nearest]):.4f} and score {float(other[1][nearest]):.5f}, "
        f"expected IoU >= {tolerance.min_iou} and scores within {tolerance.max_score_difference}."
    )

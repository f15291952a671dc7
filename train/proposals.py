"""The proposal stage: from logits and deltas of every anchor to the K best boxes, with fixed shapes throughout.

The same code serves evaluation in PyTorch and the exported graph; only the form of the NMS differs.

Legend of shape suffixes: N images, A anchors of a level or of all levels, B boxes that compete in NMS, K proposals.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edgerpn.train.boxes import clip_boxes, decode_boxes
from edgerpn.train.nms import nms_fixed, nms_keep


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig:
    """How proposals are selected."""

    num_proposals: int = 100
    """K, the most proposals of an image."""
    pre_nms: int = 1000
    """Best boxes of each pyramid level that enter NMS."""
    nms_iou: float = 0.83
    """A box that overlaps a better one by more than this is dropped."""
    nms_scope: Literal["level", "all"] = "level"
    """Whether boxes compete within their pyramid level (as in FPN) or all together."""
    score_threshold: float = 0.0
    """Boxes scored below this are dropped, 0..1."""
    min_size_px: float = 1.0
    """Boxes with a side below this are dropped, pixels of the network's input."""
    nms_iterations: int = 24
    """portable NMS: rounds of the fixed-point iteration; exact when no chain of suppressors is longer."""
    nms_candidates: int | None = None
    """portable NMS: best boxes of all levels together that are looked at; not set: all that `pre_nms` leaves.

    What is found is then the exact result up to a score, in the same order, and all of it when K boxes are found."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("num_proposals", "pre_nms", "nms_iterations", "nms_candidates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 < self.nms_iou <= 1:
            raise ValueError(f"nms_iou: expected more than 0 and at most 1, got {self.nms_iou}")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold: expected 0 to below 1, got {self.score_threshold}")
        if self.min_size_px < 0:
            raise ValueError(f"min_size_px: expected at least 0, got {self.min_size_px}")


class ProposalBatch(NamedTuple):
    """Proposals of N images, best first; rows beyond `count` are zero."""

    boxes: Tensor
    """(N, K, 4) float32 x1, y1, x2, y2, pixels."""
    scores: Tensor
    """(N, K) float32, 0..1."""
    count: Tensor  # type: ignore[assignment] # a tuple's own count() is of no use here
    """(N,) int32."""


class Candidates(NamedTuple):
    """Boxes that compete with each other in NMS, best first."""

    boxes: Tensor
    """(N, B, 4) float32 x1, y1, x2, y2, pixels of the network's input."""
    scores: Tensor
    """(N, B) float32, 0..1, best first; -1 in the place of boxes that are too small or score too low."""
    levels: Tensor | None = None
    """(N, B) float32, pyramid level of each box, when only boxes of the same level compete; None: all do."""


def select_proposals(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
    nms: Literal["standard", "portable"] = "standard",
) -> ProposalBatch:
    """Selects the K best proposals of every image.

    1. On each level take the `pre_nms` best logits.
    2. Decode their boxes in float32 and clip them to the content.
    3. Mark boxes that are too small or score too low (score -1).
    4. NMS, level by level or all together.
    5. The K best of what is left, padded with zeros.

    Args:
        levels: (logits (N, A), deltas (N, A, 4)) of each level, any float precision.
        anchors: (A, 4) float32 of each level, pixels of the network's input.
        content_hw: Height and width of the part of the input that shows the frame, pixels.
        config: Counts and thresholds.
        nms: `standard` is exact and becomes ONNX NonMaxSuppression; `portable` is `nms_iterations` rounds of
            plain operations.

    Returns:
        Proposals in pixels of the network's input.
    """
    groups = nms_groups(levels, anchors, content_hw=content_hw, config=config, nms=nms)  # steps 1 to 3
    scores_NB = torch.cat([_suppress(group, config, nms) for group in groups], dim=1)  # step 4
    boxes_NB4 = torch.cat([group.boxes for group in groups], dim=1)
    best_NK, index_NK = scores_NB.topk(min(config.num_proposals, scores_NB.shape[1]), dim=1)  # step 5
    valid_NK = (best_NK >= 0).to(best_NK.dtype)
    boxes_NK4 = _take(boxes_NB4, index_NK) * valid_NK[..., None]
    missing = config.num_proposals - best_NK.shape[1]
    if missing > 0:
        boxes_NK4 = torch.nn.functional.pad(boxes_NK4, (0, 0, 0, missing))
        best_NK = torch.nn.functional.pad(best_NK, (0, missing))
    scores_NK = best_NK.clamp(min=0)
    return ProposalBatch(boxes_NK4, scores_NK, valid_NK.sum(dim=1).to(torch.int32))


def nms_groups(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
    nms: Literal["standard", "portable"],
) -> list[Candidates]:
    """Steps 1 to 3 of `select_proposals`, with the same arguments: what NMS gets, group by group."""
    total = sum(min(config.pre_nms, logits.shape[1]) for logits, _ in levels)
    if nms == "portable" and config.nms_candidates is not None and config.nms_candidates < total:
        ranked = ranked_candidates(levels, anchors, config.nms_candidates, content_hw=content_hw, config=config)
        return [ranked]
    groups = [
        _decode(*_best(logits, deltas, level_anchors, config.pre_nms), content_hw, config)
        for (logits, deltas), level_anchors in zip(levels, anchors, strict=True)
    ]
    return [_merge(groups)] if config.nms_scope == "all" and len(groups) > 1 else groups


def ranked_candidates(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    count: int,
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
) -> Candidates:
    """The `count` best boxes of all levels as one group, sorted by logit.

    One top-k and one decoding for all levels, and an NMS of `count` boxes however many anchors there are.
    NMS decides about a box by better boxes alone, so what it leaves of this group are the first of the boxes that it
    leaves of all.

    Args:
        levels: As for `select_proposals`.
        anchors: As for `select_proposals`.
        count: At most the number of boxes that `pre_nms` leaves on all levels.
        content_hw: As for `select_proposals`.
        config: Counts and thresholds; `nms_candidates` is not looked at.
    """
    sizes = [min(config.pre_nms, logits.shape[1]) for logits, _ in levels]
    if any(config.pre_nms < min(count, logits.shape[1]) for logits, _ in levels):
        best = [
            _best(logits, deltas, level_anchors, config.pre_nms)
            for (logits, deltas), level_anchors in zip(levels, anchors, strict=True)
        ]
        top_NB, index_NB = torch.cat([logits for logits, _, _ in best], dim=1).topk(count, dim=1)
        deltas_NB4, anchors_NB4 = (
            _take(torch.cat(rows, dim=1), index_NB)
            for rows in ([deltas for _, deltas, _ in best], [places for _, _, places in best])
        )
    else:
        # The cut after `count` is the only one. Anchors without a batch axis keep the batch size out of the graph.
        sizes = [logits.shape[1] for logits, _ in levels]
        top_NB, index_NB = torch.cat([logits for logits, _ in levels], dim=1).topk(count, dim=1)
        deltas_NB4 = _take(torch.cat([deltas for _, deltas in levels], dim=1), index_NB)
        anchors_NB4 = torch.cat(anchors)[index_NB]
    group = _decode(top_NB, deltas_NB4, anchors_NB4, content_hw, config)
    if config.nms_scope == "all" or len(levels) == 1:
        return group
    # The number of levels that begin at or before a box, less the first.
    starts = itertools.accumulate(sizes[:-1])
    level_NB = torch.stack([(index_NB >= start).to(torch.float32) for start in starts]).sum(dim=0)
    return group._replace(levels=level_NB)


def _best(logits_NA: Tensor, deltas_NA4: Tensor, anchors_A4: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1 for one level: logits (N, B), deltas (N, B, 4) and anchors (N, B, 4) of the best, sorted."""
    top_NB, index_NB = logits_NA.topk(min(count, logits_NA.shape[1]), dim=1)
    return top_NB, _take(deltas_NA4, index_NB), anchors_A4[index_NB]


def _decode(
    logits_NB: Tensor, deltas_NB4: Tensor, anchors_NB4: Tensor, content_hw: tuple[int, int], config: ProposalConfig
) -> Candidates:
    """Steps 2 and 3."""
    boxes_NB4 = clip_boxes(decode_boxes(deltas_NB4.float(), anchors_NB4), content_hw)  # step 2
    scores_NB = logits_NB.float().sigmoid()
    size_NB2 = boxes_NB4[..., 2:] - boxes_NB4[..., :2]
    # A box without area is never a proposal, whatever the limits say.
    valid_NB = (size_NB2 >= max(config.min_size_px, 1e-3)).all(dim=-1) & (scores_NB >= config.score_threshold)
    return Candidates(boxes_NB4, torch.where(valid_NB, scores_NB, -1.0))  # step 3


def _merge(groups: list[Candidates]) -> Candidates:
    """All levels as one group, sorted by falling score."""
    boxes_NB4 = torch.cat([group.boxes for group in groups], dim=1)
    scores_NB, order_NB = torch.cat([group.scores for group in groups], dim=1).sort(dim=1, descending=True, stable=True)
    return Candidates(_take(boxes_NB4, order_NB), scores_NB)


def _suppress(group: Candidates, config: ProposalConfig, nms: Literal["standard", "portable"]) -> Tensor:
    """Scores with -1 where NMS drops a box."""
    if nms == "standard":
        keep_NB = nms_keep(group.boxes, group.scores, config.nms_iou, config.num_proposals) > 0.5
    else:
        keep_NB = nms_fixed(
            group.boxes,
            group.scores >= 0,
            iou_threshold=config.nms_iou,
            iterations=config.nms_iterations,
            labels_NB=group.levels,
        )
    return torch.where(keep_NB, group.scores, -1.0)


def _take(rows_NA4: Tensor, index_NB: Tensor) -> Tensor:
    """Rows (N, B, 4) at `index` of (N, A, 4)."""
    return rows_NA4.gather(1, index_NB[..., None].expand(-1, -1, 4))

"""The proposal stage: from logits and deltas of every anchor to the K best boxes, with fixed shapes throughout.

Evaluation in PyTorch and the exported graph use the same code; only the form of the NMS differs.

Legend of shape suffixes: N images, A anchors of a level or of all levels, B boxes that compete in NMS, K proposals.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edgerpn.errors import check_setting
from edgerpn.targets import TOPK_LIMIT
from edgerpn.train.network.boxes import clip_boxes, decode_boxes
from edgerpn.train.network.nms import largest_overlap, nms_fixed, nms_keep

SOFT_MORE = 200
"""Soft NMS rescores the best 2 * K + SOFT_MORE boxes: later boxes are hardly ever among the best K afterwards.

In a crowd NMS leaves several boxes on each object; their scores fall below those of boxes far behind them. A list of
2 * K lost up to 0.018 AR@100 for K = 100. The work grows with the square of the list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig:
    """Selection of proposals."""

    num_proposals: int = 100
    """K, the largest number of proposals of an image."""
    pre_nms: int = 1000
    """Number of best boxes per pyramid level that enter NMS."""
    nms_iou: float = 0.9
    """IoU with a better box above which a box is dropped."""
    soft_nms_iou: float = 0.5
    """IoU with a better box above which a box kept by NMS loses score, by a factor of
    sqrt((1 - IoU) / (1 - soft_nms_iou)) with the largest such IoU; 1: no box loses score."""
    nms_scope: Literal["level", "all"] = "level"
    """`level`: boxes compete within their pyramid level, as in FPN; `all`: across levels."""
    score_threshold: float = 0.0
    """Score below which boxes are dropped, 0..1."""
    min_size_px: float = 1.0
    """Side below which boxes are dropped, pixels of the network's input."""
    nms_iterations: int = 24
    """portable NMS: rounds of the fixed-point iteration; exact if no chain of suppressors is longer."""
    nms_candidates: int | None = None
    """Number of best boxes of all levels that enter NMS in one list; not set: all boxes that `pre_nms` keeps.

    NMS then keeps the first of the boxes that it would keep of the full list. If all K proposals are among them, the
    proposals are the same; otherwise some of the last proposals are missing, or worse ones replace them."""
    class_nms_iou: float = 0.5
    """IoU with a better box of the same class above which a box is dropped; with `model.classes` only."""

    def __post_init__(self) -> None:
        for name in ("num_proposals", "pre_nms", "nms_iterations", "nms_candidates"):
            value = getattr(self, name)
            check_setting(value is None or value >= 1, name, "at least 1", value)
        for name in ("nms_iou", "soft_nms_iou", "class_nms_iou"):
            check_setting(0 < getattr(self, name) <= 1, name, "more than 0 and at most 1", getattr(self, name))
        check_setting(0 <= self.score_threshold < 1, "score_threshold", "0 to below 1", self.score_threshold)
        check_setting(self.min_size_px >= 0, "min_size_px", "at least 0", self.min_size_px)

    @property
    def num_kept(self) -> int:
        """Number of best boxes of an image that the stage uses after NMS."""
        if self.soft_nms_iou == 1:
            return self.num_proposals
        # Longer lists are beyond the top-k of every TensorRT; only a larger K needs one.
        return min(2 * self.num_proposals + SOFT_MORE, max(self.num_proposals, TOPK_LIMIT))


class ProposalBatch(NamedTuple):
    """Proposals of N images, best first; rows beyond `count` are zero."""

    boxes: Tensor
    """(N, K, 4) float32 x1, y1, x2, y2, pixels."""
    scores: Tensor
    """(N, K) float32, 0..1: objectness after soft NMS; with classes see `edgerpn.train.network.class_stage`."""
    count: Tensor  # type: ignore[assignment] # hides tuple.count()
    """(N,) int32."""
    labels: Tensor | None = None
    """(N, K) int32, position of each box's class in `ModelConfig.classes`, 0 beyond `count`; None: no classes."""
    class_scores: Tensor | None = None
    """(N, K) float32, probability of that class, 0..1; None: no classes."""
    anchors: Tensor | None = None
    """(N, K) int64, number of the anchor that each box comes from, 0 to A - 1 over all levels, -1 beyond `count`; None:
    not tracked."""
    embeddings: Tensor | None = None
    """(N, K, C) float32, of `edgerpn.train.network.region_features.cell_embeddings`; None: not computed."""
    features: Tensor | None = None
    """(N, K, C, h, w) float32 of `edgerpn.train.network.region_features.roi_align`, 0 beyond `count`; None: not
    computed."""


class Candidates(NamedTuple):
    """Boxes that compete with each other in NMS, best first."""

    boxes: Tensor
    """(N, B, 4) float32 x1, y1, x2, y2, pixels of the network's input."""
    scores: Tensor
    """(N, B) float32, above 0 to 1, best first; -1 for boxes that are too small or score too low."""
    levels: Tensor | None = None
    """(N, B) float32, pyramid level of each box if only boxes of the same level compete; None: all compete."""
    num_levels: int = 1
    """Number of levels in `levels`."""
    anchors: Tensor | None = None
    """(N, B) int64, number of the anchor that each box comes from, over all levels; None: not tracked."""


def select_proposals(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
    nms: Literal["standard", "portable"] = "standard",
    tracks_anchors: bool = False,
) -> ProposalBatch:
    """Selects the K best proposals of every image.

    1. On each level take the `pre_nms` best logits.
    2. Decode their boxes in float32 and clip them to the content.
    3. Mark boxes that are too small or score too low (score -1).
    4. Run NMS, level by level or on all together.
    5. Lower the scores of boxes that overlap a better one of any level, unless `soft_nms_iou` is 1.
    6. Take the K best of the rest, padded with zeros.

    Args:
        levels: Logits (N, A) and deltas (N, A, 4) per level, any float precision.
        anchors: (A, 4) float32 per level, pixels of the network's input.
        content_hw: Height and width of the part of the input that shows the frame, pixels.
        config: Counts and thresholds.
        nms: `standard` is exact and becomes ONNX NonMaxSuppression; `portable` is `nms_iterations` rounds of
            plain operations.
        tracks_anchors: Whether the result has the anchors of its boxes, which costs a gather in steps 2, 5 and 6.

    Returns:
        Proposals in pixels of the network's input.
    """
    groups = nms_groups(
        levels, anchors, content_hw=content_hw, config=config, nms=nms, tracks_anchors=tracks_anchors
    )  # steps 1 to 3
    scores_NB = torch.cat([suppress(group, config, nms) for group in groups], dim=1)  # step 4
    boxes_NB4 = torch.cat([group.boxes for group in groups], dim=1)
    tracked = [group.anchors for group in groups if group.anchors is not None]
    anchors_NB = torch.cat(tracked, dim=1) if tracked else None
    if config.soft_nms_iou < 1:
        scores_NB, index_NB = scores_NB.topk(min(config.num_kept, scores_NB.shape[1]), dim=1)
        boxes_NB4 = take(boxes_NB4, index_NB)
        anchors_NB = None if anchors_NB is None else anchors_NB.gather(1, index_NB)
        scores_NB = rescored(boxes_NB4, scores_NB, config)  # step 5
    best_NK, index_NK = scores_NB.topk(min(config.num_proposals, scores_NB.shape[1]), dim=1)  # step 6
    valid_NK = (best_NK >= 0).to(best_NK.dtype)
    boxes_NK4 = take(boxes_NB4, index_NK) * valid_NK[..., None]
    anchors_NK = None if anchors_NB is None else torch.where(best_NK >= 0, anchors_NB.gather(1, index_NK), -1)
    missing = config.num_proposals - best_NK.shape[1]
    if missing > 0:
        boxes_NK4 = torch.nn.functional.pad(boxes_NK4, (0, 0, 0, missing))
        best_NK = torch.nn.functional.pad(best_NK, (0, missing))
        anchors_NK = None if anchors_NK is None else torch.nn.functional.pad(anchors_NK, (0, missing), value=-1)
    scores_NK = best_NK.clamp(min=0)
    return ProposalBatch(boxes_NK4, scores_NK, valid_NK.sum(dim=1).to(torch.int32), anchors=anchors_NK)


def nms_groups(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
    nms: Literal["standard", "portable"],
    tracks_anchors: bool = False,
) -> list[Candidates]:
    """Steps 1 to 3 of `select_proposals`, with the same arguments; returns the input of NMS by group."""
    total = sum(min(config.pre_nms, logits.shape[1]) for logits, _ in levels)
    # The work of the portable form grows with the square of the list, so it prefers the shorter lists of the levels.
    if config.nms_candidates is not None and (config.nms_candidates < total or nms == "standard"):
        count = min(config.nms_candidates, total)
        return [
            ranked_candidates(
                levels, anchors, count, content_hw=content_hw, config=config, tracks_anchors=tracks_anchors
            )
        ]
    groups = []
    for start, (logits, deltas), level_anchors in zip(_starts(levels), levels, anchors, strict=True):
        top_NB, deltas_NB4, anchors_NB4, index_NB = _best(logits, deltas, level_anchors, config.pre_nms)
        group = _decode(top_NB, deltas_NB4, anchors_NB4, content_hw, config)
        groups.append(group._replace(anchors=index_NB + start) if tracks_anchors else group)
    return [_merge(groups)] if config.nms_scope == "all" and len(groups) > 1 else groups


def _starts(levels: list[tuple[Tensor, Tensor]]) -> list[int]:
    """Number of the first anchor of each level."""
    return list(itertools.accumulate((logits.shape[1] for logits, _ in levels[:-1]), initial=0))


def ranked_candidates(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    count: int,
    *,
    content_hw: tuple[int, int],
    config: ProposalConfig,
    tracks_anchors: bool = False,
) -> Candidates:
    """Returns the `count` best boxes of all levels as one group, sorted by logit.

    This needs one top-k and one decoding for all levels, and an NMS of `count` boxes for any number of anchors. Only
    better boxes decide about a box, so NMS keeps of this group the first of the boxes that it would keep of all.

    Args:
        levels: As for `select_proposals`.
        anchors: As for `select_proposals`.
        count: At most the number of boxes that `pre_nms` keeps on all levels.
        content_hw: As for `select_proposals`.
        config: Counts and thresholds; `nms_candidates` is not used.
        tracks_anchors: As for `select_proposals`.
    """
    sizes = [min(config.pre_nms, logits.shape[1]) for logits, _ in levels]
    if any(config.pre_nms < min(count, logits.shape[1]) for logits, _ in levels):
        best = [
            _best(logits, deltas, level_anchors, config.pre_nms)
            for (logits, deltas), level_anchors in zip(levels, anchors, strict=True)
        ]
        top_NB, index_NB = torch.cat([level[0] for level in best], dim=1).topk(count, dim=1)
        deltas_NB4, anchors_NB4 = (take(torch.cat([level[i] for level in best], dim=1), index_NB) for i in (1, 2))
        if tracks_anchors:
            numbers = [level[3] + start for level, start in zip(best, _starts(levels), strict=True)]
            number_NB = torch.cat(numbers, dim=1).gather(1, index_NB)
    else:
        # `pre_nms` cuts nothing here. Anchors without a batch axis keep the batch size out of the graph.
        sizes = [logits.shape[1] for logits, _ in levels]
        top_NB, index_NB = torch.cat([logits for logits, _ in levels], dim=1).topk(count, dim=1)
        deltas_NB4 = take(torch.cat([deltas for _, deltas in levels], dim=1), index_NB)
        anchors_NB4 = torch.cat(anchors)[index_NB]
        number_NB = index_NB
    group = _decode(top_NB, deltas_NB4, anchors_NB4, content_hw, config)
    if tracks_anchors:
        group = group._replace(anchors=number_NB)
    if config.nms_scope == "all" or len(levels) == 1:
        return group
    # One gather out of a constant of the graph.
    numbers = [torch.full((size,), float(level), device=index_NB.device) for level, size in enumerate(sizes)]
    level_NB = torch.cat(numbers)[index_NB]
    return group._replace(levels=level_NB, num_levels=len(levels))


def _best(
    logits_NA: Tensor, deltas_NA4: Tensor, anchors_A4: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step 1 for one level: logits (N, B), deltas and anchors (N, B, 4) of the best, sorted, and their index (N, B)."""
    top_NB, index_NB = logits_NA.topk(min(count, logits_NA.shape[1]), dim=1)
    return top_NB, take(deltas_NA4, index_NB), anchors_A4[index_NB], index_NB


def _decode(
    logits_NB: Tensor, deltas_NB4: Tensor, anchors_NB4: Tensor, content_hw: tuple[int, int], config: ProposalConfig
) -> Candidates:
    """Steps 2 and 3."""
    boxes_NB4 = clip_boxes(decode_boxes(deltas_NB4.float(), anchors_NB4), content_hw)  # step 2
    scores_NB = logits_NB.float().sigmoid()
    size_NB2 = boxes_NB4[..., 2:] - boxes_NB4[..., :2]
    # A box without area or with a score of 0 is never a proposal, whatever the limits.
    least_score = max(config.score_threshold, torch.finfo(torch.float32).tiny)
    valid_NB = (size_NB2 >= max(config.min_size_px, 1e-3)).all(dim=-1) & (scores_NB >= least_score)
    return Candidates(boxes_NB4, torch.where(valid_NB, scores_NB, -1.0))  # step 3


def _merge(groups: list[Candidates]) -> Candidates:
    """Merges all levels into one group, sorted by score."""
    boxes_NB4 = torch.cat([group.boxes for group in groups], dim=1)
    scores_NB, order_NB = torch.cat([group.scores for group in groups], dim=1).sort(dim=1, descending=True, stable=True)
    merged = Candidates(take(boxes_NB4, order_NB), scores_NB)
    tracked = [group.anchors for group in groups if group.anchors is not None]
    return merged._replace(anchors=torch.cat(tracked, dim=1).gather(1, order_NB)) if tracked else merged


def suppress(group: Candidates, config: ProposalConfig, nms: Literal["standard", "portable"]) -> Tensor:
    """Step 4 of `select_proposals`: returns the scores (N, B), with -1 for boxes that NMS drops."""
    if nms == "standard":
        keep_NB = nms_keep(group.boxes, _level_scores(group), config.nms_iou, config.num_kept) > 0.5
    else:
        keep_NB = nms_fixed(
            group.boxes,
            group.scores >= 0,
            iou_threshold=config.nms_iou,
            iterations=config.nms_iterations,
            labels_NB=group.levels,
        )
    return torch.where(keep_NB, group.scores, -1.0)


def _level_scores(group: Candidates) -> Tensor:
    """Returns scores (N, C, B) of each of C levels, with -1 for boxes of other levels."""
    scores_N1B = group.scores[:, None]
    if group.levels is None:
        return scores_N1B
    numbers_C1 = torch.arange(group.num_levels, dtype=torch.float32, device=group.scores.device)[:, None]
    return torch.where(group.levels[:, None] == numbers_C1, scores_N1B, -1.0)


def rescored(boxes_NB4: Tensor, scores_NB: Tensor, config: ProposalConfig) -> Tensor:
    """Step 5 of `select_proposals`: lowers the scores of boxes that overlap a better one.

    A second box on an object is worth less than the first box on another one, but it is still useful: the idea of
    Soft-NMS (Bodla et al. 2017, arXiv:1704.04503). The factor of the largest overlap, which needs no loop over boxes,
    is that of Matrix NMS (Wang et al. 2020, arXiv:2003.10152), with a square root and above a threshold.

    Args:
        boxes_NB4: Pixels, float32, best first.
        scores_NB: Their scores, float32, descending; -1 for boxes that NMS dropped, which come last.
        config: `soft_nms_iou`, below 1, and `score_threshold` are used.

    Returns:
        (N, B) float32, -1 for boxes without a score or with one that is now below the threshold.
    """
    # Dropped boxes come last, so they never count as better boxes.
    overlap_NB = largest_overlap(boxes_NB4)
    factor_NB = ((1 - overlap_NB) / (1 - config.soft_nms_iou)).clamp(min=0, max=1).sqrt()
    rescored_NB = scores_NB * factor_NB
    valid_NB = (scores_NB >= 0) & (rescored_NB >= config.score_threshold)
    return torch.where(valid_NB, rescored_NB, -1.0)


def take(rows_NA4: Tensor, index_NB: Tensor) -> Tensor:
    """Returns the rows (N, B, 4) at `index` of (N, A, 4)."""
    return rows_NA4.gather(1, index_NB[..., None].expand(-1, -1, 4))

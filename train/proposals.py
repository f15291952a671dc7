"""The proposal stage: from logits and deltas of every anchor to the K best boxes, with fixed shapes throughout.

The same code serves evaluation in PyTorch and the exported graph; only the form of the NMS differs.

Legend of shape suffixes: N images, A anchors of a level, B boxes that compete in NMS, K proposals.
"""

from __future__ import annotations

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
    nms_iou: float = 0.7
    """A box that overlaps a better one by more than this is dropped."""
    nms_scope: Literal["level", "all"] = "level"
    """Whether boxes compete within their pyramid level (as in FPN) or all together."""
    score_threshold: float = 0.0
    """Boxes scored below this are dropped, 0..1."""
    min_size_px: float = 1.0
    """Boxes with a side below this are dropped, pixels of the network's input."""
    nms_iterations: int = 24
    """portable NMS: rounds of the fixed-point iteration; exact when no chain of suppressors is longer."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("num_proposals", "pre_nms", "nms_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
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
    groups = [
        _candidates(logits, deltas, level_anchors, content_hw, config)
        for (logits, deltas), level_anchors in zip(levels, anchors, strict=True)
    ]
    if config.nms_scope == "all" and len(groups) > 1:
        groups = [_merge(groups)]
    kept = [_suppress(boxes, scores, config, nms) for boxes, scores in groups]  # step 4
    boxes_NB4 = torch.cat([boxes for boxes, _ in groups], dim=1)
    scores_NB = torch.cat(kept, dim=1)
    best_NK, index_NK = scores_NB.topk(min(config.num_proposals, scores_NB.shape[1]), dim=1)  # step 5
    valid_NK = (best_NK >= 0).to(best_NK.dtype)
    boxes_NK4 = _take(boxes_NB4, index_NK) * valid_NK[..., None]
    missing = config.num_proposals - best_NK.shape[1]
    if missing > 0:
        boxes_NK4 = torch.nn.functional.pad(boxes_NK4, (0, 0, 0, missing))
        best_NK = torch.nn.functional.pad(best_NK, (0, missing))
    scores_NK = best_NK.clamp(min=0)
    return ProposalBatch(boxes_NK4, scores_NK, valid_NK.sum(dim=1).to(torch.int32))


def _candidates(
    logits_NA: Tensor, deltas_NA4: Tensor, anchors_A4: Tensor, content_hw: tuple[int, int], config: ProposalConfig
) -> tuple[Tensor, Tensor]:
    """Steps 1 to 3 for one level: boxes (N, B, 4) and scores (N, B), sorted by falling score before step 3."""
    top_NB, index_NB = logits_NA.topk(min(config.pre_nms, logits_NA.shape[1]), dim=1)  # step 1
    deltas_NB4 = _take(deltas_NA4, index_NB).float()
    boxes_NB4 = clip_boxes(decode_boxes(deltas_NB4, anchors_A4[index_NB]), content_hw)  # step 2
    scores_NB = top_NB.float().sigmoid()
    size_NB2 = boxes_NB4[..., 2:] - boxes_NB4[..., :2]
    # A box without area is never a proposal, whatever the limits say.
    valid_NB = (size_NB2 >= max(config.min_size_px, 1e-3)).all(dim=-1) & (scores_NB >= config.score_threshold)
    return boxes_NB4, torch.where(valid_NB, scores_NB, -1.0)  # step 3


def _merge(groups: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All levels as one group, sorted by falling score."""
    boxes_NB4 = torch.cat([boxes for boxes, _ in groups], dim=1)
    scores_NB, order_NB = torch.cat([scores for _, scores in groups], dim=1).sort(dim=1, descending=True, stable=True)
    return _take(boxes_NB4, order_NB), scores_NB


def _suppress(
    boxes_NB4: Tensor, scores_NB: Tensor, config: ProposalConfig, nms: Literal["standard", "portable"]
) -> Tensor:
    """Scores with -1 where NMS drops a box."""
    if nms == "standard":
        keep_NB = nms_keep(boxes_NB4, scores_NB, config.nms_iou, config.num_proposals) > 0.5
    else:
        keep_NB = nms_fixed(boxes_NB4, scores_NB >= 0, iou_threshold=config.nms_iou, iterations=config.nms_iterations)
    return torch.where(keep_NB, scores_NB, -1.0)


def _take(rows_NA4: Tensor, index_NB: Tensor) -> Tensor:
    """Rows (N, B, 4) at `index` of (N, A, 4)."""
    return rows_NA4.gather(1, index_NB[..., None].expand(-1, -1, 4))

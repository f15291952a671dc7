"""The class stage: from proposals to boxes with a class, with fixed shapes throughout.

Evaluation in PyTorch and the exported graph use the same code; only the forms of RoIAlign and NMS differ.

Legend of shape suffixes: N images, K proposals, C channels, H and W rows and columns of a level, P classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from edgerpn.train.network.boxes import clip_boxes, decode_boxes
from edgerpn.train.network.proposal_stage import Candidates, ProposalBatch, ProposalConfig, suppress, take
from edgerpn.train.network.region_features import RoiForm, roi_align
from edgerpn.train.network.region_head import REGION_HW, RegionHead

NMS_ROUNDS = 32
"""Rounds of the portable NMS, see `edgerpn.train.network.nms`: few boxes of one class hang together in a chain."""


def classify_proposals(
    proposals: ProposalBatch,
    maps_NCHW: Sequence[Tensor],
    head: RegionHead,
    *,
    strides_px: Sequence[int],
    content_hw: tuple[int, int],
    config: ProposalConfig,
    nms: Literal["standard", "portable"],
    roi_form: RoiForm,
) -> ProposalBatch:
    """Gives every proposal its best class, moves its box, and drops all but the best box of each object.

    1. Pool the features of each box, and run the head on them.
    2. The class with the largest probability, the background aside, is the label.
    3. Decode the box and clip it to the content.
    4. Its score is the geometric mean of objectness and class probability.
    5. Run NMS within each class.
    6. Move the boxes that remain to the front, and fill up with zeros.

    Args:
        proposals: Result of `select_proposals`, in pixels of the network's input.
        maps_NCHW: The maps that the proposals come from, finest first.
        head: The head, in eval mode.
        strides_px: Strides of the maps, pixels.
        content_hw: Height and width of the part of the input that shows the frame, pixels.
        config: `class_nms_iou`, `score_threshold` and `min_size_px` are used.
        nms: As in `select_proposals`.
        roi_form: See `roi_align`.

    Returns:
        The proposals that remain, each with label and class score; their anchors stay with them.

    Source: step 4, Zhou et al. 2021 (arXiv:2103.07461, section 4).
    """
    features = roi_align(maps_NCHW, proposals.boxes, strides_px, output_hw=REGION_HW, form=roi_form)
    logits_NKP, deltas_NK4 = head(features)  # step 1
    class_scores_NK, labels_NK = logits_NKP.float().softmax(dim=2)[..., 1:].max(dim=2)  # step 2
    boxes_NK4 = clip_boxes(decode_boxes(deltas_NK4.float(), proposals.boxes), content_hw)  # step 3
    size_NK2 = boxes_NK4[..., 2:] - boxes_NK4[..., :2]
    scores_NK = (proposals.scores * class_scores_NK).sqrt()  # step 4
    least_score = max(config.score_threshold, torch.finfo(torch.float32).tiny)
    valid_NK = (size_NK2 >= max(config.min_size_px, 1e-3)).all(dim=2) & (scores_NK >= least_score)
    count = scores_NK.shape[1]
    scores_NK, order_NK = torch.where(valid_NK, scores_NK, -1.0).topk(count, dim=1)
    boxes_NK4, labels_NK = take(boxes_NK4, order_NK), labels_NK.gather(1, order_NK)
    group = Candidates(boxes_NK4, scores_NK, levels=labels_NK.to(torch.float32), num_levels=logits_NKP.shape[2] - 1)
    scores_NK = suppress(group, _class_nms(config), nms)  # step 5
    scores_NK, kept_NK = scores_NK.topk(count, dim=1)  # step 6
    valid_NK = scores_NK >= 0
    order_NK = order_NK.gather(1, kept_NK)
    anchors_NK = proposals.anchors
    return ProposalBatch(
        boxes=take(boxes_NK4, kept_NK) * valid_NK[..., None],
        scores=scores_NK.clamp(min=0),
        count=valid_NK.sum(dim=1).to(torch.int32),
        labels=(labels_NK.gather(1, kept_NK) * valid_NK).to(torch.int32),
        class_scores=class_scores_NK.gather(1, order_NK) * valid_NK,
        anchors=None if anchors_NK is None else torch.where(valid_NK, anchors_NK.gather(1, order_NK), -1),
    )


def _class_nms(config: ProposalConfig) -> ProposalConfig:
    """Returns the settings of NMS within classes, which take the part of the levels."""
    return dataclasses.replace(config, nms_iou=config.class_nms_iou, nms_iterations=NMS_ROUNDS)

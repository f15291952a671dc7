"""Training of the second stage: the proposals that it learns from, and its losses (Fast R-CNN, arXiv:1504.08083).

Legend of shape suffixes: N images, G ground-truth boxes (padded), I ignore regions, B boxes to draw from, S samples of
an image, C channels, H and W rows and columns of a level, P classes and the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgerpn.errors import check_setting
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.learning.assign import BACKGROUND, IGNORED, OBJECT, draw_sample
from edgerpn.train.learning.loss import LossConfig
from edgerpn.train.network.boxes import (
    area,
    decode_boxes,
    encode_boxes,
    paired_iou_giou,
    pairwise_intersection,
    pairwise_iou,
)
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals
from edgerpn.train.network.region_features import roi_align
from edgerpn.train.network.region_head import REGION_HW, RegionHead


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionConfig:
    """Training of the second stage, with `model.classes` only."""

    samples_per_image: int = 64
    """Number of boxes of an image that the second stage learns from, drawn at random."""
    positive_fraction: float = 0.25
    """Largest share of objects among them, 0..1."""
    positive_iou: float = 0.5
    """A box with at least this IoU with an object is that object, with less it is background."""
    num_proposals: int = 256
    """Number of best proposals of an image that the boxes are drawn from, beside the objects' own boxes."""
    nms_iou: float = 0.8
    """IoU with a better proposal above which one is not drawn."""
    class_weight: float = 2.0
    """Weight of the class loss, a mean over the boxes, relative to the objectness loss."""
    box_weight: float = 2.0
    """Weight of the loss of the corrected boxes, likewise: background counts as 0."""

    def __post_init__(self) -> None:
        check_setting(self.samples_per_image >= 1, "samples_per_image", "at least 1", self.samples_per_image)
        check_setting(self.num_proposals >= 1, "num_proposals", "at least 1", self.num_proposals)
        for name in ("positive_fraction", "positive_iou", "nms_iou"):
            check_setting(0 < getattr(self, name) <= 1, name, "more than 0 and at most 1", getattr(self, name))
        for name in ("class_weight", "box_weight"):
            check_setting(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))

    @property
    def stage(self) -> ProposalConfig:
        """The proposal stage of a training step: one short list, without numbers for the host."""
        return ProposalConfig(
            num_proposals=self.num_proposals,
            nms_candidates=self.num_proposals,
            nms_iou=self.nms_iou,
            nms_iterations=_NMS_ROUNDS,
            soft_nms_iou=1.0,
        )


_NMS_ROUNDS = 6
"""Rounds of the portable NMS; a rare box too many or too few does not matter for a sample."""


class RegionSample(NamedTuple):
    """The boxes that a step learns from; constants without a gradient."""

    boxes: Tensor
    """(N, S, 4) float32, pixels of the views."""
    labels: Tensor
    """(N, S) int64: 0 background, 1 + the number of a class, -1 no loss."""
    gt_boxes: Tensor
    """(N, S, 4) float32 box of the object, where the label is above 0."""


class RegionLosses(NamedTuple):
    """Losses of a part of a step's images, scalars with a gradient, divided by the number of boxes in the samples."""

    classes: Tensor
    """Cross-entropy."""
    boxes: Tensor
    """Loss of the corrected boxes of objects."""


@torch.no_grad()
def sample_regions(
    levels: list[tuple[Tensor, Tensor]],
    anchors: list[Tensor],
    batch: TrainBatch,
    *,
    config: RegionConfig,
    ignore_ioa: float,
    generator: torch.Generator,
    part: tuple[int, int],
) -> RegionSample:
    """Draws boxes from the network's present proposals and from the objects themselves.

    Proposals in ignore regions, and on objects without a class, are neither object nor background. Those on objects of
    several classes in one place belong to the first.

    Args:
        levels: Results of the network for the views.
        anchors: Anchors of each level of the views, pixels.
        batch: The views' objects, with labels, and ignore regions.
        config: Counts and thresholds.
        ignore_ioa: See `AssignConfig`.
        generator: As in `edgerpn.train.learning.assign.sample`.
        part: As there.
    """
    proposals = select_proposals(levels, anchors, content_hw=batch.view_hw, config=config.stage, nms="portable")
    boxes_NB4 = torch.cat((proposals.boxes, batch.gt_boxes), dim=1)
    is_box_NB = torch.cat((proposals.scores > 0, batch.gt_mask), dim=1)
    iou_NGB = pairwise_iou(batch.gt_boxes, boxes_NB4).masked_fill(~batch.gt_mask[..., None], -1.0)
    best_NB, matched_NB = iou_NGB.max(dim=1)  # the first of equal ones
    labels_NB = (best_NB >= config.positive_iou) * (batch.gt_labels.gather(1, matched_NB) + 1)
    covered_NIB = pairwise_intersection(batch.ignore_boxes, boxes_NB4) / area(boxes_NB4)[:, None].clamp(min=1e-9)
    ignored_NB = ((covered_NIB >= ignore_ioa) & batch.ignore_mask[..., None]).any(dim=1)
    is_nameless_NB = (best_NB >= config.positive_iou) & (labels_NB == 0)
    kinds_NB = torch.where(labels_NB > 0, OBJECT, torch.where(ignored_NB | is_nameless_NB, IGNORED, BACKGROUND))
    kinds_NB = kinds_NB.masked_fill(~is_box_NB, IGNORED)
    chosen_NB = draw_sample(
        kinds_NB,
        _noise(kinds_NB, config.num_proposals, generator, part),
        count=config.samples_per_image,
        max_objects=int(config.samples_per_image * config.positive_fraction),
    )
    # A fixed number of rows, so that a GPU's host need not know how many there are.
    count = min(config.samples_per_image, boxes_NB4.shape[1])
    is_chosen_NS, rows_NS = chosen_NB.to(torch.float32).topk(count, dim=1)
    return RegionSample(
        boxes=_rows(boxes_NB4, rows_NS),
        labels=labels_NB.gather(1, rows_NS).masked_fill(is_chosen_NS == 0, -1),
        gt_boxes=_rows(batch.gt_boxes, matched_NB.gather(1, rows_NS)),
    )


def _noise(kinds_NB: Tensor, num_proposals: int, generator: torch.Generator, part: tuple[int, int]) -> Tensor:
    """Returns random numbers (N, B), 0..1, that depend neither on the part nor on the padding of the objects."""
    first, whole = part
    noise = torch.rand((whole, num_proposals), generator=generator, device=kinds_NB.device)
    num_rows = kinds_NB.shape[1]
    # Objects reuse the numbers of proposals: only numbers within one image must differ in general.
    return noise[first : first + len(kinds_NB)].repeat(1, -(-num_rows // num_proposals))[:, :num_rows]


def _rows(boxes_NB4: Tensor, index_NS: Tensor) -> Tensor:
    return boxes_NB4.gather(1, index_NS[..., None].expand(-1, -1, 4))


def region_losses(
    head: RegionHead,
    maps_NCHW: Sequence[Tensor],
    regions: RegionSample,
    *,
    strides_px: Sequence[int],
    config: LossConfig,
) -> RegionLosses:
    """Runs the head on the sampled boxes and computes the losses.

    Args:
        head: The head.
        maps_NCHW: The network's maps, finest first.
        regions: The sample.
        strides_px: Strides of the maps, pixels.
        config: `box` and `smooth_l1_beta` are used.
    """
    features = roi_align(maps_NCHW, regions.boxes, strides_px, output_hw=REGION_HW)
    logits_NSP, deltas_NS4 = head(features)
    classes = functional.cross_entropy(
        logits_NSP.float().flatten(0, 1), regions.labels.flatten(), ignore_index=-1, reduction="sum"
    )
    is_object_NS1 = regions.labels[..., None] > 0
    # Rows without an object get a perfect box, so that they contribute neither loss nor gradient.
    target_NS4 = torch.where(is_object_NS1, regions.gt_boxes, regions.boxes)
    deltas_NS4 = torch.where(is_object_NS1, deltas_NS4.float(), 0.0)
    if config.box == "smooth_l1":
        distance = (encode_boxes(target_NS4, regions.boxes) - deltas_NS4) / head.scale
        # Rows that only fill up have boxes without an area, whose deltas are no numbers.
        distance = torch.where(is_object_NS1, distance, 0.0)
        zero = torch.zeros_like(distance)
        loss_NS = functional.smooth_l1_loss(distance, zero, beta=config.smooth_l1_beta, reduction="none").sum(-1)
    else:
        loss_NS = 1 - paired_iou_giou(decode_boxes(deltas_NS4, regions.boxes), target_NS4)[1]
    size = (regions.labels >= 0).sum().clamp(min=1)
    return RegionLosses(classes=classes / size, boxes=(loss_NS * is_object_NS1.squeeze(-1)).sum() / size)

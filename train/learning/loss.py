"""Losses on objectness and boxes, over all anchors of a batch at once.

Legend of shape suffixes: N images, A anchors of all levels, P anchors of all images whose boxes are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgerpn.errors import check_setting
from edgerpn.train.learning.assign import OBJECT, Assignment
from edgerpn.train.network.boxes import decode_boxes, encode_boxes, paired_iou_giou


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Choice and weights of the losses."""

    objectness: Literal["quality_focal", "bce"] = "quality_focal"
    """`bce`: 0 or 1 (Ren et al. 2015). `quality_focal`: the target of an object is its box's IoU (arXiv:2006.04388)."""
    focal_beta: float = 2.0
    """quality_focal: exponent of the focusing factor."""
    quality_floor: float = 0.5
    """quality_focal: smallest weight of an object in the box loss, which is otherwise its IoU, 0..1."""
    background_weight: float = 1.0
    """quality_focal: weight of anchors with less than `near_iou` with every object, 0..1. Below 1, detections of
    unmarked objects cost less: the network finds more objects of unknown classes and fewer of the known ones."""
    near_iou: float = 0.1
    """IoU with an object from which a background anchor has the full weight 1, 0..1."""
    box: Literal["giou", "smooth_l1"] = "giou"
    """`smooth_l1` on deltas (Ren et al. 2015), or `giou` on decoded boxes (arXiv:1902.09630)."""
    smooth_l1_beta: float = 1 / 9
    """smooth_l1: end of the quadratic part, in deltas; 0: plain absolute differences."""
    box_weight: float = 3.0
    """Weight of the box loss relative to the objectness loss."""

    def __post_init__(self) -> None:
        if self.focal_beta < 0 or self.smooth_l1_beta < 0 or self.box_weight < 0:
            raise ValueError("focal_beta, smooth_l1_beta, box_weight: expected at least 0")
        for name in ("quality_floor", "background_weight", "near_iou"):
            check_setting(0 <= getattr(self, name) <= 1, name, "0..1", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Scalars of one batch; the optimizer minimises `total`."""

    total: Tensor
    objectness: Tensor
    box: Tensor
    num_objects: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSums:
    """Sums over a part of a step's images; the losses of the step are the sums of all parts, divided by one normalizer.

    The normalizer is at least 1. A step divided over processes or passes therefore has the same losses as one batch; a
    mean over the parts would weight an image by the other images of its part.
    """

    objectness: Tensor
    """Scalar with a gradient."""
    box: Tensor
    """Scalar with a gradient, without the factor `LossConfig.box_weight`."""
    normalizer: Tensor
    """Scalar without a gradient: number of sampled anchors (bce), or sum of the objects' weights (quality_focal)."""
    num_objects: Tensor
    """Scalar, integer."""
    region_class: Tensor | None = None
    """Scalar with a gradient: class loss of the second stage, without its factor; None: no second stage. Unlike the
    others it is the mean over the part's boxes, times the part's normalizer or, if that is larger, its share of the
    step's images: so few objects do not make it large."""
    region_box: Tensor | None = None
    """Scalar with a gradient: loss of the boxes that the second stage corrects, likewise."""


def rpn_losses(
    logits_NA: Tensor,
    deltas_NA4: Tensor,
    anchors_A4: Tensor,
    assignment: Assignment,
    sampled_NA: Tensor,
    gt_boxes_NG4: Tensor,
    *,
    config: LossConfig,
) -> Losses:
    """Computes objectness and box loss of a whole batch; arguments as for `rpn_loss_sums`."""
    sums = rpn_loss_sums(logits_NA, deltas_NA4, anchors_A4, assignment, sampled_NA, gt_boxes_NG4, config=config)
    normalizer = sums.normalizer.clamp(min=1)
    objectness, box = sums.objectness / normalizer, sums.box / normalizer
    return Losses(
        total=objectness + config.box_weight * box,
        objectness=objectness.detach(),
        box=box.detach(),
        num_objects=sums.num_objects,
    )


def rpn_loss_sums(
    logits_NA: Tensor,
    deltas_NA4: Tensor,
    anchors_A4: Tensor,
    assignment: Assignment,
    sampled_NA: Tensor,
    gt_boxes_NG4: Tensor,
    *,
    config: LossConfig,
    gt_weights_NG: Tensor | None = None,
) -> LossSums:
    """Computes objectness and box loss of a part of a step's images, not yet normalised.

    Args:
        logits_NA: Objectness logits; any float precision, converted to float32.
        deltas_NA4: Box deltas.
        anchors_A4: Anchors of all levels, pixels.
        assignment: Labels and matched boxes.
        sampled_NA: True for anchors that enter the loss.
        gt_boxes_NG4: Padded ground-truth boxes, pixels.
        config: Choice of losses.
        gt_weights_NG: How sure it is that each box is an object, 0..1: factor of its weight in the box loss and, with
            quality_focal, of its anchors' targets. None: all are sure.
    """
    logits_NA, deltas_NA4 = logits_NA.float(), deltas_NA4.float()
    is_object_NA = sampled_NA & (assignment.labels_NA == OBJECT)
    rows = _rows_to_compare(is_object_NA)
    is_object_P1 = is_object_NA.flatten()[rows, None]
    num_images, num_boxes, _ = gt_boxes_NG4.shape
    first_N1 = torch.arange(0, num_images * num_boxes, num_boxes, device=gt_boxes_NG4.device)[:, None]
    matched_P = (first_N1 + assignment.matched_NA).flatten()[rows]
    matched_P4 = gt_boxes_NG4.flatten(0, 1)[matched_P]
    anchors_P4 = anchors_A4.expand(num_images, -1, -1).flatten(0, 1)[rows]
    # Rows without an object get a perfect box, so that they contribute neither loss nor gradient.
    target_P4 = torch.where(is_object_P1, matched_P4, anchors_P4)
    deltas_P4 = torch.where(is_object_P1, deltas_NA4.flatten(0, 1)[rows], 0.0)
    iou_P, giou_P = paired_iou_giou(decode_boxes(deltas_P4, anchors_P4), target_P4)
    weight_P = is_object_P1.squeeze(1).float()
    if gt_weights_NG is not None:
        weight_P = weight_P * gt_weights_NG.flatten()[matched_P]
    if config.objectness == "bce":
        objectness = _bce(logits_NA, is_object_NA, sampled_NA)
        normalizer = sampled_NA.sum().float()
    else:
        overlap_P = iou_P.detach().clamp(0, 1)
        quality_NA = logits_NA.new_zeros(logits_NA.shape)
        quality_NA.view(-1)[rows] = overlap_P * weight_P
        # The floor lets objects far from their anchors, the largest ones, learn as fast as the others.
        weight_P = weight_P * overlap_P.clamp(min=config.quality_floor)
        normalizer = weight_P.sum()
        is_far_NA = ~is_object_NA & (assignment.overlap_NA < config.near_iou)
        share_NA = torch.where(is_far_NA, config.background_weight, 1.0) * sampled_NA
        objectness = _quality_focal(logits_NA, quality_NA, share_NA, config.focal_beta)
    if config.box == "smooth_l1":
        loss_P = functional.smooth_l1_loss(
            deltas_P4, encode_boxes(target_P4, anchors_P4), beta=config.smooth_l1_beta, reduction="none"
        ).sum(-1)
    else:
        loss_P = 1 - giou_P
    return LossSums(
        objectness=objectness,
        box=(loss_P * weight_P).sum(),
        normalizer=normalizer,
        num_objects=is_object_NA.sum(),
    )


def _rows_to_compare(is_object_NA: Tensor) -> Tensor | slice:
    """Returns the anchors, numbered over all images, whose boxes are compared: objects, and on a GPU all.

    On a GPU boxes cost almost nothing, but selecting objects would make the host wait for it in every step.
    """
    return slice(None) if is_object_NA.is_cuda else is_object_NA.flatten().nonzero().squeeze(1)


def _bce(logits_NA: Tensor, is_object_NA: Tensor, sampled_NA: Tensor) -> Tensor:
    """Sums the binary cross-entropy over the sampled anchors."""
    loss_NA = functional.binary_cross_entropy_with_logits(logits_NA, is_object_NA.float(), reduction="none")
    return (loss_NA * sampled_NA).sum()


def _quality_focal(logits_NA: Tensor, quality_NA: Tensor, share_NA: Tensor, beta: float) -> Tensor:
    """Sums share * |quality - score|^beta * BCE(score, quality); Li et al. 2020 (arXiv:2006.04388), equation 2."""
    loss_NA = functional.binary_cross_entropy_with_logits(logits_NA, quality_NA, reduction="none")
    focus_NA = (quality_NA - logits_NA.sigmoid()).abs().pow(beta)
    return (loss_NA * focus_NA * share_NA).sum()

"""Assignment of anchors to ground-truth boxes, and sampling of the anchors that enter the loss.

Legend of shape suffixes: N images, G ground-truth boxes (padded), A anchors of all levels, I ignore regions.
Labels: 1 object, 0 background, -1 ignored (no loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgerpn.errors import check_setting
from edgerpn.train.network.boxes import area, pairwise_intersection, pairwise_iou

OBJECT, BACKGROUND, IGNORED = 1, 0, -1


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig:
    """Assignment and sampling of anchors."""

    kind: Literal["atss", "max_iou"] = "atss"
    """`max_iou`: thresholds on IoU (Ren et al. 2015). `atss`: a threshold for each object (arXiv:1912.02424)."""
    positive_iou: float = 0.7
    """max_iou: anchors with at least this IoU with a box are objects."""
    negative_iou: float = 0.3
    """max_iou: anchors with less than this IoU with every box are background."""
    low_quality_matches: bool = True
    """max_iou: the best anchors of a box are objects even below `positive_iou`."""
    boundary_px: float | None = None
    """max_iou: anchors that exceed the image by more are ignored, pixels; not set: all anchors count."""
    atss_candidates: int = 9
    """atss: number of nearest anchors per level that are candidates for a box."""
    samples_per_image: int = 0
    """Number of anchors per image that enter the loss, drawn at random; 0: all of them."""
    positive_fraction: float = 0.5
    """Largest share of objects among the sampled anchors, 0..1."""
    ignore_ioa: float = 0.5
    """Background anchors with at least this share of their area in an ignore region have no loss."""

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                f"negative_iou: expected 0 <= negative_iou <= positive_iou <= 1, got {self.negative_iou} "
                f"and {self.positive_iou}"
            )
        check_setting(0 <= self.positive_fraction <= 1, "positive_fraction", "0..1", self.positive_fraction)
        if self.atss_candidates < 1 or self.samples_per_image < 0:
            raise ValueError("atss_candidates: expected at least 1, and samples_per_image at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Result of `assign`."""

    labels_NA: Tensor
    """(N, A) int64: 1 object, 0 background, -1 no loss."""
    matched_NA: Tensor
    """(N, A) int64: index of the ground-truth box of the anchor; valid where the label is 1."""
    overlap_NA: Tensor
    """(N, A) float32: largest IoU of the anchor with any ground-truth box, 0..1; 0 without boxes."""


def assign(
    anchors: list[Tensor],
    gt_boxes_NG4: Tensor,
    gt_mask_NG: Tensor,
    ignore_NI4: Tensor,
    ignore_mask_NI: Tensor,
    *,
    image_hw: tuple[int, int],
    config: AssignConfig,
) -> Assignment:
    """Assigns a label and a ground-truth box to every anchor, for all images at once.

    Args:
        anchors: One (A_level, 4) tensor for each level, pixels.
        gt_boxes_NG4: Padded ground-truth boxes, pixels.
        gt_mask_NG: True for rows with a box, false for padding.
        ignore_NI4: Padded regions in which background anchors have no loss, pixels.
        ignore_mask_NI: True for rows with a region.
        image_hw: Height and width of the input, pixels.
        config: Thresholds.
    """
    anchors_A4 = torch.cat(anchors)
    iou_NGA = pairwise_iou(gt_boxes_NG4, anchors_A4[None]).masked_fill(~gt_mask_NG[..., None], -1.0)
    if config.kind == "max_iou":
        labels_NA, matched_NA = _assign_max_iou(iou_NGA, anchors_A4, image_hw, config)
    else:
        labels_NA, matched_NA = _assign_atss(iou_NGA, anchors, gt_boxes_NG4, gt_mask_NG, config)
    covered_NIA = pairwise_intersection(ignore_NI4, anchors_A4[None]) / area(anchors_A4).clamp(min=1e-9)
    ignored_NA = ((covered_NIA >= config.ignore_ioa) & ignore_mask_NI[..., None]).any(dim=1)
    labels_NA = labels_NA.masked_fill(ignored_NA & (labels_NA == BACKGROUND), IGNORED)
    return Assignment(labels_NA=labels_NA, matched_NA=matched_NA, overlap_NA=iou_NGA.amax(dim=1).clamp(min=0))


def _assign_max_iou(
    iou_NGA: Tensor, anchors_A4: Tensor, image_hw: tuple[int, int], config: AssignConfig
) -> tuple[Tensor, Tensor]:
    """Returns labels and matched boxes by Ren et al. 2015, section 3.1.2.

    Ties and low-quality matches are those of py-faster-rcnn, torchvision and Detectron2.

    An anchor that a low-quality match makes an object belongs to the box that *it* overlaps most, which may differ from
    the box whose best anchor it is. Anchors beyond the boundary cannot be the best of a box, as in py-faster-rcnn: a
    box at the edge of the image gets the best anchor inside the boundary.
    """
    is_outside_A = torch.zeros_like(anchors_A4[:, 0], dtype=torch.bool)
    if config.boundary_px is not None:
        limit = config.boundary_px
        x1, y1, x2, y2 = anchors_A4.unbind(-1)
        is_outside_A = (x1 < -limit) | (y1 < -limit) | (x2 > image_hw[1] + limit) | (y2 > image_hw[0] + limit)
        iou_NGA = iou_NGA.masked_fill(is_outside_A, -1.0)
    best_NA, matched_NA = iou_NGA.max(dim=1)
    labels_NA = torch.full_like(matched_NA, IGNORED)
    labels_NA[best_NA < config.negative_iou] = BACKGROUND
    labels_NA[best_NA >= config.positive_iou] = OBJECT
    if config.low_quality_matches:
        best_NG = iou_NGA.amax(dim=2, keepdim=True)
        # A box that no anchor touches (best 0) has no best anchor, and neither has padding (best -1).
        is_best_NA = ((iou_NGA == best_NG) & (best_NG > 0)).any(dim=1)
        labels_NA[is_best_NA] = OBJECT
    labels_NA[:, is_outside_A] = IGNORED
    return labels_NA, matched_NA


def _assign_atss(
    iou_NGA: Tensor, anchors: list[Tensor], gt_boxes_NG4: Tensor, gt_mask_NG: Tensor, config: AssignConfig
) -> tuple[Tensor, Tensor]:
    """Returns labels and matched boxes by adaptive training sample selection.

    Source: Zhang et al. 2020 (arXiv:1912.02424), algorithm 1.

    1. Candidates of a box: on each level the anchors whose centres are nearest to its centre.
    2. Its threshold: mean plus standard deviation of the candidates' IoU with it.
    3. Objects: candidates at or above the threshold whose centre lies inside the box.
    4. An anchor that several boxes claim belongs to the one it overlaps most.
    """
    centers_A2 = torch.cat([(level[:, :2] + level[:, 2:]) / 2 for level in anchors])
    gt_centers_NG2 = (gt_boxes_NG4[..., :2] + gt_boxes_NG4[..., 2:]) / 2
    distance_NGA = (gt_centers_NG2[..., 0:1] - centers_A2[:, 0]) ** 2 + (
        gt_centers_NG2[..., 1:2] - centers_A2[:, 1]
    ) ** 2
    candidates, start = [], 0
    for level in anchors:  # step 1
        count = min(config.atss_candidates, len(level))
        nearest = distance_NGA[..., start : start + len(level)].topk(count, dim=-1, largest=False).indices
        candidates.append(nearest + start)
        start += len(level)
    candidates_NGC = torch.cat(candidates, dim=-1)
    candidate_iou_NGC = iou_NGA.gather(-1, candidates_NGC)
    # A single candidate has no deviation, so its own overlap is the threshold.
    deviation_NG1 = candidate_iou_NGC.std(-1, keepdim=True, correction=min(1, candidate_iou_NGC.shape[-1] - 1))
    threshold_NG1 = candidate_iou_NGC.mean(-1, keepdim=True) + deviation_NG1  # step 2
    x, y = centers_A2[candidates_NGC].unbind(-1)
    x1, y1, x2, y2 = gt_boxes_NG4[..., None].unbind(-2)
    inside_NGC = (x > x1) & (y > y1) & (x < x2) & (y < y2)
    chosen_NGC = (candidate_iou_NGC >= threshold_NG1) & inside_NGC & gt_mask_NG[..., None]  # step 3
    claimed_NGA = torch.zeros_like(iou_NGA, dtype=torch.bool).scatter(-1, candidates_NGC, chosen_NGC)
    claimed_iou_NGA = iou_NGA.masked_fill(~claimed_NGA, -1.0)
    best_NA, matched_NA = claimed_iou_NGA.max(dim=1)  # step 4
    return (best_NA >= 0).long(), matched_NA


def sample(
    labels_NA: Tensor, *, config: AssignConfig, generator: torch.Generator, part: tuple[int, int] | None = None
) -> Tensor:
    """Selects the anchors that enter the loss: (N, A) bool.

    Draws at most `positive_fraction` of `samples_per_image` objects, and background for the rest, uniformly; selects
    all labelled anchors if `samples_per_image` is 0.

    Args:
        labels_NA: Labels from `assign`.
        config: Counts.
        generator: Source of randomness, on the labels' device.
        part: For a part of a larger batch: the index of its first image in the batch, and the size of the batch. The
            random numbers are those of the whole batch, so an image's sample does not depend on the part.
    """
    if config.samples_per_image == 0:
        return labels_NA != IGNORED
    first, whole = part or (0, len(labels_NA))
    noise_NA = torch.rand((whole, labels_NA.shape[1]), generator=generator, device=labels_NA.device)
    noise_NA = noise_NA[first : first + len(labels_NA)]
    max_objects = int(config.samples_per_image * config.positive_fraction)
    return draw_sample(labels_NA, noise_NA, count=config.samples_per_image, max_objects=max_objects)


def draw_sample(labels_NA: Tensor, noise_NA: Tensor, *, count: int, max_objects: int) -> Tensor:
    """Draws the objects of each image with the smallest noise, at most `max_objects`, and fills up with background.

    Args:
        labels_NA: Labels as in `Assignment`.
        noise_NA: Random numbers, 0..1.
        count: Rows to draw for each image; fewer if there are fewer objects and background.
        max_objects: The most objects among them.

    Returns:
        (N, A) bool, true for the rows drawn.
    """
    objects_NA = _draw(labels_NA == OBJECT, noise_NA, torch.full_like(labels_NA[:, :1], max_objects))
    places_N1 = count - objects_NA.sum(dim=1, keepdim=True)
    return objects_NA | _draw(labels_NA == BACKGROUND, noise_NA, places_N1)


def _draw(allowed_NA: Tensor, noise_NA: Tensor, count_N1: Tensor) -> Tensor:
    """Returns true for the `count_N1` allowed anchors of each image with the smallest noise."""
    order_NA = noise_NA.masked_fill(~allowed_NA, 2.0).argsort(dim=1)
    rank_NA = torch.empty_like(order_NA).scatter(
        1, order_NA, torch.arange(order_NA.shape[1], device=order_NA.device).expand_as(order_NA)
    )
    return allowed_NA & (rank_NA < count_N1)

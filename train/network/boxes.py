"""Boxes as tensors: overlap, and the coding of a box as deltas from its anchor.

Boxes are x1, y1, x2, y2 in continuous pixels: width is x2 - x1, without the +1 of the original Caffe code.

Legend of shape suffixes: N images, G ground-truth boxes, A anchors, 4 box corners or deltas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Clamp of dw and dh: a 16 px anchor can grow to 1000 px, and exp stays finite in any precision (Detectron2)."""


def area(boxes_xyxy: Tensor) -> Tensor:
    """Returns areas of (..., 4) boxes in square pixels; 0 for a box with a negative side."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def pairwise_intersection(first_NG4: Tensor, second_NA4: Tensor) -> Tensor:
    """Returns the intersection areas (N, G, A) of every box of `first` with every box of `second`, square pixels."""
    # Column by column, because tensors with a last axis of 2 are several times slower on a CPU.
    left = torch.maximum(first_NG4[..., :, None, 0], second_NA4[..., None, :, 0])
    top = torch.maximum(first_NG4[..., :, None, 1], second_NA4[..., None, :, 1])
    right = torch.minimum(first_NG4[..., :, None, 2], second_NA4[..., None, :, 2])
    bottom = torch.minimum(first_NG4[..., :, None, 3], second_NA4[..., None, :, 3])
    return (right - left).clamp(min=0) * (bottom - top).clamp(min=0)


def pairwise_iou(first_NG4: Tensor, second_NA4: Tensor) -> Tensor:
    """Returns intersection over union (N, G, A), 0..1; 0 where both boxes are empty.

    Leading axes broadcast, so one set of anchors (1, A, 4) works with the boxes of N images.
    """
    intersection = pairwise_intersection(first_NG4, second_NA4)
    union = area(first_NG4)[..., :, None] + area(second_NA4)[..., None, :] - intersection
    return intersection / union.clamp(min=1e-9)


def paired_iou_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU (0..1) and generalized IoU (-1..1) of pairs of (..., 4) boxes.

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630).
    """
    lower = torch.maximum(first[..., :2], second[..., :2])
    upper = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (upper - lower).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = (area(first) + area(second) - intersection).clamp(min=1e-9)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=1e-9)
    iou = intersection / union
    return iou, iou - (hull_area - union) / hull_area


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Returns the deltas that move `anchors` onto `boxes`, the inverse of `decode_boxes`.

    Args:
        boxes: (..., 4) pixels; sides must be positive.
        anchors: (..., 4) pixels; sides must be positive; broadcasts against `boxes`.

    Returns:
        (..., 4): dx, dy in anchor widths and heights; dw, dh as natural logarithms of the size ratios.

    Source: Girshick et al. 2014, appendix C (arXiv:1311.2524).
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    box_size = boxes[..., 2:] - boxes[..., :2]
    # Half of (x1 + x2) differences, so that nothing is rounded to whole pixels.
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat((shift / anchor_size, (box_size / anchor_size).log()), dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Moves and scales anchors by predicted deltas, of which dw and dh are clamped to `MAX_LOG_SCALE`.

    Args:
        deltas: (..., 4) dx, dy in anchor sizes; dw, dh as natural logarithms.
        anchors: (..., 4) pixels; broadcasts against `deltas`.

    Returns:
        (..., 4) boxes in pixels, in the precision of the inputs, not clipped to the image.

    Source: Girshick et al. 2014, appendix C (arXiv:1311.2524); clamp as in Detectron2.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) * 0.5 + deltas[..., :2] * anchor_size
    half_size = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * (anchor_size * 0.5)
    return torch.cat((center - half_size, center + half_size), dim=-1)


def clip_boxes(boxes: Tensor, hw: tuple[int, int]) -> Tensor:
    """Clips (..., 4) boxes to an image of `hw` (height, width) pixels."""
    return torch.minimum(boxes.clamp(min=0), row_xyxy(boxes, hw[1], hw[0]))


def row_xyxy(boxes: Tensor, x: float, y: float) -> Tensor:
    """Returns (4,) x, y, x, y in type and device of `boxes`.

    Filled on the device: a copy of numbers from the host would make a GPU's stream wait, and forbid CUDA graphs.
    """
    return torch.cat([boxes.new_full((1,), side) for side in (x, y, x, y)])

"""Greedy non-maximum suppression in tensor form, with fixed shapes.

With boxes sorted by score and S[i, j] = "i comes before j and overlaps it by more than the threshold", greedy NMS is
the only solution of keep[j] = not any(keep[i] and S[i, j]). Iterating that equation from keep = all converges to it:
after t rounds every box whose longest chain of suppressors is shorter than t is final (Cluster-NMS, arXiv:2005.03572).
A box of rank j is final after j rounds at the latest, so the iteration always ends.

Legend of shape suffixes: N images, B boxes that compete.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Number of boxes that `nms_greedy` compares at a time; small enough for a CPU's cache."""

MIN_BOXES = 16
"""The portable form pads to this number of boxes: TensorRT-RTX 1.7 unrolls chains of smaller matrix products, so that a
level of 6 boxes takes minutes and gigabytes to compile."""


def overlap_matrix(boxes_NB4: Tensor, *, iou_threshold: float, labels_NB: Tensor | None = None) -> Tensor:
    """Returns S of the module docstring: (N, B, B) bool, strictly upper triangular; boxes sorted by score.

    Args:
        boxes_NB4: Pixels, float32.
        iou_threshold: Boxes that overlap by more than this compete.
        labels_NB: If not None, only boxes with the same label compete.
    """
    overlaps_NBB = _overlaps(boxes_NB4, boxes_NB4, iou_threshold).triu(diagonal=1)
    if labels_NB is None:
        return overlaps_NBB
    # A mask instead of an offset per label, because offset boxes lose the digits that determine the IoU.
    return overlaps_NBB & (labels_NB[:, :, None] == labels_NB[:, None, :])


def _overlaps(first_NB4: Tensor, second_NC4: Tensor, iou_threshold: float) -> Tensor:
    """Returns (N, B, C) bool: whether two boxes overlap by more than the threshold; an empty box overlaps nothing.

    The form (1 + t) * intersection > t * area + t * area of intersection > t * union needs no division, and one
    operation per pair on the right side.
    """
    area_NB1, area_N1C = _areas(first_NB4), _areas(second_NC4).transpose(1, 2)
    intersection_NBC = _intersections(first_NB4, second_NC4)
    return (1 + iou_threshold) * intersection_NBC > iou_threshold * area_NB1 + iou_threshold * area_N1C


def _areas(boxes_NB4: Tensor) -> Tensor:
    """Returns the areas (N, B, 1); 0 for inverted boxes."""
    left_NB1, top_NB1, right_NB1, bottom_NB1 = boxes_NB4.split(1, dim=2)
    return (right_NB1 - left_NB1).relu() * (bottom_NB1 - top_NB1).relu()


def _intersections(first_NB4: Tensor, second_NC4: Tensor) -> Tensor:
    """Returns the areas of the intersections (N, B, C), 0 or less for disjoint boxes.

    Clamping the width suffices: with a negative height the product is not positive.
    """
    # Column by column, because tensors with a last axis of 2 are several times slower on a CPU.
    left_NB1, top_NB1, right_NB1, bottom_NB1 = first_NB4.split(1, dim=2)
    left_N1C, top_N1C, right_N1C, bottom_N1C = second_NC4.transpose(1, 2).split(1, dim=1)
    width = torch.minimum(right_NB1, right_N1C) - torch.maximum(left_NB1, left_N1C)
    height = torch.minimum(bottom_NB1, bottom_N1C) - torch.maximum(top_NB1, top_N1C)
    return width.relu() * height


def largest_overlap(boxes_NB4: Tensor) -> Tensor:
    """Returns the largest IoU (N, B), 0..1, of each box with the boxes before it in the list; 0 for the first.

    With r = intersection / (area + area), IoU is r / (1 - r), which grows with r: the function takes the maximum of r
    and converts only the maxima to IoU.

    Args:
        boxes_NB4: Pixels, float32.
    """
    num_boxes = boxes_NB4.shape[1]
    # Blocks of rows, without the columns after a block: in a graph two, which spares a quarter of the matrix for a few
    # more operations; in PyTorch as many as fit a CPU's cache each.
    # The maximum runs along the last axis, which is the faster one in ONNX Runtime.
    step = -(-num_boxes // 2) if torch.compiler.is_exporting() else BLOCK
    area_NB1 = _areas(boxes_NB4)
    # The small number prevents 0 / 0 for two empty boxes; compared with the area of any kept box it is negligible.
    area_N1B = area_NB1.transpose(1, 2) + 1e-9
    parts = []
    for start in range(0, num_boxes, step):
        stop = min(start + step, num_boxes)
        intersection_NBC = _intersections(boxes_NB4[:, start:stop], boxes_NB4[:, :stop])
        ratio_NBC = intersection_NBC / (area_NB1[:, start:stop] + area_N1B[:, :, :stop])
        parts.append(ratio_NBC.tril(diagonal=start - 1).amax(dim=2))
    ratio_NB = torch.cat(parts, dim=1).clamp(min=0)
    return ratio_NB / (1 - ratio_NB)


def nms_fixed(
    boxes_NB4: Tensor,
    valid_NB: Tensor,
    *,
    iou_threshold: float,
    iterations: int,
    labels_NB: Tensor | None = None,
) -> Tensor:
    """Runs `iterations` rounds of the fixed-point iteration, in plain operations that every target compiles.

    Exact if `iterations` is at least the number that `nms_converged` returns. A round is keep = relu(valid - keep @ S):
    the product counts the kept boxes that suppress a box. A round is one matrix-vector product with an addition and a
    ReLU, which every compiler fuses. S is float16, half the bytes to read in every round; counts are exact up to 2048,
    and a rounded larger count still drops its box. IoU is float32.

    Measured against other forms (benchmarks/nms): maxima over booleans, S transposed and levels padded to one size
    are slower in ONNX Runtime on a CPU; blocks of the list are a quarter faster there, with twice as many dependent
    steps, which matter on a GPU. A shorter list (`ProposalConfig.nms_candidates`) with labels for its levels saves
    both. No form has been timed on a GPU.

    Args:
        boxes_NB4: Boxes sorted by descending score, pixels, float32.
        valid_NB: False for boxes that are neither kept nor suppress others.
        iou_threshold: Boxes that overlap a better kept box by more than this are dropped.
        iterations: Number of rounds, at least 1.
        labels_NB: If not None, only boxes with the same label compete.

    Returns:
        (N, B) bool, true for kept boxes.
    """
    num_boxes = boxes_NB4.shape[1]
    padding = max(0, MIN_BOXES - num_boxes)
    if padding:
        boxes_NB4 = functional.pad(boxes_NB4, (0, 0, 0, padding))
        valid_NB = functional.pad(valid_NB, (0, padding))
        labels_NB = None if labels_NB is None else functional.pad(labels_NB, (0, padding))
    overlaps_NBB = overlap_matrix(boxes_NB4, iou_threshold=iou_threshold, labels_NB=labels_NB)
    minus_NBB = -overlaps_NBB.to(torch.float16)
    valid_N1B = valid_NB[:, None, :].to(torch.float16)
    keep_N1B = valid_N1B
    # One round per box always suffices.
    for _ in range(min(iterations, num_boxes)):
        keep_N1B = (keep_N1B @ minus_NBB + valid_N1B).relu()
    return keep_N1B[:, 0, :num_boxes] > 0.5


def nms_converged(
    boxes_NB4: Tensor, valid_NB: Tensor, *, iou_threshold: float, labels_NB: Tensor | None = None
) -> tuple[Tensor, int]:
    """Iterates until nothing changes, which is exactly greedy NMS; arguments as in `nms_fixed`.

    Returns:
        (N, B) bool, true for kept boxes, and the number of rounds from which on `nms_fixed` is exact. That number is
        the smallest one, but at least 1.
    """
    overlaps_NBB = overlap_matrix(boxes_NB4, iou_threshold=iou_threshold, labels_NB=labels_NB).to(torch.float32)
    keep_NB, rounds = valid_NB, 0
    while True:
        suppressed_NB = (keep_NB[:, None, :].to(torch.float32) @ overlaps_NBB)[:, 0] > 0.5
        new_NB = valid_NB & ~suppressed_NB
        if torch.equal(new_NB, keep_NB):
            return keep_NB, max(rounds, 1)
        keep_NB, rounds = new_NB, rounds + 1


def nms_greedy(boxes_B4: Tensor, valid_B: Tensor, *, iou_threshold: float) -> Tensor:
    """Runs greedy NMS on one image, block by block against the boxes kept so far: the fast form outside a graph.

    Args:
        boxes_B4: Boxes sorted by descending score, pixels.
        valid_B: False for boxes that are neither kept nor suppress others.
        iou_threshold: As in `nms_fixed`.

    Returns:
        (B,) bool, true for kept boxes.
    """
    kept = [boxes_B4[None, :0]]
    keep_B = torch.zeros_like(valid_B)
    for start in range(0, len(boxes_B4), BLOCK):
        block_1B4, alive_B = boxes_B4[None, start : start + BLOCK], valid_B[start : start + BLOCK]
        alive_B = alive_B & ~_overlaps(torch.cat(kept, dim=1), block_1B4, iou_threshold)[0].any(dim=0)
        stay_1B, _ = nms_converged(block_1B4, alive_B[None], iou_threshold=iou_threshold)
        keep_B[start : start + BLOCK] = stay_1B[0]
        kept.append(block_1B4[:, stay_1B[0]])
    return keep_B


@torch.library.custom_op("edgerpn::nms_keep", mutates_args=())
def nms_keep(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int) -> Tensor:
    """Runs greedy NMS as one operator, which the exporter converts to ONNX NonMaxSuppression.

    Args:
        boxes: (N, B, 4) float32 pixels, sorted by descending score.
        scores: (N, C, B) float32 for C classes of boxes, which do not compete with each other; a box with a negative
            score in a class does not take part in it, and each box has a score in at most one class.
        iou_threshold: As in `nms_fixed`.
        max_keep: Number of boxes per class and image after which ONNX stops. This operator continues, which makes no
            difference to the best `max_keep`.

    Returns:
        (N, B) float32: 1 for kept boxes, 0 for the others.
    """
    keep_NB = torch.zeros_like(scores[:, 0])
    for image, own_boxes in enumerate(boxes):
        for own_scores in scores[image]:
            places = (own_scores >= 0).nonzero()[:, 0]
            if not len(places):
                continue
            competing = own_boxes[places]
            stay = nms_greedy(competing, torch.ones_like(places, dtype=torch.bool), iou_threshold=iou_threshold)
            keep_NB[image, places[stay]] = 1.0
    return keep_NB


@nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int) -> Tensor:
    return torch.empty_like(scores[:, 0])

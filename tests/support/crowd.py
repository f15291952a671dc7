"""Levels of a crowd: objects that do not overlap, with several boxes on each."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE_PX, PITCH_PX, STEP_PX = 20.0, 40.0, 1.2
PER_ROW = 10
CONTENT_HW = (400, 400)
"""Size of the part of the input that all boxes are in; there is room for 100 objects."""


def crowd(num_objects: int, num_boxes: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Makes one level of one image whose boxes are its anchors, by falling score and object after object.

    Of the boxes of an object only the first overlaps no better one. NMS at 0.9 keeps all: the largest IoU is 0.887.

    Args:
        num_objects: 1 to 100.
        num_boxes: Boxes on each object, 1 to 20.

    Returns:
        Logits (1, A) and deltas (1, A, 4), and the anchors (A, 4); A is num_objects * num_boxes.
    """
    number, copy = torch.arange(num_objects)[:, None], torch.arange(num_boxes)
    left = PITCH_PX * (number % PER_ROW) + STEP_PX * (copy % 4)
    top = PITCH_PX * (number // PER_ROW) + STEP_PX * (copy // 4)
    corners = torch.stack((left, top), dim=-1).flatten(0, 1)
    anchors = torch.cat((corners, corners + SIDE_PX), dim=1)
    # Scores of 0.95 to 0.73: a lowered one, 0.48 times as high, is below them all.
    logits = torch.linspace(3.0, 1.0, len(anchors))
    return [(logits[None], torch.zeros(1, len(anchors), 4))], [anchors]

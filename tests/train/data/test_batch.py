"""Padding of batches."""

from __future__ import annotations

import numpy as np
import torch

from edgerpn.train.data.batch import collate


def test_boxes_are_padded_with_zeros_and_masked() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    two = np.array([[1, 2, 3, 4, 6], [5, 6, 7, 8, 9]], np.float32)
    none = np.zeros((0, 4), np.float32)
    batch = collate([(image, two, none), (image, two[:0], none), (image, two[1:], none)], [7, 8, 9])
    assert batch.gt_boxes.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]], [[0] * 4] * 2, [[5, 6, 7, 8], [0] * 4]]
    assert batch.gt_mask.tolist() == [[True, True], [False, False], [True, False]]
    assert batch.gt_labels.tolist() == [[6, 9], [0, 0], [9, 0]]
    assert batch.ignore_boxes.tolist() == [[[0, 0, 0, 0]]] * 3
    assert batch.ignore_mask.tolist() == [[False]] * 3
    assert batch.image_ids == [7, 8, 9]
    assert torch.equal(batch.to("cpu").gt_boxes, batch.gt_boxes)

"""A training batch as tensors.

N images, H x W pixels, G the largest number of objects and I of ignore regions in the batch (at least 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.augment import Sample


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainBatch:
    """N training images with their objects and ignore regions."""

    images: torch.Tensor
    """(N, H, W, 3) uint8 BGR."""
    gt_boxes: torch.Tensor
    """(N, G, 4) float32 objects x1, y1, x2, y2 in input pixels; zero where `gt_mask` is false."""
    gt_mask: torch.Tensor
    """(N, G) bool, true for rows of `gt_boxes` with an object."""
    gt_labels: torch.Tensor
    """(N, G) int64 number of each object's class, as the records have it; 0 where `gt_mask` is false."""
    ignore_boxes: torch.Tensor
    """(N, I, 4) float32 regions that are neither object nor background; zero where `ignore_mask` is false."""
    ignore_mask: torch.Tensor
    """(N, I) bool, true for rows of `ignore_boxes` with a region."""
    image_ids: list[ImageId]
    """N COCO image ids."""

    @property
    def view_hw(self) -> tuple[int, int]:
        """Height and width of the views, pixels."""
        return self.images.shape[1], self.images.shape[2]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TrainBatch:
        """Returns the batch on `device`; with `non_blocking`, copies from pinned memory overlap with computing."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TrainBatch:
        """Returns a copy in page-locked memory; the DataLoader calls this."""
        return self._map(torch.Tensor.pin_memory)

    def share_memory(self) -> TrainBatch:
        """Moves the tensors into shared memory; returns a batch of the same tensors."""
        return self._map(torch.Tensor.share_memory_)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainBatch:
        return TrainBatch(
            images=change(self.images),
            gt_boxes=change(self.gt_boxes),
            gt_mask=change(self.gt_mask),
            gt_labels=change(self.gt_labels),
            ignore_boxes=change(self.ignore_boxes),
            ignore_mask=change(self.ignore_mask),
            image_ids=self.image_ids,
        )


def collate(samples: Sequence[Sample], image_ids: list[ImageId]) -> TrainBatch:
    """Collates N samples of one size into a batch.

    Args:
        samples: N times image (H, W, 3) uint8, objects (g, 5) and ignore regions (i, 4) float32.
        image_ids: N COCO ids.

    Returns:
        A batch of new tensors.
    """
    objects, gt_mask = _pad([boxes for _, boxes, _ in samples])
    ignore_boxes, ignore_mask = _pad([ignore for _, _, ignore in samples])
    return TrainBatch(
        images=torch.from_numpy(np.stack([image for image, _, _ in samples])),
        gt_boxes=objects[..., :4].contiguous(),
        gt_mask=gt_mask,
        gt_labels=objects[..., 4].to(torch.int64),
        ignore_boxes=ignore_boxes,
        ignore_mask=ignore_mask,
        image_ids=image_ids,
    )


def _pad(boxes: Sequence[npt.NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads N arrays (<= G, C) to (N, G, C) with zeros, with a mask (N, G)."""
    longest = max(1, *(len(rows) for rows in boxes))
    padded = torch.zeros(len(boxes), longest, boxes[0].shape[1])
    mask = torch.zeros(len(boxes), longest, dtype=torch.bool)
    for index, rows in enumerate(boxes):
        padded[index, : len(rows)] = torch.from_numpy(rows)
        mask[index, : len(rows)] = True
    return padded, mask

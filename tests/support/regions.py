"""RoIAlign by its definition, box by box and sample by sample, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def chosen_level(box: npt.NDArray[np.float32], strides_px: Sequence[int]) -> int:
    """Number of the level of a box: floor(4 + log2(side / 224)) is the logarithm of its stride, within the levels."""
    side = float(np.sqrt(np.prod(box[2:].astype(np.float64) - box[:2])))
    stride = 2.0 ** np.floor(4 + np.log2(side / 224))
    return max([0, *(number for number, own in enumerate(strides_px) if own <= stride)])


def pooled(
    maps_chw: Sequence[npt.NDArray[np.float32]],
    box: npt.NDArray[np.float32],
    strides_px: Sequence[int],
    output_hw: tuple[int, int],
) -> Array:
    """Features (C, h, w) of one box of one image."""
    number = chosen_level(box, strides_px)
    level = maps_chw[number].astype(np.float64)
    x1, y1, x2, y2 = box.astype(np.float64) / strides_px[number]
    height, width = output_hw
    found = np.zeros((len(level), height, width))
    for i in range(height):
        for j in range(width):
            for part_y in (0.25, 0.75):
                for part_x in (0.25, 0.75):
                    y = y1 + (i + part_y) * (y2 - y1) / height - 0.5
                    x = x1 + (j + part_x) * (x2 - x1) / width - 0.5
                    found[:, i, j] += _bilinear(level, y, x) / 4
    return found


def _bilinear(level: Array, y: float, x: float) -> Array:
    """Value (C,) between the middles of cells; beyond the outermost middles, theirs."""
    rows, columns = level.shape[1:]
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    upper = (1 - x + left) * level[:, top, left] + (x - left) * level[:, top, right]
    lower = (1 - x + left) * level[:, bottom, left] + (x - left) * level[:, bottom, right]
    found: Array = (1 - y + top) * upper + (y - top) * lower
    return found

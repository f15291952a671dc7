"""Features of proposals, read from the maps that the head reads.

Legend of shape suffixes: N images, K boxes, C channels, H and W rows and columns of a level's cells, P cells of all
levels in the order of `edgerpn.train.network.anchors`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""Features with a smaller norm stay (nearly) zero instead of being divided by zero."""


def cell_embeddings(maps_NCHW: Sequence[Tensor], anchors_NK: Tensor, *, num_per_cell: int) -> Tensor:
    """Returns the features of the cell whose anchor became each box, with a norm of 1.

    Args:
        maps_NCHW: One map per level, finest first, of one number of channels; any float precision.
        anchors_NK: Numbers of anchors over all levels, int64; -1 for a row without a box.
        num_per_cell: Anchors of each cell.

    Returns:
        (N, K, C) float32; rows without a box are zero.
    """
    cells_NCP = torch.cat([level.flatten(2) for level in maps_NCHW], dim=2)
    place_NK = anchors_NK.clamp(min=0)
    if num_per_cell > 1:
        # In float32, because a division of integers becomes seven operations in a graph; exact below 2 ** 22 anchors.
        place_NK = ((place_NK.float() + 0.5) / num_per_cell).to(torch.int64)
    place_NCK = place_NK[:, None].expand(-1, cells_NCP.shape[1], -1)
    rows_NKC = cells_NCP.gather(2, place_NCK).transpose(1, 2).float()
    norm_NK1 = (rows_NKC * rows_NKC).sum(dim=2, keepdim=True).sqrt().clamp(min=SMALLEST_NORM)
    is_box_NK1 = (anchors_NK >= 0).to(torch.float32)[..., None]
    return rows_NKC / norm_NK1 * is_box_NK1

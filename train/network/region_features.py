"""Features of proposals, read from the maps that the head reads: those of one cell, and those of the whole box.

Legend of shape suffixes: N images, K boxes, C channels, H and W rows and columns of a level's cells or of the canvas on
which all levels lie, P cells of all levels in the order of `edgerpn.train.network.anchors`, h and w rows and columns of
a box's features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

RoiForm = Literal["grid", "operator", "table"]
"""Form of RoIAlign: GridSample and ONNX RoiAlign for graphs, and sums of rows of a table, the fastest in PyTorch."""

CELLS_AT_224_PX = 14
"""Cells that a square box of 224 px covers along a side of its level (arXiv:1612.03144: 224 px belong to stride 16)."""

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


def roi_align(
    maps_NCHW: Sequence[Tensor],
    boxes_NK4: Tensor,
    strides_px: Sequence[int],
    *,
    output_hw: tuple[int, int],
    form: RoiForm = "table",
) -> Tensor:
    """Returns the features of boxes, each pooled from one level: RoIAlign with two samples a side of each output cell.

    The size of a box chooses its level, by the rule of FPN (arXiv:1612.03144, equation 1): the coarsest level on which
    the box covers at least 14 x 14 cells, by the square root of its area, else the finest. So 224 px belong to stride
    16, and with the strides 8 to 64 boxes below 224 px to stride 8, below 448 px to 16, below 896 px to 32.

    All levels lie on one canvas, each with a border that repeats its outermost cells, so that every box is sampled once
    and beyond a level's edge its edge counts.

    Args:
        maps_NCHW: One map per level, finest first, of one number of channels; any float precision. The result is
            differentiable with respect to them.
        boxes_NK4: x1, y1, x2, y2, pixels of the network's input, inside it; taken as constants.
        strides_px: Pixels between neighbouring cells of each level, ascending.
        output_hw: Rows and columns of a box's features.
        form: The values are the same. In PyTorch `table` takes half the time of `grid` on a CPU, also of its gradient,
            and `operator` has no gradient.

    Returns:
        (N, K, C, h, w) float32, the values of torchvision's `roi_align(aligned=True, sampling_ratio=2)`.

    Source: He et al. 2017 (arXiv:1703.06870, section 3), with the half-pixel shift of Detectron2.
    """
    canvas_NCHW, corners = _canvas([level.float() for level in maps_NCHW])
    places_NK4 = _on_canvas(boxes_NK4.detach().float(), strides_px, corners)
    if form == "operator":
        return roi_operator(canvas_NCHW, places_NK4, *output_hw)
    return (_sum_rows if form == "table" else _sample)(canvas_NCHW, places_NK4, output_hw)


def _canvas(maps_NCHW: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Lays the finest level on the left and the others below each other on the right; x and y of their first cells."""
    finest_NCHW, *others = (functional.pad(level, (1, 1, 1, 1), mode="replicate") for level in maps_NCHW)
    if not others:
        return finest_NCHW, [(1, 1)]
    width = max(level.shape[3] for level in others)
    column_NCHW = torch.cat([functional.pad(level, (0, width - level.shape[3])) for level in others], dim=2)
    height = max(finest_NCHW.shape[2], column_NCHW.shape[2])
    sides = [functional.pad(side, (0, 0, 0, height - side.shape[2])) for side in (finest_NCHW, column_NCHW)]
    tops = itertools.accumulate((level.shape[2] for level in others[:-1]), initial=1)
    return torch.cat(sides, dim=3), [(1, 1), *((finest_NCHW.shape[3] + 1, top) for top in tops)]


def _on_canvas(boxes_NK4: Tensor, strides_px: Sequence[int], corners: Sequence[tuple[int, int]]) -> Tensor:
    """Returns the boxes (N, K, 4) in cells of the canvas."""
    area_NK1 = (boxes_NK4[..., 2:3] - boxes_NK4[..., :1]) * (boxes_NK4[..., 3:] - boxes_NK4[..., 1:2])
    scale_NK1, left_NK1, top_NK1 = (torch.full_like(area_NK1, value) for value in (1 / strides_px[0], *corners[0]))
    # Numbers of a table would come from the host.
    for stride, (left, top) in zip(strides_px[1:], corners[1:], strict=True):
        is_on_it = area_NK1 >= (CELLS_AT_224_PX * stride) ** 2
        scale_NK1 = torch.where(is_on_it, 1 / stride, scale_NK1)
        left_NK1 = torch.where(is_on_it, float(left), left_NK1)
        top_NK1 = torch.where(is_on_it, float(top), top_NK1)
    return boxes_NK4 * scale_NK1 + torch.cat([left_NK1, top_NK1, left_NK1, top_NK1], dim=2)


def _sample(canvas_NCHW: Tensor, places_NK4: Tensor, output_hw: tuple[int, int]) -> Tensor:
    """Bilinear samples at the middles of a grid of 2 h x 2 w parts of each box, and the mean of each four."""
    rows, columns = canvas_NCHW.shape[2:]
    num_boxes, (height, width) = places_NK4.shape[1], output_hw
    left_NK1, top_NK1, right_NK1, bottom_NK1 = places_NK4.split(1, dim=2)
    x_NKw = left_NK1 + (right_NK1 - left_NK1) * _middles(2 * width, places_NK4)
    y_NKh = top_NK1 + (bottom_NK1 - top_NK1) * _middles(2 * height, places_NK4)
    # From cells to -1..1 over the canvas, as grid_sample takes them.
    x_NKhw = (x_NKw * (2 / columns) - 1)[:, :, None].expand(-1, -1, 2 * height, -1)
    y_NKhw = (y_NKh * (2 / rows) - 1)[..., None].expand(-1, -1, -1, 2 * width)
    grid = torch.stack((x_NKhw, y_NKhw), dim=-1).reshape(-1, num_boxes * 2 * height, 2 * width, 2)
    samples = functional.grid_sample(canvas_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    means = functional.avg_pool2d(samples, 2)
    return means.reshape(-1, canvas_NCHW.shape[1], num_boxes, height, width).transpose(1, 2)


def _sum_rows(canvas_NCHW: Tensor, places_NK4: Tensor, output_hw: tuple[int, int]) -> Tensor:
    """The same as `_sample`: each value is a sum of sixteen cells, the four around each of four samples."""
    num_images, channels, rows, columns = canvas_NCHW.shape
    num_boxes, (height, width) = places_NK4.shape[1], output_hw
    left_NK1, top_NK1, right_NK1, bottom_NK1 = places_NK4.split(1, dim=2)
    column_NKw4, share_x_NKw4 = _cells(left_NK1, right_NK1, width, columns)
    row_NKh4, share_y_NKh4 = _cells(top_NK1, bottom_NK1, height, rows)
    first_N = torch.arange(0, num_images * rows * columns, rows * columns, device=places_NK4.device)
    place = row_NKh4[:, :, :, None, :, None] * columns + column_NKw4[:, :, None, :, None, :]
    share = share_y_NKh4[:, :, :, None, :, None] * share_x_NKw4[:, :, None, :, None, :]
    table = canvas_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    place = (place + first_N.view(-1, 1, 1, 1, 1, 1)).reshape(-1, 16)
    sums = functional.embedding_bag(place, table, per_sample_weights=share.reshape(-1, 16), mode="sum")
    return sums.view(num_images, num_boxes, height, width, channels).permute(0, 1, 4, 2, 3)


def _cells(start_NK1: Tensor, stop_NK1: Tensor, parts: int, count: int) -> tuple[Tensor, Tensor]:
    """Cells (N, K, parts, 4) int64 beside the two samples of each part along an axis of `count` cells; their shares."""
    sample_NKs = start_NK1 + (stop_NK1 - start_NK1) * _middles(2 * parts, start_NK1) - 0.5
    cell_NKs = sample_NKs.clamp(0, count - 1).floor().clamp(max=count - 2)
    far_NKs = (sample_NKs - cell_NKs).clamp(0, 1)
    cells_NKs2 = torch.stack((cell_NKs, cell_NKs + 1), dim=3).to(torch.int64)
    shares_NKs2 = torch.stack((1 - far_NKs, far_NKs), dim=3) / 2
    return cells_NKs2.unflatten(2, (parts, 2)).flatten(3), shares_NKs2.unflatten(2, (parts, 2)).flatten(3)


def _middles(count: int, like: Tensor) -> Tensor:
    """Middles (count,) of equal parts of 0..1."""
    return (torch.arange(count, dtype=torch.float32, device=like.device) + 0.5) / count


@torch.library.custom_op("edgerpn::roi_operator", mutates_args=())
def roi_operator(canvas: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Runs RoIAlign on a canvas as one operator, which the exporter converts to ONNX RoiAlign; without gradient.

    Args:
        canvas: (N, C, H, W) float32.
        places: (N, K, 4) float32 boxes in cells of the canvas.
        height: Rows of a box's features.
        width: Columns of a box's features.

    Returns:
        (N, K, C, height, width) float32.
    """
    return _sum_rows(canvas, places, (height, width)).contiguous()


@roi_operator.register_fake
def _(canvas: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    return canvas.new_empty((canvas.shape[0], places.shape[1], canvas.shape[1], height, width))

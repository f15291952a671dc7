"""Anchors: reference boxes of several sizes and shapes at every cell of every pyramid level.

Order of the anchors of an image: levels, finest first; rows and cells of a level; sizes of a cell; ratios of a size.
The head's outputs have the same order. docs/conventions.md lists the options for the anchors of other implementations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgerpn.errors import check_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorConfig:
    """Strides, sizes and shapes of the anchors. Default: one square per cell, four strides wide."""

    strides_px: tuple[int, ...] = (8, 16, 32, 64)
    """Pixels between neighbouring cells per level, finest first; powers of two that the backbone or neck offers."""
    sizes_px: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,))
    """Square roots of the anchor areas per level, pixels of the network's input."""
    ratios_hw: tuple[float, ...] = (1.0,)
    """Height / width of the anchors; every size has every ratio."""
    center_offset: float = 0.5
    """Position of an anchor's centre in its cell, in strides: 0.5 is the middle of the cell's pixels."""
    rounding: Literal["none", "corners", "base"] = "none"
    """Rounding to whole pixels: none, of the corners of a cell's anchors, or of the sides of a stride-sized anchor."""
    spacing: Literal["stride", "grid"] = "stride"
    """Distance of neighbouring cells: the stride, or input size / number of cells, rounded down (`grid`)."""

    def __post_init__(self) -> None:
        if not self.strides_px or any(s < 1 or s & (s - 1) for s in self.strides_px):
            raise ValueError(f"strides_px: expected powers of two, got {self.strides_px}")
        check_setting(list(self.strides_px) == sorted(self.strides_px), "strides_px", "finest first", self.strides_px)
        if len(self.sizes_px) != len(self.strides_px):
            raise ValueError(
                f"sizes_px: expected one list for each of {len(self.strides_px)} levels, got {self.sizes_px}"
            )
        if len({len(sizes) for sizes in self.sizes_px}) != 1 or not self.sizes_px[0]:
            raise ValueError(f"sizes_px: expected the same number of sizes on every level, got {self.sizes_px}")
        check_setting(
            all(size > 0 for sizes in self.sizes_px for size in sizes), "sizes_px", "positive sizes", self.sizes_px
        )
        check_setting(min(self.ratios_hw, default=0) > 0, "ratios_hw", "positive ratios", self.ratios_hw)

    @property
    def num_per_cell(self) -> int:
        """Number of anchors per cell."""
        return len(self.sizes_px[0]) * len(self.ratios_hw)

    def misfit(self, hw: tuple[int, int]) -> str | None:
        """Returns why a network with these levels cannot work at `hw` (height, width) pixels, or None if it can."""
        stride = max(self.strides_px)
        if self.spacing == "grid":
            # The input's size determines the cells of such levels; they need not align.
            return None if min(hw) >= stride else f"both sides must be at least {stride}, the coarsest stride"
        if hw[0] % stride == 0 and hw[1] % stride == 0 and min(hw) > 0:
            return None
        near = "x".join(str(max(stride, round(side / stride) * stride)) for side in hw)
        return f"both sides must be multiples of {stride}, the coarsest stride of this model; use {near}"

    def level_hw(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns rows and columns of cells per level, rounded up, because strided convolutions pad."""
        height, width = image_hw
        return tuple((math.ceil(height / s), math.ceil(width / s)) for s in self.strides_px)


def cell_anchors(
    sizes_px: tuple[float, ...],
    ratios_hw: tuple[float, ...],
    *,
    rounding: Literal["none", "corners", "base"] = "none",
    stride_px: int = 16,
) -> Tensor:
    """Returns the anchors of one cell, centred at the origin.

    Args:
        sizes_px: Square roots of the anchor areas, pixels.
        ratios_hw: Height / width.
        rounding: `none`; `corners` rounds every corner to whole pixels, half to even (torchvision, AnchorGenerator);
            `base` rounds width and height of a stride-sized anchor, and scales it to each size
            (py-faster-rcnn, generate_anchors.py).
        stride_px: Size of the anchor that `base` rounds, pixels.

    Returns:
        (sizes * ratios, 4) float32 pixels, x1, y1, x2, y2.
    """
    corners = []
    for size in sizes_px:
        for ratio in ratios_hw:
            width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)
            if rounding == "base":
                # Python rounds half to even, as NumPy does.
                base_w = round(math.sqrt(stride_px * stride_px / ratio))
                width, height = base_w * size / stride_px, round(base_w * ratio) * size / stride_px
            corners.append((-width / 2, -height / 2, width / 2, height / 2))
    anchors = torch.tensor(corners, dtype=torch.float32)
    return anchors.round() if rounding == "corners" else anchors


def grid_anchors(config: AnchorConfig, image_hw: tuple[int, int]) -> list[Tensor]:
    """Returns all anchors for an input of `image_hw` (height, width) pixels.

    Returns:
        One float32 tensor of (H * W * anchors per cell, 4) pixels per level, on the CPU, not clipped.
    """
    levels = []
    for stride, sizes, (rows, columns) in zip(
        config.strides_px, config.sizes_px, config.level_hw(image_hw), strict=True
    ):
        is_grid = config.spacing == "grid"
        step_y, step_x = (image_hw[0] // rows, image_hw[1] // columns) if is_grid else (stride, stride)
        y = (torch.arange(rows, dtype=torch.float32) + config.center_offset) * step_y
        x = (torch.arange(columns, dtype=torch.float32) + config.center_offset) * step_x
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
        cell = cell_anchors(sizes, config.ratios_hw, rounding=config.rounding, stride_px=stride)
        levels.append((centers + cell).reshape(-1, 4))
    return levels

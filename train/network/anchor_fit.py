"""Fitting of anchors to boxes, by their recall before a network refines them.

Of all anchors of one shape, the one in the nearest cell overlaps a box most, so the shapes determine the best anchor of
a box without the grid.

Legend of shape suffixes: G boxes, S anchor shapes of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.train.network.anchors import AnchorConfig

Array = npt.NDArray[np.float64]

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""IoU thresholds of average recall."""
_FIRST_STEP, _LAST_STEP = 0.35, 0.01
"""First and last step of the search, as natural logarithms of a size or ratio."""
_SOFTNESS = 0.03
"""Width of the soft thresholds, IoU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorRecall:
    """Fit of the best anchor of each box, before any network."""

    average: float
    """Share of boxes whose best anchor reaches an IoU, averaged over IoU 0.50, 0.55, ..., 0.95."""
    at_50: float
    """The same at IoU 0.5."""
    at_70: float
    """The same at IoU 0.7, the paper's threshold for objects."""
    num_anchors: int
    """Number of anchors of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorLayout:
    """Levels and numbers of anchors; the fit determines sizes and ratios."""

    strides_px: tuple[int, ...]
    """Strides of the levels, finest first."""
    num_sizes: int
    """Sizes per cell."""
    num_ratios: int
    """Ratios per size."""


def measure_anchors(config: AnchorConfig, boxes_G4: Array, image_hw: tuple[int, int]) -> AnchorRecall:
    """Measures the recall of the anchors alone.

    Args:
        config: The anchors.
        boxes_G4: Ground-truth boxes x1, y1, x2, y2, pixels of the network's input; at least one.
        image_hw: Height and width of that input, pixels.
    """
    best_G = _best_iou(config, boxes_G4, image_hw)
    cells = sum(rows * columns for rows, columns in config.level_hw(image_hw))
    return AnchorRecall(
        # The thresholds are sums of floats; the small number makes an IoU of exactly 0.55 reach 0.55.
        average=float((best_G[:, None] >= THRESHOLDS - 1e-9).mean()),
        at_50=float((best_G >= 0.5).mean()),
        at_70=float((best_G >= 0.7).mean()),
        num_anchors=cells * config.num_per_cell,
    )


def fit_anchors(layout: AnchorLayout, boxes_G4: Array, image_hw: tuple[int, int]) -> AnchorConfig:
    """Fits sizes and ratios of a layout by the recall of the anchors.

    Coordinate-wise hill climbing with decreasing steps, from quantiles of the boxes. It maximises average recall with
    soft thresholds, which has no plateaus. It is deterministic.

    Args:
        layout: Levels, and numbers of sizes and ratios; a single ratio is 1.
        boxes_G4: Ground-truth boxes x1, y1, x2, y2, pixels of the network's input; at least one.
        image_hw: Height and width of that input, pixels.
    """
    num_sizes = len(layout.strides_px) * layout.num_sizes

    def build(values: list[float]) -> AnchorConfig:
        sizes = [_rounded(math.exp(size)) for size in sorted(values[:num_sizes])]
        ratios = [_rounded(math.exp(ratio)) for ratio in sorted(values[num_sizes:])] or [1.0]
        return AnchorConfig(
            strides_px=layout.strides_px,
            sizes_px=tuple(
                tuple(sizes[start : start + layout.num_sizes]) for start in range(0, num_sizes, layout.num_sizes)
            ),
            ratios_hw=tuple(ratios),
        )

    def score(values: list[float]) -> float:
        return _soft_recall(_best_iou(build(values), boxes_G4, image_hw))

    return build(_hill_climb(_start(boxes_G4, num_sizes, layout.num_ratios), score))


def _start(boxes_G4: Array, num_sizes: int, num_ratios: int) -> list[float]:
    """Returns logarithms of sizes at even quantiles of the boxes, then of ratios (if there are several)."""
    width_G, height_G = _sides(boxes_G4)
    quantiles = (np.arange(num_sizes) + 0.5) / num_sizes
    sizes = np.quantile(0.5 * np.log(width_G * height_G), quantiles)
    if num_ratios == 1:
        return list(sizes)
    ratios = np.quantile(np.log(height_G / width_G), (np.arange(num_ratios) + 0.5) / num_ratios)
    return [*sizes, *ratios]


def _hill_climb(values: list[float], score: Callable[[list[float]], float]) -> list[float]:
    best, step = score(values), _FIRST_STEP
    while step >= _LAST_STEP:
        has_moved = False
        for index in range(len(values)):
            for change in (step, -step):
                tried = [value + change * (number == index) for number, value in enumerate(values)]
                found = score(tried)
                if found > best + 1e-9:
                    values, best, has_moved = tried, found, True
                    break
        if not has_moved:
            step /= 2
    return values


def _soft_recall(best_G: Array) -> float:
    """Returns average recall with soft thresholds, plus a small share of the mean IoU."""
    reached_GT = 1 / (1 + np.exp((THRESHOLDS - best_G[:, None]) / _SOFTNESS))
    return float(reached_GT.mean() + 0.1 * best_G.mean())


def _rounded(value: float) -> float:
    """Rounds to three digits, which is readable and precise enough."""
    return float(f"{value:.3g}")


def _sides(boxes_G4: Array) -> tuple[Array, Array]:
    return boxes_G4[:, 2] - boxes_G4[:, 0], boxes_G4[:, 3] - boxes_G4[:, 1]


def _best_iou(config: AnchorConfig, boxes_G4: Array, image_hw: tuple[int, int]) -> Array:
    """Returns (G,), the IoU of each box with its best anchor."""
    best_G = np.zeros(len(boxes_G4))
    width_G, height_G = _sides(boxes_G4)
    center_x_G, center_y_G = (boxes_G4[:, 0] + boxes_G4[:, 2]) / 2, (boxes_G4[:, 1] + boxes_G4[:, 3]) / 2
    for stride, sizes, (rows, columns) in zip(
        config.strides_px, config.sizes_px, config.level_hw(image_hw), strict=True
    ):
        off_x_G = _offset(center_x_G, stride, columns, config.center_offset)
        off_y_G = _offset(center_y_G, stride, rows, config.center_offset)
        for size in sizes:
            for ratio in config.ratios_hw:
                width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)
                both_G = _common(width_G, width, off_x_G) * _common(height_G, height, off_y_G)
                best_G = np.maximum(best_G, both_G / (width_G * height_G + width * height - both_G))
    return best_G


def _offset(center_G: Array, stride_px: int, cells: int, center_offset: float) -> Array:
    """Returns the distance of each centre from that of the nearest cell, along one axis."""
    cell_G = np.clip(np.round(center_G / stride_px - center_offset), 0, cells - 1)
    return np.abs(center_G - (cell_G + center_offset) * stride_px)


def _common(side_G: Array, side: float, offset_G: Array) -> Array:
    """Returns the common length of two intervals whose centres have the distance `offset_G`."""
    return np.clip(np.minimum(np.minimum(side_G, side), (side_G + side) / 2 - offset_G), 0, None)


def similar_layouts(strides_px: tuple[int, ...], image_hw: tuple[int, int]) -> list[AnchorLayout]:
    """Returns layouts to compare with one of `strides_px`: a level more or less, more anchors per cell."""
    levels = [strides_px, (*strides_px, 2 * strides_px[-1])]
    if len(strides_px) > 1:
        levels += [strides_px[1:], (*strides_px[1:], 2 * strides_px[-1])]
    usable = [strides for strides in levels if all(side % strides[-1] == 0 for side in image_hw)]
    return [
        AnchorLayout(strides_px=strides, num_sizes=sizes, num_ratios=ratios)
        for sizes, ratios in ((1, 1), (2, 1), (1, 3), (3, 3))
        for strides in usable
    ]

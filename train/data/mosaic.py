"""Views put together from four images, a rectangle for each: more objects and more neighbours in every step.

Source of the idea: YOLOv4 (arXiv:2004.10934, section 3.3). Each part is a view of its own, at the scale of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgerpn.train.data.batch import Sample

NUM_TILES = 4
"""Images of a mosaic."""
SMALLEST_PX = 32
"""Views with a shorter side show one image: parts of them would show nothing."""
_LEAST = 0.25
"""Smallest share of the view's height and width that a part has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A rectangle of a view, in whole pixels."""

    top: int
    left: int
    hw: tuple[int, int]


def draw_tiles(view_hw: tuple[int, int], rng: np.random.Generator) -> tuple[Tile, Tile, Tile, Tile]:
    """Four rectangles that meet in a point near the middle and fill a view of `view_hw` (height, width) pixels."""
    height, width = view_hw
    chance = _LEAST + (1 - 2 * _LEAST) * rng.random(2)
    y, x = int(height * chance[0]), int(width * chance[1])
    return (
        Tile(top=0, left=0, hw=(y, x)),
        Tile(top=0, left=x, hw=(y, width - x)),
        Tile(top=y, left=0, hw=(height - y, x)),
        Tile(top=y, left=x, hw=(height - y, width - x)),
    )


def put_together(view_hw: tuple[int, int], tiles: tuple[Tile, ...], show: Callable[[int, Tile], Sample]) -> Sample:
    """Shows a view in each of the tiles that fill a view of `view_hw`.

    Args:
        view_hw: Height and width of the whole, pixels.
        tiles: What fills it.
        show: From the number of a tile and the tile to its view, as large as the tile.

    Returns:
        The whole view (H, W, 3) uint8 BGR, its objects (G, 4) and its ignore regions (I, 4), float32 view pixels; new.
    """
    canvas = np.empty((*view_hw, 3), np.uint8)
    objects, ignored = [], []
    for number, tile in enumerate(tiles):
        part, boxes, regions = show(number, tile)
        canvas[tile.top : tile.top + tile.hw[0], tile.left : tile.left + tile.hw[1]] = part
        shift = np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
        objects.append(boxes + shift)
        ignored.append(regions + shift)
    return canvas, np.concatenate(objects), np.concatenate(ignored)

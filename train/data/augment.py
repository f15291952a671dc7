"""Random views of an image for training: flip, scale, aspect, placement and colour, in one resize.

`draw_view` draws the random numbers and `apply_view` changes the pixels. The numbers do not depend on the image, so a
loader knows the scale before it decodes the file, and may decode a smaller picture.

Scale 1 is the letterbox fit that inference uses (`edgerpn.letterbox`), and so is the grey around the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.errors import check_setting
from edgerpn.letterbox import PAD_VALUE

Sample = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Image (H, W, 3) uint8 BGR, objects (g, 5) and ignore regions (i, 4), float32 pixels; fifth is the class."""
NUM_TILES = 4
"""Images of a mosaic."""
SMALLEST_PX = 32
"""Views with a shorter side show a single image, because the parts of a mosaic would be too small."""
_LEAST = 0.25
"""Smallest share of the view's height and width for a tile."""

# YIQ (NTSC 1953) from BGR; its I-Q plane is rotated by a change of hue and stretched by one of saturation.
_YIQ_FROM_BGR = np.array([[0.114, 0.587, 0.299], [-0.322, -0.274, 0.596], [0.312, -0.523, 0.211]])
_BGR_FROM_YIQ = np.linalg.inv(_YIQ_FROM_BGR)
_MIDDLE = 127.5


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Limits of the random changes of training views, relative to the letterboxed image."""

    flip_probability: float = 0.5
    """Probability of a horizontal flip, 0..1."""
    scale_range: tuple[float, float] = (0.4, 1.4)
    """Smallest and largest size relative to the letterbox fit; log-uniform between them."""
    aspect_jitter: float = 0.15
    """Largest change of width / height in either direction, as a natural logarithm."""
    color_probability: float = 0.8
    """Probability of a change of colours, 0..1."""
    brightness: float = 0.25
    """Largest relative change of all levels in either direction, 0..1."""
    contrast: float = 0.25
    """Largest relative change of the distance from mid-grey in either direction, 0..1."""
    saturation: float = 0.4
    """Largest relative change of the distance from grey in either direction, 0..1."""
    hue: float = 0.02
    """Largest rotation of the hue in either direction, in full turns, 0..0.5."""
    mosaic_probability: float = 0.5
    """Probability that a view is a mosaic of four images, 0..1."""
    min_visible: float = 0.3
    """Share of a box's area that must be in view, 0..1; a box with less becomes an ignore region."""
    min_box_px: float = 2.0
    """Smallest side of boxes and regions in the view, pixels; smaller ones are dropped."""

    def __post_init__(self) -> None:
        for name in (
            "flip_probability",
            "color_probability",
            "brightness",
            "contrast",
            "saturation",
            "min_visible",
            "mosaic_probability",
        ):
            value = getattr(self, name)
            check_setting(0 <= value <= 1, name, "0..1", value)
        low, high = self.scale_range
        check_setting(
            0 < low <= high < math.inf, "scale_range", "two positive numbers, the smaller first", self.scale_range
        )
        check_setting(0 <= self.aspect_jitter <= 1, "aspect_jitter", "0..1", self.aspect_jitter)
        check_setting(0 <= self.hue <= 0.5, "hue", "0..0.5 turns", self.hue)
        check_setting(0 <= self.min_box_px < math.inf, "min_box_px", "0 or more", self.min_box_px)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomView:
    """Random parameters of one view, independent of the image's size; `draw_view` draws them."""

    flip: bool
    """Whether to flip horizontally."""
    scale: float
    """Size relative to the letterbox fit."""
    log_aspect: float
    """Natural logarithm of the change of width / height."""
    place_xy: tuple[float, float]
    """Position of the image within its free range along x and y, 0 (left, top) to 1."""
    color: tuple[float, float, float, float] | None
    """Factors of brightness, contrast and saturation and the rotation of the hue in radians, or None."""

    def scale_xy(self, source_hw: tuple[int, int], fit_hw: tuple[int, int]) -> tuple[float, float]:
        """Returns view pixels per image pixel along x and y, before sizes are rounded to whole pixels."""
        fit = min(fit_hw[0] / source_hw[0], fit_hw[1] / source_hw[1])
        stretch = math.exp(self.log_aspect / 2)
        return fit * self.scale * stretch, fit * self.scale / stretch


@dataclass(frozen=True, kw_only=True, slots=True)
class _AxisCrop:
    """Mapping of one axis: `crop` source pixels from `start` become `size` view pixels from `offset`."""

    start: int
    crop: int
    offset: int
    size: int

    @property
    def scale(self) -> float:
        return self.size / self.crop


def draw_view(config: AugmentConfig, rng: np.random.Generator) -> RandomView:
    """Draws a view; always takes the same number of random numbers from `rng`."""
    chance = rng.random(10).tolist()
    low, high = (math.log(limit) for limit in config.scale_range)
    brightness, contrast, saturation, hue = (2 * value - 1 for value in chance[6:])
    color = (
        1 + config.brightness * brightness,
        1 + config.contrast * contrast,
        1 + config.saturation * saturation,
        2 * math.pi * config.hue * hue,
    )
    return RandomView(
        flip=chance[0] < config.flip_probability,
        scale=math.exp(low + (high - low) * chance[1]),
        log_aspect=config.aspect_jitter * (2 * chance[2] - 1),
        place_xy=(chance[3], chance[4]),
        color=color if chance[5] < config.color_probability else None,
    )


def scale_limits(config: AugmentConfig, source_hw: tuple[int, int], fit_hw: tuple[int, int]) -> tuple[float, float]:
    """Returns the smallest and largest scale (of the larger axis) at which a view may show an image."""
    low, high = (
        RandomView(flip=False, scale=scale, log_aspect=log_aspect, place_xy=(0.0, 0.0), color=None)
        for scale, log_aspect in zip(config.scale_range, (0.0, config.aspect_jitter), strict=True)
    )
    return max(low.scale_xy(source_hw, fit_hw)), max(high.scale_xy(source_hw, fit_hw))


def apply_view(
    view: RandomView,
    image: npt.NDArray[np.uint8],
    boxes_xyxy: npt.NDArray[np.float32],
    ignore_xyxy: npt.NDArray[np.float32],
    *,
    out_hw: tuple[int, int],
    config: AugmentConfig,
    fit_hw: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Shows an image and its boxes in a view.

    Args:
        view: Parameters of the view; see `draw_view`.
        image: (H, W, 3) uint8 BGR.
        boxes_xyxy: (G, 4) float32 objects, image pixels, inside the image. Further columns stay with their boxes.
        ignore_xyxy: (I, 4) float32 ignore regions, image pixels, inside the image.
        out_hw: Height and width of the view, pixels.
        config: `min_visible` and `min_box_px` apply to the boxes.
        fit_hw: Height and width that scale 1 fits the image into, pixels; None: those of the view. A view may show a
            part of the input of inference.

    Returns:
        The view (H, W, 3) uint8 BGR, its objects (G', 4) and its ignore regions (I', 4), float32 view pixels inside
        the view; new arrays. Objects with too little in view become ignore regions.
    """
    scale_x, scale_y = view.scale_xy((image.shape[0], image.shape[1]), fit_hw or out_hw)
    span_x = _span(image.shape[1], out_hw[1], scale_x, view.place_xy[0])
    span_y = _span(image.shape[0], out_hw[0], scale_y, view.place_xy[1])
    canvas = _paint(view, image, span_x, span_y, out_hw)
    boxes, is_visible = _show_boxes(boxes_xyxy, span_x, span_y, view.flip, config)
    ignore, _ = _show_boxes(ignore_xyxy, span_x, span_y, view.flip, config)
    return canvas, boxes[is_visible], np.concatenate([ignore, boxes[~is_visible, :4]])


def _span(source: int, out: int, scale: float, place: float) -> _AxisCrop:
    """Crops at whole source pixels and places at whole view pixels, so that a single resize suffices."""
    if source * scale <= out:
        size = max(1, int(source * scale + 0.5))
        return _AxisCrop(start=0, crop=source, offset=_choose(place, out - size), size=size)
    crop = min(source, max(1, int(out / scale + 0.5)))
    return _AxisCrop(start=_choose(place, source - crop), crop=crop, offset=0, size=out)


def _choose(place: float, play: int) -> int:
    """Maps a uniform `place` in 0..1 to a uniform integer 0..play."""
    return min(int(place * (play + 1)), play)


def _paint(
    view: RandomView, image: npt.NDArray[np.uint8], span_x: _AxisCrop, span_y: _AxisCrop, out_hw: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    crop = image[span_y.start : span_y.start + span_y.crop, span_x.start : span_x.start + span_x.crop]
    # Linear as in inference, except for strong reductions, which would alias.
    shrinks_far = max(span_x.scale, span_y.scale) < 0.5
    shown = cv2.resize(
        crop, (span_x.size, span_y.size), interpolation=cv2.INTER_AREA if shrinks_far else cv2.INTER_LINEAR
    )
    if view.color is not None:
        shown = cv2.transform(shown, _color_matrix(*view.color))
    if view.flip:
        shown = cv2.flip(shown, 1)
    if shown.shape[:2] == out_hw:
        return np.asarray(shown, np.uint8)
    canvas = np.full((*out_hw, 3), PAD_VALUE, np.uint8)
    canvas[span_y.offset : span_y.offset + span_y.size, span_x.offset : span_x.offset + span_x.size] = shown
    return canvas


def _color_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> npt.NDArray[np.float64]:
    """Returns a (3, 4) affine map of BGR colours: hue and saturation, contrast about mid-grey, then brightness."""
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    chroma = _BGR_FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ_FROM_BGR
    shift = brightness * (1 - contrast) * _MIDDLE
    return np.hstack([brightness * contrast * chroma, np.full((3, 1), shift)])


def _show_boxes(
    boxes_xyxy: npt.NDArray[np.float32], span_x: _AxisCrop, span_y: _AxisCrop, flip: bool, config: AugmentConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Returns the boxes in view, clipped, without those too small, and whether enough of each is visible."""
    x = (boxes_xyxy[:, 0:4:2].astype(np.float64) - span_x.start) * span_x.scale
    y = (boxes_xyxy[:, 1:4:2].astype(np.float64) - span_y.start) * span_y.scale
    if flip:
        x = span_x.size - x[:, ::-1]
    area = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0])
    x, y = np.clip(x, 0, span_x.size), np.clip(y, 0, span_y.size)
    width, height = x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]
    shown = (width >= config.min_box_px) & (height >= config.min_box_px) & (width > 0) & (height > 0)
    x, y = x + span_x.offset, y + span_y.offset
    boxes = np.column_stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1], boxes_xyxy[:, 4:]]).astype(np.float32)
    # 1e-6 covers rounding, so that a complete box counts as visible at min_visible = 1.
    is_visible = width * height >= (config.min_visible - 1e-6) * area
    return boxes[shown], is_visible[shown]


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicTile:
    """A rectangle of a view, in whole pixels."""

    top: int
    left: int
    hw: tuple[int, int]


def draw_tiles(
    view_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[MosaicTile, MosaicTile, MosaicTile, MosaicTile]:
    """Draws four rectangles that fill a view of `view_hw` (height, width) pixels and meet near the middle."""
    height, width = view_hw
    chance = _LEAST + (1 - 2 * _LEAST) * rng.random(2)
    y, x = int(height * chance[0]), int(width * chance[1])
    return (
        MosaicTile(top=0, left=0, hw=(y, x)),
        MosaicTile(top=0, left=x, hw=(y, width - x)),
        MosaicTile(top=y, left=0, hw=(height - y, x)),
        MosaicTile(top=y, left=x, hw=(height - y, width - x)),
    )


def compose_mosaic(
    view_hw: tuple[int, int], tiles: tuple[MosaicTile, ...], show: Callable[[int, MosaicTile], Sample]
) -> Sample:
    """Composes a view from one view per tile: more objects and more neighbours in every step.

    Source: YOLOv4 (arXiv:2004.10934, section 3.3). Each part is an independent view, at the same scale as all others.

    Args:
        view_hw: Height and width of the whole view, pixels.
        tiles: Rectangles that fill it.
        show: Returns the view for a tile's number and the tile, as large as the tile.

    Returns:
        The whole view (H, W, 3) uint8 BGR, its objects (G, 5) and its ignore regions (I, 4), float32 view pixels; new.
    """
    canvas = np.empty((*view_hw, 3), np.uint8)
    objects, ignored = [], []
    for number, tile in enumerate(tiles):
        part, boxes, regions = show(number, tile)
        canvas[tile.top : tile.top + tile.hw[0], tile.left : tile.left + tile.hw[1]] = part
        shift = np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
        objects.append(np.column_stack([boxes[:, :4] + shift, boxes[:, 4:]]))
        ignored.append(regions + shift)
    return canvas, np.concatenate(objects), np.concatenate(ignored)

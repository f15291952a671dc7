"""Made-up pictures with exact boxes: objects of several shapes and textures that hide each other, on a busy background.

A canvas is an (H, W, 3) float32 BGR picture in 0..255. Beside it lies the owner map, (H, W) int16, which holds the
number of the object that covers each pixel, or 0. Boxes are read from the owner map, so they enclose the visible part.
Everything is drawn from the generator that the caller passes, so a seed fixes every byte.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
OwnerMap = npt.NDArray[np.int16]
Contour = npt.NDArray[np.float64]
"""(M, 2) x, y; a whole shape is about 2 wide."""
Shape = list[list[Contour]]
"""Parts that are filled one after the other; the second contour of a part is a hole."""
Sprite = FloatImage
"""(h, w, 4) an object in its own patch of pixels: BGR in 0..255 and coverage in 0..1."""
Pattern = Callable[[np.random.Generator, tuple[int, int]], FloatImage]
"""From a generator and (H, W) to (H, W) float32 in 0..1."""

MIN_SIZE_PX = 12.0
"""Square root of the box area of the smallest objects."""
_FINENESS = 4
"""Masks are drawn this many times larger and averaged down; OpenCV's own antialiasing swells shapes by a pixel."""
_MARGIN_PX = 2
_SOLID = 0.5
"""Alpha from which a pixel belongs to an object."""


class Visible(NamedTuple):
    """An object that can be seen."""

    number: int
    """Its number in the owner map."""
    box_xyxy: tuple[int, int, int, int]
    """Pixel edges of its visible part."""
    area_px: int
    """Its visible pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture, (H, W, 3) BGR, with its owner map and the visible objects."""

    image: npt.NDArray[np.uint8]
    owners: OwnerMap
    objects: list[Visible]


def _oval(center_xy: tuple[float, float], radius_xy: tuple[float, float], power: float = 2) -> Contour:
    """An ellipse, or for a higher power a rounded rectangle (Lame's curve)."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.sign(unit) * np.abs(unit) ** (2 / power) * radius_xy + center_xy


def _polar(radius: npt.NDArray[np.float64]) -> Contour:
    """A contour from its radius at equal steps of the angle."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def ellipse(rng: np.random.Generator) -> Shape:
    return [[_oval((0, 0), (1, rng.uniform(0.4, 1)))]]


def box(rng: np.random.Generator) -> Shape:
    return [[_oval((0, 0), (1, rng.uniform(0.25, 1)), rng.uniform(3, 12))]]


def polygon(rng: np.random.Generator) -> Shape:
    return [[_polar(rng.uniform(0.6, 1, int(rng.integers(3, 9))))]]


def star(rng: np.random.Generator) -> Shape:
    return [[_polar(np.tile([1, rng.uniform(0.4, 0.8)], int(rng.integers(4, 10))))]]


def blob(rng: np.random.Generator) -> Shape:
    """A smooth random outline."""
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    waves = [rng.uniform(-0.5, 0.5) / n * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 7)]
    return [[_polar(np.maximum(1 + np.sum(waves, axis=0), 0.25))]]


def ring(rng: np.random.Generator) -> Shape:
    """A ring or a frame."""
    power, inner, flat = rng.choice([2.0, 6.0]), rng.uniform(0.35, 0.75), rng.uniform(0.6, 1)
    return [[_oval((0, 0), (1, flat), power), _oval((0, 0), (inner, inner * flat), power)]]


def bottle(rng: np.random.Generator) -> Shape:
    """A body with a neck."""
    neck, body = rng.uniform(0.12, 0.25), rng.uniform(0.3, 0.5)
    return [[_oval((0, 0.35), (body, 0.65), 6)], [_oval((0, -0.5), (neck, 0.5), 8)]]


def dumbbell(rng: np.random.Generator) -> Shape:
    """Two ends on a bar: dumbbell, spoon, mushroom."""
    ends = [[_oval((x, 0), (0.3, rng.uniform(0.15, 0.5)), rng.choice([2.0, 5.0]))] for x in (-0.7, 0.7)]
    return [[_oval((0, 0), (0.8, rng.uniform(0.08, 0.16)), 8)], *ends]


SHAPES = (ellipse, box, polygon, star, blob, ring, bottle, dumbbell)


def rasterize(shape: Shape, *, size_px: float, angle: float, max_wh_px: tuple[float, float]) -> FloatImage:
    """Draws a shape as an antialiased mask with an empty border.

    Args:
        shape: Its contours.
        size_px: Square root of the area of its upright bounding box.
        angle: Turn in radians.
        max_wh_px: The box is shrunk to fit.

    Returns:
        (h, w) float32 coverage, 0..1.
    """
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    parts = [[contour @ turn for contour in part] for part in shape]
    corners = np.concatenate([contour for part in parts for contour in part])
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    scale = min(size_px / np.sqrt(extent.prod()), *(np.array(max_wh_px) / extent))
    width, height = (int(side) for side in np.ceil(extent * scale) + 2 * _MARGIN_PX)
    fine = np.zeros((height * _FINENESS, width * _FINENESS), np.uint8)
    for part in parts:
        # OpenCV counts the corner pixels in and puts the first pixel's centre at 0, we put its corner there.
        points = [((contour - low) * scale + _MARGIN_PX) * _FINENESS - 0.5 for contour in part]
        cv2.fillPoly(fine, [contour.round().astype(np.int32) for contour in points], 255)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def clouds(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Fractal value noise: random grids of growing fineness, interpolated and summed."""
    total: FloatImage = np.zeros(hw, np.float32)
    cell_px, weight, fade = max(hw) / rng.uniform(1.5, 5), 1.0, rng.uniform(0.4, 0.7)
    while weight > 0.05 and cell_px > 1.5:
        grid = rng.random((int(hw[0] / cell_px) + 2, int(hw[1] / cell_px) + 2), np.float32)
        total += np.float32(weight) * cv2.resize(grid, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)
        cell_px, weight = cell_px / 2, weight * fade
    return _stretch(total)


def gradient(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """A ramp across the picture, straight or around a point."""
    u, v = _axes(rng, hw, 1.0)
    return _stretch(u if rng.random() < 0.5 else np.asarray(np.hypot(u, v), np.float32))


def stripes(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Straight or wavy bands."""
    u, v = _axes(rng, hw, _period(rng, hw))
    bend = np.float32(rng.choice([0.0, rng.uniform(0.5, 3)]))
    return _sharpen(np.sin(u + bend * np.sin(v / np.float32(rng.uniform(2, 6)))), rng.uniform(0.6, 5))


def checker(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Tiles in two tones, hard-edged or soft."""
    u, v = _axes(rng, hw, 2 * _period(rng, hw))
    return _sharpen(np.sin(u) * np.sin(v), rng.uniform(1, 12))


def dots(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Spots on a grid."""
    u, v = _axes(rng, hw, _period(rng, hw))
    return _sharpen(np.cos(u) + np.cos(v) - np.float32(rng.uniform(0.3, 1.2)), rng.uniform(2, 6))


PATTERNS: tuple[Pattern, ...] = (clouds, gradient, stripes, checker, dots)
_CHANCES = (0.5, 0.26, 0.09, 0.07, 0.08)
"""Probabilities of the patterns: calm ones are more frequent, because checks and stripes alone teach little."""


def _axes(rng: np.random.Generator, hw: tuple[int, int], period_px: float) -> tuple[FloatImage, FloatImage]:
    """Radians along two perpendicular directions from a random origin, 2 pi for each period."""
    angle, unit = rng.uniform(0, np.pi), 2 * np.pi / period_px
    x = np.arange(hw[1], dtype=np.float32)[None] - np.float32(hw[1] * rng.uniform(0.3, 0.7))
    y = np.arange(hw[0], dtype=np.float32)[:, None] - np.float32(hw[0] * rng.uniform(0.3, 0.7))
    cos, sin = np.float32(unit * np.cos(angle)), np.float32(unit * np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _period(rng: np.random.Generator, hw: tuple[int, int]) -> float:
    """Draws a length in pixels, not finer than the pixels and not coarser than the picture."""
    return max(3.5, log_uniform(rng, 0.05, 0.35) * min(hw))


def _sharpen(wave: FloatImage, factor: float) -> FloatImage:
    """Maps -1..1 to 0..1, steeper around the middle the larger the factor."""
    return np.asarray(np.clip(np.float32(0.5 * factor) * wave + np.float32(0.5), 0, 1), np.float32)


def _stretch(values: FloatImage) -> FloatImage:
    """Maps the smallest value to 0 and the largest to 1."""
    return np.asarray((values - values.min()) / max(np.ptp(values), 1e-6), np.float32)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))


def largest_px(hw: tuple[int, int]) -> float:
    """Square root of the box area of the largest objects: half of the picture's side."""
    return 0.5 * float(np.sqrt(hw[0] * hw[1]))


def _surface(rng: np.random.Generator, hw: tuple[int, int], *, saturation: float, contrast: float) -> FloatImage:
    """(H, W, 3) of a random pattern that runs from a dark colour to a light one of a similar hue."""
    pattern = PATTERNS[rng.choice(len(PATTERNS), p=_CHANCES)](rng, hw)
    hue, spread = rng.random(), rng.choice([0.03, 0.1, 0.5], p=[0.5, 0.35, 0.15])
    middle, span = rng.uniform(0.25, 0.85), rng.uniform(0.05, contrast)
    colors = []
    for value in (middle - span / 2, middle + span / 2):
        hsv = ((hue + spread * rng.uniform(-0.5, 0.5)) % 1, saturation * rng.random(), float(np.clip(value, 0.03, 1)))
        colors.append(np.array(colorsys.hsv_to_rgb(*hsv)[::-1], np.float32) * 255)
    return np.asarray(pattern[..., None] * (colors[1] - colors[0]) + colors[0], np.float32)


def draw_background(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Draws (H, W, 3): a surface, often joined to a second one, sometimes clutter out of focus, all unevenly lit."""
    canvas = _surface(rng, hw, saturation=0.35, contrast=0.35)
    kind = rng.random()
    if kind < 0.6:
        # A wall above a floor, or one surface that blends into the other.
        rows = np.arange(hw[0], dtype=np.float32)[:, None] / hw[0] + np.zeros(hw, np.float32)
        weight = (rows if kind < 0.3 else clouds(rng, hw)) - np.float32(rng.uniform(0.3, 0.7))
        weight = np.clip(weight * np.float32(rng.uniform(5, 100 if kind < 0.3 else 15)) + np.float32(0.5), 0, 1)[
            ..., None
        ]
        canvas += weight * (_surface(rng, hw, saturation=0.35, contrast=0.35) - canvas)
    if rng.random() < 0.3:
        _add_clutter(rng, canvas)
    canvas *= (1 - np.float32(rng.uniform(0, 0.4)) * cv2.GaussianBlur(clouds(rng, hw), (0, 0), hw[0] / 8))[..., None]
    return canvas


def _add_clutter(rng: np.random.Generator, canvas: FloatImage) -> None:
    """Blends shapes into the canvas, in place, that are too far out of focus to be objects."""
    height, width = canvas.shape[:2]
    layer, cover = canvas.copy(), np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(10, 50))):
        size = log_uniform(rng, 0.03, 0.3) * width
        x, y, flat, degrees = rng.uniform((0, 0, 0.2, 0), (width, height, 1, 180))
        spot = ((x, y), (size, size * flat), degrees)
        cv2.ellipse(layer, spot, rng.uniform(40, 200, 3).tolist(), -1)
        cv2.ellipse(cover, spot, 1.0, -1)
    sigma = rng.uniform(0.015, 0.03) * width
    cover = cv2.GaussianBlur(cover, (0, 0), sigma)[..., None]
    canvas += cover * np.float32(rng.uniform(0.2, 0.9)) * (cv2.GaussianBlur(layer, (0, 0), sigma) - canvas)


def draw_sprite(kind: int, *, size_px: float, angle: float, max_wh_px: tuple[float, float]) -> Sprite:
    """Draws an object.

    Args:
        kind: Seed of shape and texture; objects of one kind look alike.
        size_px: Square root of the area of the outline's bounding box.
        angle: Turn in radians.
        max_wh_px: Width and height that the outline must not exceed.
    """
    rng = np.random.default_rng(kind)
    shape = SHAPES[rng.integers(len(SHAPES))](rng)
    alpha = rasterize(shape, size_px=size_px, angle=angle, max_wh_px=max_wh_px)
    hw = (alpha.shape[0], alpha.shape[1])
    saturation = rng.uniform(0.2, 0.95)
    color = _surface(rng, hw, saturation=saturation, contrast=0.5)
    if rng.random() < 0.4:
        # A second texture over part of the first.
        weight = _sharpen(2 * clouds(rng, hw) - np.float32(rng.uniform(0.7, 1.3)), 10)[..., None]
        color += weight * (_surface(rng, hw, saturation=saturation, contrast=0.5) - color)
    if rng.random() < 0.5:
        # Darker towards the outline, as round things are.
        depth_px = cv2.distanceTransform((alpha >= _SOLID).astype(np.uint8), cv2.DIST_L2, 3)
        reach_px = max(1.0, rng.uniform(0.03, 0.3) * size_px)
        color *= (1 - np.float32(rng.uniform(0.2, 0.6)) * np.clip(1 - depth_px / np.float32(reach_px), 0, 1))[..., None]
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 0.8)), np.float32)
    return np.dstack([color, alpha]).astype(np.float32)


def paste(canvas: FloatImage, owners: OwnerMap, sprite: Sprite, *, left_top: tuple[int, int], number: int) -> int:
    """Lays a sprite onto canvas and owner map, in place; returns its pixels, hidden and cut ones too."""
    left, top = left_top
    height, width = sprite.shape[:2]
    x1, x2 = max(0, left), max(0, left, min(owners.shape[1], left + width))
    y1, y2 = max(0, top), max(0, top, min(owners.shape[0], top + height))
    patch = sprite[max(0, y1 - top) : max(0, y2 - top), max(0, x1 - left) : max(0, x2 - left)]
    region = canvas[y1:y2, x1:x2]
    if patch.size and region.size:
        region += patch[..., 3:] * (patch[..., :3] - region)
        owners[y1:y2, x1:x2][patch[..., 3] >= _SOLID] = number
    return int(np.count_nonzero(sprite[..., 3] >= _SOLID))


def visible_objects(owners: OwnerMap, areas_px: Mapping[int, float]) -> list[Visible]:
    """Finds the tight boxes of the visible parts.

    Objects are left out if less than a quarter of them is visible or a side of the box is shorter than 4 pixels.

    Args:
        owners: (H, W) numbers of the objects in view.
        areas_px: Pixels that each object would own if nothing hid or cut it, by its number.
    """
    found = []
    for number, area_px in areas_px.items():
        mask = np.equal(owners, number)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        visible_px = int(np.count_nonzero(mask))
        if visible_px and visible_px >= area_px / 4 and min(np.ptp(columns), np.ptp(rows)) >= 3:
            corners = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            found.append(Visible(number, corners, visible_px))
    return found


def render_scene(rng: np.random.Generator, hw: tuple[int, int]) -> Scene:
    """Draws one picture of `hw` (height, width in pixels) and its ground truth."""
    canvas, owners = draw_background(rng, hw), np.zeros(hw, np.int16)
    areas_px: dict[int, float] = {}
    for number, (kind, size_px, center_xy, angle) in enumerate(_layout(rng, hw), start=1):
        sprite = draw_sprite(kind, size_px=size_px, angle=angle, max_wh_px=(0.9 * hw[1], 0.9 * hw[0]))
        height, width = sprite.shape[:2]
        left_top = (round(center_xy[0] - width / 2), round(center_xy[1] - height / 2))
        areas_px[number] = paste(canvas, owners, sprite, left_top=left_top, number=number)
    return Scene(image=_photograph(rng, canvas), owners=owners, objects=visible_objects(owners, areas_px))


def _layout(rng: np.random.Generator, hw: tuple[int, int]) -> list[tuple[int, float, tuple[float, float], float]]:
    """Draws kind, size, centre and angle of each object, from the bottom of the heap to its top."""
    items: list[tuple[int, float, tuple[float, float], float]] = []
    budget = int(rng.integers(4, 20))
    while len(items) < budget:
        kind, size_px = int(rng.integers(2**32)), log_uniform(rng, MIN_SIZE_PX, largest_px(hw))
        center_xy, is_upright = rng.uniform((0, 0), (hw[1], hw[0])), rng.random() < 0.5
        # Objects of one kind come in groups, unless they are large.
        group = int(rng.integers(2, 6)) if rng.random() < 0.2 and size_px < 0.25 * min(hw) else 1
        for _ in range(group):
            angle = rng.normal(0, 0.12) if is_upright else rng.uniform(0, 2 * np.pi)
            x, y = np.clip(center_xy + (rng.normal(0, 1.7 * size_px, 2) if group > 1 else 0), 0, (hw[1], hw[0]))
            items.append((kind, max(MIN_SIZE_PX, size_px * float(np.exp(rng.normal(0, 0.12)))), (x, y), angle))
    # Large objects tend to lie below small ones, which they would hide otherwise.
    return sorted(items, key=lambda item: -np.log(item[1]) + rng.normal(0, 0.6))


def _photograph(rng: np.random.Generator, canvas: FloatImage) -> npt.NDArray[np.uint8]:
    """Exposure and white balance, sometimes out of focus, and sensor noise."""
    picture = canvas * (rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    if rng.random() < 0.3:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.3)), np.float32)
    picture += rng.standard_normal(canvas.shape, np.float32) * np.float32(log_uniform(rng, 0.6, 6))
    return np.asarray(np.clip(picture, 0, 255), np.uint8)

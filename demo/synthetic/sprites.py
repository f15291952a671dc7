"""Made-up objects: drawn once as sprites, then lit, given a shadow and pasted onto a canvas.

A canvas is an (H, W, 3) float32 BGR picture in 0..255; beside it lies the owner map, (H, W) int16, which holds for
each pixel the number of the object that covers it, or 0. Boxes are read from the owner map, so they are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.demo.synthetic.shapes import SHAPES, Shape, rasterize
from edgerpn.demo.synthetic.textures import FloatImage, Pattern, clouds, draw_pattern, paint_pattern, palette

OwnerMap = npt.NDArray[np.int16]
_SOLID = 0.5
"""Alpha from which a pixel belongs to the object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """A distant lamp, and how things throw shadows in it."""

    direction_xyz: tuple[float, float, float]
    """Unit vector towards the lamp; x right, y down, z towards the viewer."""
    ambient: float
    """Share of the light that comes from everywhere, 0..1."""
    shadow: float
    """Darkness of shadows, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototype:
    """A kind of thing; its instances differ in size, angle and the details of the texture."""

    shape: Shape
    """Outline."""
    aspect: float
    """Stretch of the outline; see `rasterize`."""
    patterns: tuple[Pattern, Pattern]
    """Of the body and of the decoration."""
    palettes: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
    """Colours of the body and of the decoration."""
    decoration: float
    """Share of the body under the decoration, 0..1."""
    roundness: float
    """Share of the inner radius that curves; 0 is flat as paper, 1 is a pillow."""
    gloss: float
    """Strength of the highlight, 0..1."""
    rim: float
    """Darkness of the outline, 0..1."""
    softness_px: float
    """Standard deviation of the edge's blur."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """One object in its own patch of pixels."""

    color_alpha: FloatImage
    """(h, w, 4) BGR in 0..255 and coverage in 0..1."""
    normals_xy: FloatImage
    """(h, w, 2) x and y of the unit surface normal."""
    gloss: float
    """Strength of the highlight, 0..1."""

    @property
    def area_px(self) -> int:
        """Pixels that belong to the object."""
        return int(np.count_nonzero(self.color_alpha[..., 3] >= _SOLID))


def draw_light(rng: np.random.Generator) -> Light:
    """Draws a lamp that is somewhere above."""
    azimuth, height = rng.uniform(-np.pi, 0), rng.uniform(0.6, 1.2)
    flat = np.cos(height)
    direction = (float(flat * np.cos(azimuth)), float(flat * np.sin(azimuth)), float(np.sin(height)))
    return Light(direction_xyz=direction, ambient=rng.uniform(0.3, 0.6), shadow=rng.uniform(0.2, 0.65))


def draw_prototype(rng: np.random.Generator) -> Prototype:
    """Draws a kind of thing."""
    body = palette(rng, saturation=(0.0, rng.uniform(0.2, 0.95)), contrast=(0.05, 0.5))
    is_flat = rng.random() < 0.2
    return Prototype(
        shape=SHAPES[rng.integers(len(SHAPES))](rng),
        aspect=float(np.exp(rng.normal(0, 0.25))),
        patterns=(draw_pattern(rng), draw_pattern(rng)),
        palettes=(body, palette(rng, saturation=(0.0, 0.9), contrast=(0.05, 0.5))),
        decoration=float(rng.choice([0.0, rng.uniform(0.2, 0.6)], p=[0.55, 0.45])),
        roundness=0.0 if is_flat else rng.uniform(0.15, 1),
        gloss=float(rng.choice([0.0, rng.uniform(0.2, 0.9)])),
        rim=float(rng.choice([0.0, rng.uniform(0.2, 0.7)], p=[0.7, 0.3])),
        softness_px=rng.uniform(0.3, 0.9),
    )


def draw_sprite(
    rng: np.random.Generator, prototype: Prototype, *, size_px: float, angle: float, max_wh_px: tuple[float, float]
) -> Sprite:
    """Draws one instance of a kind.

    Args:
        rng: Source of chance for the texture's details.
        prototype: The kind of thing.
        size_px: Square root of the area of the outline's bounding box.
        angle: Turn in radians.
        max_wh_px: Width and height that the outline must not exceed.
    """
    margin_px = 3
    coverage = rasterize(
        prototype.shape,
        size_px=size_px,
        angle=angle,
        aspect=prototype.aspect,
        max_wh_px=max_wh_px,
        margin_px=margin_px,
    )
    solid = (coverage >= 128).astype(np.uint8)
    distance_px = np.asarray(cv2.distanceTransform(solid, cv2.DIST_L2, 3), np.float32)
    color = _surface(rng, prototype, (coverage.shape[0], coverage.shape[1]))
    if prototype.rim:
        rim_px = max(1.0, 0.03 * size_px)
        color *= 1 - np.float32(prototype.rim) * np.clip(1 - distance_px / np.float32(rim_px), 0, 1)[..., None]
    alpha = cv2.GaussianBlur(coverage.astype(np.float32) / 255, (0, 0), prototype.softness_px)
    return Sprite(
        color_alpha=np.dstack([color, alpha]),
        normals_xy=_normals(distance_px, prototype.roundness),
        gloss=prototype.gloss,
    )


def _surface(rng: np.random.Generator, prototype: Prototype, hw: tuple[int, int]) -> FloatImage:
    """Body colours with the decoration over part of them."""
    body, decoration = prototype.patterns
    color = paint_pattern(body(rng, hw), prototype.palettes[0])
    if prototype.decoration:
        where = decoration(rng, hw)
        threshold = np.quantile(where[:: 1 + hw[0] // 64, :: 1 + hw[1] // 64], 1 - prototype.decoration)
        weight = np.clip((where - np.float32(threshold)) * 12 + np.float32(0.5), 0, 1)[..., None]
        color += weight * (paint_pattern(clouds(rng, hw), prototype.palettes[1]) - color)
    return color


def _normals(distance_px: FloatImage, roundness: float) -> FloatImage:
    """Normals of a surface that rises from the outline like a quarter of a circle and then lies flat."""
    height, width = distance_px.shape
    radius_px = np.float32(roundness * distance_px.max())
    if radius_px < 1:
        return np.zeros((height, width, 2), np.float32)
    rise = np.clip(distance_px / radius_px, 0, 1)
    surface = radius_px * np.sqrt(1 - (1 - rise) ** 2)
    # The distance has creases along the middle axis, which would show as sharp folds.
    surface = cv2.GaussianBlur(surface, (0, 0), max(0.8, 0.12 * float(radius_px)))
    slope_x = cv2.Scharr(surface, cv2.CV_32F, 1, 0, scale=1 / 32)
    slope_y = cv2.Scharr(surface, cv2.CV_32F, 0, 1, scale=1 / 32)
    length = np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    return np.dstack([-slope_x / length, -slope_y / length])


def shade(sprite: Sprite, light: Light) -> FloatImage:
    """The colours of a sprite under a lamp: Lambert's law, plus a highlight after Blinn 1977; (h, w, 3), 0..255."""
    normal_x, normal_y = sprite.normals_xy[..., 0], sprite.normals_xy[..., 1]
    normal_z = np.sqrt(np.maximum(0, 1 - normal_x * normal_x - normal_y * normal_y))
    x, y, z = (np.float32(component) for component in light.direction_xyz)
    lambert = np.maximum(0, normal_x * x + normal_y * y + normal_z * z) / z
    brightness: FloatImage = np.asarray(light.ambient + (1 - light.ambient) * lambert, np.float32)
    color: FloatImage = sprite.color_alpha[..., :3] * brightness[..., None]
    if sprite.gloss:
        half = np.array([x, y, z + 1], np.float32)
        half /= np.linalg.norm(half)
        highlight = np.maximum(0, normal_x * half[0] + normal_y * half[1] + normal_z * half[2])
        for _ in range(5):
            highlight = highlight * highlight
        # A flat face would otherwise shine all over.
        curved = np.minimum(1, 4 * (np.abs(normal_x) + np.abs(normal_y)))
        color += (np.float32(200 * sprite.gloss) * highlight * curved)[..., None]
    return color


def paste(
    canvas: FloatImage, owners: OwnerMap, sprite: Sprite, *, left_top: tuple[int, int], light: Light, number: int
) -> None:
    """Lays a lit sprite and its shadow onto a canvas, in place, and enters `number` into the owner map."""
    _cast_shadow(canvas, sprite.color_alpha[..., 3], left_top, light)
    height, width = owners.shape
    inner, outer = _overlap(left_top, sprite.normals_xy.shape[:2], (height, width))
    alpha = sprite.color_alpha[..., 3][inner]
    if alpha.size == 0:
        return
    visible = Sprite(color_alpha=sprite.color_alpha[inner], normals_xy=sprite.normals_xy[inner], gloss=sprite.gloss)
    region = canvas[outer]
    region += alpha[..., None] * (shade(visible, light) - region)
    owners[outer][alpha >= _SOLID] = number


def _cast_shadow(canvas: FloatImage, alpha: FloatImage, left_top: tuple[int, int], light: Light) -> None:
    reach_px = 0.06 * float(np.sqrt(alpha.size))
    blur_px = max(0.6, 0.6 * reach_px)
    margin = int(2.5 * blur_px) + 1
    # A wide blur of a small copy looks the same and costs a tenth.
    step = max(1, int(blur_px / 2))
    padded = cv2.copyMakeBorder(alpha, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=0)
    small = cv2.resize(padded, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), blur_px / step)
    dark = cv2.resize(small, (padded.shape[1], padded.shape[0]), interpolation=cv2.INTER_LINEAR)
    x, y, _ = light.direction_xyz
    corner = (left_top[0] - margin - round(x * reach_px), left_top[1] - margin - round(y * reach_px))
    inner, outer = _overlap(corner, dark.shape[:2], canvas.shape[:2])
    canvas[outer] *= 1 - np.float32(light.shadow) * dark[inner][..., None]


def _overlap(
    left_top: tuple[int, int], patch_hw: tuple[int, ...], canvas_hw: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a patch that lies on the canvas, as slices of the patch and of the canvas (maybe empty)."""
    left, top = left_top
    x1, x2 = max(0, left), max(0, left, min(canvas_hw[1], left + patch_hw[1]))
    y1, y2 = max(0, top), max(0, top, min(canvas_hw[0], top + patch_hw[0]))
    return (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)), (slice(y1, y2), slice(x1, x2))


def transform(
    sprite: Sprite, *, scale: float, angle: float, center_xy: tuple[float, float]
) -> tuple[Sprite, tuple[int, int]]:
    """Turns and scales a sprite about its middle and moves that to `center_xy` on the canvas.

    Returns:
        The new sprite and the canvas position of its top left pixel.
    """
    height, width = sprite.normals_xy.shape[:2]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    half_x = (abs(cos) * width + abs(sin) * height) / 2 + 2
    half_y = (abs(sin) * width + abs(cos) * height) / 2 + 2
    left, top = int(np.floor(center_xy[0] - half_x)), int(np.floor(center_xy[1] - half_y))
    out_wh = (int(np.ceil(2 * half_x)) + 1, int(np.ceil(2 * half_y)) + 1)
    # Both systems count pixel centres from 0 here, hence the halves.
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    linear = np.array([[cos, -sin], [sin, cos]])
    offset = np.array([center_xy[0] - 0.5 - left, center_xy[1] - 0.5 - top]) - linear @ middle
    matrix = np.column_stack([linear, offset])
    color_alpha = np.asarray(cv2.warpAffine(sprite.color_alpha, matrix, out_wh, flags=cv2.INTER_LINEAR), np.float32)
    normals = cv2.warpAffine(sprite.normals_xy, matrix, out_wh, flags=cv2.INTER_LINEAR)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    return Sprite(color_alpha=color_alpha, normals_xy=normals @ turn.T, gloss=sprite.gloss), (left, top)


def visible_boxes(
    owners: OwnerMap, areas_px: Mapping[int, float], *, min_visible: float = 0.25, min_side_px: int = 4
) -> list[tuple[int, tuple[int, int, int, int], int]]:
    """Tight boxes of what can be seen of each object.

    Args:
        owners: (H, W) numbers of the objects in view.
        areas_px: Pixels that each object would cover if nothing hid it.
        min_visible: Objects of which a smaller share is seen are left out.
        min_side_px: Objects whose visible box has a smaller side are left out.

    Returns:
        Number, (x1, y1, x2, y2) as pixel edges, and visible pixels, in the order of `areas_px`.
    """
    found = []
    for number, area_px in areas_px.items():
        mask = np.equal(owners, number)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        visible_px = int(np.count_nonzero(mask))
        if visible_px == 0 or visible_px < min_visible * area_px:
            continue
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if min(box[2] - box[0], box[3] - box[1]) >= min_side_px:
            found.append((number, box, visible_px))
    return found

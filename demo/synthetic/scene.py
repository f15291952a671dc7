"""Made-up scenes: a background, things lying on it in the light of one lamp, and a camera that looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.demo.synthetic.sprites import (
    Prototype,
    draw_light,
    draw_prototype,
    draw_sprite,
    paste,
    visible_boxes,
)
from edgerpn.demo.synthetic.textures import FloatImage, clouds, draw_pattern, gradient, paint_pattern, palette

MIN_SIZE_PX = 12.0
"""Square root of the box area of the smallest objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture and what can be seen in it."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) BGR."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(M, 4) tight boxes of the visible objects, pixel edges."""
    areas_px: npt.NDArray[np.int64]
    """(M,) visible pixels of each."""
    owners: npt.NDArray[np.int16]
    """(H, W) number of the object on each pixel, 0 for none."""
    numbers: npt.NDArray[np.int64]
    """(M,) numbers in `owners` that the boxes belong to."""


def render_scene(rng: np.random.Generator, hw: tuple[int, int]) -> Scene:
    """Draws one picture of `hw` (height, width in pixels) and its ground truth."""
    light = draw_light(rng)
    canvas = draw_background(rng, hw)
    owners = np.zeros(hw, np.int16)
    areas_px: dict[int, float] = {}
    for number, (prototype, size_px, center_xy, angle) in enumerate(_layout(rng, hw), start=1):
        limits_px = (0.9 * hw[1], 0.9 * hw[0])
        sprite = draw_sprite(rng, prototype, size_px=size_px, angle=angle, max_wh_px=limits_px)
        height, width = sprite.normals_xy.shape[:2]
        left_top = (round(center_xy[0] - width / 2), round(center_xy[1] - height / 2))
        paste(canvas, owners, sprite, left_top=left_top, light=light, number=number)
        areas_px[number] = sprite.area_px
    found = visible_boxes(owners, areas_px)
    return Scene(
        image=_photograph(rng, canvas),
        boxes_xyxy=np.array([box for _, box, _ in found], np.float32).reshape(-1, 4),
        areas_px=np.array([area for _, _, area in found], np.int64),
        owners=owners,
        numbers=np.array([number for number, _, _ in found], np.int64),
    )


def draw_background(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Draws a background: one surface, two that blend, a wall and a floor, or clutter out of focus.

    Returns:
        (H, W, 3) float32 BGR, 0..255, unevenly lit.
    """
    draw = (_blend, _room, _clutter)[rng.choice(3, p=[0.5, 0.35, 0.15])]
    canvas = draw(rng, hw)
    falloff = clouds(rng, (hw[0] // 8 + 1, hw[1] // 8 + 1)) + gradient(rng, (hw[0] // 8 + 1, hw[1] // 8 + 1))
    illumination = cv2.resize(cv2.GaussianBlur(falloff, (0, 0), 6), (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)
    depth = rng.uniform(0, 0.35)
    canvas *= (np.float32(1 + depth) - np.float32(depth) * illumination)[..., None]
    return canvas


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))


def largest_px(hw: tuple[int, int]) -> float:
    """Square root of the box area of the largest objects: half of the picture's side."""
    return 0.5 * float(np.sqrt(hw[0] * hw[1]))


def _surface(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    colors = palette(rng, saturation=(0.0, rng.uniform(0.05, 0.5)), contrast=(0.05, 0.45))
    return paint_pattern(draw_pattern(rng)(rng, hw), colors)


def _blend(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """One surface, now and then worn away to another, always a little stained."""
    canvas = _surface(rng, hw)
    if rng.random() < 0.4:
        edge = np.float32(rng.uniform(3, 15))
        weight = np.clip((clouds(rng, hw) - np.float32(0.5)) * edge + np.float32(0.5), 0, 1)
        canvas += weight[..., None] * (_surface(rng, hw) - canvas)
    canvas *= (1 - np.float32(rng.uniform(0, 0.35)) * clouds(rng, hw))[..., None]
    return canvas


def _room(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """A wall, and a floor seen at a slant below it."""
    height, width = hw
    canvas = _surface(rng, hw)
    horizon = int(height * rng.uniform(0.2, 0.65))
    near, shift = rng.uniform(0.5, 2.5) * width, rng.uniform(-0.5, 0.5) * width
    source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    bottom = ((width + near) / 2 + shift, (width - near) / 2 + shift - width)
    target = np.array(
        [[0, horizon], [width, horizon], [bottom[0] + width / 2, height], [bottom[1], height]], np.float32
    )
    floor = cv2.warpPerspective(
        _surface(rng, hw), cv2.getPerspectiveTransform(source, target), (width, height), borderMode=cv2.BORDER_REFLECT
    )
    canvas[horizon:] = floor[horizon:]
    corner = np.abs(np.arange(height, dtype=np.float32) - horizon) / (0.08 * height)
    canvas *= (1 - np.float32(rng.uniform(0.1, 0.5)) * np.exp(-corner))[:, None, None]
    return canvas


def _clutter(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Many things too far out of focus to be told apart."""
    small_hw = (hw[0] // 4 + 1, hw[1] // 4 + 1)
    canvas = _surface(rng, small_hw)
    colors = palette(rng, saturation=(0.0, 0.7), contrast=(0.3, 0.9)).reshape(-1, 3).astype(float)
    for _ in range(int(rng.integers(20, 90))):
        size = log_uniform(rng, 0.02, 0.3) * small_hw[1]
        box = (rng.uniform(0, small_hw[1], 1).item(), rng.uniform(0, small_hw[0], 1).item())
        shape = (box, (size, size * rng.uniform(0.2, 1)), rng.uniform(0, 180))
        color = colors[rng.integers(256)].tolist()
        if rng.random() < 0.5:
            cv2.ellipse(canvas, shape, color, -1)
        else:
            cv2.fillConvexPoly(canvas, cv2.boxPoints(shape).astype(np.int32), color)
    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.012, 0.03) * small_hw[1])
    return np.asarray(cv2.resize(blurred, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC), np.float32)


_Item = tuple[Prototype, float, tuple[float, float], float]


def _layout(rng: np.random.Generator, hw: tuple[int, int]) -> list[_Item]:
    """Draws what lies where: (kind, size, centre, angle) of each object, from the bottom of the heap to its top."""
    items: list[_Item] = []
    budget = int(rng.integers(4, 20))
    while len(items) < budget:
        prototype = draw_prototype(rng)
        size_px = log_uniform(rng, MIN_SIZE_PX, largest_px(hw))
        center_xy = rng.uniform((0, 0), (hw[1], hw[0]))
        is_upright = rng.random() < 0.5
        # Alike things come in groups, unless they are large.
        group = int(rng.integers(2, 6)) if rng.random() < 0.2 and size_px < 0.25 * min(hw) else 1
        spread_px = size_px * rng.uniform(1.0, 2.5)
        for _ in range(group):
            angle = rng.normal(0, 0.12) if is_upright else rng.uniform(0, 2 * np.pi)
            place = center_xy + (rng.normal(0, spread_px, 2) if group > 1 else 0)
            place = np.clip(place, 0, (hw[1], hw[0]))
            instance_px = max(MIN_SIZE_PX, size_px * float(np.exp(rng.normal(0, 0.12))))
            items.append((prototype, instance_px, (float(place[0]), float(place[1])), float(angle)))
    # Large things tend to lie below small ones, which they would hide otherwise.
    return sorted(items, key=lambda item: -np.log(item[1]) + rng.normal(0, 0.6))


def _photograph(rng: np.random.Generator, canvas: FloatImage) -> npt.NDArray[np.uint8]:
    """Exposure, white balance, defocus or shake, and sensor noise."""
    height, width = canvas.shape[:2]
    exposure = rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)
    picture = canvas * exposure.astype(np.float32)
    kind = rng.random()
    if kind < 0.25:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.3)), np.float32)
    elif kind < 0.35:
        picture = np.asarray(cv2.filter2D(picture, -1, _shake(rng)), np.float32)
    noise = rng.standard_normal((height, width, 1), np.float32) * np.float32(log_uniform(rng, 0.6, 6))
    tint = cv2.resize(rng.standard_normal((height // 2, width // 2, 3), np.float32), (width, height))
    picture += noise + np.float32(log_uniform(rng, 0.5, 3)) * np.asarray(tint, np.float32)
    return np.asarray(cv2.convertScaleAbs(np.maximum(picture, 0)), np.uint8)


def _shake(rng: np.random.Generator) -> FloatImage:
    """The kernel of a short straight camera movement."""
    kernel = np.zeros((7, 7), np.float32)
    reach, angle = rng.uniform(1, 3), rng.uniform(0, np.pi)
    end = (reach * np.cos(angle), reach * np.sin(angle))
    cv2.line(kernel, (round(3 - end[0]), round(3 - end[1])), (round(3 + end[0]), round(3 + end[1])), 1, 1)
    kernel /= kernel.sum()
    return kernel

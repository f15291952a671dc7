"""Textures for made-up pictures: grey patterns between 0 and 1, and colours for them.

A pattern is a function `(rng, hw) -> (H, W) float32 in 0..1`, a palette is a (256, 1, 3) uint8 BGR table, and
`paint_pattern` joins the two. Everything is drawn from the generator that is handed in, so a seed fixes every byte.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
Pattern = Callable[[np.random.Generator, tuple[int, int]], FloatImage]


def clouds(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Fractal value noise: random grids of growing fineness, interpolated and summed."""
    height, width = hw
    total: FloatImage = np.zeros(hw, np.float32)
    weight, fade = 1.0, rng.uniform(0.4, 0.7)
    cell_px = max(hw) / rng.uniform(1.5, 5)
    while weight > 0.05 and cell_px > 1.5:
        grid_hw = (int(height / cell_px) + 2, int(width / cell_px) + 2)
        grid = rng.random(grid_hw, np.float32)
        smooth = np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
        np.add(total, weight * smooth, out=total)
        weight, cell_px = weight * fade, cell_px / 2
    return _stretch(total)


def gradient(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """A ramp across the picture, straight or around a point."""
    u, v = _rotated_axes(rng, hw)
    if rng.random() < 0.5:
        return _stretch(u)
    return _stretch(np.hypot(u + np.float32(rng.uniform(-0.5, 0.5) * hw[1]), v))


def stripes(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Straight or wavy bands."""
    u, v = _rotated_axes(rng, hw)
    period_px = _period(rng, hw)
    if rng.random() < 0.5:
        u = u + np.float32(period_px * rng.uniform(0.2, 1)) * np.sin(
            v * np.float32(1 / (period_px * rng.uniform(1, 3)))
        )
    return _sharpen(np.sin(u * np.float32(2 * np.pi / period_px)), rng.uniform(0.6, 5))


def checker(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Tiles in two tones, hard-edged or soft."""
    u, v = _rotated_axes(rng, hw)
    frequency = np.float32(np.pi / _period(rng, hw))
    return _sharpen(np.sin(u * frequency) * np.sin(v * frequency), rng.uniform(1, 12))


def weave(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """A fine cloth."""
    u, v = _rotated_axes(rng, hw)
    frequency = np.float32(2 * np.pi / rng.uniform(3, 9))
    cloth = np.sin(u * frequency) + np.sin(v * frequency)
    return _stretch(cloth + np.float32(rng.uniform(1, 4)) * clouds(rng, hw))


def bricks(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Brickwork, planks or tiles: courses shifted against each other, dark joints, each brick in its own tone."""
    u, v = _rotated_axes(rng, hw, straight=0.7)
    course_px = _period(rng, hw)
    length_px = course_px * rng.uniform(1.2, 5)
    row = np.floor(v / course_px)
    along = u / length_px + np.float32(rng.uniform(0.2, 0.5)) * row
    column = np.floor(along)
    tone = rng.random(1021, np.float32)[(row * 73 + column * 151).astype(np.int32) % 1021]
    joint_px = np.minimum(_edge_distance(v / course_px) * course_px, _edge_distance(along) * length_px)
    joint = np.clip(joint_px / max(1.0, course_px * rng.uniform(0.04, 0.1)), 0, 1)
    return _stretch((tone * np.float32(rng.uniform(0.2, 1)) + 0.5 + 0.25 * clouds(rng, hw)) * joint)


def wood(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Grain: rings around a far point, bent by noise."""
    u, v = _rotated_axes(rng, hw)
    stretch = np.float32(rng.uniform(3, 10))
    rings = cv2.magnitude(u / stretch, v + np.float32(rng.uniform(0.2, 1) * hw[0]))
    bend = clouds(rng, hw) * np.float32(rng.uniform(3, 10))
    return _stretch(np.sin(rings * np.float32(4 / _period(rng, hw)) + bend) + clouds(rng, hw))


def stones(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Cobbles, scales or cells: the regions nearest to random points, with dark seams."""
    spacing_px = _period(rng, hw) * 1.2
    count = int(np.clip(hw[0] * hw[1] / spacing_px**2, 4, 4000))
    seeds = np.full(hw, 255, np.uint8)
    seeds[rng.integers(0, hw[0], count), rng.integers(0, hw[1], count)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    tone = rng.random(count + 2, np.float32)[label]
    slope = np.float32(rng.uniform(-0.6, 0.8)) * np.minimum(distance / np.float32(spacing_px), 1)
    return _stretch(cv2.GaussianBlur(tone - slope, (0, 0), rng.uniform(0.5, 1.2)))


def dots(rng: np.random.Generator, hw: tuple[int, int]) -> FloatImage:
    """Spots on a grid."""
    u, v = _rotated_axes(rng, hw)
    frequency = np.float32(2 * np.pi / _period(rng, hw))
    return _sharpen(
        np.cos(u * frequency) + np.cos(v * frequency) - np.float32(rng.uniform(0.3, 1.2)), rng.uniform(2, 6)
    )


PATTERNS: tuple[Pattern, ...] = (clouds, gradient, stripes, checker, weave, bricks, wood, stones, dots)
"""Every pattern there is."""

_CALM_FIRST = np.array([0.22, 0.16, 0.09, 0.06, 0.1, 0.11, 0.1, 0.1, 0.06])
"""Chance of each pattern: a world of nothing but checks and stripes teaches little."""


def draw_pattern(rng: np.random.Generator) -> Pattern:
    """Picks a pattern, calm ones more often than loud ones."""
    return PATTERNS[rng.choice(len(PATTERNS), p=_CALM_FIRST)]


def palette(
    rng: np.random.Generator, *, saturation: tuple[float, float], contrast: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """Draws a colour table that runs from dark to light through related hues.

    Args:
        rng: Source of chance.
        saturation: Lowest and highest HSV saturation, 0..1.
        contrast: Lowest and highest difference in HSV value between the two ends, 0..1.

    Returns:
        (256, 1, 3) uint8 BGR, as `cv2.applyColorMap` takes it.
    """
    hue, spread = rng.random(), rng.choice([0.03, 0.1, 0.5], p=[0.5, 0.35, 0.15])
    span, middle = rng.uniform(*contrast), rng.uniform(0.25, 0.85)
    stops = []
    for position in (-0.5, 0.0, 0.5):
        value = float(np.clip(middle + position * span, 0.03, 1))
        shade = colorsys.hsv_to_rgb((hue + spread * rng.uniform(-0.5, 0.5)) % 1, rng.uniform(*saturation), value)
        stops.append([255 * channel for channel in reversed(shade)])
    columns = [np.interp(np.arange(256), [0, 128, 255], channel) for channel in np.array(stops).T]
    return np.stack(columns, axis=1).round().astype(np.uint8)[:, None]


def paint_pattern(pattern: FloatImage, colors: npt.NDArray[np.uint8]) -> FloatImage:
    """Colours an (H, W) pattern in 0..1 by a palette; returns (H, W, 3) float32 BGR in 0..255."""
    index = cv2.convertScaleAbs(pattern, alpha=255)
    colored: FloatImage = cv2.applyColorMap(index, colors).astype(np.float32)
    return colored


def _rotated_axes(
    rng: np.random.Generator, hw: tuple[int, int], *, straight: float = 0.3
) -> tuple[FloatImage, FloatImage]:
    """Pixel coordinates along two perpendicular directions through a random origin; upright with chance `straight`."""
    angle = 0.0 if rng.random() < straight else rng.uniform(0, np.pi)
    x = np.arange(hw[1], dtype=np.float32)[None] - np.float32(hw[1] * rng.uniform(0.3, 0.7))
    y = np.arange(hw[0], dtype=np.float32)[:, None] - np.float32(hw[0] * rng.uniform(0.3, 0.7))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _period(rng: np.random.Generator, hw: tuple[int, int]) -> float:
    """A repeat length in pixels that is neither finer than the pixels can show nor coarser than the picture."""
    return float(max(3.5, min(hw) * np.exp(rng.uniform(np.log(0.05), np.log(0.35)))))


def _edge_distance(position: FloatImage) -> FloatImage:
    """Distance of each position from the nearest whole number, 0..0.5."""
    return np.abs(position - np.round(position))


def _sharpen(wave: FloatImage, factor: float) -> FloatImage:
    """Maps -1..1 to 0..1, steeper around the middle the larger the factor."""
    steeper: FloatImage = np.clip(np.float32(0.5 * factor) * wave + np.float32(0.5), 0, 1)
    return steeper


def _stretch(values: FloatImage) -> FloatImage:
    """Maps the smallest value to 0 and the largest to 1."""
    low, high = float(values.min()), float(values.max())
    stretched: FloatImage = np.clip((values - np.float32(low)) * np.float32(1 / max(high - low, 1e-6)), 0, 1)
    return stretched

"""Outlines for made-up objects: lists of closed contours in a unit frame, and their masks in pixels.

A shape is a tuple of parts, painted in order; a part fills its contour or, as a hole, clears it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Contour = npt.NDArray[np.float64]
_FINENESS = 4
"""Masks are drawn this many times larger and averaged down; OpenCV's own antialiasing swells shapes by a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One closed contour of a shape."""

    contour: Contour
    """(M, 2) x, y in the shape's own frame, where the shape is about 2 wide."""
    is_hole: bool = False
    """Clears what earlier parts filled."""


Shape = tuple[Part, ...]


def _oval(
    center_xy: tuple[float, float] = (0, 0), radius_xy: tuple[float, float] = (1, 1), power: float = 2
) -> Contour:
    """An ellipse, or for a higher power a rounded rectangle (Lame's curve)."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    unit = np.stack([np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)], axis=1)
    return unit * radius_xy + center_xy


def _polar(radius: npt.NDArray[np.float64], *, start: float = 0) -> Contour:
    """A contour from its radius at equal steps of angle."""
    angle = start + np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _round_corners(contour: Contour, rounds: int) -> Contour:
    """Cuts every corner at a quarter of its edges, `rounds` times (Chaikin 1974)."""
    for _ in range(rounds):
        following = np.roll(contour, -1, axis=0)
        contour = np.stack([0.75 * contour + 0.25 * following, 0.25 * contour + 0.75 * following], axis=1).reshape(
            -1, 2
        )
    return contour


def _corners(rng: np.random.Generator, *points_xy: tuple[float, float]) -> Contour:
    return _round_corners(np.array(points_xy, np.float64), int(rng.integers(0, 4)))


def ellipse(rng: np.random.Generator) -> Shape:
    """A disc or an ellipse."""
    return (Part(contour=_oval(radius_xy=(1, rng.uniform(0.4, 1)))),)


def rounded_rectangle(rng: np.random.Generator) -> Shape:
    """A box with rounded corners."""
    return (Part(contour=_oval(radius_xy=(1, rng.uniform(0.25, 1)), power=rng.uniform(3, 12))),)


def polygon(rng: np.random.Generator) -> Shape:
    """A polygon of three to eight corners, more or less regular."""
    count = int(rng.integers(3, 9))
    return (Part(contour=_round_corners(_polar(rng.uniform(0.6, 1, count)), int(rng.integers(0, 4)))),)


def star(rng: np.random.Generator) -> Shape:
    """A star, or with many short points a gear."""
    points = int(rng.integers(4, 13))
    inner = rng.uniform(0.35, 0.6) if points < 8 else rng.uniform(0.7, 0.88)
    return (Part(contour=_round_corners(_polar(np.tile([1, inner], points)), int(rng.integers(0, 3)))),)


def blob(rng: np.random.Generator) -> Shape:
    """A smooth random outline."""
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(2, 7):
        radius += rng.uniform(-0.5, 0.5) / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return (Part(contour=_polar(np.maximum(radius, 0.25))),)


def ring(rng: np.random.Generator) -> Shape:
    """A ring or a frame."""
    power, inner = rng.choice([2.0, 2.0, 6.0]), rng.uniform(0.35, 0.75)
    outer_xy = (1.0, float(rng.uniform(0.6, 1)))
    hole = _oval(radius_xy=(inner * outer_xy[0], inner * outer_xy[1]), power=power)
    return Part(contour=_oval(radius_xy=outer_xy, power=power)), Part(contour=hole, is_hole=True)


def crescent(rng: np.random.Generator) -> Shape:
    """A moon."""
    hole = _oval((rng.uniform(0.4, 0.8), rng.uniform(-0.1, 0.1)), (0.9, 0.9))
    return Part(contour=_oval()), Part(contour=hole, is_hole=True)


def cross(rng: np.random.Generator) -> Shape:
    """Two crossed bars."""
    arm = rng.uniform(0.2, 0.4)
    bars = ((1.0, arm), (arm, rng.uniform(0.7, 1)))
    return tuple(Part(contour=_oval(radius_xy=radius_xy, power=10)) for radius_xy in bars)


def arrow(rng: np.random.Generator) -> Shape:
    """An arrow or a house, by the width of its shaft."""
    shaft, head = rng.uniform(0.15, 0.6), rng.uniform(-0.3, 0.4)
    points = ((-1, -shaft), (head, -shaft), (head, -0.8), (1, 0), (head, 0.8), (head, shaft), (-1, shaft))
    return (Part(contour=_corners(rng, *points)),)


def bottle(rng: np.random.Generator) -> Shape:
    """A body with a neck and a cap."""
    neck, body = rng.uniform(0.1, 0.25), rng.uniform(0.28, 0.5)
    shoulder = _corners(rng, (-body, 0.0), (-neck, -0.4), (neck, -0.4), (body, 0.0))
    return (
        Part(contour=_oval((0, 0.45), (body, 0.55), 8)),
        Part(contour=shoulder),
        Part(contour=_oval((0, -0.6), (neck, 0.4), 8)),
        Part(contour=_oval((0, -0.92), (neck * 1.3, 0.1), 8)),
    )


def cup(rng: np.random.Generator) -> Shape:
    """A mug with a handle."""
    taper = rng.uniform(0, 0.2)
    body = ((-0.7, -0.8), (0.5, -0.8), (0.5 - taper, 0.8), (-0.7 + taper, 0.8))
    return (
        Part(contour=_oval((0.55, -0.05), (0.45, 0.5))),
        Part(contour=_oval((0.55, -0.05), (0.27, 0.31)), is_hole=True),
        Part(contour=_round_corners(np.array(body), 2)),
    )


def vehicle(rng: np.random.Generator) -> Shape:
    """A body, a cabin and two wheels."""
    cabin = rng.uniform(-0.3, 0.2)
    roof = ((cabin - 0.55, 0.0), (cabin - 0.35, -0.5), (cabin + 0.3, -0.5), (cabin + 0.55, 0.0))
    wheel = rng.uniform(0.2, 0.27)
    return (
        Part(contour=_round_corners(np.array(roof), 2)),
        Part(contour=_oval((0, 0.15), (1, 0.25), 6)),
        Part(contour=_oval((-0.55, 0.4), (wheel, wheel))),
        Part(contour=_oval((0.55, 0.4), (wheel, wheel))),
    )


def fish(rng: np.random.Generator) -> Shape:
    """A body with a tail and fins."""
    deep = rng.uniform(0.25, 0.5)
    tail = _corners(rng, (-0.45, 0.0), (-1.0, -rng.uniform(0.3, 0.5)), (-0.85, 0.0), (-1.0, rng.uniform(0.3, 0.5)))
    fin = _corners(rng, (-0.2, -deep * 0.7), (0.1, -deep * 1.5), (0.5, -deep * 0.6))
    return Part(contour=tail), Part(contour=fin), Part(contour=_oval((0.2, 0), (0.8, deep)))


def person(rng: np.random.Generator) -> Shape:
    """A head on a body with legs."""
    wide, step = rng.uniform(0.22, 0.36), rng.uniform(0.02, 0.25)
    return (
        Part(contour=_oval((0, -0.8), (0.17, 0.2))),
        Part(contour=_oval((0, -0.18), (wide, 0.46), 3.5)),
        Part(contour=_corners(rng, (-wide * 0.9, 0.1), (-0.02, 0.1), (-step, 1.0), (-step - 0.18, 1.0))),
        Part(contour=_corners(rng, (0.02, 0.1), (wide * 0.9, 0.1), (step + 0.18, 1.0), (step, 1.0))),
    )


def dumbbell(rng: np.random.Generator) -> Shape:
    """Two ends on a bar, alike or not: dumbbell, spoon, mushroom."""
    left, right = rng.uniform(0.25, 0.5), rng.uniform(0.15, 0.5)
    return (
        Part(contour=_oval((0, 0), (0.8, rng.uniform(0.08, 0.16)), 8)),
        Part(contour=_oval((-0.7, 0), (0.3, left), rng.choice([2.0, 5.0]))),
        Part(contour=_oval((0.7, 0), (0.3, right), rng.choice([2.0, 5.0]))),
    )


SHAPES: tuple[Callable[[np.random.Generator], Shape], ...] = (
    *(ellipse, rounded_rectangle, polygon, star, blob, ring, crescent, cross, arrow),
    *(bottle, cup, vehicle, fish, person, dumbbell),
)
"""Every kind of shape."""


def rasterize(
    shape: Shape, *, size_px: float, angle: float, aspect: float, max_wh_px: tuple[float, float], margin_px: int
) -> npt.NDArray[np.uint8]:
    """Draws a shape as an antialiased mask.

    Args:
        shape: What to draw.
        size_px: Square root of the area of its upright bounding box.
        angle: Turn in radians.
        aspect: Height is multiplied and width divided by its square root before the turn.
        max_wh_px: The box is shrunk to fit.
        margin_px: Empty border around it.

    Returns:
        (h, w) uint8 coverage, 0..255.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([aspect**-0.5, aspect**0.5])
    contours = [part.contour @ matrix.T for part in shape]
    solid = np.concatenate([contour for part, contour in zip(shape, contours, strict=True) if not part.is_hole])
    low, extent = solid.min(axis=0), np.ptp(solid, axis=0)
    scale = min(size_px / np.sqrt(extent.prod()), *(np.array(max_wh_px) / extent))
    width, height = (int(side) for side in np.ceil(extent * scale) + 2 * margin_px)
    fine = np.zeros((height * _FINENESS, width * _FINENESS), np.uint8)
    for part, contour in zip(shape, contours, strict=True):
        # OpenCV counts the corner pixels in and puts the first pixel's centre at 0, we put its corner there.
        points = ((contour - low) * scale + margin_px) * _FINENESS - 0.5
        cv2.fillPoly(fine, [points.round().astype(np.int32)], 0 if part.is_hole else 255)
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

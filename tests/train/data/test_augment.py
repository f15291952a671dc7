"""Geometry, colours and chance of training views."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerpn.train.data.augment import AugmentConfig, RandomView, apply_view, draw_view

NONE = np.zeros((0, 4), np.float32)
PLAIN = RandomView(flip=False, scale=1.0, log_aspect=0.0, place_xy=(0.0, 0.0), color=None)
GEOMETRY = AugmentConfig(color_probability=0.0, min_visible=0.0)


def boxes(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


def augment(
    image: np.ndarray, boxes: np.ndarray, ignored: np.ndarray, *, rng: np.random.Generator, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a view and applies it."""
    return apply_view(draw_view(options["config"], rng), image, boxes, ignored, **options)


def black(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)


def show(
    view: RandomView, marked: npt.NDArray[np.float32], **config: Any
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The boxes of an image of 200 x 100 in a view of 100 x 100; it fits at half its size."""
    return apply_view(view, black(100, 200), marked, NONE, out_hw=(100, 100), config=AugmentConfig(**config))[1:]


# Fit = min(100 / 100, 100 / 200) = 0.5. At scale 1 the image is 100 x 50, with a play of 50 rows: place 0.5 of the
# 51 positions is row 25. At scale 2 it is 200 x 100: the view shows 100 of its columns, from 0, 50 (place 0.5 of 101)
# or 100 (place 1) on.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [10, 5, 30, 25]),
        ({"place_xy": (0.9, 0.5)}, [10, 30, 30, 50]),
        ({"place_xy": (0.0, 1.0)}, [10, 55, 30, 75]),
        ({"flip": True}, [70, 5, 90, 25]),
        ({"scale": 0.5}, [5, 2.5, 15, 12.5]),
        ({"scale": 0.5, "place_xy": (1.0, 0.0)}, [55, 2.5, 65, 12.5]),
        ({"scale": 0.5, "place_xy": (1.0, 0.0), "flip": True}, [85, 2.5, 95, 12.5]),
        ({"scale": 2.0}, [20, 10, 60, 50]),
        ({"scale": 2.0, "flip": True}, [40, 10, 80, 50]),
        ({"scale": 2.0, "place_xy": (0.5, 0.0)}, [0, 10, 10, 50]),
        # Half as wide, twice as high: 25 % and 100 % of the image's size.
        ({"log_aspect": math.log(0.25)}, [5, 10, 15, 50]),
    ],
)
def test_a_box_moves_with_the_view(changes: dict[str, Any], expected: list[float]) -> None:
    shown, ignored = show(dataclasses.replace(PLAIN, **changes), boxes([20, 10, 60, 50]), min_visible=0.2)
    np.testing.assert_allclose(shown, [expected], atol=1e-5)
    assert ignored.shape == (0, 4)


def test_a_box_mostly_out_of_view_becomes_an_ignore_region() -> None:
    view = dataclasses.replace(PLAIN, scale=2.0, place_xy=(0.5, 0.0))
    marked = boxes([20, 10, 60, 50], [0, 10, 50, 50], [0, 10, 51.5, 50], [60, 10, 90, 50])
    shown, ignored = show(view, marked, min_visible=0.3)
    np.testing.assert_allclose(shown, [[10, 10, 40, 50]])
    # A quarter of the first is in view; of the second nothing; of the third 1.5 columns, fewer than min_box_px.
    np.testing.assert_allclose(ignored, [[0, 10, 10, 50]])
    assert len(show(view, marked, min_visible=0.25)[0]) == 2
    assert len(show(view, marked, min_box_px=1.0)[1]) == 2


def test_a_whole_box_stays_even_if_all_of_it_must_be_visible() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        view = dataclasses.replace(PLAIN, scale=float(rng.uniform(0.3, 0.9)))
        assert len(show(view, boxes([0, 0, 200, 100], [13, 7, 77, 31]), min_visible=1.0)[0]) == 2


def test_boxes_too_small_in_the_view_are_dropped() -> None:
    marked = boxes([10, 10, 13, 50], [10, 10, 50, 13], [10, 10, 14, 14])
    shown, ignored = show(PLAIN, marked, min_box_px=2.0)
    np.testing.assert_allclose(shown, [[5, 5, 7, 7]])
    assert ignored.shape == (0, 4)


def test_ignore_regions_are_mapped_and_clipped_and_never_become_objects() -> None:
    view = dataclasses.replace(PLAIN, scale=2.0)
    _, shown, ignored = apply_view(
        view, black(100, 200), NONE, boxes([90, 10, 190, 50]), out_hw=(100, 100), config=AugmentConfig()
    )
    assert shown.shape == (0, 4)
    np.testing.assert_allclose(ignored, [[90, 10, 100, 50]])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    source_hw=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    out_hw=st.tuples(st.integers(48, 160), st.integers(48, 160)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_an_object_of_the_image_lies_in_its_box_of_the_view(
    seed: int, source_hw: tuple[int, int], out_hw: tuple[int, int], corners: tuple[float, ...]
) -> None:
    height, width = source_hw
    x1, x2 = sorted((round(corners[0] * (width - 20)), round(corners[1] * (width - 20))))
    y1, y2 = sorted((round(corners[2] * (height - 20)), round(corners[3] * (height - 20))))
    x2, y2 = x2 + 20, y2 + 20
    image = black(height, width)
    image[y1:y2, x1:x2] = 255
    canvas, shown, ignored = augment(
        image, boxes([x1, y1, x2, y2]), NONE, out_hw=out_hw, config=GEOMETRY, rng=np.random.default_rng(seed)
    )
    assert canvas.shape == (*out_hw, 3)
    assert ignored.shape == (0, 4)
    # The padding is 114, below the threshold.
    bright = np.argwhere(canvas[:, :, 0] > 127)
    if len(shown):
        y_first, x_first = bright.min(axis=0)
        y_last, x_last = bright.max(axis=0) + 1
        np.testing.assert_allclose(shown[0], [x_first, y_first, x_last, y_last], atol=1.5)
    elif len(bright):
        assert min(np.ptp(bright, axis=0) + 1) <= 2 + 1.5


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hw=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_boxes_stay_inside_the_view_and_inputs_stay_as_they_were(seed: int, hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
    limit = np.array([hw[1], hw[0]])
    points = np.sort(rng.random((12, 2, 2)) * limit, axis=1).astype(np.float32)
    marked, crowds = points[:8].reshape(-1, 4), points[8:].reshape(-1, 4)
    copies = image.copy(), marked.copy(), crowds.copy()
    canvas, shown, ignored = augment(image, marked, crowds, out_hw=(40, 60), config=AugmentConfig(), rng=rng)
    assert canvas.dtype == np.uint8
    assert shown.dtype == ignored.dtype == np.float32
    assert len(shown) <= 8
    assert len(shown) + len(ignored) <= 12
    for rows in (shown, ignored):
        assert (rows >= 0).all()
        assert (rows <= [60, 40, 60, 40]).all()
        assert (rows[:, 2:] - rows[:, :2] >= 2 - 1e-4).all()
    for found, before in zip((image, marked, crowds), copies, strict=True):
        np.testing.assert_array_equal(found, before)


def test_the_letterbox_grey_surrounds_the_image_in_any_colours() -> None:
    view = dataclasses.replace(PLAIN, scale=0.5, place_xy=(0.5, 0.5), color=(1.2, 0.8, 1.3, 0.1))
    image = np.full((100, 200, 3), 60, np.uint8)
    canvas, _, _ = apply_view(view, image, NONE, NONE, out_hw=(100, 100), config=AugmentConfig())
    # 50 x 25 pixels at column int(0.5 * 51) and row int(0.5 * 76).
    inside = np.zeros((100, 100), bool)
    inside[38:63, 25:75] = True
    assert (canvas[~inside] == 114).all()
    assert (canvas[inside] != 114).all()


def tint(pixel: tuple[int, int, int], color: tuple[float, float, float, float]) -> npt.NDArray[np.uint8]:
    image = np.full((8, 8, 3), pixel, np.uint8)
    view = dataclasses.replace(PLAIN, color=color)
    canvas, _, _ = apply_view(view, image, NONE, NONE, out_hw=(8, 8), config=AugmentConfig())
    assert (canvas == canvas[0, 0]).all()
    return canvas[0, 0]


@pytest.mark.parametrize(
    ("pixel", "color", "expected"),
    [
        ((10, 100, 200), (1.0, 1.0, 1.0, 0.0), (10, 100, 200)),
        ((10, 100, 200), (0.5, 1.0, 1.0, 0.0), (5, 50, 100)),
        ((10, 100, 200), (1.5, 1.0, 1.0, 0.0), (15, 150, 255)),
        # 127.5 + 0.5 * (value - 127.5)
        ((10, 100, 200), (1.0, 0.5, 1.0, 0.0), (69, 114, 164)),
        # Luma 0.114 * 10 + 0.587 * 100 + 0.299 * 200 = 119.64
        ((10, 100, 200), (1.0, 1.0, 0.0, 0.0), (120, 120, 120)),
        # Grey has no hue to turn and no saturation to change.
        ((90, 90, 90), (1.0, 1.0, 1.4, 1.0), (90, 90, 90)),
    ],
)
def test_colours_change_by_the_factors(
    pixel: tuple[int, int, int], color: tuple[float, float, float, float], expected: tuple[int, int, int]
) -> None:
    np.testing.assert_allclose(tint(pixel, color).astype(int), expected, atol=1)


def test_a_turn_of_the_hue_moves_red_towards_its_neighbours() -> None:
    red = (40, 40, 200)
    one_way, other_way = tint(red, (1, 1, 1, 0.5)).astype(int), tint(red, (1, 1, 1, -0.5)).astype(int)
    assert one_way[2] > max(one_way[:2])
    assert other_way[2] > max(other_way[:2])
    assert (one_way[0] > one_way[1]) != (other_way[0] > other_way[1])


def test_the_same_chance_gives_the_same_view() -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    marked = boxes([5, 5, 40, 40])
    runs = [
        augment(image, marked, NONE, out_hw=(64, 64), config=AugmentConfig(), rng=np.random.default_rng(seed))
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_views_follow_the_ranges_of_the_config() -> None:
    rng = np.random.default_rng(0)
    config = AugmentConfig(flip_probability=0.25, scale_range=(0.5, 2.0), color_probability=0.5)
    views = [draw_view(config, rng) for _ in range(2000)]
    scales = np.log2([view.scale for view in views])
    assert -1 <= scales.min() < -0.98
    assert 0.98 < scales.max() <= 1
    assert abs(scales.mean()) < 0.05
    assert abs(np.mean([view.flip for view in views]) - 0.25) < 0.03
    assert abs(np.mean([view.color is None for view in views]) - 0.5) < 0.04
    assert max(abs(view.log_aspect) for view in views) <= config.aspect_jitter
    hues = [view.color[3] for view in views if view.color is not None]
    assert 0.9 < max(map(abs, hues)) / (2 * math.pi * config.hue) <= 1


def test_without_augmentation_a_view_is_the_letterboxed_image_somewhere_in_its_play() -> None:
    config = AugmentConfig(flip_probability=0, scale_range=(1, 1), aspect_jitter=0, color_probability=0)
    image = np.random.default_rng(1).integers(0, 100, (60, 90, 3), dtype=np.uint8)
    canvas, _, _ = augment(image, NONE, NONE, out_hw=(80, 90), config=config, rng=np.random.default_rng(3))
    top = int(np.flatnonzero((canvas != 114).any(axis=(1, 2)))[0])
    np.testing.assert_array_equal(canvas[top : top + 60], image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip_probability": 1.1}, "flip_probability: expected 0..1, got 1.1"),
        ({"color_probability": -0.1}, "color_probability: expected 0..1, got -0.1"),
        ({"min_visible": 2.0}, "min_visible: expected 0..1, got 2.0"),
        ({"saturation": math.nan}, "saturation: expected 0..1, got nan"),
        (
            {"scale_range": (0.0, 1.0)},
            r"scale_range: expected two positive numbers, the smaller first, got \(0.0, 1.0\)",
        ),
        ({"scale_range": (1.5, 1.0)}, "scale_range: expected two positive numbers, the smaller first"),
        ({"aspect_jitter": -1.0}, "aspect_jitter: expected 0..1, got -1.0"),
        ({"hue": 0.6}, "hue: expected 0..0.5 turns, got 0.6"),
        ({"mosaic_probability": 2.0}, "mosaic_probability: expected 0..1, got 2.0"),
        ({"min_box_px": -1.0}, "min_box_px: expected 0 or more, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AugmentConfig(**changes)

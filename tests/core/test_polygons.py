"""Polygons: points inside, shares of boxes, and outlines that are refused; the numbers are computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgerpn.polygons import Point, Polygons, outline_problem

TRIANGLE = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
# A square without its lower right quarter.
ANGLE = [(0.0, 0.0), (4.0, 0.0), (4.0, 2.0), (2.0, 2.0), (2.0, 4.0), (0.0, 4.0)]
# Two prongs that open downwards, 2 wide, with a gap 2 wide between them.
FORK = [(0.0, 0.0), (6.0, 0.0), (6.0, 6.0), (4.0, 6.0), (4.0, 2.0), (2.0, 2.0), (2.0, 6.0), (0.0, 6.0)]


def made(*outlines: Sequence[Point]) -> Polygons:
    return Polygons([np.array(outline) for outline in outlines])


def contains(outline: Sequence[Point], points: Sequence[Point]) -> list[bool]:
    x, y = np.array(points, np.float64).T[:, None]
    return made(outline).contain(x, y)[0].tolist()


def test_points_are_inside_of_a_polygon_or_not() -> None:
    assert contains(TRIANGLE, [(0.3, 0.3), (0.6, 0.6), (-0.1, 0.5), (0.5, -0.1), (1.5, 0.0)]) == [True] + [False] * 4
    assert contains(ANGLE, [(1, 1), (3, 1), (1, 3), (3, 3), (2.5, 2.5)]) == [True, True, True, False, False]
    assert contains(FORK, [(1, 5), (3, 5), (5, 5), (3, 1), (3, 2.5)]) == [True, False, True, True, False]


@pytest.mark.parametrize("turned", [False, True])
def test_the_outline_counts_as_inside_in_either_direction(turned: bool) -> None:
    outline = ANGLE[::-1] if turned else ANGLE
    on_it = [(0, 0), (4, 0), (2, 0), (4, 1), (3, 2), (2, 2), (2, 3), (1, 4), (0, 2.5)]
    assert contains(outline, on_it) == [True] * len(on_it)
    # On the lines through the sides, and level with corners, but outside.
    assert contains(outline, [(5, 0), (-1, 0), (4, 3), (5, 2), (2, 5), (-1, 4)]) == [False] * 6


def test_a_slanted_outline_counts_as_inside_too() -> None:
    assert contains([(0.1, 0.4), (0.5, 0.4), (0.7, 1.0), (0.0, 1.0)], [(0.6, 0.7), (0.05, 0.7)]) == [True, True]


def test_each_polygon_has_its_own_point() -> None:
    is_inside = made(TRIANGLE, ANGLE).contain(np.array([[0.2, 3.0], [3.0, 1.0]]), np.array([[0.2, 3.0], [3.0, 1.0]]))
    assert is_inside.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("box", "share"),
    [
        ((1, 1, 3, 3), 3 / 4),  # all but its lower right quarter
        ((0, 0, 4, 4), 12 / 16),
        ((-4, 0, 4, 4), 12 / 32),  # beyond the polygon on one side
        ((0, 0, 1, 1), 1.0),
        ((2.5, 2.5, 3.5, 3.5), 0.0),
        ((2, 2, 4, 4), 0.0),  # touches two sides from outside
        ((10, 10, 11, 11), 0.0),
        ((-9, -9, 9, 9), 12 / 324),  # around it
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_shares_of_boxes_in_an_angle(box: tuple[float, ...], share: float, turned: bool) -> None:
    outline = ANGLE[::-1] if turned else ANGLE
    np.testing.assert_allclose(made(outline).shares(np.array([box], np.float32)), [[share]], atol=1e-12)


def test_shares_of_boxes_below_a_slanted_side() -> None:
    # The side from (1, 0) to (0, 1) halves the first box, and leaves the corner (1/2)^2 / 2 of the second outside.
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75], [0, 0.5, 1, 1]])
    np.testing.assert_allclose(made(TRIANGLE).shares(boxes), [[1 / 2, 1 / 2, 1 / 4]], atol=1e-12)


def test_a_box_across_both_prongs_of_a_fork_has_the_share_of_both() -> None:
    boxes = np.array([[1.0, 4.0, 5.0, 6.0], [2.0, 3.0, 4.0, 6.0]])
    np.testing.assert_allclose(made(TRIANGLE, FORK).shares(boxes), np.array([[0, 0], [0.5, 0]]), atol=1e-12)


def test_a_box_without_area_has_the_share_of_its_place() -> None:
    boxes = np.array([[0.5, 1.0, 0.5, 1.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(made(ANGLE).shares(boxes), [[1, 0]], atol=1e-6)


def test_shares_are_those_of_points_on_a_grid() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 7, (30, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    steps = (np.arange(25) + 0.5) / 25
    x = boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])
    y = boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])
    outlines = (ANGLE, FORK, [(1.0, 1.0), (6.0, 2.0), (3.0, 3.0), (5.0, 6.0), (0.5, 4.0)])
    grid = [np.broadcast_to(axis, (30, 25, 25)).reshape(1, -1) for axis in (x[:, :, None], y[:, None])]
    is_inside = made(*outlines).contain(*(np.repeat(axis, 3, axis=0) for axis in grid)).reshape(3, 30, -1)
    np.testing.assert_allclose(made(*outlines).shares(boxes), is_inside.mean(axis=2), atol=0.04)


def test_no_boxes_and_no_points_have_no_answers() -> None:
    assert made(TRIANGLE, ANGLE).shares(np.zeros((0, 4))).shape == (2, 0)
    assert made(TRIANGLE, ANGLE).contain(np.zeros((2, 0)), np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([(0, 0), (1, 1)], "expected 3 to 100 points, got 2"),
        ([(i, i * i) for i in range(101)], "expected 3 to 100 points, got 101"),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], "crosses or touches itself: the side from point 1 meets that from point 3"),
        ([(0, 0), (2, 0), (2, 2), (1, 0), (0, 2)], "the side from point 1 meets that from point 3"),
        ([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)], "points 5 and 1 are the same one"),
        ([(0, 0), (1, 0), (1, 0), (1, 1)], "points 2 and 3 are the same one"),
        ([(0, 0), (1, 1), (2, 2)], "turns back on itself at point 1"),
        ([(0, 0), (4, 0), (2, 0), (2, 2)], "turns back on itself at point 2"),
    ],
)
def test_outlines_of_no_polygon_are_named_with_their_points(points: list[Point], problem: str) -> None:
    assert problem in str(outline_problem(points))


@pytest.mark.parametrize("outline", [TRIANGLE, ANGLE, FORK, ANGLE[::-1], [(0, 0), (1, 0), (2, 0), (1, 1)]])
def test_outlines_of_polygons_are_good(outline: list[Point]) -> None:
    assert outline_problem(outline) is None

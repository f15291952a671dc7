"""The rules by which a teacher's boxes complete the labels of an image, on boxes made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.general.teacher import Taught, fill

Box = list[int]

LABELLED = [20, 20, 60, 60]


def taught(boxes: list[Box], scores: list[float], labelled: list[Box]) -> Taught:
    """Calls `fill` on an image of 200x200."""
    rows: list[Any] = [np.array(values, np.float32).reshape(-1, 4) for values in (boxes, labelled)]
    return fill(rows[0], np.array(scores, np.float32), rows[1], (200, 200))


@pytest.mark.parametrize(
    ("box", "score", "expected"),
    [
        pytest.param([120, 120, 160, 160], 0.5, "object", id="sure"),
        pytest.param([120, 120, 160, 160], 0.37, "region", id="less sure"),
        pytest.param([120, 120, 160, 160], 0.16, "region", id="hardly sure"),
        pytest.param([120, 120, 160, 160], 0.14, "none", id="not sure"),
        pytest.param([30, 20, 70, 60], 0.9, "none", id="the labelled object, IoU 0.6"),
        pytest.param([44, 20, 84, 60], 0.9, "object", id="beside it, IoU 0.25"),
        pytest.param([25, 25, 35, 35], 0.9, "none", id="a part of it"),
        pytest.param([10, 25, 30, 35], 0.9, "object", id="half outside of it"),
        pytest.param([10, 10, 90, 90], 0.9, "region", id="around it"),
        pytest.param([10, 10, 90, 90], 0.2, "region", id="around it, less sure"),
        pytest.param([90, 0, 199, 199], 0.9, "object", id="large and sure"),
        pytest.param([90, 0, 199, 199], 0.35, "region", id="large and less sure"),
        pytest.param([90, 0, 199, 199], 0.29, "none", id="large and hardly sure"),
    ],
)
def test_a_box_is_an_object_a_region_or_nothing(box: Box, score: float, expected: str) -> None:
    objects, regions = taught([box], [score], [LABELLED])
    assert (objects.tolist(), regions.tolist()) == (
        [box] if expected == "object" else [],
        [box] if expected == "region" else [],
    )


def test_of_two_boxes_of_one_thing_the_better_stays() -> None:
    first, near, other = [100, 100, 140, 140], [105, 100, 145, 140], [125, 100, 165, 140]
    objects, regions = taught([first, near, other], [0.6, 0.5, 0.2], [])
    assert objects.tolist() == [first]
    assert regions.tolist() == [other]


def test_one_of_several_labelled_objects_suffices() -> None:
    same = [150, 150, 190, 190]
    assert [rows.tolist() for rows in taught([same], [0.9], [LABELLED, same])] == [[], []]


def test_a_teacher_that_finds_nothing_adds_nothing() -> None:
    assert [rows.shape for rows in taught([], [], [LABELLED])] == [(0, 4), (0, 4)]

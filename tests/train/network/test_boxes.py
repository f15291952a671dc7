"""Overlap and delta coding against numbers computed by hand, and the coding round trip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgerpn.train.network.boxes import (
    MAX_LOG_SCALE,
    area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    paired_iou_giou,
    pairwise_intersection,
    pairwise_iou,
)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_a_box_of_10_by_4_has_area_40_without_the_plus_one() -> None:
    assert area(boxes((0, 0, 10, 4), (5, 5, 5, 9), (3, 3, 1, 1))).tolist() == [40.0, 0.0, 0.0]


# Intersection, union, hull by hand: (first, second, IoU, GIoU).
OVERLAPS = [
    ((0, 0, 10, 10), (0, 0, 10, 10), 1.0, 1.0),
    # 25 of 175; the hull is 15 x 15, of which 50 belongs to neither
    ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175, 25 / 175 - 50 / 225),
    # inside: 4 of 100, the hull is the union
    ((0, 0, 10, 10), (4, 4, 6, 6), 0.04, 0.04),
    # touching: nothing in common, nothing between
    ((0, 0, 10, 10), (10, 0, 20, 10), 0.0, 0.0),
    # apart: hull 30 x 10, union 200
    ((0, 0, 10, 10), (20, 0, 30, 10), 0.0, -100 / 300),
    # apart on the diagonal: hull 4 x 4, union 2
    ((0, 0, 1, 1), (3, 3, 4, 4), 0.0, -14 / 16),
    # a box without area inside a box
    ((0, 0, 10, 10), (5, 5, 5, 5), 0.0, 0.0),
]


@pytest.mark.parametrize(("first", "second", "iou", "giou"), OVERLAPS)
def test_iou_and_giou_are_the_hand_computed_ones(first: tuple, second: tuple, iou: float, giou: float) -> None:
    for a, b in ((boxes(first), boxes(second)), (boxes(second), boxes(first))):
        found_iou, found_giou = paired_iou_giou(a, b)
        assert found_iou.item() == pytest.approx(iou, abs=1e-6)
        assert found_giou.item() == pytest.approx(giou, abs=1e-6)
        assert pairwise_iou(a[None], b[None]).item() == pytest.approx(iou, abs=1e-6)


def test_two_empty_boxes_overlap_nothing_and_give_no_nan() -> None:
    empty = boxes((5, 5, 5, 5))
    iou, giou = paired_iou_giou(empty, empty)
    assert iou.item() == 0.0
    assert math.isfinite(giou.item())
    assert pairwise_iou(empty[None], empty[None]).item() == 0.0


def test_pairwise_iou_broadcasts_one_set_of_anchors_over_the_images() -> None:
    first = torch.stack((boxes((0, 0, 10, 10), (5, 5, 15, 15)), boxes((20, 0, 30, 10), (0, 0, 0, 0))))
    anchors = boxes((0, 0, 10, 10), (5, 5, 15, 15), (20, 0, 30, 10))[None]
    expected = [[[1, 1 / 7, 0], [1 / 7, 1, 0]], [[0, 0, 1], [0, 0, 0]]]
    torch.testing.assert_close(pairwise_iou(first, anchors), torch.tensor(expected, dtype=torch.float32))
    assert pairwise_intersection(first, anchors)[0, 0].tolist() == [100.0, 25.0, 0.0]


def test_deltas_are_the_hand_computed_ones() -> None:
    # The anchor is 20 wide, 10 high, centred at (20, 15); the box 40 wide, 5 high, centred at (25, 12.5).
    anchor, box = boxes((10, 10, 30, 20)), boxes((5, 10, 45, 15))
    expected = torch.tensor([[5 / 20, -2.5 / 10, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode_boxes(box, anchor), expected)
    torch.testing.assert_close(decode_boxes(expected, anchor), box)


def test_an_anchor_on_its_box_has_zero_deltas() -> None:
    anchor = boxes((1, 2, 4, 6))
    assert encode_boxes(anchor, anchor).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert decode_boxes(torch.zeros(1, 4), anchor).tolist() == anchor.tolist()


def test_growth_is_clamped_from_16_to_1000_pixels_and_shrinking_is_not() -> None:
    assert math.isclose(MAX_LOG_SCALE, 4.135166556742356)
    anchor = boxes((0, 0, 16, 16))
    x1, y1, x2, y2 = decode_boxes(torch.tensor([[0.0, 0.0, 50.0, 4.2]]), anchor)[0].tolist()
    assert x2 - x1 == pytest.approx(1000.0, rel=1e-5)
    assert y2 - y1 == pytest.approx(1000.0, rel=1e-5)
    x1, y1, x2, y2 = decode_boxes(torch.tensor([[0.0, 0.0, -6.0, 4.0]]), anchor)[0].tolist()
    assert x2 - x1 == pytest.approx(16 * math.exp(-6.0), rel=1e-3)
    assert y2 - y1 == pytest.approx(16 * math.exp(4.0), rel=1e-5)


def test_boxes_are_clipped_to_height_and_width() -> None:
    clipped = clip_boxes(boxes((-5, -6, 700, 500), (10, 20, 30, 40), (650, 10, 700, 20)), (480, 640))
    assert clipped.tolist() == [[0, 0, 640, 480], [10, 20, 30, 40], [640, 10, 640, 20]]


def box_strategy() -> st.SearchStrategy[tuple[float, float, float, float]]:
    place = st.floats(-2000, 2000)
    side = st.floats(16.0, 1000.0)  # a larger ratio would be clamped
    return st.tuples(place, place, side, side).map(lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3]))


@given(box=box_strategy(), anchor=box_strategy())
def test_decoding_what_was_encoded_gives_the_box_back(box: tuple, anchor: tuple) -> None:
    box_D, anchor_D = torch.tensor([box], dtype=torch.float64), torch.tensor([anchor], dtype=torch.float64)
    deltas = encode_boxes(box_D, anchor_D)
    decoded = decode_boxes(deltas, anchor_D)
    torch.testing.assert_close(decoded, box_D, rtol=1e-9, atol=1e-6)


@given(
    deltas=st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 4.1), st.floats(-3, 4.1)), anchor=box_strategy()
)
def test_encoding_what_was_decoded_gives_the_deltas_back(deltas: tuple, anchor: tuple) -> None:
    deltas_D, anchor_D = torch.tensor([deltas], dtype=torch.float64), torch.tensor([anchor], dtype=torch.float64)
    torch.testing.assert_close(encode_boxes(decode_boxes(deltas_D, anchor_D), anchor_D), deltas_D, rtol=0, atol=1e-6)


@given(first=box_strategy(), second=box_strategy())
def test_iou_is_symmetric_and_giou_never_exceeds_it(first: tuple, second: tuple) -> None:
    a, b = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    iou, giou = paired_iou_giou(a, b)
    torch.testing.assert_close(paired_iou_giou(b, a)[0], iou)
    assert 0 <= iou.item() <= 1 + 1e-9
    assert -1 <= giou.item() <= iou.item() + 1e-9

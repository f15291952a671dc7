"""Both forms of NMS against plain greedy suppression."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgerpn.train.network.boxes import pairwise_iou
from edgerpn.train.network.nms import (
    BLOCK,
    largest_overlap,
    nms_converged,
    nms_fixed,
    nms_greedy,
    nms_keep,
    overlap_matrix,
)

Box = tuple[float, float, float, float]


def overlaps(a: Box, b: Box, threshold: float) -> bool:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return False
    common = width * height
    return common > threshold * ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def greedy(boxes: list[Box], valid: list[bool], threshold: float) -> list[bool]:
    """Plain NMS: repeatedly takes the best remaining box and drops the boxes that overlap it."""
    keep = [False] * len(boxes)
    left = [i for i in range(len(boxes)) if valid[i]]
    while left:
        best, *rest = left
        keep[best] = True
        left = [i for i in rest if not overlaps(boxes[best], boxes[i], threshold)]
    return keep


def check(boxes: list[Box], valid: list[bool], threshold: float) -> None:
    """Checks that all forms equal `greedy`."""
    expected = greedy(boxes, valid, threshold)
    # Whole and half numbers keep float32 as exact as the plain numbers.
    tensor, mask = torch.tensor([boxes], dtype=torch.float32), torch.tensor([valid])
    keep, rounds = nms_converged(tensor, mask, iou_threshold=threshold)
    assert keep[0].tolist() == expected
    for iterations in (rounds, len(boxes)):
        assert nms_fixed(tensor, mask, iou_threshold=threshold, iterations=iterations)[0].tolist() == expected
    scores = torch.linspace(0.9, 0.1, len(boxes))[None].where(mask, torch.tensor(-1.0))
    assert nms_keep(tensor, scores[:, None], threshold, 5)[0].tolist() == [float(kept) for kept in expected]


def corner_boxes(limit: int) -> st.SearchStrategy[Box]:
    """Boxes on a grid of halves, some of them without area."""
    place, side = st.integers(0, limit), st.integers(0, limit // 2)
    return st.tuples(place, place, side, side).map(
        lambda t: (t[0] / 2, t[1] / 2, t[0] / 2 + t[2] / 2, t[1] / 2 + t[3] / 2)
    )


THRESHOLDS = st.sampled_from([0.25, 0.5, 0.75, 1.0])


@given(data=st.data(), limit=st.sampled_from([6, 30, 400]), threshold=THRESHOLDS)
def test_any_set_of_boxes_is_suppressed_greedily(data: st.DataObject, limit: int, threshold: float) -> None:
    boxes = data.draw(st.lists(corner_boxes(limit), min_size=1, max_size=24))
    valid = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    check(boxes, valid, threshold)


@given(count=st.integers(2, 40), step=st.integers(1, 6), threshold=THRESHOLDS, seed=st.integers(0, 1000))
def test_chains_of_boxes_are_suppressed_greedily(count: int, step: int, threshold: float, seed: int) -> None:
    # Neighbours overlap, others less: the longest chains of suppressors that boxes can form.
    boxes = [(i * step / 2, 0.0, i * step / 2 + 10.0, 10.0) for i in range(count)]
    check(boxes, [True] * count, threshold)
    check([boxes[i] for i in np.random.default_rng(seed).permutation(count)], [True] * count, threshold)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), clusters=st.integers(1, 5), threshold=st.floats(0.2, 0.9))
def test_clusters_of_boxes_are_suppressed_greedily(seed: int, clusters: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    middle = rng.uniform(20, 80, (clusters, 2))[rng.integers(0, clusters, 60)]
    middle = middle + rng.normal(0, 3, (60, 2))
    half = rng.uniform(8, 14, (60, 2))
    corners = np.concatenate((middle - half, middle + half), axis=1).astype(np.float32)
    check([tuple(row) for row in corners.tolist()], [True] * 60, threshold)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_of_identical_boxes_the_first_stays(count: int) -> None:
    boxes = [(1.0, 1.0, 5.0, 6.0)] * count
    check(boxes, [True] * count, 0.7)
    check(boxes, [i != 0 for i in range(count)], 0.7)


def test_boxes_without_area_neither_suppress_nor_are_suppressed() -> None:
    boxes = [(2.0, 2.0, 2.0, 2.0), (0.0, 0.0, 4.0, 4.0), (2.0, 2.0, 2.0, 2.0), (1.0, 1.0, 3.0, 1.0)]
    check(boxes, [True] * 4, 0.5)
    assert nms_converged(torch.tensor([boxes]), torch.ones(1, 4, dtype=torch.bool), iou_threshold=0.5)[0].all()


def test_without_a_valid_box_nothing_stays() -> None:
    check([(0.0, 0.0, 4.0, 4.0)] * 3, [False] * 3, 0.5)


def test_an_invalid_box_suppresses_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    keep, _ = nms_converged(boxes, torch.tensor([[False, True]]), iou_threshold=0.5)
    assert keep.tolist() == [[False, True]]


def test_an_overlap_of_exactly_the_threshold_is_allowed() -> None:
    # 10 x 10 and 10 x 5 inside it: IoU is exactly one half.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert nms_converged(boxes, valid, iou_threshold=0.5)[0].tolist() == [[True, True]]
    assert nms_converged(boxes, valid, iou_threshold=0.499)[0].tolist() == [[True, False]]


def chain(count: int) -> Tensor:
    """Each box overlaps its neighbours by IoU 8/12 and the next but one by 6/14."""
    left = 2.0 * torch.arange(count)
    return torch.stack((left, torch.zeros(count), left + 10, torch.full((count,), 10.0)), dim=1)[None]


def test_too_few_rounds_are_not_exact_and_the_reported_number_is() -> None:
    boxes, valid = chain(20), torch.ones(1, 20, dtype=torch.bool)
    keep, rounds = nms_converged(boxes, valid, iou_threshold=0.5)
    assert keep[0].tolist() == [i % 2 == 0 for i in range(20)]
    assert rounds == 19
    for iterations, is_exact in ((19, True), (18, False), (24, True)):
        found = nms_fixed(boxes, valid, iou_threshold=0.5, iterations=iterations)
        assert torch.equal(found, keep) is is_exact


def test_a_batch_gives_what_its_images_give_one_by_one() -> None:
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(5, 30, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 5 + 20 * torch.rand(5, 30, 2, generator=generator)), dim=-1)
    valid = torch.rand(5, 30, generator=generator) > 0.2
    together, _ = nms_converged(boxes, valid, iou_threshold=0.5)
    fixed = nms_fixed(boxes, valid, iou_threshold=0.5, iterations=30)
    for i in range(5):
        alone, _ = nms_converged(boxes[i : i + 1], valid[i : i + 1], iou_threshold=0.5)
        assert torch.equal(together[i], alone[0])
        assert torch.equal(fixed[i], alone[0])


@pytest.mark.parametrize("num_boxes", [1, 2, 50, 2 * BLOCK + 3])
def test_the_largest_overlap_is_with_a_box_before(num_boxes: int) -> None:
    generator = torch.Generator().manual_seed(num_boxes)
    corner, size = (90 * torch.rand(3, num_boxes, 2, generator=generator) for _ in range(2))
    boxes = torch.cat((corner, corner + size), dim=2)
    boxes[0, -1] = boxes[0, 0]
    boxes[1, -2:] = 0.0
    matrix = pairwise_iou(boxes, boxes)
    found = largest_overlap(boxes)
    for image in range(3):
        for place in range(num_boxes):
            expected = max(matrix[image, :place, place].tolist(), default=0.0)
            assert found[image, place].item() == pytest.approx(expected, abs=1e-6)
    if num_boxes > 1:
        assert found[0, -1] == 1


def test_classes_of_boxes_do_not_compete() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3 + [[50.0, 50, 60, 60]]])
    scores = torch.tensor([[[0.9, -1.0, 0.7, -1.0], [-1.0, 0.8, -1.0, -1.0]]])
    assert nms_keep(boxes, scores, 0.5, 9).tolist() == [[1, 1, 0, 0]]
    assert nms_keep(boxes, scores.amax(dim=1, keepdim=True), 0.5, 9).tolist() == [[1, 0, 0, 0]]


def test_the_overlap_matrix_is_strictly_upper_triangular() -> None:
    matrix = overlap_matrix(torch.tensor([[[0.0, 0, 10, 10]] * 4]), iou_threshold=0.5)
    assert torch.equal(matrix[0], torch.ones(4, 4, dtype=torch.bool).triu(1))


def test_the_operator_obeys_the_rules_of_custom_operators() -> None:
    boxes, scores = chain(6), torch.tensor([[[0.9, 0.8, -1.0, -1.0, 0.5, 0.4], [-1.0, -1.0, -1.0, 0.6, -1.0, -1.0]]])
    torch.library.opcheck(torch.ops.edgerpn.nms_keep.default, (boxes, scores, 0.5, 3))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), num_boxes=st.integers(0, 3 * BLOCK), threshold=st.sampled_from((0.3, 0.5, 0.7)))
def test_nms_in_blocks_is_the_same(seed: int, num_boxes: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(num_boxes, 2, generator=generator) * 40
    sides = 4 + torch.rand(num_boxes, 2, generator=generator) * 30
    boxes = torch.cat((centers - sides / 2, centers + sides / 2), dim=1)
    valid = torch.rand(num_boxes, generator=generator) > 0.1
    whole, _ = nms_converged(boxes[None], valid[None], iou_threshold=threshold)
    assert torch.equal(nms_greedy(boxes, valid, iou_threshold=threshold), whole[0])


SIZES = (1, 2, 3, 15, 16, 17, 40, 130, 300)
"""Boxes in a set: below, at and above the padding, a block of `nms_greedy`, and several."""


def sets_of(kind: str, num_boxes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` sets of boxes in whole pixels, (N, B, 4) int64."""
    shape = (count, num_boxes)
    rank = np.broadcast_to(np.arange(num_boxes), shape)
    if kind == "random":
        corner, side = rng.integers(0, 60, (*shape, 2)), rng.integers(1, 40, (*shape, 2))
    elif kind == "clusters":
        corner = 40 * rng.integers(0, 4, (*shape, 2)) + rng.integers(0, 6, (*shape, 2))
        side = rng.integers(18, 26, (*shape, 2))
    elif kind in ("staircase", "shuffled staircase"):
        order = rank if kind == "staircase" else rng.permuted(rank, axis=1)
        step = rng.integers(1, 6, (count, 1))
        corner, side = np.stack((order * step, order * 0), axis=-1), np.full((*shape, 2), 12)
    elif kind == "identical":
        corner, side = np.full((*shape, 2), 7), np.full((*shape, 2), 9)
    elif kind == "apart":
        corner, side = np.stack((rank * 20, rank * 0), axis=-1), rng.integers(1, 21, (*shape, 2))
    elif kind == "without area":
        corner, side = (
            rng.integers(0, 12, (*shape, 2)),
            rng.integers(0, 3, (*shape, 2)) * rng.integers(0, 5, (*shape, 2)),
        )
    else:  # nested: all within 1.2 times the first, which drops them at every threshold used but 1
        corner, side = np.stack((rank % 2, rank % 3), axis=-1) * (rank > 0)[..., None], np.full((*shape, 2), 60)
    return np.concatenate((corner, corner + side), axis=-1)


def greedy_sets(boxes: np.ndarray, valid: np.ndarray, threshold: Fraction, labels: np.ndarray) -> np.ndarray:
    """Greedy NMS of each set, (N, B) bool, in integers: each box drops later boxes that overlap it."""
    keep = valid.copy()
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    for i in range(boxes.shape[1]):
        here, later = boxes[:, i : i + 1], boxes[:, i + 1 :]
        side = np.minimum(here[..., 2:], later[..., 2:]) - np.maximum(here[..., :2], later[..., :2])
        common = side.clip(0).prod(axis=-1)
        union = area[:, i : i + 1] + area[:, i + 1 :] - common
        drops = (threshold.denominator * common > threshold.numerator * union) & (
            labels[:, i : i + 1] == labels[:, i + 1 :]
        )
        keep[:, i + 1 :] &= ~(drops & keep[:, i : i + 1])
    return keep


KINDS = ["random", "clusters", "staircase", "shuffled staircase", "identical", "apart", "without area", "nested"]


@pytest.mark.parametrize(
    ("kind", "num_levels"),
    [
        *((kind, 1) for kind in KINDS),
        *(pytest.param(kind, 3, marks=[] if kind == "random" else pytest.mark.slow) for kind in KINDS),
    ],
)
def test_thousands_of_sets_are_suppressed_greedily(kind: str, num_levels: int) -> None:
    rng = np.random.default_rng(len(kind) + 100 * num_levels)
    for num_boxes in SIZES:
        count = 40 if num_boxes < 100 else 8
        for threshold in (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)):
            boxes = sets_of(kind, num_boxes, count, rng)
            # In half of the sets every box takes part; in the others some do not, as in padding.
            valid = (rng.random((count, num_boxes)) > 0.2) | (np.arange(count) % 2 == 0)[:, None]
            labels = rng.integers(0, num_levels, (count, num_boxes))
            expected = greedy_sets(boxes, valid, threshold, labels)
            tensor, mask = torch.from_numpy(boxes).float(), torch.from_numpy(valid)
            level = torch.from_numpy(labels).float() if num_levels > 1 else None
            iou = float(threshold)
            keep, rounds = nms_converged(tensor, mask, iou_threshold=iou, labels_NB=level)
            np.testing.assert_array_equal(keep.numpy(), expected)
            for iterations, is_exact in ((rounds, True), (rounds + 3, True), (rounds - 1, False)):
                if iterations:
                    fixed = nms_fixed(tensor, mask, iou_threshold=iou, iterations=iterations, labels_NB=level)
                    assert np.array_equal(fixed.numpy(), expected) is is_exact
            if level is None:
                assert np.array_equal(nms_greedy(tensor[0], mask[0], iou_threshold=iou).numpy(), expected[0])


@pytest.mark.parametrize(("kind", "share"), [("apart", 1.0), ("identical", 0.1), ("nested", 0.1)])
def test_none_or_all_but_one_are_suppressed(kind: str, share: float) -> None:
    boxes = torch.from_numpy(sets_of(kind, 10, 2, np.random.default_rng(0))).float()
    keep = nms_fixed(boxes, torch.ones(2, 10, dtype=torch.bool), iou_threshold=0.5, iterations=8)
    assert keep.float().mean().item() == pytest.approx(share)
    assert keep[:, 0].all()


def test_counts_beyond_float16_still_suppress() -> None:
    # 2500 kept boxes of no common place all suppress the last one: more than float16 counts one by one.
    places = torch.arange(50.0)
    small = torch.cartesian_prod(places, places).repeat(1, 2) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    boxes = torch.cat((small, torch.tensor([[0.0, 0.0, 50.0, 50.0]])))[None]
    valid = torch.ones(1, 2501, dtype=torch.bool)
    keep = nms_fixed(boxes, valid, iou_threshold=1e-4, iterations=3)
    assert keep[0, :2500].all()
    assert not keep[0, 2500]

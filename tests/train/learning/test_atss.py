"""ATSS against a second implementation, written plainly from algorithm 1 of arXiv:1912.02424."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from edgerpn.train.learning.assign import AssignConfig, assign
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors

Box = tuple[float, float, float, float]
CONFIG = AnchorConfig(strides_px=(8, 16, 32), sizes_px=((32.0,), (64.0,), (128.0,)))


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def atss(levels: list[list[Box]], objects: list[Box], k: int) -> dict[int, int]:
    """Anchor number -> object number, for the positives of one image."""
    claims: dict[int, tuple[float, int]] = {}
    for number, box in enumerate(objects):
        candidates: list[tuple[int, Box]] = []
        first = 0
        for level in levels:
            by_distance = sorted(range(len(level)), key=lambda i: math.dist(center(level[i]), center(box)))
            candidates += [(first + i, level[i]) for i in by_distance[:k]]
            first += len(level)
        overlaps = [iou(anchor, box) for _, anchor in candidates]
        threshold = statistics.mean(overlaps) + (statistics.stdev(overlaps) if len(overlaps) > 1 else 0.0)
        for (index, anchor), overlap in zip(candidates, overlaps, strict=True):
            x, y = center(anchor)
            is_inside = box[0] < x < box[2] and box[1] < y < box[3]
            if overlap >= threshold and is_inside and overlap > claims.get(index, (-1.0, 0))[0]:
                claims[index] = overlap, number
    return {index: number for index, (_, number) in claims.items()}


def random_objects(rng: np.random.Generator, count: int, height: int, width: int) -> list[Box]:
    sides = np.exp(rng.uniform(np.log(6), np.log(90), (count, 2)))
    x = rng.uniform(0, width - sides[:, 0].clip(max=width - 1))
    y = rng.uniform(0, height - sides[:, 1].clip(max=height - 1))
    corners = np.stack((x, y, x + sides[:, 0], y + sides[:, 1]), axis=1).astype(np.float32)
    return [tuple(row) for row in corners.tolist()]


def assigned(anchors: list[torch.Tensor], images: list[list[Box]], config: AssignConfig) -> list[dict[int, int]]:
    longest = max(1, *(len(objects) for objects in images))
    gt = torch.zeros(len(images), longest, 4)
    mask = torch.zeros(len(images), longest, dtype=torch.bool)
    for i, objects in enumerate(images):
        gt[i, : len(objects)] = torch.tensor(objects).reshape(-1, 4)
        mask[i, : len(objects)] = True
    ignore, no_ignore = torch.zeros(len(images), 1, 4), torch.zeros(len(images), 1, dtype=torch.bool)
    result = assign(anchors, gt, mask, ignore, no_ignore, image_hw=(96, 128), config=config)
    assert set(result.labels_NA.unique().tolist()) <= {0, 1}
    return [
        {a: int(matched[a]) for a in (labels == 1).nonzero()[:, 0].tolist()}
        for labels, matched in zip(result.labels_NA, result.matched_NA, strict=True)
    ]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_random_images_are_assigned_as_by_the_papers_algorithm(k: int) -> None:
    anchors = grid_anchors(CONFIG, (96, 128))
    levels: list[list[Box]] = [[tuple(row) for row in level.tolist()] for level in anchors]
    rng = np.random.default_rng(7 + k)
    images = [random_objects(rng, count, 96, 128) for count in (1, 3, 0, 12, 6)]
    found = assigned(anchors, images, AssignConfig(kind="atss", atss_candidates=k))
    expected = [atss(levels, objects, k) for objects in images]
    assert found == expected
    assert sum(map(len, expected)) >= 5


def test_one_square_object_gets_the_anchors_computed_by_hand() -> None:
    # Level 8, anchors of 32 px centred at 4, 12, 20, ...; the object is 32 px wide around (20, 20). Its 9 nearest
    # anchors: itself (IoU 1), 4 beside it (24 * 32 / (2 * 1024 - 768) = 0.6), 4 on the diagonals (576 / 1472 = 0.391).
    # Mean 0.5516, deviation 0.2028 (n - 1): the threshold is 0.754, and only the anchor itself reaches it.
    anchors = grid_anchors(AnchorConfig(strides_px=(8,), sizes_px=((32.0,),)), (64, 64))
    found = assigned(anchors, [[(4.0, 4.0, 36.0, 36.0)]], AssignConfig(kind="atss"))
    assert found == [{2 * 8 + 2: 0}]


def test_an_anchor_claimed_twice_answers_for_the_larger_overlap() -> None:
    anchors = grid_anchors(AnchorConfig(strides_px=(32,), sizes_px=((32.0,),)), (32, 32))
    small, large = (8.0, 8.0, 24.0, 24.0), (2.0, 2.0, 32.0, 32.0)
    config = AssignConfig(kind="atss")
    assert assigned(anchors, [[small, large]], config) == [{0: 1}]
    assert assigned(anchors, [[large, small]], config) == [{0: 0}]


def test_an_object_between_all_centres_gets_no_anchor() -> None:
    anchors = grid_anchors(CONFIG, (96, 128))
    assert assigned(anchors, [[(5.0, 5.0, 11.0, 11.0)]], AssignConfig(kind="atss")) == [{}]

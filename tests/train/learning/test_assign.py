"""Assignment by IoU thresholds and sampling, on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgerpn.train.learning.assign import BACKGROUND, IGNORED, OBJECT, AssignConfig, Assignment, assign, sample

PLAIN = AssignConfig(kind="max_iou", low_quality_matches=False)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def run(
    anchors: Tensor,
    gt: list[Tensor],
    config: AssignConfig,
    ignore: Tensor | None = None,
    image_hw: tuple[int, int] = (100, 100),
) -> Assignment:
    """Assigns `anchors` (one level) to the boxes of each image, padded to the largest number."""
    longest = max(1, *(len(rows) for rows in gt))
    gt_boxes = torch.zeros(len(gt), longest, 4)
    gt_mask = torch.zeros(len(gt), longest, dtype=torch.bool)
    for i, rows in enumerate(gt):
        gt_boxes[i, : len(rows)], gt_mask[i, : len(rows)] = rows, True
    ignore_boxes = torch.zeros(len(gt), 1, 4) if ignore is None else ignore.expand(len(gt), -1, 4)
    ignore_mask = torch.full(ignore_boxes.shape[:2], ignore is not None)
    return assign([anchors], gt_boxes, gt_mask, ignore_boxes, ignore_mask, image_hw=image_hw, config=config)


def test_thresholds_are_at_least_positive_and_below_negative() -> None:
    # IoU of a 10 x h box in the 10 x 10 anchor is h / 10.
    gt = boxes((0, 0, 10, 10))
    heights = [10.0, 7.0, 6.9, 3.0, 2.9, 0.0]  # exactly 0.7 is an object, exactly 0.3 is not background
    anchors = boxes(*((0, 0, 10, h) for h in heights))
    result = run(anchors, [gt], PLAIN)
    assert result.labels_NA.tolist() == [[OBJECT, OBJECT, IGNORED, IGNORED, BACKGROUND, BACKGROUND]]


def test_the_best_anchors_of_a_box_are_objects_even_below_the_threshold() -> None:
    # Both halves overlap by 0.5 and tie; the quarter overlaps by 0.25.
    gt = boxes((0, 0, 10, 10))
    anchors = boxes((0, 0, 10, 5), (0, 5, 10, 10), (0, 0, 5, 5), (50, 50, 60, 60))
    assert run(anchors, [gt], PLAIN).labels_NA.tolist() == [[IGNORED, IGNORED, BACKGROUND, BACKGROUND]]
    config = AssignConfig(kind="max_iou", low_quality_matches=True)
    assert run(anchors, [gt], config).labels_NA.tolist() == [[OBJECT, OBJECT, BACKGROUND, BACKGROUND]]


def test_a_low_quality_match_below_the_negative_threshold_is_an_object_too() -> None:
    config = AssignConfig(kind="max_iou")
    result = run(boxes((0, 0, 2, 10), (50, 50, 60, 60)), [boxes((0, 0, 10, 10))], config)
    assert result.labels_NA.tolist() == [[OBJECT, BACKGROUND]]


def test_a_low_quality_match_answers_for_the_box_that_it_overlaps_most() -> None:
    # The anchor is the best one of both boxes (0.5 and 1.0) and answers for the second.
    gt = boxes((0, 0, 10, 10), (0, 0, 10, 5))
    result = run(boxes((0, 0, 10, 5), (50, 50, 60, 60)), [gt], AssignConfig(kind="max_iou"))
    assert result.labels_NA.tolist() == [[OBJECT, BACKGROUND]]
    assert result.matched_NA[0, 0].item() == 1


def test_a_box_that_no_anchor_touches_makes_no_anchor_its_own() -> None:
    gt = boxes((80, 80, 90, 90))
    result = run(boxes((0, 0, 10, 10), (20, 20, 30, 30)), [gt], AssignConfig(kind="max_iou"))
    assert result.labels_NA.tolist() == [[BACKGROUND, BACKGROUND]]


def test_anchors_answer_for_the_box_that_they_overlap_most() -> None:
    gt = boxes((0, 0, 10, 10), (1, 0, 11, 10), (40, 40, 50, 50))
    anchors = boxes((0, 0, 10, 10), (1, 0, 11, 10), (40, 40, 50, 50))
    result = run(anchors, [gt], PLAIN)
    assert result.labels_NA.tolist() == [[OBJECT] * 3]
    assert result.matched_NA.tolist() == [[0, 1, 2]]


def test_anchors_beyond_the_boundary_get_no_loss() -> None:
    gt = boxes((-4, 0, 6, 10), (50, 50, 60, 60))
    anchors = boxes((-4, 0, 6, 10), (0, 0, 10, 10), (50, 50, 60, 60), (95, 95, 101, 100), (90, 90, 100, 100))
    inside = [BACKGROUND, OBJECT, BACKGROUND, BACKGROUND]
    everywhere = run(anchors, [gt], PLAIN).labels_NA.tolist()
    assert everywhere == [[OBJECT, IGNORED, *inside[1:]]]
    strict = run(anchors, [gt], AssignConfig(kind="max_iou", low_quality_matches=False, boundary_px=0.0))
    assert strict.labels_NA.tolist() == [[IGNORED, IGNORED, OBJECT, IGNORED, BACKGROUND]]
    loose = run(anchors, [gt], AssignConfig(kind="max_iou", low_quality_matches=False, boundary_px=1.0))
    assert loose.labels_NA.tolist() == [[IGNORED, IGNORED, OBJECT, BACKGROUND, BACKGROUND]]


def test_the_boundary_is_height_and_width_not_the_other_way_round() -> None:
    config = AssignConfig(kind="max_iou", boundary_px=0.0)
    anchors = boxes((140, 10, 150, 20), (10, 140, 20, 150))
    result = run(anchors, [boxes()], config, image_hw=(100, 200))
    assert result.labels_NA.tolist() == [[BACKGROUND, IGNORED]]


@pytest.mark.parametrize("kind", ["max_iou", "atss"])
def test_an_image_without_boxes_is_all_background(kind: str) -> None:
    anchors = boxes((0, 0, 0.5, 0.5), (0, 0, 10, 10), (5, 5, 15, 15))
    result = run(anchors, [boxes(), boxes((0, 0, 10, 10))], AssignConfig(kind=kind))  # type: ignore[arg-type]
    assert result.labels_NA[0].tolist() == [BACKGROUND] * 3
    assert result.labels_NA[1, 1].item() == OBJECT


@pytest.mark.parametrize("kind", ["max_iou", "atss"])
def test_padding_rows_change_nothing(kind: str) -> None:
    anchors = boxes(*((x, y, x + 12, y + 12) for y in range(0, 60, 6) for x in range(0, 60, 6)))
    first, second = boxes((3, 3, 20, 20)), boxes((10, 20, 22, 32), (30, 30, 55, 50), (0, 40, 12, 52))
    config = AssignConfig(kind=kind)  # type: ignore[arg-type]
    together = run(anchors, [first, second], config)
    for i, alone in enumerate((first, second)):
        expected = run(anchors, [alone], config)
        assert together.labels_NA[i].tolist() == expected.labels_NA[0].tolist()
        is_object = expected.labels_NA[0] == OBJECT
        assert is_object.any()
        assert together.matched_NA[i][is_object].tolist() == expected.matched_NA[0][is_object].tolist()


def test_background_inside_an_ignore_region_gets_no_loss_and_objects_keep_theirs() -> None:
    # Shares of the anchors inside the region: 1.0 (an object), 1.0, exactly 0.5, 0.4, 0.
    anchors = boxes((0, 0, 10, 10), (20, 0, 30, 10), (35, 0, 45, 10), (36, 0, 46, 10), (60, 60, 70, 70))
    result = run(anchors, [boxes((0, 0, 10, 10))], PLAIN, ignore=boxes((0, 0, 40, 10)))
    assert result.labels_NA.tolist() == [[OBJECT, IGNORED, IGNORED, BACKGROUND, BACKGROUND]]


def test_a_masked_ignore_region_is_padding() -> None:
    gt_mask = torch.zeros(1, 1, dtype=torch.bool)
    anchors = boxes((0, 0, 10, 10))
    args = ([anchors], torch.zeros(1, 1, 4), gt_mask, boxes((0, 0, 40, 40))[None])
    masked = assign(*args, torch.tensor([[False]]), image_hw=(100, 100), config=PLAIN)
    taken = assign(*args, torch.tensor([[True]]), image_hw=(100, 100), config=PLAIN)
    assert (masked.labels_NA.item(), taken.labels_NA.item()) == (BACKGROUND, IGNORED)


def labels(objects: int, background: int, ignored: int) -> Tensor:
    row = [OBJECT] * objects + [BACKGROUND] * background + [IGNORED] * ignored
    return torch.tensor([row])[:, torch.randperm(len(row), generator=torch.Generator().manual_seed(3))]


def draw(labels_NA: Tensor, seed: int, *, count: int = 256, fraction: float = 0.5) -> Tensor:
    config = AssignConfig(samples_per_image=count, positive_fraction=fraction)
    return sample(labels_NA, config=config, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("objects", "background", "count", "fraction", "expected"),
    [
        (200, 5000, 256, 0.5, (128, 128)),  # half and half
        (20, 5000, 256, 0.5, (20, 236)),  # too few objects: background fills up
        (0, 5000, 256, 0.5, (0, 256)),
        (200, 50, 256, 0.5, (128, 50)),  # too little background: objects do not fill up
        (3, 4, 256, 0.5, (3, 4)),
        (200, 5000, 64, 0.25, (16, 48)),
        (10, 10, 5, 1.0, (5, 0)),
        (10, 10, 5, 0.0, (0, 5)),
    ],
)
def test_sampling_gives_the_right_counts(
    objects: int, background: int, count: int, fraction: float, expected: tuple[int, int]
) -> None:
    labels_NA = labels(objects, background, 40)
    sampled = draw(labels_NA, 0, count=count, fraction=fraction)
    assert (int((sampled & (labels_NA == OBJECT)).sum()), int((sampled & (labels_NA == BACKGROUND)).sum())) == expected
    assert not (sampled & (labels_NA == IGNORED)).any()


def test_sampling_is_by_image() -> None:
    labels_NA = torch.cat((labels(10, 90, 0), labels(0, 60, 40)))
    assert draw(labels_NA, 0, count=32).sum(dim=1).tolist() == [32, 32]


def test_the_generator_decides_the_sample() -> None:
    labels_NA = labels(200, 5000, 40)
    assert torch.equal(draw(labels_NA, 1), draw(labels_NA, 1))
    assert not torch.equal(draw(labels_NA, 1), draw(labels_NA, 2))


def test_sampling_is_uniform() -> None:
    labels_NA = torch.zeros(400, 40, dtype=torch.int64)
    chosen = draw(labels_NA, 5, count=10).float().mean(dim=0)
    # Each anchor is drawn with probability 1/4; 400 draws spread by 0.022, and 0.13 is six times that.
    assert (chosen - 0.25).abs().max().item() < 0.13


def test_zero_samples_mean_all_labelled_anchors() -> None:
    labels_NA = labels(5, 50, 7)
    assert torch.equal(draw(labels_NA, 0, count=0), labels_NA != IGNORED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_iou": 0.2}, "negative_iou: expected 0 <= negative_iou <= positive_iou <= 1"),
        ({"positive_fraction": 1.1}, "positive_fraction: expected 0..1"),
        ({"atss_candidates": 0}, "atss_candidates: expected at least 1"),
        ({"samples_per_image": -1}, "samples_per_image"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AssignConfig(**changes)

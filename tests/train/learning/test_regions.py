"""The boxes that the second stage learns from, and its losses."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.learning.loss import LossConfig
from edgerpn.train.learning.regions import RegionConfig, RegionSample, region_losses, sample_regions
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.boxes import decode_boxes, encode_boxes
from edgerpn.train.network.region_head import RegionHead

HW = (64, 96)
ANCHORS = grid_anchors(AnchorConfig(strides_px=(8,), sizes_px=((16.0,),)), HW)
OBJECT = (16.0, 8.0, 48.0, 40.0)
CONFIG = RegionConfig(samples_per_image=16, num_proposals=24)


def make_batch(*labels: int, ignore: list[float] | None = None) -> TrainBatch:
    """One view for each label, with `OBJECT` of that class; an ignore region in each if there is one."""
    count = len(labels)
    return TrainBatch(
        images=torch.zeros(count, *HW, 3, dtype=torch.uint8),
        gt_boxes=torch.tensor([[OBJECT, (0, 0, 0, 0)]] * count),
        gt_mask=torch.tensor([[True, False]] * count),
        gt_labels=torch.tensor([[label, 0] for label in labels]),
        ignore_boxes=torch.tensor([[ignore or [0.0] * 4]] * count),
        ignore_mask=torch.full((count, 1), ignore is not None),
        image_ids=list(range(count)),
    )


def levels_with(*boxes: tuple[float, float, float, float], count: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Results of a network whose best anchors are these boxes, in this order, and whose others are as they are."""
    anchors = ANCHORS[0]
    logits, deltas = torch.full((count, len(anchors)), -6.0), torch.zeros(count, len(anchors), 4)
    for row, box in enumerate(boxes):
        logits[:, row] = 5.0 - row
        deltas[:, row] = encode_boxes(torch.tensor(box), anchors[row])
    return [(logits, deltas)]


def draw(levels: list[tuple[Tensor, Tensor]], batch: TrainBatch, **changes: Any) -> RegionSample:
    options = {"config": CONFIG, "part": (0, len(batch.images)), "generator": torch.Generator().manual_seed(1)}
    return sample_regions(levels, ANCHORS, batch, ignore_ioa=0.5, **{**options, **changes})


NEAR, FAR = (18.0, 10.0, 50.0, 42.0), (60.0, 20.0, 90.0, 60.0)


def labels_of(found: RegionSample, box: tuple[float, ...]) -> list[int]:
    """Labels of the rows with a box in the first image."""
    is_it = (found.boxes[0] - torch.tensor(box)).abs().amax(dim=1) < 0.01
    return found.labels[0][is_it].tolist()


def test_boxes_on_an_object_have_its_class_and_others_are_background() -> None:
    found = draw(levels_with(NEAR, FAR), make_batch(2))
    assert found.boxes.shape == (1, 16, 4)
    # The object itself is always among the boxes, and padding never.
    assert labels_of(found, NEAR) == labels_of(found, OBJECT) == [3]
    assert labels_of(found, FAR) == [0]
    assert (found.labels >= 0).sum() == 16
    assert found.gt_boxes[0][found.labels[0] == 3].tolist() == [list(OBJECT)] * 2
    assert not labels_of(found, (0.0, 0, 0, 0))


def test_a_quarter_of_the_sample_at_most_are_objects() -> None:
    crowd = [(16.0 + shift, 8.0, 48.0 + shift, 40.0) for shift in range(8)]
    config = RegionConfig(samples_per_image=8, num_proposals=24, nms_iou=1.0)
    found = draw(levels_with(*crowd), make_batch(0), config=config)
    assert (found.labels == 1).sum() == 2
    assert (found.labels == 0).sum() == 6


def test_boxes_in_ignore_regions_and_on_objects_without_a_class_have_no_loss() -> None:
    found = draw(levels_with(NEAR, FAR), make_batch(2, ignore=[56.0, 10, 96, 64]))
    assert labels_of(found, FAR) == []
    assert labels_of(found, NEAR) == [3]
    nameless = draw(levels_with(NEAR, FAR), make_batch(-1))
    assert labels_of(nameless, NEAR) == labels_of(nameless, OBJECT) == []
    assert labels_of(nameless, FAR) == [0]


def test_of_two_classes_in_one_place_the_first_is_learned() -> None:
    both = make_batch(2)
    both.gt_boxes[:, 1], both.gt_mask[:, 1], both.gt_labels[:, 1] = both.gt_boxes[:, 0], True, 1
    found = draw(levels_with(NEAR, FAR), both)
    assert set(labels_of(found, NEAR) + labels_of(found, OBJECT)) == {3}


def test_an_images_sample_depends_neither_on_its_part_nor_on_the_padding_of_its_objects() -> None:
    torch.manual_seed(0)
    levels = [(torch.randn(4, len(ANCHORS[0])), 0.1 * torch.randn(4, len(ANCHORS[0]), 4))]
    whole = draw(levels, make_batch(0, 1, 2, 3))
    tail = make_batch(2, 3)
    wider = TrainBatch(
        **{
            **{name: getattr(tail, name) for name in ("images", "ignore_boxes", "ignore_mask", "image_ids")},
            "gt_boxes": torch.nn.functional.pad(tail.gt_boxes, (0, 0, 0, 3)),
            "gt_mask": torch.nn.functional.pad(tail.gt_mask, (0, 3)),
            "gt_labels": torch.nn.functional.pad(tail.gt_labels, (0, 3)),
        }
    )
    part = draw([(levels[0][0][2:], levels[0][1][2:])], wider, part=(2, 4))
    for image in range(2):
        assert rows_of(part, image) == rows_of(whole, image + 2)


def rows_of(found: RegionSample, image: int) -> list[list[float]]:
    """Boxes and labels of an image, sorted."""
    return sorted(torch.cat((found.boxes[image], found.labels[image][:, None].float()), dim=1).tolist())


def plain_head(num_classes: int = 2) -> RegionHead:
    """Equal logits and no deltas, whatever the features."""
    head = RegionHead(1, num_classes, width=2)
    torch.nn.init.zeros_(head.logits.weight)
    return head


def sample_of(*rows: tuple[tuple[float, ...], int, tuple[float, ...]]) -> RegionSample:
    boxes, labels, gt_boxes = zip(*rows, strict=True)
    return RegionSample(torch.tensor([boxes]), torch.tensor([labels]), torch.tensor([gt_boxes]))


MAPS = [torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))]


def losses(head: RegionHead, sample: RegionSample, **changes: Any) -> tuple[float, float]:
    found = region_losses(head, MAPS, sample, strides_px=(8,), config=LossConfig(**changes))
    return found.classes.item(), found.boxes.item()


def test_the_losses_are_means_over_the_samples() -> None:
    sample = sample_of((NEAR, 1, OBJECT), (FAR, 0, OBJECT), (FAR, -1, OBJECT))
    classes, boxes = losses(plain_head(), sample)
    # Two rows count, each with three equally probable classes; one of them has an object.
    assert classes == pytest.approx(math.log(3))
    overlap, union = 30 * 30, 2 * 32 * 32 - 30 * 30
    assert boxes == pytest.approx((1 - (overlap / union - (34 * 34 - union) / (34 * 34))) / 2, rel=1e-5)
    # Shift of 2 px in 32 px along both axes, in units of .1.
    _, boxes = losses(plain_head(), sample, box="smooth_l1", smooth_l1_beta=0.0)
    assert boxes == pytest.approx((2 / 32) / 0.1, rel=1e-5)


def test_boxes_that_the_head_corrects_perfectly_have_no_box_loss() -> None:
    head = plain_head()
    with torch.no_grad():
        head.deltas.bias.copy_(encode_boxes(torch.tensor(OBJECT), torch.tensor(NEAR)) / head.scale)
    torch.testing.assert_close(decode_boxes(head.deltas.bias * head.scale, torch.tensor(NEAR)), torch.tensor(OBJECT))
    assert losses(head, sample_of((NEAR, 1, OBJECT)))[1] == pytest.approx(0, abs=1e-5)
    assert losses(head, sample_of((NEAR, 0, OBJECT)))[1] == 0


@pytest.mark.parametrize("box", ["giou", "smooth_l1"])
def test_the_losses_train_the_head_and_the_maps(box: Literal["giou", "smooth_l1"]) -> None:
    head, maps = RegionHead(1, 2, width=8), [MAPS[0].clone().requires_grad_()]
    torch.nn.init.normal_(head.deltas.weight, std=0.1)
    nothing = (0.0, 0.0, 0.0, 0.0)
    sample = sample_of((NEAR, 1, OBJECT), (nothing, -1, nothing))
    found = region_losses(head, maps, sample, strides_px=(8,), config=LossConfig(box=box))
    (found.classes + found.boxes).backward()
    assert found.boxes.isfinite()
    assert maps[0].grad is not None
    assert maps[0].grad.any()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_image": 0}, "samples_per_image: expected at least 1"),
        ({"positive_fraction": 0.0}, "positive_fraction: expected more than 0 and at most 1"),
        ({"class_weight": -1.0}, "class_weight: expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionConfig(**changes)

"""Our rules beside torchvision's own code; docs/conventions.md says how to run this where torchvision imports."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from edgerpn.train.import_torchvision import ARCHITECTURES, import_settings
from edgerpn.train.learning.assign import AssignConfig, Assignment, assign, sample
from edgerpn.train.learning.loss import LossConfig, rpn_losses
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.boxes import decode_boxes, encode_boxes, pairwise_iou
from edgerpn.train.network.proposal_stage import select_proposals
from edgerpn.train.network.region_features import roi_align

try:
    torchvision: Any = importlib.import_module("torchvision")
    detection: Any = importlib.import_module("torchvision.models.detection")
except (ImportError, OSError, RuntimeError) as reason:
    # A torchvision for another torch fails in many ways, not with ImportError alone.
    pytest.skip(f"torchvision does not import here: {reason}", allow_module_level=True)

HW = (256, 320)
NAMES = ["resnet50_fpn", "mobilenet_v3_large_fpn"]


def random_boxes(count: int, seed: int, side: float = 300.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side * 0.7
    return torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * side * 0.3), dim=1)


def torchvision_rpn(name: str) -> Any:
    """torchvision's RPN of a network, on features that are 8 channels deep."""
    sizes = tuple(tuple(int(s) for s in level) for level in ARCHITECTURES[name].sizes_px)
    generator = detection.rpn.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = detection.rpn.RPNHead(8, generator.num_anchors_per_location()[0])
    counts = {"training": 1000, "testing": 1000}
    return detection.rpn.RegionProposalNetwork(generator, head, 0.7, 0.3, 256, 0.5, counts, counts, 0.7).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hw", [(256, 320), (800, 1088), (288, 416), (608, 992)])
def test_anchors_are_torchvisions_to_the_last_bit(name: str, hw: tuple[int, int]) -> None:
    config = import_settings(ARCHITECTURES[name], hw).model.anchors
    features = [torch.zeros(1, 8, rows, columns) for rows, columns in config.level_hw(hw)]
    images = detection.image_list.ImageList(torch.zeros(1, 3, *hw), [hw])
    (theirs,) = torchvision_rpn(name).anchor_generator(images, features)
    sizes = len(config.sizes_px[0])
    by_ratio = torch.tensor([s * 3 + r for r in range(3) for s in range(sizes)])
    ours = [level.view(-1, config.num_per_cell, 4)[:, by_ratio].reshape(-1, 4) for level in grid_anchors(config, hw)]
    assert torch.equal(torch.cat(ours), theirs)


def test_iou_is_torchvisions_to_the_last_bit() -> None:
    first, second = random_boxes(200, 0), random_boxes(300, 1)
    assert torch.equal(pairwise_iou(first[None], second[None])[0], torchvision.ops.box_iou(first, second))


def test_deltas_and_decoded_boxes_are_torchvisions() -> None:
    coder = detection._utils.BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    boxes, anchors = random_boxes(500, 2), random_boxes(500, 3)
    theirs = coder.encode_single(boxes, anchors)
    torch.testing.assert_close(encode_boxes(boxes, anchors), theirs, rtol=1e-5, atol=2e-6)
    deltas = 2 * torch.randn(500, 4, generator=torch.Generator().manual_seed(4))
    assert (deltas[:, 2:] > math.log(1000 / 16)).any()
    torch.testing.assert_close(
        decode_boxes(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3
    )


def grid_case(seed: int) -> tuple[Tensor, Tensor]:
    """Anchors on a grid and whole-number boxes: overlaps tie and meet the thresholds."""
    config = import_settings(ARCHITECTURES["resnet50_fpn"], HW).model.anchors
    anchors = torch.cat(grid_anchors(config, HW))
    boxes = random_boxes(7, seed, side=256.0).round()
    boxes[0] = anchors[anchors[:, 0].abs().argmin()].clamp(min=0)
    return anchors, boxes


def labels_of_both(seed: int, rpn: Any) -> tuple[Assignment, Tensor, Tensor, Tensor, Tensor]:
    anchors, boxes = grid_case(seed)
    (theirs,), (matched,) = rpn.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
    ours = assign(
        [anchors], boxes[None], torch.ones(1, len(boxes), dtype=torch.bool), torch.zeros(1, 1, 4),
        torch.zeros(1, 1, dtype=torch.bool), image_hw=HW, config=AssignConfig(kind="max_iou"),
    )  # fmt: skip
    return ours, theirs, matched, anchors, boxes


@pytest.mark.parametrize("seed", range(5))
def test_labels_and_matched_boxes_are_torchvisions(seed: int) -> None:
    ours, theirs, matched, _, boxes = labels_of_both(seed, torchvision_rpn("resnet50_fpn"))
    assert torch.equal(ours.labels_NA[0], theirs.long())
    is_object = theirs == 1
    assert is_object.sum() >= len(boxes)
    assert torch.equal(boxes[ours.matched_NA[0][is_object]], matched[is_object])


@pytest.mark.parametrize(("objects", "background"), [(0, 500), (5, 500), (128, 128), (300, 500), (300, 20), (3, 4)])
def test_sampled_counts_are_torchvisions(objects: int, background: int) -> None:
    labels = torch.cat((torch.ones(objects), torch.zeros(background), -torch.ones(30)))
    (positive,), (negative,) = detection._utils.BalancedPositiveNegativeSampler(256, 0.5)([labels])
    generator = torch.Generator().manual_seed(0)
    ours = sample(labels[None].long(), config=AssignConfig(samples_per_image=256), generator=generator)[0]
    counts = [int((ours & (labels == value)).sum()) for value in (1, 0)]
    assert counts == [int(positive.sum()), int(negative.sum())]


def test_losses_are_torchvisions() -> None:
    rpn = torchvision_rpn("resnet50_fpn")
    # Samples so large that they take all anchors.
    rpn.fg_bg_sampler = detection._utils.BalancedPositiveNegativeSampler(10_000_000, 0.5)
    ours, theirs, matched, anchors, boxes = labels_of_both(1, rpn)
    generator = torch.Generator().manual_seed(5)
    logits, deltas = (torch.randn(len(anchors), n, generator=generator) for n in (1, 4))
    targets = rpn.box_coder.encode([matched], [anchors])
    objectness, box = rpn.compute_loss(logits, deltas, [theirs], targets)
    losses = rpn_losses(
        logits.T, deltas[None], anchors, ours, ours.labels_NA >= 0, boxes[None],
        config=LossConfig(objectness="bce", box="smooth_l1", smooth_l1_beta=1 / 9, box_weight=1.0),
    )  # fmt: skip
    assert losses.objectness.item() == pytest.approx(objectness.item(), rel=1e-5)
    assert losses.box.item() == pytest.approx(box.item(), rel=1e-5)


@pytest.mark.parametrize("score_threshold", [0.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_selection_is_torchvisions_from_the_same_boxes(name: str, score_threshold: float) -> None:
    rpn = torchvision_rpn(name)
    rpn.score_thresh = score_threshold
    anchors = grid_anchors(import_settings(ARCHITECTURES[name], HW).model.anchors, HW)
    generator = torch.Generator().manual_seed(6)
    # Spread evenly, so that no two are equal and one order is right.
    levels = [
        (torch.randperm(len(a), generator=generator)[None] / len(a) * 6 - 3 + 0.001 * i,
         0.2 * torch.randn(1, len(a), 4, generator=generator))
        for i, a in enumerate(anchors)
    ]  # fmt: skip
    logits, deltas = (torch.cat([level[k] for level in levels], dim=1) for k in (0, 1))
    decoded = rpn.box_coder.decode(deltas[0], [torch.cat(anchors)]).view(1, -1, 4)
    (boxes,), (scores,) = rpn.filter_proposals(decoded, logits, [HW], [len(a) for a in anchors])
    imported = import_settings(ARCHITECTURES[name], HW).proposals
    config = dataclasses.replace(imported, score_threshold=score_threshold)
    batch = select_proposals(levels, anchors, content_hw=HW, config=config)
    count = int(batch.count)
    assert count == len(boxes) > 100
    torch.testing.assert_close(batch.scores[0, :count], scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.boxes[0, :count], boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("strides", [(8, 16, 32, 64), (4, 8)])
def test_features_of_regions_are_those_of_torchvision(strides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, HW[0] // stride, HW[1] // stride) for stride in strides]
    boxes = torch.stack([random_boxes(30, seed).clamp(max=HW[0]) for seed in (0, 1)])
    boxes[:, 0] = torch.tensor([0.0, 0.0, HW[1], HW[0]])
    ours = roi_align(maps, boxes, strides, output_hw=(7, 5))
    mapper = torchvision.ops.poolers.initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    levels = mapper(list(boxes)).reshape(2, -1)
    assert len(levels.unique()) == 2
    for number, (level, stride) in enumerate(zip(maps, strides, strict=True)):
        for image in range(2):
            chosen = levels[image] == number
            rois = [boxes[image, chosen]]
            theirs = torchvision.ops.roi_align(level[image : image + 1], rois, (7, 5), 1 / stride, 2, aligned=True)
            torch.testing.assert_close(ours[image, chosen], theirs, atol=1e-4, rtol=0)

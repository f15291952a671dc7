"""Published assignment, sampling, losses and proposal selection, restated in plain NumPy, against ours.

Sources (what each test cites): [paper] Ren et al. 2015, arXiv:1506.01497; [py] rbgirshick/py-faster-rcnn;
[d2] facebookresearch/detectron2; [tv] pytorch/vision, torchvision/models/detection. docs/conventions.md says in words
where they differ and what we do.

py-faster-rcnn's boxes name their first and last pixel, from 0, so that width is x2 - x1 + 1. Ours are continuous:
the same pixels end at x2 + 1.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgerpn.train.config import load_settings
from edgerpn.train.learning.assign import BACKGROUND, IGNORED, OBJECT, AssignConfig, Assignment, assign, sample
from edgerpn.train.learning.loss import LossConfig, rpn_losses
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.boxes import decode_boxes, encode_boxes
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals

Array = npt.NDArray[np.float64]
LAST_TO_END = np.array([0, 0, 1, 1])
"""From py-faster-rcnn's last pixel to our end of it."""


def tensor(values: object) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def random_pixels(rng: np.random.Generator, count: int) -> Array:
    """Boxes as first and last pixel."""
    corner, size = rng.integers(0, 300, (count, 2)), rng.integers(1, 200, (count, 2))
    return np.concatenate((corner, corner + size - 1), axis=1).astype(np.float64)


# Assignment, in exact fractions: small whole-number boxes meet thresholds and tie often.


def exact_iou(a: Array, b: Array) -> Fraction:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = int(max(w, 0) * max(h, 0))
    return Fraction(common, int((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - common)


def plain_labels(anchors: Array, boxes: Array, side: int, keeps_outside: bool) -> tuple[list[int], list[int]]:
    """Labels and matched boxes by the rules.

    [py] anchor_target_layer.py forward: anchors outside the image are left out before anything else; below 0.3 is
    background, the best of each box (ties too) and those of at least 0.7 are objects, in this order; a matched box is
    the first one of greatest overlap. [d2] matcher.py and [tv] _utils.py Matcher with low-quality matches: the same,
    with all anchors.
    """
    inside = [keeps_outside or (a[:2].min() >= 0 and a[2:].max() <= side) for a in anchors]
    overlaps = [[exact_iou(a, b) for b in boxes] for a in anchors]
    labels, matched = [IGNORED] * len(anchors), [0] * len(anchors)
    best_of_box = [max(row[g] for row, takes_part in zip(overlaps, inside, strict=True) if takes_part)
                   for g in range(len(boxes))]  # fmt: skip
    for i, row in enumerate(overlaps):
        if not inside[i]:
            continue
        matched[i] = row.index(max(row))
        if max(row) < Fraction(3, 10):
            labels[i] = BACKGROUND
        if max(row) >= Fraction(7, 10) or any(row[g] == best_of_box[g] for g in range(len(boxes))):
            labels[i] = OBJECT
    return labels, matched


@pytest.mark.parametrize("keeps_outside", [False, True], ids=["py-faster-rcnn", "detectron2-and-torchvision"])
@pytest.mark.parametrize("seed", range(6))
def test_labels_are_those_of_exact_arithmetic(seed: int, keeps_outside: bool) -> None:
    rng, side = np.random.default_rng(seed), 40
    centers = [(x, y) for y in range(4, side, 8) for x in range(4, side, 8)]
    shapes = [(5, 5), (10, 10), (7, 14), (14, 7)]
    anchors = np.array([[x - w, y - h, x + w, y + h] for x, y in centers for w, h in shapes], float)
    corner = rng.integers(0, side - 12, (4, 2))
    boxes = np.concatenate((corner, np.minimum(corner + rng.integers(6, 22, (4, 2)), side)), axis=1).astype(float)
    # The middle: a perfect match of 20 x 20, and anchors that overlap that box by exactly 0.7 and 0.3.
    middle = boxes[3] = anchors[12 * len(shapes) + 1]
    cuts = [[0, 0, 0, -6], [0, 0, 0, -14]]
    anchors = np.concatenate((anchors, middle + np.array(cuts)))
    config = AssignConfig(kind="max_iou", boundary_px=None if keeps_outside else 0.0)
    result = assign(
        [tensor(anchors)], tensor(boxes)[None], torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 1, 4),
        torch.zeros(1, 1, dtype=torch.bool), image_hw=(side, side), config=config,
    )  # fmt: skip
    labels, matched = plain_labels(anchors, boxes, side, keeps_outside)
    assert result.labels_NA[0].tolist() == labels
    is_object = np.array(labels) == OBJECT
    assert is_object.sum() >= 3
    assert [exact_iou(a, middle) for a in anchors[-2:]] == [Fraction(7, 10), Fraction(3, 10)]
    assert result.matched_NA[0].numpy()[is_object].tolist() == np.array(matched)[is_object].tolist()
    assert (np.array(labels) == IGNORED).any()


def test_a_box_at_the_edge_keeps_the_best_anchor_that_takes_part() -> None:
    # [py] takes the best of the anchors inside only; the one that sticks out overlaps more and must not win.
    anchors = tensor([[-4, 0, 12, 16], [0, 0, 16, 16], [16, 0, 32, 16]])
    result = assign(
        [anchors], tensor([[[0, 0, 8, 16]]]), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 4),
        torch.zeros(1, 1, dtype=torch.bool), image_hw=(32, 32), config=AssignConfig(kind="max_iou", boundary_px=0.0),
    )  # fmt: skip
    assert result.labels_NA.tolist() == [[IGNORED, OBJECT, BACKGROUND]]


@pytest.mark.parametrize("objects", [0, 3, 127, 128, 129, 400])
@pytest.mark.parametrize("background", [0, 90, 128, 5000])
def test_sampled_counts_are_theirs(objects: int, background: int) -> None:
    # [py] anchor_target_layer.py, [d2] sampling.py subsample_labels, [tv] _utils.py BalancedPositiveNegativeSampler.
    labels = torch.tensor([[OBJECT] * objects + [BACKGROUND] * background + [IGNORED] * 50])
    sampled = sample(
        labels, config=load_settings(preset="paper").assign, generator=torch.Generator().manual_seed(objects)
    )
    num_objects = min(objects, int(0.5 * 256))
    assert int((sampled & (labels == OBJECT)).sum()) == num_objects
    assert int((sampled & (labels == BACKGROUND)).sum()) == min(background, 256 - num_objects)


# Losses.


def smooth_l1(x: Array, sigma: float) -> Array:
    """[py] SmoothL1Loss with sigma: 0.5 (sigma x)^2 below 1 / sigma^2, |x| - 0.5 / sigma^2 above."""
    return np.where(np.abs(x) < 1 / sigma**2, 0.5 * (sigma * x) ** 2, np.abs(x) - 0.5 / sigma**2)


def two_class_entropy(background: Array, foreground: Array, is_object: npt.NDArray[np.bool_]) -> Array:
    """[paper] log loss over two classes with softmax, each anchor's."""
    total = np.log(np.exp(background) + np.exp(foreground))
    return total - np.where(is_object, foreground, background)


def test_losses_are_sums_over_the_sample_divided_by_its_size() -> None:
    # [py] anchor_target_layer.py: uniform weights 1 / num_examples; models/.../train.prototxt: sigma 3, both weights 1.
    # [tv] rpn.py compute_loss: beta 1/9, sum over objects divided by the number of sampled anchors.
    rng, count = np.random.default_rng(3), 200
    anchors = random_pixels(rng, count) + LAST_TO_END
    boxes = np.stack([random_pixels(rng, 3) + LAST_TO_END for _ in range(2)])
    labels, matched = rng.integers(-1, 2, (2, count)), rng.integers(0, 3, (2, count))
    sampled = (labels >= 0) & (rng.random((2, count)) < 0.5)
    background, foreground = rng.normal(0, 2, (2, 2, count))
    deltas = rng.normal(0, 1, (2, count, 4))
    is_object = sampled & (labels == 1)
    box_sum = 0.0
    for image, anchor in zip(*np.nonzero(is_object), strict=True):
        target = encode_boxes(tensor(boxes[image, matched[image, anchor]]), tensor(anchors[anchor])).double().numpy()
        box_sum += smooth_l1(deltas[image, anchor] - target, 3.0).sum()
    objectness = two_class_entropy(background, foreground, is_object)[sampled].mean()
    paper = load_settings(preset="paper")
    losses = rpn_losses(
        tensor(foreground - background), tensor(deltas), tensor(anchors),
        Assignment(
            labels_NA=torch.tensor(labels), matched_NA=torch.tensor(matched), overlap_NA=torch.zeros(labels.shape)
        ),
        torch.tensor(sampled), tensor(boxes), config=paper.loss,
    )  # fmt: skip
    assert losses.objectness.item() == pytest.approx(objectness, rel=1e-5)
    assert losses.box.item() == pytest.approx(box_sum / sampled.sum(), rel=1e-5)
    assert losses.total.item() == pytest.approx(objectness + box_sum / sampled.sum(), rel=1e-5)


def test_a_beta_of_zero_is_detectron2s_plain_absolute_difference() -> None:
    # [d2] config/defaults.py MODEL.RPN.SMOOTH_L1_BETA = 0.0.
    anchors, gt = tensor([[0, 0, 10, 10]]), tensor([[[0, 0, 10, 10]]])
    zero = torch.zeros(1, 1, dtype=torch.int64)
    assignment = Assignment(labels_NA=zero + 1, matched_NA=zero, overlap_NA=zero.float())
    losses = rpn_losses(
        torch.zeros(1, 1), tensor([[[0.01, -0.02, 0.5, 0]]]), anchors, assignment, torch.ones(1, 1, dtype=torch.bool),
        gt, config=LossConfig(objectness="bce", box="smooth_l1", smooth_l1_beta=0.0),
    )  # fmt: skip
    assert losses.box.item() == pytest.approx(0.53, rel=1e-6)


# The proposal stage.


def float_iou(a: Array, b: Array) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0.0) * max(h, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_proposals_are_chosen_level_by_level_before_and_together_after_the_nms() -> None:
    # [d2] proposal_utils.py find_top_rpn_proposals, [tv] rpn.py filter_proposals: (1) the best of each level, (2) clip,
    # (3) drop small ones, (4) NMS among the boxes of a level, dropping what overlaps by more than 0.7, (5) the best of
    # all levels.
    rng, hw = np.random.default_rng(4), (96, 128)
    anchors = grid_anchors(AnchorConfig(strides_px=(8, 16), sizes_px=((30.0,), (60.0,)), ratios_hw=(0.5, 1.0)), hw)
    raw = [(rng.normal(0, 3, len(a)), rng.normal(0, 0.3, (len(a), 4))) for a in anchors]
    kept: list[tuple[float, Array]] = []
    for (logits, deltas), level in zip(raw, anchors, strict=True):
        boxes = decode_boxes(tensor(deltas), level).double().numpy().clip(0, [hw[1], hw[0], hw[1], hw[0]])
        highest = np.argsort(-logits, kind="stable")[:50]  # 1 and 2
        best = [i for i in highest if (boxes[i, 2:] - boxes[i, :2] >= 12).all()]  # 3
        alive: list[Array] = []
        for i in best:  # 4
            if all(float_iou(boxes[i], other) <= 0.7 for other in alive):
                alive.append(boxes[i])
                kept.append((logits[i], boxes[i]))
    kept = sorted(kept, key=lambda pair: -pair[0])[:40]  # 5
    config = ProposalConfig(num_proposals=40, pre_nms=50, nms_iou=0.7, soft_nms_iou=1.0, min_size_px=12.0)
    levels = [(tensor(logits)[None], tensor(deltas)[None]) for logits, deltas in raw]
    batch = select_proposals(levels, anchors, content_hw=hw, config=config)
    assert batch.count.item() == len(kept) == 40
    np.testing.assert_allclose(batch.boxes[0], [box for _, box in kept], atol=1e-3)
    np.testing.assert_allclose(batch.scores[0], [1 / (1 + np.exp(-x)) for x, _ in kept], rtol=1e-5)


def test_the_paper_presets_numbers_are_the_papers() -> None:
    preset = load_settings(preset="paper")
    anchors = preset.model.anchors
    assert (anchors.strides_px, anchors.num_per_cell) == ((16,), 9)  # section 3.1
    assert anchors.sizes_px == ((128.0, 256.0, 512.0),)  # section 3.3: 128^2, 256^2, 512^2
    assert anchors.ratios_hw == (0.5, 1.0, 2.0)  # 1:1, 1:2, 2:1
    assert (preset.model.backbone, preset.model.head_channels) == ("vgg16", 512)
    assert (preset.assign.positive_iou, preset.assign.negative_iou) == (0.7, 0.3)  # section 3.1.2
    assert preset.assign.low_quality_matches
    assert preset.assign.boundary_px == 0.0  # section 3.3: cross-boundary anchors take no part
    assert (preset.assign.samples_per_image, preset.assign.positive_fraction) == (256, 0.5)  # section 3.1.3
    assert (preset.optimizer.learning_rate, preset.optimizer.momentum) == (1e-3, 0.9)
    assert preset.optimizer.weight_decay == 5e-4
    assert (preset.proposals.nms_iou, preset.proposals.num_proposals) == (0.7, 300)  # section 3.3, table 4
    # lib/fast_rcnn/config.py: TEST.RPN_PRE_NMS_TOP_N, TEST.RPN_MIN_SIZE; sigma 3 of the box loss.
    assert (preset.proposals.pre_nms, preset.proposals.min_size_px) == (6000, 16.0)
    assert preset.loss.smooth_l1_beta == pytest.approx(1 / 3.0**2)

"""Losses against numbers computed by hand or by plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgerpn.train.learning import loss
from edgerpn.train.learning.assign import Assignment
from edgerpn.train.learning.loss import LossConfig, Losses, rpn_loss_sums, rpn_losses

# One image, four anchors, two objects. Anchor 0 answers for object 1, anchor 2 for object 0, anchor 3 has no loss.
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 20, 40], [50, 50, 60, 60]])
GT = torch.tensor([[[0.0, 20, 20, 30], [1.0, 0, 11, 10]]])
LABELS, MATCHED = torch.tensor([[1, 0, 1, -1]]), torch.tensor([[1, 0, 0, 0]])
SAMPLED = torch.tensor([[True, True, True, False]])
LOGITS = torch.tensor([[2.0, -1.0, 0.5, 7.0]])
DELTAS = torch.tensor([[[0.0, 0, 0, 0], [9.0, 9, 9, 9], [0.0, -0.25, 0, -1.0], [5.0, 5, 5, 5]]])

PAPER = LossConfig(objectness="bce", box="smooth_l1", box_weight=1.0)


def run(config: LossConfig, logits: Tensor = LOGITS, deltas: Tensor = DELTAS, **changes: Tensor) -> Losses:
    assignment = Assignment(
        labels_NA=changes.get("labels", LABELS), matched_NA=MATCHED, overlap_NA=changes.get("overlap", torch.ones(1, 4))
    )
    return rpn_losses(logits, deltas, ANCHORS, assignment, changes.get("sampled", SAMPLED), GT, config=config)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(logit: float, target: float) -> float:
    score = sigmoid(logit)
    return -target * math.log(score) - (1 - target) * math.log(1 - score)


def smooth_l1(x: float, beta: float) -> float:
    return 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


def test_the_papers_losses_are_means_over_the_sampled_anchors() -> None:
    losses = run(PAPER)
    objectness = (bce(2.0, 1) + bce(-1.0, 0) + bce(0.5, 1)) / 3
    # Anchor 0: dx must be 0.1 (quadratic, below 1/9). Anchor 2: dy -0.25 is right, dh must be log(0.5), not -1.
    box = (smooth_l1(0.1, 1 / 9) + smooth_l1(-1.0 - math.log(0.5), 1 / 9)) / 3
    assert losses.objectness.item() == pytest.approx(objectness, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)
    assert losses.total.item() == pytest.approx(objectness + box, rel=1e-5)
    assert losses.num_objects.item() == 2


@pytest.mark.parametrize("config", [PAPER, LossConfig()], ids=lambda config: config.objectness)
def test_comparing_all_boxes_as_on_a_gpu_gives_the_same_losses_and_gradients(
    config: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three images: with one object of two boxes, with none, and as in the other tests.
    labels = torch.tensor([[0, 1, 0, -1], [0, 0, 0, 0], [1, 0, 1, -1]])
    matched = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    gt = torch.cat((GT + 1, torch.zeros_like(GT), GT))
    # Deltas of anchors without an object must not matter, even if they are not finite.
    deltas = DELTAS.repeat(3, 1, 1)
    deltas[2, 1] = torch.tensor([math.inf, -math.inf, math.nan, 1e30])
    assignment = Assignment(labels_NA=labels, matched_NA=matched, overlap_NA=torch.ones(3, 4))
    found: list[tuple[float, float, Tensor | None, Tensor | None]] = []
    for _ in range(2):
        inputs = LOGITS.repeat(3, 1).requires_grad_(True), deltas.clone().requires_grad_(True)
        losses = rpn_losses(*inputs, ANCHORS, assignment, labels >= 0, gt, config=config)
        losses.total.backward()
        found.append((losses.total.item(), losses.num_objects.item(), inputs[0].grad, inputs[1].grad))
        monkeypatch.setattr(loss, "_rows_to_compare", lambda _: slice(None))
    torch.testing.assert_close(found[1], found[0])
    assert math.isfinite(found[0][0])
    assert found[0][1] == 3
    deltas_grad = found[1][3]
    assert deltas_grad is not None
    assert deltas_grad[2, 1].tolist() == [0, 0, 0, 0]


def test_anchors_outside_the_sample_have_no_part() -> None:
    losses = run(PAPER, sampled=torch.tensor([[False, True, True, False]]))
    assert losses.objectness.item() == pytest.approx((bce(-1.0, 0) + bce(0.5, 1)) / 2, rel=1e-5)
    assert losses.box.item() == pytest.approx(smooth_l1(-1.0 - math.log(0.5), 1 / 9) / 2, rel=1e-5)
    assert losses.num_objects.item() == 1


def decoded_overlaps() -> tuple[tuple[float, float], tuple[float, float]]:
    """IoU and GIoU of both objects' boxes, by hand."""
    # Anchor 0 stays at (0, 0, 10, 10), its object is (1, 0, 11, 10): 90 of 110; the hull is the union.
    # Anchor 2 becomes (0, 25 - h/2, 20, 25 + h/2) with h = 20/e = 7.358, inside its object (0, 20, 20, 30).
    first = 90 / 110
    second = 20 / math.e / 10
    return (first, first), (second, second)


def test_quality_focal_loss_and_giou_are_weighed_by_the_overlap() -> None:
    losses = run(LossConfig(objectness="quality_focal", focal_beta=2.0, box="giou", box_weight=2.0))
    (iou_0, giou_0), (iou_2, giou_2) = decoded_overlaps()
    weights = iou_0 + iou_2
    targets = ((2.0, iou_0), (-1.0, 0.0), (0.5, iou_2))
    objectness = sum(abs(q - sigmoid(x)) ** 2 * bce(x, q) for x, q in targets) / weights
    box = (iou_0 * (1 - giou_0) + iou_2 * (1 - giou_2)) / weights
    assert losses.objectness.item() == pytest.approx(objectness, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)
    assert losses.total.item() == pytest.approx(objectness + 2 * box, rel=1e-5)


def test_an_object_that_is_missed_entirely_keeps_the_weight_of_the_floor() -> None:
    far = DELTAS.clone()
    far[0, 0] = torch.tensor([3.0, 0, 0, 0])  # (30, 0, 40, 10) beside (1, 0, 11, 10): hull 390, union 200
    labels = torch.tensor([[1, 0, 0, -1]])
    losses = run(LossConfig(box="giou", quality_floor=0.2), deltas=far, labels=labels)
    # The weights' sum 0.2 is raised to 1, so that a batch of misses is not blown up.
    assert losses.box.item() == pytest.approx(0.2 * (1 + 190 / 390), rel=1e-5)


def test_anchors_far_from_all_objects_can_count_less() -> None:
    # Anchor 1 is background. Objects keep their weight however little their anchors overlap them.
    config = LossConfig(background_weight=0.25, near_iou=0.1)
    whole = run(LossConfig()).objectness.item()
    for overlap, share in ((0.05, 0.25), (0.1, 1.0)):
        losses = run(config, overlap=torch.tensor([[0.0, overlap, 0.0, 0.0]]))
        (iou_0, _), (iou_2, _) = decoded_overlaps()
        background = sigmoid(-1.0) ** 2 * bce(-1.0, 0.0) / (iou_0 + iou_2)
        assert losses.objectness.item() == pytest.approx(whole - (1 - share) * background, rel=1e-5)
    with pytest.raises(ValueError, match=r"background_weight: expected 0\.\.1, got 2"):
        LossConfig(background_weight=2.0)


def test_giou_with_plain_objectness_weighs_all_objects_alike() -> None:
    losses = run(LossConfig(objectness="bce", box="giou"))
    (_, giou_0), (_, giou_2) = decoded_overlaps()
    assert losses.box.item() == pytest.approx((2 - giou_0 - giou_2) / 3, rel=1e-5)


@pytest.mark.parametrize("objectness", ["bce", "quality_focal"])
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_a_batch_without_objects_has_no_box_loss_and_still_teaches_background(objectness: str, box: str) -> None:
    logits, deltas = LOGITS.clone().requires_grad_(), DELTAS.clone().requires_grad_()
    config = LossConfig(objectness=objectness, box=box)  # type: ignore[arg-type]
    losses = run(config, logits, deltas, labels=torch.zeros(1, 4, dtype=torch.int64))
    losses.total.backward()
    assert losses.box.item() == 0.0
    assert losses.num_objects.item() == 0
    assert math.isfinite(losses.total.item())
    assert logits.grad is not None
    assert (logits.grad[SAMPLED] > 0).all()
    assert deltas.grad is None or not deltas.grad.any()


@pytest.mark.parametrize("objectness", ["bce", "quality_focal"])
def test_an_empty_sample_gives_zero_and_no_nan(objectness: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    losses = run(LossConfig(objectness=objectness), logits, sampled=torch.zeros(1, 4, dtype=torch.bool))  # type: ignore[arg-type]
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("config", [PAPER, LossConfig()], ids=["paper", "edge"])
def test_gradients_reach_objects_and_background_and_nothing_else(config: LossConfig) -> None:
    logits, deltas = LOGITS.clone().requires_grad_(), DELTAS.clone().requires_grad_()
    run(config, logits, deltas).total.backward()
    assert logits.grad is not None
    assert deltas.grad is not None
    assert (logits.grad[0] != 0).tolist() == [True, True, True, False]
    assert deltas.grad[0].any(dim=1).tolist() == [True, False, True, False]
    assert logits.grad[0, 1].item() > 0  # background goes down
    assert torch.isfinite(deltas.grad).all()


def test_half_precision_inputs_are_computed_in_float32() -> None:
    exact = run(LossConfig(), LOGITS.bfloat16().float(), DELTAS.bfloat16().float())
    half = run(LossConfig(), LOGITS.bfloat16(), DELTAS.bfloat16())
    assert half.total.dtype == torch.float32
    assert half.total.item() == exact.total.item()


def test_settings_out_of_range_are_refused() -> None:
    for changes in ({"focal_beta": -1.0}, {"smooth_l1_beta": -0.1}, {"box_weight": -0.1}):
        with pytest.raises(ValueError, match="expected at least 0"):
            LossConfig(**changes)  # type: ignore[arg-type]


def test_an_unsure_box_weighs_less_and_has_a_lower_target() -> None:
    assignment = Assignment(labels_NA=LABELS, matched_NA=MATCHED, overlap_NA=torch.ones(1, 4))
    config, inputs = LossConfig(), (LOGITS, DELTAS, ANCHORS, assignment, SAMPLED, GT)
    sure = rpn_loss_sums(*inputs, config=config)
    same = rpn_loss_sums(*inputs, config=config, gt_weights_NG=torch.ones(1, 2))
    assert (same.objectness, same.box, same.normalizer) == (sure.objectness, sure.box, sure.normalizer)
    # Anchor 0, object 1: IoU 9 / 11, no change of the box. Anchor 2 answers for object 0.
    unsure = rpn_loss_sums(*inputs, config=config, gt_weights_NG=torch.tensor([[1.0, 0.25]]))
    iou = 9 / 11
    assert (sure.normalizer - unsure.normalizer).item() == pytest.approx(0.75 * iou, rel=1e-5)
    giou = iou  # the smallest box around both is their union
    assert (sure.box - unsure.box).item() == pytest.approx(0.75 * iou * (1 - giou), rel=1e-5)

    def focal(target: float) -> float:
        return (sigmoid(2.0) - target) ** 2 * bce(2.0, target)

    expected = focal(iou) - focal(0.25 * iou)
    assert (sure.objectness - unsure.objectness).item() == pytest.approx(expected, rel=1e-4)

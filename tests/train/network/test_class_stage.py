"""The second stage: classes and corrections of proposals, from pooled features to the rows that a detector returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from edgerpn.train.config import TrainSettings
from edgerpn.train.network.class_stage import classify_proposals
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import ModelConfig, Rpn
from edgerpn.train.network.proposal_stage import ProposalBatch, ProposalConfig
from edgerpn.train.network.region_features import RoiForm
from edgerpn.train.network.region_head import RegionHead

HW = (64, 96)
FORMS: list[tuple[Literal["standard", "portable"], RoiForm]] = [
    ("standard", "table"),
    ("standard", "operator"),
    ("portable", "grid"),
]


def signed_head(*, shift_x: float = 0.0) -> RegionHead:
    """Positive features are class 0 and negative ones class 1, each with logit 3; boxes move by `shift_x` widths."""
    head = RegionHead(1, 2, width=2).eval()
    with torch.no_grad():
        for layer in (head.first, head.second, head.logits):
            layer.weight.zero_()
        head.first.weight[0], head.first.weight[1] = 1 / 49, -1 / 49
        head.second.weight.copy_(torch.eye(2))
        head.logits.weight[1, 0] = head.logits.weight[2, 1] = 3
        head.deltas.bias[0] = shift_x / float(head.scale[0])
    return head


def left_and_right() -> list[Tensor]:
    """One map of stride 8, +1 in the left half and -1 in the right half."""
    level = torch.ones(1, 1, 8, 12)
    level[..., 6:] = -1
    return [level]


def proposals(*rows: tuple[float, float, float, float, float], count: int = 6) -> ProposalBatch:
    """Boxes with scores, best first, filled up with zeros; the number of a row is its anchor."""
    table = torch.zeros(1, count, 5)
    table[0, : len(rows)] = torch.tensor(rows).reshape(-1, 5)
    anchors = torch.arange(count)[None]
    return ProposalBatch(
        boxes=table[..., :4],
        scores=table[..., 4],
        count=torch.tensor([len(rows)], dtype=torch.int32),
        anchors=torch.where(anchors < len(rows), anchors, -1),
    )


def classify(
    batch: ProposalBatch,
    head: RegionHead,
    nms: Literal["standard", "portable"] = "standard",
    roi_form: RoiForm = "table",
    **changes: float,
) -> ProposalBatch:
    config = ProposalConfig(**changes)  # type: ignore[arg-type]
    with torch.inference_mode():
        return classify_proposals(
            batch,
            left_and_right(),
            head,
            strides_px=(8,),
            content_hw=HW,
            config=config,
            nms=nms,
            roi_form=roi_form,
        )


@pytest.mark.parametrize(("nms", "roi_form"), FORMS)
def test_a_box_gets_its_most_probable_class_and_the_mean_of_both_scores(
    nms: Literal["standard", "portable"], roi_form: RoiForm
) -> None:
    batch = proposals((4, 4, 28, 40, 0.9), (60, 10, 90, 50, 0.8), (6, 5, 30, 41, 0.7))
    found = classify(batch, signed_head(), nms, roi_form)
    assert found.labels is not None
    assert found.class_scores is not None
    # The third box overlaps the first one, of the same class; both remaining rows are at the front.
    assert found.count.tolist() == [2]
    assert found.labels.dtype == torch.int32
    assert found.labels.tolist() == [[0, 1, 0, 0, 0, 0]]
    probability = math.exp(3) / (math.exp(3) + 2)
    assert found.class_scores[0].tolist() == pytest.approx([probability] * 2 + [0] * 4)
    assert found.scores[0].tolist() == pytest.approx([math.sqrt(p * probability) for p in (0.9, 0.8)] + [0] * 4)
    torch.testing.assert_close(found.boxes[0, :2], batch.boxes[0, :2])
    assert not found.boxes[0, 2:].any()
    assert found.anchors is not None
    assert found.anchors.tolist() == [[0, 1, -1, -1, -1, -1]]


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_boxes_of_different_classes_do_not_suppress_each_other(nms: Literal["standard", "portable"]) -> None:
    # Both cover the border between the halves, with an IoU of .6; one has its larger part on the left.
    batch = proposals((30, 4, 62, 40, 0.9), (38, 4, 70, 40, 0.8))
    found = classify(batch, signed_head(), nms)
    assert found.count.tolist() == [2]
    assert found.labels is not None
    assert sorted(found.labels[0, :2].tolist()) == [0, 1]


def test_the_iou_of_the_nms_within_a_class_is_a_setting() -> None:
    batch = proposals((4, 4, 28, 40, 0.9), (8, 4, 32, 40, 0.8))
    assert classify(batch, signed_head()).count.tolist() == [1]
    assert classify(batch, signed_head(), class_nms_iou=0.8).count.tolist() == [2]


def test_rows_are_sorted_by_their_new_scores() -> None:
    # A box on the border between the halves is hardly of any class.
    batch = proposals((36, 4, 60, 40, 0.9), (4, 4, 28, 40, 0.8))
    found = classify(batch, signed_head())
    assert found.boxes[0, 0].tolist() == [4, 4, 28, 40]
    assert found.scores[0, 0] > found.scores[0, 1] > 0


def test_boxes_move_by_their_deltas_and_stay_inside_the_image() -> None:
    batch = proposals((4, 4, 24, 40, 0.9), (70, 10, 90, 50, 0.8))
    found = classify(batch, signed_head(shift_x=0.5))
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([14.0, 4, 34, 40]))
    torch.testing.assert_close(found.boxes[0, 1], torch.tensor([80.0, 10, 96, 50]))


def test_boxes_that_become_too_small_or_score_too_low_are_dropped() -> None:
    batch = proposals((4, 4, 24, 40, 0.9), (76, 10, 96, 50, 0.8))
    assert classify(batch, signed_head(shift_x=0.98), min_size_px=1.0).count.tolist() == [1]
    probability = math.exp(3) / (math.exp(3) + 2)
    between = math.sqrt(0.85 * probability)
    assert classify(batch, signed_head(), score_threshold=between).count.tolist() == [1]


@pytest.mark.parametrize(("nms", "roi_form"), FORMS)
def test_without_proposals_all_rows_are_zero(nms: Literal["standard", "portable"], roi_form: RoiForm) -> None:
    found = classify(proposals(), signed_head(), nms, roi_form)
    assert found.count.tolist() == [0]
    for rows in (found.boxes, found.scores, found.labels, found.class_scores):
        assert rows is not None
        assert not rows.any()


def test_a_head_leaves_boxes_as_they_are_before_training() -> None:
    torch.manual_seed(0)
    head = RegionHead(5, 3, width=16)
    logits, deltas = head(torch.randn(2, 4, 5, 7, 7))
    assert logits.shape == (2, 4, 4)
    assert not deltas.any()


@pytest.fixture
def classifier(tiny_settings: Callable[..., TrainSettings]) -> Rpn:
    """Random weights, large enough that boxes, scores and classes differ."""
    torch.manual_seed(3)
    network = Rpn(tiny_settings("model.classes=['cat', 'dog', 'odd one']", "model.region_channels=32").model).eval()
    torch.nn.init.normal_(network.head.objectness.weight, std=0.5)
    torch.nn.init.normal_(network.head.deltas.weight, std=0.05)
    assert network.region_head is not None
    torch.nn.init.normal_(network.region_head.logits.weight, std=0.5)
    torch.nn.init.normal_(network.region_head.deltas.weight, std=0.3)
    return network


def detector(model: Rpn, nms: Literal["standard", "portable"] = "standard", **options: object) -> Detector:
    config = ProposalConfig(num_proposals=30, pre_nms=60, nms_iou=0.7)
    return Detector(model, config, network_hw=HW, nms=nms, **options).eval()  # type: ignore[arg-type]


def test_a_detector_with_classes_keeps_the_contract_of_its_rows(classifier: Rpn) -> None:
    frames = torch.randint(0, 256, (2, 128, 150, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = detector(classifier, source_hw=(128, 150), embeddings=True, roi_hw=(2, 3))(frames)
        portable = detector(classifier, "portable", roi_form="grid", source_hw=(128, 150))(frames)
    assert list(found._asdict()) == [
        *("boxes", "scores", "count", "labels", "class_scores", "anchors", "embeddings", "features")
    ]
    assert found.labels is not None
    assert found.class_scores is not None
    assert found.embeddings is not None
    assert found.features is not None
    assert found.anchors is None
    assert len(found.labels[0, : int(found.count[0])].unique()) > 1
    for image, count in enumerate(found.count.tolist()):
        assert 5 < count < 30
        scores = found.scores[image, :count].tolist()
        assert scores == sorted(scores, reverse=True)
        assert (found.boxes[image, :count, 2:] > found.boxes[image, :count, :2]).all()
        assert (found.boxes[image, :, 2] <= 150).all()
        assert ((found.class_scores[image, :count] > 0) & (found.class_scores[image, :count] < 1)).all()
        norms = found.embeddings[image].norm(dim=1)
        torch.testing.assert_close(norms, (torch.arange(30) < count).float())
        assert not found.features[image, count:].any()
    assert portable.labels is not None
    assert torch.equal(portable.labels, found.labels)
    np.testing.assert_allclose(portable.boxes, found.boxes, atol=1e-3)


def test_without_classes_there_is_no_second_stage(tiny_settings: Callable[..., TrainSettings]) -> None:
    model = Rpn(tiny_settings().model).eval()
    assert not [name for name in model.state_dict() if name.startswith("region")]
    with torch.inference_mode():
        found = detector(model)(torch.zeros(1, *HW, 3, dtype=torch.uint8))
    assert found.labels is None
    assert found.class_scores is None


@pytest.mark.parametrize("names", [("cat", "cat"), ("cat", "")])
def test_classes_have_different_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="classes: expected different names"):
        ModelConfig(classes=names)

"""Features of proposals: the anchors that survive the proposal stage, and the values at their cells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.boxes import clip_boxes, decode_boxes
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals
from edgerpn.train.network.region_features import RoiForm, cell_embeddings, roi_align
from tests.support.regions import chosen_level, pooled

HW = (64, 96)
ANCHORS = grid_anchors(AnchorConfig(strides_px=(8, 16), sizes_px=((20.0,), (40.0,))), HW)
FORMS: list[tuple[Literal["standard", "portable"], dict[str, Any]]] = [
    ("standard", {}),
    ("standard", {"nms_candidates": 90}),
    ("standard", {"nms_candidates": 60, "pre_nms": 40}),
    ("standard", {"nms_scope": "all"}),
    ("portable", {}),
    ("portable", {"nms_candidates": 60, "pre_nms": 40}),
    ("portable", {"soft_nms_iou": 1.0}),
    ("standard", {"num_proposals": 200}),
    ("standard", {"score_threshold": 0.9}),
]


def random_levels(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(2 * torch.randn(count, len(level)), 0.4 * torch.randn(count, len(level), 4)) for level in ANCHORS]


@pytest.mark.parametrize(("nms", "changes"), FORMS)
def test_the_tracked_anchor_of_each_proposal_decodes_to_its_box(
    nms: Literal["standard", "portable"], changes: dict[str, Any]
) -> None:
    levels = random_levels()
    config = ProposalConfig(**{"num_proposals": 20, "nms_iou": 0.7, "nms_iterations": 40, **changes})
    found = select_proposals(levels, ANCHORS, content_hw=HW, config=config, nms=nms, tracks_anchors=True)
    plain = select_proposals(levels, ANCHORS, content_hw=HW, config=config, nms=nms)
    assert plain.anchors is None
    assert torch.equal(found.boxes, plain.boxes)
    assert found.anchors is not None
    assert found.anchors.shape == plain.scores.shape
    deltas, places = torch.cat([deltas for _, deltas in levels], dim=1), torch.cat(ANCHORS)
    for image, count in enumerate(found.count.tolist()):
        assert count > 3
        chosen = found.anchors[image, :count]
        assert len(set(chosen.tolist())) == count
        boxes = clip_boxes(decode_boxes(deltas[image, chosen], places[chosen]), HW)
        torch.testing.assert_close(boxes, found.boxes[image, :count])
        assert (found.anchors[image, count:] == -1).all()


def test_an_embedding_is_the_cell_of_its_anchor_with_a_norm_of_one() -> None:
    # Two levels of 2x3 and 1x2 cells, three anchors a cell; cell 4 of the first level is row 1, column 1.
    fine, coarse = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 1, 2)
    fine[0, :, 1, 1] = torch.tensor([3.0, -4.0])
    coarse[0, :, 0, 1] = torch.tensor([0.0, 0.5])
    anchors = torch.tensor([[4 * 3 + 2, (6 + 1) * 3, 5 * 3, -1]])
    found = cell_embeddings([fine, coarse], anchors, num_per_cell=3)
    torch.testing.assert_close(found[0], torch.tensor([[0.6, -0.8], [0, 1], [0, 0], [0, 0]]))


@pytest.mark.parametrize("num_per_cell", [1, 2, 3, 9, 15])
def test_every_anchor_finds_its_cell(num_per_cell: int) -> None:
    num_cells = 60_000
    cells = torch.arange(1, num_cells + 1, dtype=torch.float32).reshape(1, 1, 200, 300)
    numbers = torch.stack([cells, torch.ones_like(cells)], dim=2)[:, 0]
    anchors = torch.arange(num_cells * num_per_cell)[None]
    found = cell_embeddings([numbers], anchors, num_per_cell=num_per_cell)[0]
    np.testing.assert_allclose(found[:, 0] / found[:, 1], np.arange(num_cells).repeat(num_per_cell) + 1, rtol=1e-6)


FORMS_OF_ROI: tuple[RoiForm, ...] = ("grid", "operator", "table")
IMAGE_HW = (256, 320)


def regions(strides: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """Maps of two images, and boxes of many sizes, some of which touch the borders."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, -(-IMAGE_HW[0] // stride), -(-IMAGE_HW[1] // stride)) for stride in strides]
    limit = torch.tensor([IMAGE_HW[1], IMAGE_HW[0]] * 2, dtype=torch.float32)
    centers, sizes = torch.rand(2, 12, 2) * limit[:2], torch.exp(torch.rand(2, 12, 2) * 4 + 1)
    boxes = torch.minimum(torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1).clamp(min=0), limit)
    boxes[:, 0] = torch.tensor([0.0, 0, *limit[2:]])
    boxes[:, 1] = torch.tensor([0.0, 0, 0.5, 0.25])
    boxes[:, 3] = torch.tensor([60.0, 50, 190, 180])
    boxes[:, 2] = torch.tensor([limit[0] - 1.5, limit[1] - 40, *limit[2:]])
    return maps, boxes


@pytest.mark.parametrize("form", FORMS_OF_ROI)
@pytest.mark.parametrize(("strides", "num_chosen"), [((2, 4, 8, 16), 4), ((8,), 1), ((4, 16), 2), ((8, 16, 32, 64), 2)])
def test_roi_align_gives_the_values_of_its_definition(form: RoiForm, strides: tuple[int, ...], num_chosen: int) -> None:
    maps, boxes = regions(strides)
    found = roi_align(maps, boxes, strides, output_hw=(3, 2), form=form).numpy()
    assert found.shape == (2, 12, 3, 3, 2)
    levels = set()
    for image in range(2):
        own_maps = [level[image].numpy() for level in maps]
        for row, box in enumerate(boxes[image].numpy()):
            levels.add(chosen_level(box, strides))
            np.testing.assert_allclose(found[image, row], pooled(own_maps, box, strides, (3, 2)), atol=1e-4)
    assert len(levels) == num_chosen


@pytest.mark.parametrize(
    ("side", "stride"), [(223.0, 8), (224, 16), (447, 16), (448, 32), (895, 32), (896, 64), (9, 8)]
)
def test_the_size_of_a_box_chooses_its_level(side: float, stride: int) -> None:
    strides = (8, 16, 32, 64)
    maps = [torch.full((1, 1, 1024 // own, 1024 // own), float(own)) for own in strides]
    found = roi_align(maps, torch.tensor([[[10.0, 20, 10 + side, 20 + side]]]), strides, output_hw=(7, 7))
    torch.testing.assert_close(found, torch.full((1, 1, 1, 7, 7), float(stride)))


@pytest.mark.parametrize("form", ["grid", "table"])
def test_roi_align_trains_the_maps_and_not_the_boxes(form: RoiForm) -> None:
    maps, boxes = regions((2, 4))
    maps = [level.double().requires_grad_() for level in maps]
    boxes.requires_grad_()
    weights = torch.randn(2, 12, 3, 2, 2)
    loss = (roi_align(maps, boxes, (2, 4), output_hw=(2, 2), form=form) * weights).sum()
    loss.backward()
    assert boxes.grad is None
    # The function is linear in the maps: the gradient times the maps is the value.
    total = sum(float((level.grad * level.detach()).sum()) for level in maps if level.grad is not None)
    assert total == pytest.approx(float(loss.detach()), rel=1e-3)

"""The proposal stage against a plain one that handles image by image, box by box."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.proposal_stage import (
    ProposalBatch,
    ProposalConfig,
    nms_groups,
    ranked_candidates,
    select_proposals,
)
from tests.support.crowd import CONTENT_HW as CROWD_HW
from tests.support.crowd import crowd

HW = (64, 96)
CONTENT_HW = (56, 90)
ANCHORS = grid_anchors(AnchorConfig(strides_px=(8, 16), sizes_px=((20.0,), (40.0,))), HW)
BASE: dict[str, Any] = {"num_proposals": 20, "pre_nms": 40, "nms_iou": 0.7, "soft_nms_iou": 1.0}
Nms = Literal["standard", "portable"]
Scored = tuple[float, np.ndarray]


def random_levels(seed: int, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            2 * torch.randn(count, len(level), generator=generator),
            0.4 * torch.randn(count, len(level), 4, generator=generator),
        )
        for level in ANCHORS
    ]


def run(levels: list[tuple[Tensor, Tensor]], nms: Nms = "standard", **changes: Any) -> ProposalBatch:
    config = ProposalConfig(**{**BASE, "nms_iterations": 40, **changes})
    return select_proposals(levels, ANCHORS, content_hw=CONTENT_HW, config=config, nms=nms)


def decode(delta: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """One box, clipped to the content."""
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + w / 2 + delta[0] * w, anchor[1] + h / 2 + delta[1] * h
    half_w, half_h = w * math.exp(min(delta[2], 4.135)) / 2, h * math.exp(min(delta[3], 4.135)) / 2
    limit = np.array([CONTENT_HW[1], CONTENT_HW[0]] * 2)
    return np.array([x - half_w, y - half_h, x + half_w, y + half_h]).clip(0, limit)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0.0) * max(h, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def greedy(boxes: list[Scored], threshold: float) -> list[Scored]:
    kept: list[Scored] = []
    for score, box in sorted(boxes, key=lambda pair: -pair[0]):
        if all(iou(box, other) <= threshold for _, other in kept):
            kept.append((score, box))
    return kept


def plain_proposals(levels: list[tuple[Tensor, Tensor]], image: int, config: ProposalConfig) -> list[Scored]:
    """Best proposals of one image, from the description of the stage."""
    groups: list[list[Scored]] = []
    for (logits, deltas), anchors in zip(levels, ANCHORS, strict=True):
        row, moves, places = logits[image].double().numpy(), deltas[image].double().numpy(), anchors.double().numpy()
        best = np.argsort(-row, kind="stable")[: config.pre_nms]
        candidates = [(1 / (1 + math.exp(-row[i])), decode(moves[i], places[i])) for i in best]
        groups.append(
            [
                (score, box)
                for score, box in candidates
                if score >= config.score_threshold and min(box[2] - box[0], box[3] - box[1]) >= config.min_size_px
            ]
        )
    if config.nms_scope == "all":
        groups = [[pair for group in groups for pair in group]]
    kept = [pair for group in groups for pair in greedy(group, config.nms_iou)]
    kept = sorted(kept, key=lambda pair: -pair[0])
    if config.soft_nms_iou < 1:
        kept = rescored(kept[: 2 * config.num_proposals + 200], config)
    return kept[: config.num_proposals]


def rescored(kept: list[Scored], config: ProposalConfig) -> list[Scored]:
    """Soft NMS, from its description."""
    found = []
    for place, (score, box) in enumerate(kept):
        largest = max((iou(box, other) for _, other in kept[:place]), default=0.0)
        factor = math.sqrt(min(1.0, (1 - largest) / (1 - config.soft_nms_iou)))
        if score * factor >= config.score_threshold:
            found.append((score * factor, box))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("nms", ["standard", "portable"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nms_scope": "all"},
        {"pre_nms": 7},
        {"pre_nms": 10_000, "num_proposals": 300},
        {"score_threshold": 0.6, "nms_iou": 0.3},
        {"min_size_px": 18.0},
        {"nms_scope": "all", "nms_iou": 0.2, "num_proposals": 5},
        {"soft_nms_iou": 0.5},
        {"soft_nms_iou": 0.2, "nms_iou": 1.0, "num_proposals": 5},
        {"soft_nms_iou": 0.3, "num_proposals": 300, "nms_scope": "all"},
        {"soft_nms_iou": 0.25, "nms_iou": 0.9, "score_threshold": 0.6},
    ],
    ids=str,
)
def test_proposals_are_those_of_the_plain_stage(nms: Nms, changes: dict[str, Any]) -> None:
    levels = random_levels(seed=len(str(changes)))
    batch = run(levels, nms, **changes)
    config = ProposalConfig(**{**BASE, **changes})
    for image in range(3):
        expected = plain_proposals(levels, image, config)
        count = int(batch.count[image])
        assert count == len(expected) > 0
        np.testing.assert_allclose(batch.scores[image, :count], [score for score, _ in expected], atol=1e-6)
        np.testing.assert_allclose(batch.boxes[image, :count], [box for _, box in expected], atol=1e-3)
        assert not batch.boxes[image, count:].any()
        assert not batch.scores[image, count:].any()


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_a_second_box_on_an_object_comes_after_the_first_on_another(nms: Nms) -> None:
    # Neighbours in a row overlap by 12 of 28 px: 3 / 7. The third stands apart.
    levels = single_peaks(3 * 12 + 5, 3 * 12 + 6, 3 * 12 + 9)
    hard = run(levels, nms, score_threshold=0.5)
    soft = run(levels, nms, score_threshold=0.5, soft_nms_iou=0.2)
    assert hard.count.tolist() == soft.count.tolist() == [3]
    torch.testing.assert_close(soft.boxes[0, :3], hard.boxes[0, [0, 2, 1]])
    factor = math.sqrt((4 / 7) / 0.8)
    torch.testing.assert_close(soft.scores[0, :3], hard.scores[0, [0, 2, 1]] * torch.tensor([1, 1, factor]))
    # A box whose lowered score is below the threshold is not a proposal.
    assert run(levels, nms, score_threshold=0.9, soft_nms_iou=0.2).count.tolist() == [2]
    assert run(levels, nms, score_threshold=0.9).count.tolist() == [3]


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_a_repeated_box_loses_its_score_on_any_level(nms: Nms) -> None:
    levels = same_place_on_both_levels()
    batch = run(levels, nms, score_threshold=0.5, soft_nms_iou=0.5)
    assert batch.count.tolist() == [1]
    assert batch.scores[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_the_list_to_rescore_is_as_long_as_every_tensorrt_can_sort() -> None:
    lengths = {1: 202, 100: 400, 1820: 3840, 3000: 3840, 5000: 5000}
    for count, length in lengths.items():
        assert ProposalConfig(num_proposals=count, soft_nms_iou=0.5).num_kept == length
        assert ProposalConfig(num_proposals=count, soft_nms_iou=1.0).num_kept == count


@pytest.mark.parametrize("nms", ["standard", "portable"])
@pytest.mark.parametrize(("num_proposals", "num_boxes"), [(10, 20), (30, 8), (100, 4)])
def test_few_proposals_are_the_first_of_many_in_a_crowd(nms: Nms, num_proposals: int, num_boxes: int) -> None:
    levels, anchors = crowd(num_proposals, num_boxes)
    few, many = (
        select_proposals(levels, anchors, content_hw=CROWD_HW, config=ProposalConfig(num_proposals=count), nms=nms)
        for count in (num_proposals, 1000)
    )
    # One box on each object; a list of 2 K boxes would end at half of the objects or before.
    torch.testing.assert_close(few.boxes[0], anchors[0][::num_boxes])
    assert torch.equal(few.boxes, many.boxes[:, :num_proposals])
    assert torch.equal(few.scores, many.scores[:, :num_proposals])


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_boxes_behind_the_list_to_rescore_are_not_proposals(nms: Nms) -> None:
    levels, anchors = crowd(100, 5)
    batch = select_proposals(levels, anchors, content_hw=CROWD_HW, config=ProposalConfig(), nms=nms)
    # The 400 boxes of the list are on 80 objects. The other boxes of the first five objects follow.
    others = [number for number in range(25) if number % 5]
    torch.testing.assert_close(batch.boxes[0], anchors[0][[*range(0, 400, 5), *others]])


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_shapes_and_types_are_fixed(nms: Nms) -> None:
    for changes in (
        {"num_proposals": 1},
        {"num_proposals": 500},
        {"num_proposals": 500, "soft_nms_iou": 0.5},
        {"score_threshold": 0.9999},
    ):
        batch = run(random_levels(1), nms, **changes)
        k = int(changes.get("num_proposals", 20))
        assert batch.boxes.shape == (3, k, 4)
        assert batch.scores.shape == (3, k)
        assert batch.count.shape == (3,)
        assert (batch.boxes.dtype, batch.scores.dtype, batch.count.dtype) == (
            torch.float32,
            torch.float32,
            torch.int32,
        )


def single_peaks(*anchor_numbers: int) -> list[tuple[Tensor, Tensor]]:
    """One image: logit 3, 2.9, ... at these anchors of the fine level, -9 elsewhere; boxes are the anchors."""
    levels = [(torch.full((1, len(level)), -9.0), torch.zeros(1, len(level), 4)) for level in ANCHORS]
    for rank, number in enumerate(anchor_numbers):
        levels[0][0][0, number] = 3.0 - 0.1 * rank
    return levels


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_no_proposal_gives_zeros_and_a_count_of_zero(nms: Nms) -> None:
    batch = run(single_peaks(), nms, score_threshold=0.5)
    assert batch.count.tolist() == [0]
    assert not batch.boxes.any()
    assert not batch.scores.any()


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_one_proposal_is_the_anchor_itself(nms: Nms) -> None:
    # Row 3, column 5 of 12: centred at (44, 28), 20 pixels wide.
    batch = run(single_peaks(3 * 12 + 5), nms, score_threshold=0.5)
    assert batch.count.tolist() == [1]
    assert batch.boxes[0, 0].tolist() == [34, 18, 54, 38]
    assert batch.scores[0, 0].item() == pytest.approx(1 / (1 + math.exp(-3)))
    assert not batch.boxes[0, 1:].any()


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_of_more_than_k_the_best_k_stay(nms: Nms) -> None:
    rank_order = [0, 40, 9, 52, 20]
    batch = run(single_peaks(*rank_order), nms, score_threshold=0.5, num_proposals=3)
    assert batch.count.tolist() == [3]
    expected = ANCHORS[0][rank_order[:3]].clamp(min=0)
    torch.testing.assert_close(batch.boxes[0], expected)
    assert batch.scores[0].tolist() == sorted(batch.scores[0].tolist(), reverse=True)


def same_place_on_both_levels() -> list[tuple[Tensor, Tensor]]:
    """One box, the same from both levels: 40 px around (24, 24); the fine anchor (20, 20) moves and doubles."""
    levels = single_peaks()
    fine, coarse = 2 * 12 + 2, 1 * 6 + 1
    levels[0][0][0, fine] = 2.0
    levels[0][1][0, fine] = torch.tensor([0.2, 0.2, math.log(2), math.log(2)])
    levels[1][0][0, coarse] = 1.0
    return levels


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_levels_compete_only_when_the_scope_is_all(nms: Nms) -> None:
    levels = same_place_on_both_levels()
    separate = run(levels, nms, score_threshold=0.5, nms_scope="level")
    together = run(levels, nms, score_threshold=0.5, nms_scope="all")
    assert separate.count.tolist() == [2]
    torch.testing.assert_close(separate.boxes[0, :2], torch.tensor([[4.0, 4, 44, 44]] * 2))
    assert together.count.tolist() == [1]
    assert together.scores[0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("nms", ["standard", "portable"])
@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("pre_nms", [7, 20, 40])
@pytest.mark.parametrize("nms_candidates", [1, 10, 30, 45, 1000])
def test_a_cut_of_candidates_gives_the_first_of_the_exact_proposals(
    nms: Nms, scope: Any, pre_nms: int, nms_candidates: int
) -> None:
    levels, changes = random_levels(5), {"nms_scope": scope, "pre_nms": pre_nms, "min_size_px": 14.0}
    exact = run(levels, **changes)
    cut = run(levels, nms, nms_candidates=nms_candidates, **changes)
    assert cut.boxes.shape == exact.boxes.shape
    for image in range(3):
        count = int(cut.count[image])
        assert 0 < count <= int(exact.count[image]) or nms_candidates == 1
        assert torch.equal(cut.boxes[image, :count], exact.boxes[image, :count])
        assert torch.equal(cut.scores[image, :count], exact.scores[image, :count])
        assert not cut.scores[image, count:].any()
    if nms_candidates > 2 * pre_nms:
        assert torch.equal(cut.count, exact.count)


@pytest.mark.parametrize("nms", ["standard", "portable"])
@pytest.mark.parametrize("scope", ["level", "all"])
def test_a_cut_that_leaves_all_that_is_rescored_changes_nothing(nms: Nms, scope: Any) -> None:
    levels, changes = random_levels(8), {"nms_scope": scope, "num_proposals": 10, "soft_nms_iou": 0.4}
    exact = run(levels, **changes)
    ranked = [run(levels, nms, nms_candidates=count, **changes) for count in (60, 8)]
    assert torch.equal(ranked[0].boxes, exact.boxes)
    assert torch.equal(ranked[0].scores, exact.scores)
    assert not torch.equal(ranked[1].scores, exact.scores)


def test_candidates_know_their_level() -> None:
    config = ProposalConfig(pre_nms=30)
    levels = random_levels(7)
    ranked = ranked_candidates(levels, ANCHORS, 40, content_hw=CONTENT_HW, config=config)
    assert ranked.levels is not None
    groups = nms_groups(levels, ANCHORS, content_hw=CONTENT_HW, config=config, nms="portable")
    for number, group in enumerate(groups):
        for image in range(3):
            own = ranked.boxes[image][ranked.levels[image] == number]
            assert len(own) > 0
            assert torch.equal(own, group.boxes[image, : len(own)])


def test_a_box_pushed_out_of_the_content_is_never_a_proposal() -> None:
    levels = single_peaks(5)
    levels[0][1][0, 5] = torch.tensor([100.0, 0.0, 0.0, 0.0])
    batch = run(levels, score_threshold=0.5, min_size_px=0.0)
    assert batch.count.tolist() == [0]


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_a_score_of_zero_is_never_a_proposal(nms: Nms) -> None:
    # Below a logit of -88 float32 has no normal number for the score, and other libraries round it to 0.
    levels = single_peaks(5)
    levels[0][0][levels[0][0] < 0] = -200.0
    levels[1][0][levels[1][0] < 0] = -200.0
    assert run(levels, nms, score_threshold=0.0).count.tolist() == [1]


def test_half_precision_outputs_are_decoded_in_float32() -> None:
    levels = random_levels(2)
    half = [(logits.bfloat16(), deltas.bfloat16()) for logits, deltas in levels]
    rounded = [(logits.float(), deltas.float()) for logits, deltas in half]
    torch.testing.assert_close(run(half).boxes[:, 0], run(rounded).boxes[:, 0])
    assert run(half).boxes.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_proposals": 0}, "num_proposals: expected at least 1"),
        ({"pre_nms": 0}, "pre_nms: expected at least 1"),
        ({"nms_iterations": 0}, "nms_iterations: expected at least 1"),
        ({"nms_candidates": 0}, "nms_candidates: expected at least 1, got 0"),
        ({"nms_iou": 0.0}, "^nms_iou: expected more than 0"),
        ({"soft_nms_iou": 0.0}, "soft_nms_iou: expected more than 0"),
        ({"soft_nms_iou": 1.1}, "soft_nms_iou: .* at most 1, got 1.1"),
        ({"score_threshold": 1.0}, "score_threshold: expected 0 to below 1"),
        ({"min_size_px": -1.0}, "min_size_px: expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalConfig(**changes)

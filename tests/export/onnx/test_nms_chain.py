"""The work of portable NMS on images, the proof that a graph has it, and the exported form in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgerpn.errors import ParityError
from edgerpn.export.export_config import Nms
from edgerpn.export.onnx.graph import export_program
from edgerpn.export.onnx.nms_chain import (
    NmsWork,
    check_convergence,
    choose_candidates,
    choose_iterations,
    measure_chain,
)
from edgerpn.letterbox import letterbox
from edgerpn.train.checkpoint import load_model
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.nms import nms_converged, nms_fixed
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals
from tests.support.crowd import CONTENT_HW as CROWD_HW
from tests.support.crowd import crowd

PEAKS = ProposalConfig(num_proposals=10, nms_iou=0.3, soft_nms_iou=1.0, score_threshold=0.5)


@pytest.fixture(scope="module")
def peaks(checkpoints: dict[str, Path]) -> Detector:
    """Squares of 16 px, one for each of 8 x 12 cells of 8 px, that score by the blue of the cell."""
    return Detector(load_model(checkpoints["peaks"])[0], PEAKS, network_hw=(64, 96)).eval()


def row_frame(count: int) -> npt.NDArray[np.uint8]:
    """A row of `count` cells whose blue falls: each square overlaps its neighbours and no other."""
    frame = np.zeros((1, 64, 96, 3), np.uint8)
    frame[0, 24, : 8 * count : 8, 0] = 250 - 5 * np.arange(count)
    return frame


def test_rounds_and_candidates_of_a_row_are_known(peaks: Detector) -> None:
    # Of n squares in a row every second stays, and the last is settled after n - 1 rounds.
    for count, candidates in ((1, 1), (2, 1), (5, 5), (12, 11)):
        chain = measure_chain(peaks, [row_frame(count)])
        assert chain.longest == max(1, count - 1)
        assert chain.candidates == candidates
        assert (chain.per_group, chain.group_sizes, chain.num_images) == ((chain.longest,), (96,), 1)


def test_a_chain_sums_up_its_images(peaks: Detector) -> None:
    chain = measure_chain(peaks, [row_frame(3), np.concatenate((row_frame(9), row_frame(4))), row_frame(0)])
    assert (chain.longest, chain.median, chain.num_images) == (8, 2.5, 4)
    assert "8 rounds at most, 2.5 in the median" in chain.summary()
    with pytest.raises(ValueError, match="frames: expected at least one, got none"):
        measure_chain(peaks, [])


def test_with_fewer_rounds_than_measured_proposals_differ_and_the_image_is_named(peaks: Detector) -> None:
    frames = [row_frame(4), row_frame(11), row_frame(7)]
    names = ["short.png", "long.png", "middle.png"]
    check_convergence(peaks, frames, 10, names=names)
    with pytest.raises(ParityError, match=r"long.png: .* needs 10 rounds here, and the graph has 9; too few on 1 of 3"):
        check_convergence(peaks, frames, 9, names=names)
    with pytest.raises(ParityError, match=r"image 2: .* needs 10 rounds here, and the graph has 4; too few on 2 of 3"):
        check_convergence(peaks, iter(frames), 4)
    exact = peaks(torch.from_numpy(frames[1]))
    for iterations, is_exact in ((10, True), (9, False)):
        config = dataclasses.replace(PEAKS, nms_iterations=iterations)
        portable = Detector(peaks.model, config, network_hw=(64, 96), nms="portable").eval()
        assert torch.equal(portable(torch.from_numpy(frames[1])).boxes, exact.boxes) is is_exact


def test_with_fewer_candidates_than_measured_the_image_is_named(peaks: Detector) -> None:
    for candidates in (11, 10):
        config = dataclasses.replace(PEAKS, nms_candidates=candidates)
        detector = Detector(peaks.model, config, network_hw=(64, 96)).eval()
        assert measure_chain(detector, [row_frame(12)]).group_sizes == (candidates,)
        if candidates == 11:
            check_convergence(detector, [row_frame(12)], 20)
            continue
        with pytest.raises(
            ParityError, match=r"image 1: NMS needs the best 11 candidates here, and the graph looks at 10"
        ):
            check_convergence(detector, [row_frame(12)], 20)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nms_scope": "all"},
        {"nms_candidates": 60},
        {"num_proposals": 8, "nms_iou": 0.4},
        {"soft_nms_iou": 0.4},
    ],
    ids=str,
)
def test_rounds_and_candidates_measured_on_a_pyramid_are_enough_and_one_less_is_not(
    changes: dict[str, Any], checkpoints: dict[str, Path], photo_files: list[Path]
) -> None:
    model, checkpoint = load_model(checkpoints["pyramid"])
    base = dataclasses.replace(checkpoint.settings.proposals, num_proposals=20, nms_iou=0.6, soft_nms_iou=1.0)
    detector = Detector(model, dataclasses.replace(base, **changes), network_hw=(128, 192)).eval()
    frames = []
    for file in photo_files:
        picture = cv2.imread(str(file))
        assert picture is not None
        frames.append(letterbox((picture.shape[0], picture.shape[1]), (128, 192)).apply(picture, cv2.resize)[None])
    chain = measure_chain(detector, frames)
    assert len(chain.per_group) == (3 if "nms_scope" not in changes and "nms_candidates" not in changes else 1)
    assert chain.longest == max(chain.per_group) > 1
    check_convergence(detector, frames, chain.longest)
    with pytest.raises(ParityError, match=f"needs {chain.longest} rounds"):
        check_convergence(detector, frames, chain.longest - 1)
    for candidates, is_enough in ((chain.candidates, True), (chain.candidates - 1, False)):
        config = dataclasses.replace(detector.proposals, nms_candidates=candidates, nms_iterations=50)
        cut = Detector(model, config, network_hw=(128, 192), nms="portable").eval()
        with torch.inference_mode():
            pairs = [(cut(torch.from_numpy(f)).scores, detector(torch.from_numpy(f)).scores) for f in frames]
        # Some processors round the last rows of a list in another way than the rest.
        same = [torch.allclose(*pair, rtol=0, atol=1e-6) for pair in pairs]
        assert all(same) is is_enough


def chain_of(**changes: Any) -> NmsWork:
    values: dict[str, Any] = {
        "longest": 10,
        "median": 6.0,
        "per_group": (10, 4),
        "group_sizes": (1000, 576),
        "candidates": 340,
        "num_images": 9,
    }
    return NmsWork(**{**values, **changes})


@pytest.mark.parametrize(("longest", "iterations"), [(1, 8), (4, 8), (5, 9), (8, 12), (10, 15), (11, 17), (40, 60)])
def test_rounds_are_chosen_with_a_margin(longest: int, iterations: int) -> None:
    assert choose_iterations(chain_of(longest=longest)) == iterations


@pytest.mark.parametrize(("candidates", "chosen"), [(1, 64), (43, 128), (340, 512), (700, 1088), (800, None)])
def test_candidates_are_chosen_with_a_margin_where_they_save_something(candidates: int, chosen: int | None) -> None:
    assert choose_candidates(chain_of(candidates=candidates), PEAKS) == chosen


@pytest.mark.parametrize(("soft_nms_iou", "chosen"), [(0.5, 448), (1.0, 128)])
def test_candidates_fill_the_list_that_is_used_after_nms(soft_nms_iou: float, chosen: int) -> None:
    stage = ProposalConfig(num_proposals=100, soft_nms_iou=soft_nms_iou)
    assert choose_candidates(chain_of(candidates=30), stage) == chosen


class Mask(nn.Module):
    """Portable NMS of (N, B, 6) boxes, scores and labels."""

    def __init__(self, iterations: int, has_labels: bool) -> None:
        super().__init__()
        self.iterations, self.has_labels = iterations, has_labels

    def forward(self, rows: Tensor) -> Tensor:
        labels = rows[..., 5] if self.has_labels else None
        keep = nms_fixed(
            rows[..., :4], rows[..., 4] >= 0, iou_threshold=0.5, iterations=self.iterations, labels_NB=labels
        )
        return keep.float()


def adversarial_rows(num_boxes: int) -> Tensor:
    """A batch of sets: random, a staircase, identical boxes, boxes without area, none valid, none overlapping."""
    rng = np.random.default_rng(num_boxes)
    rank = np.arange(num_boxes)
    corners = [
        rng.integers(0, 40, (num_boxes, 2)),
        np.stack((3 * rank, 0 * rank), axis=1),
        np.full((num_boxes, 2), 5),
        rng.integers(0, 9, (num_boxes, 2)),
        rng.integers(0, 9, (num_boxes, 2)),
        np.stack((0 * rank, 50 * rank), axis=1),
    ]
    sides: list[Any] = [rng.integers(1, 30, (num_boxes, 2)), 12, 8, rng.integers(0, 2, (num_boxes, 2)), 9, 50]
    corner = np.stack(corners)
    boxes = np.concatenate((corner, corner + np.stack([np.broadcast_to(s, (num_boxes, 2)) for s in sides])), axis=-1)
    scores = np.where(rng.random((6, num_boxes)) < 0.1, -1.0, 0.5)
    scores[4] = -1
    labels = rng.integers(0, 3, (6, num_boxes))
    return torch.from_numpy(np.concatenate((boxes, scores[..., None], labels[..., None]), axis=-1)).float()


def run_onnx(proto: onnx.ModelProto, value: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value.numpy()})


@pytest.mark.parametrize(
    ("num_boxes", "has_labels"),
    [
        (120, True),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
        pytest.param(120, False, marks=pytest.mark.slow),
    ],
)
def test_the_exported_form_is_exact_on_adversarial_sets(num_boxes: int, has_labels: bool) -> None:
    rows = adversarial_rows(num_boxes)
    labels = rows[..., 5] if has_labels else None
    keep, rounds = nms_converged(rows[..., :4], rows[..., 4] >= 0, iou_threshold=0.5, labels_NB=labels)
    module = Mask(rounds, has_labels).eval()
    assert torch.equal(module(rows) > 0.5, keep)
    # A batch axis that is open, tried with other sizes than the example's.
    proto = export_program(module, rows[:2], opset=18, is_dynamic=True)
    for batch in (rows, rows[:1]):
        found = run_onnx(proto, batch)[0]
        np.testing.assert_array_equal(found, keep[: len(batch)].float().numpy())


ANCHORS = grid_anchors(AnchorConfig(strides_px=(8, 16, 32), sizes_px=((20.0,), (40.0,), (80.0,))), (64, 96))


class Stage(nn.Module):
    """Proposals of (N, A, 5) logits and deltas of all levels."""

    def __init__(
        self,
        config: ProposalConfig,
        nms: Nms = "portable",
        anchors: list[Tensor] = ANCHORS,
        content_hw: tuple[int, int] = (60, 90),
    ) -> None:
        super().__init__()
        self.config, self.nms, self.content_hw = config, nms, content_hw
        self.sizes = [len(level) for level in anchors]
        for number, level in enumerate(anchors):
            self.register_buffer(f"anchors_{number}", level)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        anchors = [self.get_buffer(f"anchors_{number}") for number in range(len(self.sizes))]
        levels = [(part[..., 0], part[..., 1:]) for part in rows.split(self.sizes, dim=1)]
        found = select_proposals(levels, anchors, content_hw=self.content_hw, config=self.config, nms=self.nms)
        return found.boxes, found.scores, found.count


STAGES: list[dict[str, Any]] = [
    {},
    {"nms_candidates": 50},
    {"nms_candidates": 50, "pre_nms": 20},
    {"nms_candidates": 5, "nms_scope": "all", "num_proposals": 30},
    {"soft_nms_iou": 0.2},
    {"soft_nms_iou": 0.2, "nms_candidates": 50, "nms_iou": 0.8},
]


FAST_STAGES = {(0, "standard"), (3, "portable"), (5, "portable")}
"""The forms that every run of the tests exports."""


def stage_of(changes: dict[str, Any], nms: Nms = "portable") -> Stage:
    base = {"num_proposals": 12, "pre_nms": 60, "nms_iou": 0.5, "soft_nms_iou": 1.0, "nms_iterations": 4}
    return Stage(ProposalConfig(**{**base, **changes}), nms).eval()


@pytest.mark.parametrize(
    ("changes", "nms"),
    [
        pytest.param(
            changes, nms, marks=() if (number, nms) in FAST_STAGES else pytest.mark.slow, id=f"{changes}-{nms}"
        )
        for number, changes in enumerate(STAGES)
        for nms in ("standard", "portable")
    ],
)
def test_the_exported_stage_gives_pytorchs_proposals(changes: dict[str, Any], nms: Nms) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = 0.4 * torch.randn(3, sum(map(len, ANCHORS)), 5, generator=generator)
    module = stage_of(changes, nms)
    found = run_onnx(export_program(module, rows, opset=18, is_dynamic=nms == "standard"), rows)
    for output, expected in zip(found, module(rows), strict=True):
        np.testing.assert_allclose(output, expected.numpy(), rtol=0, atol=1e-3)
    assert found[2].min() > 0


@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_a_graph_of_a_hundred_proposals_gives_the_first_of_a_thousand_in_a_crowd(nms: Nms) -> None:
    levels, anchors = crowd(100, 4)
    rows = torch.cat((levels[0][0][..., None], levels[0][1]), dim=2)
    many = Stage(ProposalConfig(num_proposals=1000), "standard", anchors, CROWD_HW).eval()
    few = Stage(ProposalConfig(nms_candidates=399), nms, anchors, CROWD_HW).eval()
    found = run_onnx(export_program(few, rows, opset=18), rows)
    for output, expected in zip(found[:2], many(rows)[:2], strict=True):
        np.testing.assert_allclose(output, expected[:, :100].numpy(), rtol=0, atol=1e-4)
    assert found[2].tolist() == [100]


@pytest.mark.parametrize("changes", [pytest.param({}, marks=pytest.mark.slow), {"nms_candidates": 50}], ids=str)
def test_of_boxes_with_equal_scores_the_first_anchor_wins_in_the_graph(changes: dict[str, Any]) -> None:
    # Boxes equal to their anchors, all with one score: 20 px every 8 px overlap their neighbours by 3/7.
    rows = torch.zeros(1, sum(map(len, ANCHORS)), 5)
    module = stage_of({"nms_iou": 0.25, "score_threshold": 0.1, "nms_iterations": 50, **changes})
    boxes = run_onnx(export_program(module, rows, opset=18), rows)[0][0]
    # In order of the grid: the first, then each that the kept ones before it do not overlap by more.
    expected: list[np.ndarray] = []
    for box in ANCHORS[0].numpy().clip(0, [90, 60, 90, 60])[:50]:
        sides = [(np.minimum(box[2:], b[2:]) - np.maximum(box[:2], b[:2])).clip(0).prod() for b in expected]
        areas = [np.prod(box[2:] - box[:2]) + np.prod(b[2:] - b[:2]) for b in expected]
        if all(common / (both - common) <= 0.25 for common, both in zip(sides, areas, strict=True)):
            expected.append(box)
    np.testing.assert_allclose(boxes[: len(expected)], np.stack(expected)[: len(boxes)], atol=1e-4)


@pytest.mark.rtx
@pytest.mark.parametrize(
    "changes",
    [
        {"nms_candidates": 5},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"nms_candidates": 50}, marks=pytest.mark.slow),
        pytest.param({"soft_nms_iou": 0.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_small_levels_and_short_lists_compile_with_tensorrt_rtx(changes: dict[str, Any]) -> None:
    # The coarsest level has six boxes.
    assert len(ANCHORS[-1]) == 6
    trt = importlib.import_module("tensorrt_rtx")
    proto = export_program(stage_of(changes), torch.zeros(1, sum(map(len, ANCHORS)), 5), opset=18)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse(proto.SerializeToString())
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    assert plan.nbytes > 20_000

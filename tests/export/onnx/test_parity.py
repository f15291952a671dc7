"""Graph and network agree on no, one and more than K proposals, in any batch; parity finds a damaged graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from edgerpn.errors import ParityError
from edgerpn.export.onnx.agreement import ProposalThresholds, level_cut_scores, pair_proposals
from edgerpn.export.onnx.graph import proposal_config
from edgerpn.export.onnx.parity import _ParityCounter, check_parity, run_reference
from edgerpn.letterbox import letterbox
from edgerpn.matching import EXACT, match
from edgerpn.proposals import pairwise_iou
from edgerpn.train.checkpoint import load_model
from edgerpn.train.network import proposal_stage
from edgerpn.train.network.detector import Detector

GetExport = Callable[[str], Any]
Outputs = list[np.ndarray]


def reference(made: Any) -> Detector:
    """The network of an export, with exact NMS."""
    model, checkpoint = load_model(made.checkpoint)
    config = proposal_config(checkpoint, made.config)
    return Detector(model, config, network_hw=made.network_hw, source_hw=made.config.source_hw).eval()


def run_torch(made: Any, frames: np.ndarray) -> Outputs:
    with torch.inference_mode():
        return [output.numpy() for output in reference(made)(torch.from_numpy(frames))[:3]]


def run_onnx(file: Path, frames: np.ndarray) -> Outputs:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["boxes", "scores", "count"], {"frames": frames})


def assert_same(found: Outputs, expected: Outputs) -> None:
    """The same proposals in the same order; only for frames without ties."""
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-2)
    for boxes, scores, count in zip(*found, strict=True):
        assert not boxes[count:].any()
        assert not scores[count:].any()


@pytest.mark.parametrize("name", ["peaks-standard", "peaks-portable"])
def test_nothing_one_thing_and_more_than_k(name: str, exported: GetExport, peaks_frames: dict[str, np.ndarray]) -> None:
    made = exported(name)
    frames = np.stack([peaks_frames[case] for case in ("zero", "one", "many")])
    found = run_onnx(made.file, frames)
    boxes, scores, count = found
    assert count.tolist() == [0, 1, 10]
    assert (boxes.shape, scores.shape) == ((3, 10, 4), (3, 10))
    assert [str(output.dtype) for output in found] == ["float32", "float32", "int32"]
    # The cell of row 2 and column 3: its anchor is 16 px around (28, 20); blue 250 is a logit of 6.
    np.testing.assert_allclose(boxes[1, 0], [20, 12, 36, 28], atol=1e-3)
    assert scores[1, 0] == pytest.approx(1 / (1 + np.exp(-6)), abs=1e-4)
    assert (np.diff(scores[2]) < 0).all()
    assert_same(found, run_torch(made, frames))


@pytest.mark.parametrize("name", ["peaks-standard", "peaks-portable"])
@pytest.mark.parametrize("order", ["zero", "many", "one many", "many zero one", "one one many zero many"])
def test_any_batch_gives_what_its_frames_give_alone(
    name: str, order: str, exported: GetExport, peaks_frames: dict[str, np.ndarray]
) -> None:
    file = exported(name).file
    frames = [peaks_frames[case] for case in order.split()]
    together = run_onnx(file, np.stack(frames))
    for i, frame in enumerate(frames):
        assert_same([output[i : i + 1] for output in together], run_onnx(file, frame[None]))


@pytest.mark.parametrize("name", ["standard", "single-level", "portable", "portable-source"])
def test_photographs_give_the_networks_proposals(name: str, exported: GetExport, photo_files: list[Path]) -> None:
    made = exported(name)
    report = check_parity(reference(made), made.file, photo_files, batch=made.config.fixed_batch)
    assert report.num_images == 5
    assert report.batch_sizes == ((1,) if made.config.fixed_batch else (1, 2))
    assert report.num_matched >= 5 * 20 * len(report.batch_sizes)
    assert report.num_boundary <= 0.02 * report.num_matched
    assert report.min_iou >= 0.99
    assert report.max_score_difference <= 1e-3
    batches = "1" if made.config.fixed_batch else "1 and 2"
    assert report.summary().startswith(f"parity with the checkpoint on 5 images, batch {batches}: ")


def test_photographs_in_a_batch_of_three(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("single-level")
    frames = []
    for file in photo_files[:3]:
        picture = cv2.imread(str(file))
        assert picture is not None
        frames.append(letterbox(picture.shape[:2], (64, 96)).apply(picture, cv2.resize))
    found, expected = run_onnx(made.file, np.stack(frames)), run_torch(made, np.stack(frames))
    for i in range(3):
        ours, theirs = ((out[0][i, : out[2][i]], out[1][i, : out[2][i]]) for out in (expected, found))
        pairs, _ = match(ours, theirs)
        assert len(pairs) >= 0.98 * max(len(ours[1]), len(theirs[1])) > 0


def test_scaling_in_the_graph_agrees_with_letterboxing_on_the_host(
    exported: GetExport, photo_files: list[Path]
) -> None:
    inside, outside = exported("portable-source"), exported("portable")
    matched = total = 0
    for file in photo_files:
        picture = cv2.imread(str(file))
        assert picture is not None
        frame = letterbox(picture.shape[:2], (200, 300)).apply(picture, cv2.resize)
        geometry = letterbox((200, 300), (128, 192))
        boxes, scores, count = (output[0] for output in run_onnx(inside.file, frame[None]))
        host = run_onnx(outside.file, geometry.apply(frame, cv2.resize)[None])
        host_boxes, host_scores = geometry.to_frame(host[0][0, : host[2][0]]), host[1][0, : host[2][0]]
        for box, score in zip(boxes[:count], scores[:count], strict=True):
            distance = np.abs(host_boxes - box).max(axis=1)
            matched += bool(((distance <= 1.0) & (np.abs(host_scores - score) <= 0.02)).any())
        total += int(count)
    # NMS turns a difference within rounding into another choice now and then.
    assert total >= 5 * 20
    assert matched >= 0.97 * total


def damage(made: Any, output: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of an export with the weights of its objectness changed."""
    proto = onnx.load(made.file)
    initializer = next(i for i in proto.graph.initializer if i.name.endswith("objectness.weight"))
    initializer.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(initializer)), initializer.name))
    onnx.save(proto, str(output))
    return output


@pytest.mark.parametrize("name", ["single-level", "standard"])
def test_a_damaged_weight_is_found_and_the_image_named(
    name: str, exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    made = exported(name)
    same = damage(made, tmp_path / "same.onnx", lambda weight: weight.copy())
    check_parity(reference(made), same, photo_files[:1], batch=1)
    wrong = damage(made, tmp_path / "wrong.onnx", lambda weight: weight * 1.5)
    with pytest.raises(ParityError, match=r"^\d\.png, batch 1: the graph and PyTorch disagree\. Proposal"):
        check_parity(reference(made), wrong, photo_files, batch=None)


def test_a_graph_that_proposes_nothing_proves_nothing(exported: GetExport, peaks_files: list[Path]) -> None:
    made = exported("peaks-standard")
    (black,) = (file for file in peaks_files if file.stem == "zero")
    with pytest.raises(ParityError, match=r"neither PyTorch nor the graph proposes anything on any of 1 images"):
        check_parity(reference(made), made.file, [black], batch=None)


def test_padding_that_is_not_zero_is_found(exported: GetExport, peaks_files: list[Path], tmp_path: Path) -> None:
    made = exported("peaks-standard")
    proto = onnx.load(made.file)
    for node in proto.graph.node:
        node.output[:] = ["inner" if name == "scores" else name for name in node.output]
        node.input[:] = ["inner" if name == "scores" else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e-6, np.float32), "tiny"))
    proto.graph.node.append(onnx.helper.make_node("Add", ["inner", "tiny"], ["scores"]))
    onnx.save(proto, str(tmp_path / "wrong.onnx"))
    with pytest.raises(ParityError, match=r"rows beyond count \(\d+\) are not zero"):
        check_parity(reference(made), tmp_path / "wrong.onnx", peaks_files, batch=1)


def proposals(*rows: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores from rows x1, y1, x2, y2, score."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4]


FIRST, SECOND = (0.0, 0.0, 100.0, 100.0, 0.9), (200.0, 0.0, 300.0, 100.0, 0.8)


def counter(
    expected: Any,
    found: Any,
    *,
    nms_iou: float = 0.7,
    capacity: int = 100,
    cut_scores: tuple[float, ...] = (),
    **more: Any,
) -> _ParityCounter:
    result = _ParityCounter(ProposalThresholds(nms_iou=nms_iou, capacity=capacity, **more))
    result.add(expected, found, "here", cut_scores=cut_scores)
    return result


def test_order_does_not_matter_and_each_proposal_counts_once() -> None:
    result = counter(proposals(FIRST, SECOND), proposals(SECOND, FIRST))
    assert (result.num_matched, result.num_boundary) == (2, 0)
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, FIRST), proposals(FIRST))


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ((0.0, 0.0, 100.0, 99.1, 0.9), True),  # IoU 0.991
        ((0.0, 0.0, 100.0, 98.9, 0.9002), False),  # IoU 0.989
        ((0.0, 0.0, 100.0, 100.0, 0.9009), True),
        ((0.0, 0.0, 100.0, 100.0, 0.9011), False),
    ],
)
def test_the_tolerances_are_overlap_99_percent_and_score_one_thousandth(changed: tuple, is_same: bool) -> None:
    if is_same:
        assert counter(proposals(FIRST, SECOND), proposals(changed, SECOND)).num_matched == 2
    else:
        with pytest.raises(ParityError, match="here: the graph and PyTorch disagree"):
            counter(proposals(FIRST, SECOND), proposals(changed, SECOND))


def test_decisions_within_rounding_are_counted_separately() -> None:
    # An overlap of 0.7 with another proposal: either side of the threshold is right.
    near = (0.0, 0.0, 100.0, 70.0, 0.7)
    assert counter(proposals(FIRST, near), proposals(FIRST)).num_boundary == 1
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, near), proposals(FIRST), nms_iou=0.6)
    # The last of K places: scores that are equal up to rounding.
    last, other = (400.0, 0.0, 450.0, 50.0, 0.5), (600.0, 0.0, 650.0, 50.0, 0.5004)
    assert counter(proposals(FIRST, last), proposals(FIRST, other), capacity=2).num_boundary == 2
    with pytest.raises(ParityError, match="has no counterpart"):
        counter(proposals(FIRST, last), proposals(FIRST, other), capacity=3)


def test_of_two_boxes_with_one_score_either_may_suppress_the_other() -> None:
    one, other = (400.0, 0.0, 500.0, 100.0, 0.5), (400.0, 0.0, 500.0, 85.0, 0.500005)
    assert counter(proposals(FIRST, one), proposals(FIRST, other)).num_boundary == 2
    for wrong in ((*other[:4], 0.5002), (400.0, 0.0, 500.0, 60.0, 0.5)):
        with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
            counter(proposals(FIRST, one), proposals(FIRST, wrong))


def test_a_score_at_the_threshold_or_at_the_cut_before_nms_is_a_decision_within_rounding() -> None:
    last = (400.0, 0.0, 450.0, 50.0, 0.3005)
    assert counter(proposals(FIRST, last), proposals(FIRST), score_threshold=0.3).num_boundary == 1
    assert counter(proposals(FIRST), proposals(FIRST, last), cut_scores=(0.2, 0.3)).num_boundary == 1
    for wrong in ({}, {"score_threshold": 0.29}, {"cut_scores": (0.29, 0.31)}):
        with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
            counter(proposals(FIRST, last), proposals(FIRST), **wrong)


def test_a_side_at_the_minimum_size_is_a_decision_within_rounding() -> None:
    small = (400.0, 0.0, 450.0, 8.04, 0.7)
    assert counter(proposals(FIRST, small), proposals(FIRST), min_size_px=8.0).num_boundary == 1
    # Boxes in pixels of a frame of twice the network's size along y.
    assert counter(proposals(FIRST, small), proposals(FIRST), min_size_px=4.0, scale_xy=(1.0, 0.5)).num_boundary == 1
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, small), proposals(FIRST), min_size_px=7.9)
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, small), proposals(FIRST), min_size_px=8.0, scale_xy=(1.0, 2.0))


def test_a_box_is_at_the_nms_threshold_by_its_overlap_with_others_only() -> None:
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, SECOND), proposals(FIRST), nms_iou=1.0)


def test_a_box_that_a_boundary_case_suppresses_is_one_too() -> None:
    # 70 overlaps the first by 0.7, the threshold; 60 overlaps 70 by 0.86, and the first by 0.6.
    near, behind = (0.0, 0.0, 100.0, 70.0, 0.7), (0.0, 0.0, 100.0, 60.0, 0.6)
    assert counter(proposals(FIRST, near), proposals(FIRST, behind)).num_boundary == 2
    # A suppressor must be the better one, and must itself be a boundary case.
    with pytest.raises(ParityError, match="Proposal 1 of the graph"):
        counter(proposals(FIRST, near), proposals(FIRST, (*behind[:4], 0.8)))
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, (*near[:3], 75.0, 0.7)), proposals(FIRST, behind))


def test_a_score_that_hangs_on_a_box_at_the_nms_threshold_is_a_decision_within_rounding() -> None:
    soft: dict[str, Any] = {"nms_iou": 0.9, "soft_nms_iou": 0.5}
    # Half of the first, in both; a box between the two (IoU 0.9 with the first) takes score from it in one of them.
    rows = [(0.0, 0.0, 100.0, height, score) for height in (45.0, 35.0) for score in (0.6, 0.5)]
    assert counter(proposals(FIRST, rows[0]), proposals(FIRST, rows[1]), **soft).num_boundary == 2
    with pytest.raises(ParityError, match=r"has no counterpart; the nearest has IoU 1.0000 and score 0.5"):
        counter(proposals(FIRST, rows[0]), proposals(FIRST, rows[1]), nms_iou=0.9)
    with pytest.raises(ParityError, match=r"the nearest has IoU 1.0000 and score 0.5"):
        counter(proposals(FIRST, rows[2]), proposals(FIRST, rows[3]), **soft)
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, rows[0]), proposals(FIRST), **soft)
    # The best box of a frame loses no score, whatever it overlaps.
    with pytest.raises(ParityError, match="Proposal 0 of PyTorch"):
        counter(proposals(FIRST, rows[0]), proposals((*FIRST[:4], 0.8), rows[0]), **soft)


def test_with_soft_nms_a_boundary_case_may_have_taken_the_score_of_what_it_overlaps() -> None:
    # 90 overlaps the first by the threshold; 60 overlaps 90 by 0.67, and has the better score by now.
    near, behind = (0.0, 0.0, 100.0, 90.0, 0.3), (0.0, 0.0, 100.0, 60.0, 0.5)
    soft: dict[str, Any] = {"nms_iou": 0.9, "soft_nms_iou": 0.5}
    assert counter(proposals(FIRST, behind), proposals(FIRST, near), **soft).num_boundary == 2
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, behind), proposals(FIRST, near), nms_iou=0.9)
    with pytest.raises(ParityError, match="Proposal 1 of PyTorch"):
        counter(proposals(FIRST, (*behind[:3], 44.0, 0.5)), proposals(FIRST, near), **soft)


def test_an_agreement_names_every_row_once() -> None:
    expected = proposals(FIRST, SECOND, (0.0, 0.0, 100.0, 70.0, 0.7), (500.0, 0.0, 600.0, 100.0, 0.6))
    found = proposals((*SECOND[:4], 0.8004), FIRST)
    result = pair_proposals(expected, found, EXACT, ProposalThresholds(nms_iou=0.7, capacity=10))
    assert sorted(result.pairs) == [(0, 1), (1, 0)]
    assert (result.boundary, result.unexplained) == (((2,), ()), ((3,), ()))
    assert result.score_differences == pytest.approx([0.0, 4e-4], abs=1e-6)
    assert (result.num_boundary, result.num_unexplained, result.unmatched_share) == (1, 1, 0.5)
    assert (
        pair_proposals(proposals(), proposals(), EXACT, ProposalThresholds(nms_iou=0.7, capacity=10)).unmatched_share
        == 0.0
    )


def test_the_cut_before_nms_is_the_score_of_the_last_anchor_that_enters() -> None:
    logits = [np.array([0.0, 3.0, -1.0, 2.0]), np.array([5.0, 4.0])]
    assert level_cut_scores(logits, 2) == pytest.approx([1 / (1 + np.exp(-2.0))])
    assert level_cut_scores(logits, 4) == ()


def test_the_reference_returns_the_cuts_of_its_levels(
    exported: GetExport, photo_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported("standard")
    # The network has fewer boxes than there are places in the list to rescore.
    monkeypatch.setattr(proposal_stage, "SOFT_MORE", 0)
    picture = cv2.imread(str(photo_files[0]))
    assert picture is not None
    frame = letterbox(picture.shape[:2], made.network_hw).apply(picture, cv2.resize)
    detector = reference(made)
    outputs, cuts = run_reference(detector, np.stack([frame, frame]))
    assert_same([output[:1] for output in outputs.present.values()], run_torch(made, frame[None]))
    # The last box that soft NMS rescores: the last of a hundred when none is.
    rules = detector.proposals
    detector.proposals = dataclasses.replace(rules, num_proposals=rules.num_kept, soft_nms_iou=1.0)
    (_, scores, count, *_), hard_cuts = run_reference(detector, frame[None])
    assert count.tolist() == [100]
    assert cuts == [(*hard_cuts[0], pytest.approx(scores[0, -1]))] * 2
    cuts = hard_cuts
    # Anchors of the levels: 384, 96 and 24; only the first has more than the 100 that enter NMS.
    assert len(cuts[0]) == 1
    assert 0 < cuts[0][0] < 1
    logits = detector.model(detector._to_network(torch.from_numpy(frame[None])))[0][0][0]
    assert int((logits.sigmoid() >= cuts[0][0] - 1e-6).sum()) == 100


def test_too_many_such_decisions_are_a_disagreement() -> None:
    result = counter(proposals(FIRST, (0.0, 0.0, 100.0, 70.0, 0.7)), proposals(FIRST))
    said = r"1 of 2 proposals are in one of graph and PyTorch only.* most of them on here\. Proposal 1 of PyTorch"
    with pytest.raises(ParityError, match=said):
        result.report(1, (1,))


def test_overlaps_are_the_hand_computed_ones() -> None:
    first, second = np.array([[0, 0, 10, 10], [5, 5, 15, 15]], np.float32), np.array([[0, 0, 10, 10]], np.float32)
    np.testing.assert_allclose(pairwise_iou(first, second), [[1.0], [25 / 175]])
    empty = np.zeros((1, 4), np.float32)
    assert pairwise_iou(empty, empty).item() == 0.0
    assert match(proposals(), proposals(FIRST)) == ([], [])


@pytest.mark.parametrize(("num_saturated", "is_named"), [(20, True), (1, False)])
def test_scores_that_saturate_are_named_as_the_cause(num_saturated: int, is_named: bool) -> None:
    boxes = np.array([[40.0 * i, 0, 40.0 * i + 30, 30] for i in range(40)], np.float32)
    scores = np.linspace(0.9, 0.1, 40, dtype=np.float32)
    scores[:num_saturated] = 1
    counter = _ParityCounter(ProposalThresholds(capacity=40, nms_iou=0.7))
    with pytest.raises(ParityError, match="the graph and PyTorch disagree") as caught:
        counter.add((boxes[:30], scores[:30]), (boxes[:30] + np.float32(300), scores[:30]), "1.jpg")
    assert ("20 of 30 proposals share their scores" in str(caught.value)) is is_named

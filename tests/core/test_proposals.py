"""Proposals: an immutable value."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from edgerpn.errors import MissingDependencyError
from edgerpn.proposals import Proposals
from tests.support.classes import CLASS_NAMES, classed


@pytest.fixture
def proposals() -> Proposals:
    boxes = np.array([[0, 0, 10, 20], [5, 5, 6, 7], [1, 2, 3, 4]], np.float32)
    return Proposals(boxes, np.array([0.9, 0.5, 0.25], np.float32))


def test_arrays_are_float32_copies_that_cannot_be_written() -> None:
    boxes = np.array([[0, 0, 1, 1]], np.float64)
    proposals = Proposals(boxes, [1])  # type: ignore[arg-type]
    boxes[:] = 7
    assert proposals.boxes.dtype == proposals.scores.dtype == np.float32
    assert proposals.boxes.tolist() == [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        proposals.boxes[0, 0] = 3
    with pytest.raises(ValueError, match="read-only"):
        proposals.scores[0] = 3


def test_embeddings_and_features_stay_beside_their_boxes(proposals: Proposals) -> None:
    assert proposals.embeddings is proposals.features is None
    vectors = np.eye(3, dtype=np.float64)
    maps = vectors.reshape(3, 3, 1, 1).repeat(2, axis=3)
    described = Proposals(proposals.boxes, proposals.scores, embeddings=vectors, features=maps)  # type: ignore[arg-type]
    vectors[:] = 7
    for part, rows in (
        (described[1], [1]),
        (described[[2, 0]], [2, 0]),
        (described.above(0.4), [0, 1]),
        (described.nms(0.1), [0, 1, 2]),
        (described.nms(0.5, limit=1), [0]),
        (list(described)[2], [2]),
    ):
        assert part.embeddings is not None
        assert part.features is not None
        assert part.features.shape == (len(rows), 3, 1, 2)
        np.testing.assert_array_equal(part.features[..., 0, 1], part.embeddings)
        np.testing.assert_array_equal(part.embeddings, np.eye(3, dtype=np.float32)[rows])
    assert described.embeddings is not None
    with pytest.raises(ValueError, match="read-only"):
        described.embeddings[0, 0] = 3
    with pytest.raises(ValueError, match=r"embeddings: expected a row for each of 3 boxes, got shape \(2, 3\)"):
        Proposals(proposals.boxes, proposals.scores, embeddings=np.eye(3, dtype=np.float32)[:2])


def test_classes_stay_beside_their_boxes(proposals: Proposals) -> None:
    assert (proposals.labels, proposals.class_scores, proposals.names) == (None, None, None)
    sea = classed(proposals, ["crab", "fish", "crab"], [0.75, 0.5, 0.25])
    assert sea.names == ("crab", "fish", "crab")
    for part, rows in ((sea[1], [1]), (sea[[2, 0]], [2, 0]), (sea.above(0.4), [0, 1])):
        assert part.labels is not None
        assert part.class_scores is not None
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == [[1, 0, 1][row] for row in rows]
        assert part.class_scores.tolist() == [[0.75, 0.5, 0.25][row] for row in rows]
        assert part.names == tuple(("crab", "fish", "crab")[row] for row in rows)
    assert sea[:0].names == ()
    assert [row["category_id"] for row in sea.to_coco(1)] == [2, 1, 2]
    assert [row["category_id"] for row in sea.to_coco(1, category_ids=(7, 3, 5))] == [3, 7, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 3]}, "labels: expected 0 to 2, the numbers of 3 class_names, got 0 to 3"),
        ({"labels": [0, -1, 0]}, "labels: expected 0 to 2"),
        ({"labels": [0, 1]}, r"labels: expected a number for each of 3 boxes, got shape \(2,\)"),
        ({"class_scores": [[0.5]] * 3}, r"class_scores: expected a number for each of 3 boxes, got shape \(3, 1\)"),
    ],
)
def test_classes_that_do_not_belong_to_the_boxes_are_refused(
    proposals: Proposals, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(proposals, class_names=CLASS_NAMES, **changes)  # type: ignore[arg-type]


def test_fields_cannot_be_set(proposals: Proposals) -> None:
    with pytest.raises(AttributeError):
        proposals.boxes = np.zeros((0, 4), np.float32)  # type: ignore[misc]


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_equal_and_cannot_be_written_either(
    proposals: Proposals, make_copy: Callable[[Proposals], Proposals]
) -> None:
    for original in (proposals, classed(proposals, ["crab", "fish", "crab"])):
        made = make_copy(original)
        for item in dataclasses.fields(Proposals):
            value = getattr(made, item.name)
            np.testing.assert_array_equal(value, getattr(original, item.name))
            assert not isinstance(value, np.ndarray) or not value.flags.writeable


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(0, 2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([1]), [1]),
        (np.array([True, False, True]), [0, 2]),
        ([], []),
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (np.array(2), [2]),
    ],
)
def test_indexing_gives_proposals(proposals: Proposals, index: object, kept: list[int]) -> None:
    part = proposals[index]  # type: ignore[index]
    assert isinstance(part, Proposals)
    assert len(part) == len(kept)
    np.testing.assert_array_equal(part.boxes, proposals.boxes[kept])
    np.testing.assert_array_equal(part.scores, proposals.scores[kept])


def test_an_index_outside_is_an_index_error(proposals: Proposals) -> None:
    with pytest.raises(IndexError, match="proposal 3 of 3"):
        proposals[3]
    with pytest.raises(IndexError):
        proposals[np.array([True])]
    with pytest.raises(TypeError):
        proposals[1.5]  # type: ignore[index]


def test_iterating_gives_one_proposal_at_a_time(proposals: Proposals) -> None:
    assert [one.scores.tolist() for one in proposals] == [[np.float32(s)] for s in (0.9, 0.5, 0.25)]


def test_above_keeps_the_score_itself(proposals: Proposals) -> None:
    assert len(proposals.above(0.5)) == 2
    assert len(proposals.above(0.6)) == 1
    assert len(proposals.above(1.0)) == 0


def test_nms_leaves_out_near_copies_of_better_boxes() -> None:
    # IoU with the first: 1, 0.8, 0.6, 0.5, 0, 0.4; of the third with the fourth 5/6, of the fourth with the last 0.8.
    ends = [(0, 10), (0, 8), (0, 6), (0, 5), (20, 30), (1, 5)]
    boxes = np.array([[left, 0, right, 10] for left, right in ends], np.float32)
    proposals = Proposals(boxes, np.linspace(0.9, 0.4, 6).astype(np.float32))

    def kept(iou: float, limit: int | None = None) -> list[int]:
        found = proposals.nms(iou, limit=limit)
        return [int(np.flatnonzero(proposals.scores == score)[0]) for score in found.scores]

    assert kept(0.6) == [0, 2, 4]
    assert kept(0.55) == [0, 3, 4]
    assert kept(0.85) == [0, 1, 2, 3, 4, 5]
    assert kept(1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(0.6, limit=2) == [0, 2]
    assert kept(1.0, limit=2) == [0, 1]
    assert kept(0.6, limit=0) == []
    assert len(proposals[:0].nms(0.5)) == 0


def test_boxes_of_different_classes_are_no_copies_unless_asked(proposals: Proposals) -> None:
    described = classed(proposals[[0, 0, 1, 0, 2, 0]], ["fish", "crab", "fish", "fish", "fish", "crab"])
    assert described.nms_rows(0.6) == [0, 1, 2, 4]
    assert described.nms(0.6, limit=2).names == ("fish", "crab")
    assert described.nms_rows(0.6, by_class=False) == [0, 2, 4]
    assert len(described.nms(0.6, by_class=False)) == 3


def test_nms_of_the_same_box_keeps_the_best(proposals: Proposals) -> None:
    copies = proposals[[0, 0, 1, 0, 2]]
    assert copies.nms(0.99).scores.tolist() == [0.8999999761581421, 0.5, 0.25]
    assert len(copies.nms(1.0)) == 5


def test_coco_results_are_plain_numbers_in_xywh(proposals: Proposals) -> None:
    results = proposals.to_coco(42)
    assert results[1] == {"image_id": 42, "category_id": 1, "bbox": [5.0, 5.0, 1.0, 2.0], "score": 0.5}
    assert json.loads(json.dumps(results)) == results


def test_no_proposals_are_proposals_too() -> None:
    empty = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert len(empty) == 0
    assert empty.to_coco(1) == []
    assert len(empty[:5]) == len(empty.above(0.1)) == 0
    assert repr(empty) == "Proposals(0 boxes)"


def test_the_text_form_is_short(proposals: Proposals) -> None:
    assert repr(proposals) == "Proposals(3 boxes, scores 0.900 to 0.250)"


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        (np.zeros((2, 5)), np.zeros(2), r"boxes: expected shape \(M, 4\), got \(2, 5\)"),
        (np.zeros(4), np.zeros(1), r"boxes: expected shape \(M, 4\), got \(4,\)"),
        (np.zeros((2, 4)), np.zeros(3), r"scores: expected shape \(2,\) as there are 2 boxes, got \(3,\)"),
        (np.zeros((2, 4)), np.zeros((2, 1)), r"scores: expected shape"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(boxes: object, scores: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Proposals(boxes, scores)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("supervision") is not None, reason="supervision is installed")
def test_a_missing_supervision_names_the_extra(proposals: Proposals) -> None:
    with pytest.raises(MissingDependencyError, match=r"edgerpn\[supervision\]"):
        proposals.to_supervision()


@pytest.mark.skipif(importlib.util.find_spec("supervision") is None, reason="supervision is not installed")
def test_detections_hold_the_same_boxes(proposals: Proposals) -> None:
    detections = proposals.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, proposals.boxes)
    np.testing.assert_array_equal(detections.confidence, proposals.scores)
    assert detections.class_id.tolist() == [0, 0, 0]
    assert detections.data == {}
    sea = classed(proposals, ["crab", "fish", "crab"]).to_supervision()
    assert sea.class_id.tolist() == [1, 0, 1]
    assert sea.data["class_name"].tolist() == ["crab", "fish", "crab"]

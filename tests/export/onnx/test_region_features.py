"""Graphs with features of each proposal: their outputs, manifest, parity and golden frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgerpn import golden, manifest
from edgerpn.errors import ParityError, SelfTestError
from edgerpn.export.limits.check import find_violations
from edgerpn.export.onnx.agreement import ProposalThresholds
from edgerpn.export.onnx.parity import _ParityCounter
from edgerpn.export.photographs import read_photograph
from edgerpn.export.precision.blocks import find_network
from edgerpn.export.precision.half import to_half
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.targets import TARGETS
from edgerpn.train.checkpoint import load_model
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.boxes import clip_boxes, decode_boxes
from edgerpn.train.network.detector import Detector
from tests.support.regions import pooled

GetExport = Callable[[str], Any]
DESCRIBED = ("described-standard", "described-portable")


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_graph_with_features_has_them_in_the_manifest_and_agrees_with_the_network(
    name: str, exported: GetExport
) -> None:
    made = exported(name)
    spec = manifest.read(made.file)
    assert spec.schema == manifest.SCHEMA_MORE_OUTPUTS
    assert list(spec.outputs_by_role) == ["boxes", "scores", "count", "embeddings", "features"]
    assert spec.outputs_by_role["features"].shape == ("N", 50, 16, 3, 2)
    assert spec.outputs_by_role["embeddings"].shape == ("N", 50, 16)
    assert spec.parity is not None
    assert spec.parity.min_cosine is not None
    assert "cosine of features >=" in spec.parity.summary()
    plain = manifest.read(exported("standard").file)
    assert plain.schema == manifest.SCHEMA
    assert "min_cosine" not in plain.to_json()


@pytest.mark.parametrize("name", DESCRIBED)
def test_embeddings_are_the_features_of_the_cells_of_the_network(
    name: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    model, checkpoint = load_model(made.checkpoint)
    detector = Detector(model, checkpoint.settings.proposals, network_hw=made.network_hw).eval()
    backend = OnnxRuntimeBackend(made.file, threads=1)
    for photo in photo_files[:2]:
        frame = read_photograph(photo, detector.frame_shape, "ignore")
        found = backend.infer(frame[None])
        assert found.embeddings is not None
        count = int(found.count[0])
        assert not found.embeddings[0, count:].any()
        np.testing.assert_allclose(np.linalg.norm(found.embeddings[0, :count], axis=1), 1, atol=1e-5)
        with torch.inference_mode():
            maps = model.maps(detector._to_network(torch.from_numpy(frame[None])))
            deltas = torch.cat([deltas[0] for _, deltas in model.outputs(maps)])
        cells = torch.cat([level.flatten(2) for level in maps], dim=2)[0].T
        anchors = torch.cat(grid_anchors(model.config.anchors, made.network_hw))
        boxes = clip_boxes(decode_boxes(deltas, anchors), made.network_hw).numpy()
        cosines = found.embeddings[0, :count] @ torch.nn.functional.normalize(cells, dim=1).numpy().T
        assert cosines.max(axis=1).min() > 0.9999
        # With one anchor a cell, the most similar cell proposed the box; in flat parts of a picture several look alike.
        is_box = np.abs(boxes[cosines.argmax(axis=1)] - found.boxes[0, :count]).max(axis=1) < 0.01
        assert is_box.mean() > 0.9


@pytest.mark.parametrize(
    ("name", "operator"), [("described-standard", "RoiAlign"), ("described-portable", "GridSample")]
)
def test_features_of_both_forms_are_those_of_a_plain_roi_align(
    name: str, operator: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    assert [node.op_type for node in onnx.load(made.file).graph.node].count(operator) == 1
    model, checkpoint = load_model(made.checkpoint)
    detector = Detector(model, checkpoint.settings.proposals, network_hw=made.network_hw).eval()
    frame = read_photograph(photo_files[2], detector.frame_shape, "ignore")
    found = OnnxRuntimeBackend(made.file, threads=1).infer(frame[None])
    assert found.features is not None
    with torch.inference_mode():
        maps = [level[0].numpy() for level in model.maps(detector._to_network(torch.from_numpy(frame[None])))]
    count = int(found.count[0])
    assert not found.features[0, count:].any()
    for row in range(0, count, 5):
        expected = pooled(maps, found.boxes[0, row], model.config.anchors.strides_px, (3, 2))
        np.testing.assert_allclose(found.features[0, row], expected, atol=1e-4)


def test_a_graph_of_plain_operations_with_features_suits_every_target(exported: GetExport) -> None:
    made = exported("described-portable")
    for target in TARGETS:
        assert find_violations(made.file, target) == ()


def test_features_stay_float32_in_half_precision(exported: GetExport) -> None:
    proto = onnx.load(exported("described-standard").file)
    half = to_half(proto, find_network(proto).nodes())
    assert [output.name for output in half.graph.output] == ["boxes", "scores", "count", "embeddings", "features"]
    assert {output.type.tensor_type.elem_type for output in half.graph.output[3:]} == {onnx.TensorProto.FLOAT}


def test_parity_refuses_features_that_differ() -> None:
    counter = _ParityCounter(ProposalThresholds(capacity=10, nms_iou=0.7))
    counter.add_cosines(np.array([1.0] * 98 + [0.5] * 2))
    assert counter.report(1, (1,)).min_cosine == 0.5
    counter.add_cosines(np.array([0.99]))
    with pytest.raises(ParityError, match=r"features of 3\.0% of 101 proposals differ .* expected at most 2%"):
        counter.report(1, (1,))


def test_golden_frames_hold_features_and_refuse_others(exported: GetExport) -> None:
    made = exported("described-standard")
    spec = manifest.read(made.file)
    expected = golden.read(made.file, spec)
    assert expected.embeddings is not None
    assert expected.embeddings.shape == (2, 50, 16)
    golden.compare(expected, expected.outputs, spec, where="here")
    for role in ("embeddings", "features"):
        rolled = expected.outputs._replace(**{role: np.roll(getattr(expected, role), 1, axis=1)})
        with pytest.raises(SelfTestError, match=r"here: golden frame 0: the features of \d+% of the proposals differ"):
            golden.compare(expected, rolled, spec, where="here")

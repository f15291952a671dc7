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
from edgerpn.export.onnx.parity import _ParityCounter, network_frame
from edgerpn.export.precision.blocks import find_network
from edgerpn.export.precision.half import to_half
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.targets import TARGETS
from edgerpn.train.checkpoint import load_model
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.boxes import clip_boxes, decode_boxes
from edgerpn.train.network.detector import Detector

GetExport = Callable[[str], Any]
DESCRIBED = ("described-standard", "described-portable")


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_graph_with_embeddings_has_them_in_the_manifest_and_agrees_with_the_network(
    name: str, exported: GetExport
) -> None:
    made = exported(name)
    spec = manifest.read(made.file)
    assert spec.schema == manifest.SCHEMA_MORE_OUTPUTS
    assert list(spec.outputs_by_role) == ["boxes", "scores", "count", "embeddings"]
    assert spec.outputs_by_role["embeddings"].shape == ("N", 50, 16)
    assert spec.parity is not None
    assert spec.parity.min_cosine is not None
    assert "cosine of embeddings >=" in spec.parity.summary()
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
        frame = network_frame(detector, photo)
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


def test_a_graph_of_plain_operations_with_features_suits_every_target(exported: GetExport) -> None:
    made = exported("described-portable")
    for target in TARGETS:
        assert find_violations(made.file, target) == ()


def test_half_precision_keeps_the_direction_of_embeddings(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("described-standard")
    proto = onnx.load(made.file)
    half = to_half(proto, find_network(proto).nodes())
    assert [output.name for output in half.graph.output] == ["boxes", "scores", "count", "embeddings"]
    assert half.graph.output[3].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_parity_refuses_embeddings_that_differ() -> None:
    counter = _ParityCounter(ProposalThresholds(capacity=10, nms_iou=0.7))
    counter.add_cosines(np.array([1.0] * 98 + [0.5] * 2))
    assert counter.report(1, (1,)).min_cosine == 0.5
    counter.add_cosines(np.array([0.99]))
    with pytest.raises(ParityError, match=r"embeddings of 3\.0% of 101 proposals differ .* expected at most 2%"):
        counter.report(1, (1,))


def test_golden_frames_hold_embeddings_and_refuse_others(exported: GetExport) -> None:
    made = exported("described-standard")
    spec = manifest.read(made.file)
    expected = golden.read(made.file, spec)
    assert expected.embeddings is not None
    assert expected.embeddings.shape == (2, 50, 16)
    golden.compare(expected, expected.outputs, spec, where="here")
    rolled = expected.outputs._replace(embeddings=np.roll(expected.embeddings, 1, axis=1))
    with pytest.raises(SelfTestError, match=r"here: golden frame 0: the embeddings of \d+% of the proposals differ"):
        golden.compare(expected, rolled, spec, where="here")

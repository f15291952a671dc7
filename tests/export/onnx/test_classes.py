"""Graphs with classes: outputs, manifest, parity, golden frames; and graphs without, which stay as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgerpn import golden, manifest
from edgerpn.errors import ParityError, SelfTestError
from edgerpn.export.compare.compare import compare_models
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.limits.check import find_violations
from edgerpn.export.onnx.agreement import ProposalThresholds
from edgerpn.export.onnx.graph import export_detector, export_module, proposal_config
from edgerpn.export.onnx.parity import _ParityCounter
from edgerpn.export.photographs import read_photograph
from edgerpn.export.precision.blocks import find_network
from edgerpn.export.precision.half import to_half
from edgerpn.runtime import load
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.targets import TARGETS
from edgerpn.train.checkpoint import load_model
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from tests.support.classes import CLASS_NAMES

GetExport = Callable[[str], Any]
FORMS = ("classed-standard", "classed-portable")
FURTHER = {"classed-standard": "embeddings", "classed-portable": "features"}


@pytest.mark.parametrize("name", FORMS)
def test_a_graph_with_classes_has_them_in_the_manifest_and_agrees_with_the_network(
    name: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    spec = manifest.read(made.file)
    assert spec.schema == manifest.SCHEMA_MORE_OUTPUTS
    assert list(spec.outputs_by_role) == ["boxes", "scores", "count", "labels", "class_scores", FURTHER[name]]
    assert (spec.class_names, spec.proposals.class_nms_iou) == (CLASS_NAMES, 0.5)
    assert spec.parity is not None
    assert spec.parity.num_other_class is not None
    assert "with another class" in spec.parity.summary()
    with load(made.file, threads=1) as model:
        frames = [read_photograph(photo, detector_of(made).frame_shape, "ignore") for photo in photo_files[:3]]
        for frame in frames:
            found = model(frame)
            assert found.labels is not None
            assert found.class_scores is not None
            assert found.names is not None
            assert set(found.names) <= set(CLASS_NAMES)
            # The score is the geometric mean with the objectness.
            assert (found.scores**2 <= found.class_scores + 1e-6).all()
            assert (np.diff(found.scores) <= 0).all()
            for label in range(3):
                assert len(same := found[found.labels == label]) == len(same.nms(0.5001))


def detector_of(made: Any) -> Detector:
    """The network of an export, with all that the graph returns."""
    model, checkpoint = load_model(made.checkpoint)
    return Detector(
        model,
        proposal_config(checkpoint, made.config),
        network_hw=made.network_hw,
        source_hw=made.config.source_hw,
        embeddings=made.config.embeddings,
        roi_hw=made.config.roi_features,
    ).eval()


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_a_graph_are_those_of_the_network_and_zero_beyond_the_count(
    name: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    detector = detector_of(made)
    frame = read_photograph(photo_files[0], detector.frame_shape, "ignore")[None]
    found = OnnxRuntimeBackend(made.file, threads=1).infer(frame)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(frame))
    count = int(found.count[0])
    assert 0 < count < 50
    assert count == int(expected.count[0])
    for role, array in found.present.items():
        np.testing.assert_allclose(array, getattr(expected, role).numpy(), atol=2e-3, err_msg=role)
        assert role == "count" or not array[0, count:].any()


def test_the_graph_of_a_checkpoint_without_classes_has_the_bytes_of_one_whose_classes_are_left_out(
    checkpoints: dict[str, Path],
) -> None:
    classed, checkpoint = load_model(checkpoints["classed"])
    plain = Rpn(dataclasses.replace(checkpoint.settings.model, classes=()))
    weights = classed.state_dict()
    assert {name for name in weights if name not in plain.state_dict()} == {
        f"region_head.{layer}.{kind}"
        for layer in ("first", "second", "logits", "deltas")
        for kind in ("weight", "bias")
    }
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    config = ExportConfig(classes=False, num_proposals=20, pre_nms=40)
    hw = checkpoint.settings.data.input_hw
    protos = [
        export_detector(export_module(model.eval(), proposal_config(checkpoint, form), form, hw), form)
        for model, form in ((classed, config), (plain, dataclasses.replace(config, classes=True)))
    ]
    assert [output.name for output in protos[1].graph.output] == ["boxes", "scores", "count"]
    assert protos[0].SerializeToString() == protos[1].SerializeToString()


def test_the_threshold_of_nms_within_classes_can_be_set(checkpoints: dict[str, Path]) -> None:
    _, checkpoint = load_model(checkpoints["classed"])
    assert proposal_config(checkpoint, ExportConfig()).class_nms_iou == 0.5
    assert proposal_config(checkpoint, ExportConfig(class_nms_iou=0.7)).class_nms_iou == 0.7
    with pytest.raises(ValueError, match="class_nms_iou: expected more than 0 and at most 1"):
        ExportConfig(class_nms_iou=0.0)


def test_classes_can_be_left_out_of_an_export(exported: GetExport) -> None:
    spec = manifest.read(exported("unclassed").file)
    assert (spec.schema, spec.class_names, spec.proposals.class_nms_iou) == (manifest.SCHEMA, (), None)
    assert "class" not in spec.to_json()


def test_a_graph_with_classes_of_plain_operations_suits_every_target(exported: GetExport) -> None:
    made = exported("classed-portable")
    operators = {node.op_type for node in onnx.load(made.file).graph.node}
    assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero"}
    for target in TARGETS:
        assert find_violations(made.file, target) == ()


def test_the_second_stage_stays_float32_in_half_precision(exported: GetExport) -> None:
    proto = onnx.load(exported("classed-standard").file)
    half = to_half(proto, find_network(proto).nodes())
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert types["model.region_head.first.bias"] == onnx.TensorProto.FLOAT
    kinds = [output.type.tensor_type.elem_type for output in half.graph.output]
    assert kinds == [onnx.TensorProto.INT32 if n in (2, 3) else onnx.TensorProto.FLOAT for n in range(6)]


def test_parity_refuses_other_classes() -> None:
    counter = _ParityCounter(ProposalThresholds(capacity=10, nms_iou=0.5), has_classes=True)
    counter.add_classes(np.arange(100) >= 2)
    counter.add_cosines(np.zeros(0))
    assert counter.report(1, (1,)).num_other_class == 2
    counter.add_classes(np.zeros(1, np.bool_))
    with pytest.raises(ParityError, match=r"class of 3\.0% of 101 proposals, or its score, differs .* at most 2%"):
        counter.report(1, (1,))


def test_parity_allows_a_few_proposals_of_one_side_with_classes_only() -> None:
    boxes = np.array([[20 * n, 0, 20 * n + 10, 10] for n in range(100)], np.float32)
    scores = np.linspace(0.9, 0.5, 100, dtype=np.float32)
    thresholds = ProposalThresholds(capacity=200, nms_iou=0.5)
    sides = (boxes, scores), (np.delete(boxes, 50, 0), np.delete(scores, 50))
    with pytest.raises(ParityError, match="has no counterpart"):
        _ParityCounter(thresholds).add(*sides, "here")
    counter = _ParityCounter(thresholds, has_classes=True)
    counter.add(*sides, "here")
    counter.add_cosines(np.zeros(0))
    assert counter.report(1, (1,)).num_unexplained == 1
    counter.add((boxes, scores), (boxes[:90], scores[:90]), "there")
    with pytest.raises(ParityError, match=r"11 of 200 proposals are in one .* most of them on there"):
        counter.report(2, (1,))


def test_golden_frames_hold_classes_and_refuse_others(exported: GetExport) -> None:
    made = exported("classed-standard")
    spec = manifest.read(made.file)
    expected = golden.read(made.file, spec)
    assert expected.labels is not None
    assert expected.class_scores is not None
    golden.compare(expected, expected.outputs, spec, where="here")
    for changes in ({"labels": (expected.labels + 1) % 3}, {"class_scores": expected.class_scores + 0.01}):
        with pytest.raises(SelfTestError, match=r"here: golden frame 0: the class of 100% of the proposals differs"):
            golden.compare(expected, expected.outputs._replace(**changes), spec, where="here")


def test_a_comparison_of_forms_counts_other_classes(
    exported: GetExport, checkpoints: dict[str, Path], photo_files: list[Path]
) -> None:
    made = exported("classed-standard")
    comparison = compare_models(made.file, checkpoints["classed"], photo_files[:2])
    assert comparison.culprit is None
    assert comparison.differences == ()
    assert comparison.to_dict()["num_other_class"] == 0
    assert comparison.to_parity_spec("checkpoint").num_other_class == 0
    flipped = tuple(dataclasses.replace(image, same_class=~image.same_class) for image in comparison.images)
    culprit = dataclasses.replace(comparison, images=flipped).culprit
    assert culprit is not None
    assert culprit.startswith("the class of 100.0% of the proposals of both differs")
    unlike = compare_models(made.file, exported("unclassed").file, photo_files[:1])
    assert f"classes: {', '.join(CLASS_NAMES)} and none" in unlike.differences

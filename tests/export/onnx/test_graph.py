"""The parts of an export: settings, sizes, and the module with its folded weights."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgerpn.errors import ExportError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.graph import export_module, network_hw, proposal_config
from edgerpn.targets import TOPK_LIMIT
from edgerpn.train.checkpoint import load_checkpoint, load_model
from edgerpn.train.network.detector import Detector


@pytest.mark.parametrize(
    ("target", "nms", "resolved", "batch"),
    [
        ("onnxruntime", None, "standard", None),
        ("tensorrt", None, "portable", 1),
        ("tensorrt-rtx", None, "portable", 1),
        ("onnxruntime", "portable", "portable", None),
        ("tensorrt", "standard", "standard", 1),
    ],
)
def test_the_target_chooses_nms_and_batch(target: Any, nms: Any, resolved: str, batch: int | None) -> None:
    config = ExportConfig(target=target, nms=nms)
    assert config.resolved_nms == resolved
    assert config.fixed_batch == batch
    assert ExportConfig(target=target, batch="dynamic").fixed_batch is None
    assert ExportConfig(target=target, batch=3).fixed_batch == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 17}, "opset: expected at least 18, got 17"),
        (
            {"opset": 21, "target": "tensorrt"},
            r"opset: expected at most 20, which is what tensorrt-10\.3, the oldest tensorrt, reads, got 21",
        ),
        ({"batch": 0}, "batch: expected at least 1"),
        ({"nms_iou": 1.5}, "^nms_iou: expected more than 0 and at most 1, got 1.5"),
        ({"soft_nms_iou": 0.0}, "soft_nms_iou: expected more than 0 and at most 1, got 0.0"),
        ({"score_threshold": -0.1}, "score_threshold: expected 0 to below 1, got -0.1"),
        ({"num_proposals": 0}, "num_proposals: expected at least 1"),
        ({"pre_nms": -1}, "pre_nms: expected at least 1"),
        ({"network_hw": (16, 640)}, "network_hw: expected 32 to 8192 pixels a side"),
        ({"source_hw": (1080, 8)}, "source_hw: expected 32 to 8192 pixels a side"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(**changes)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("name", "flag"), [("pre_nms", "--set pre_nms="), ("num_proposals", "--proposals ")])
def test_counts_beyond_tensorrts_topk_are_refused(
    target: Any, name: str, flag: str, checkpoints: dict[str, Path]
) -> None:
    checkpoint = load_checkpoint(checkpoints["pyramid"])
    counts: dict[str, Any] = {name: TOPK_LIMIT + 1}
    with pytest.raises(ExportError, match=rf"{name}: {target} takes at most the best 3840.*use {flag}3840 or less"):
        proposal_config(checkpoint, ExportConfig(target=target, **counts))
    counts[name] = TOPK_LIMIT
    assert getattr(proposal_config(checkpoint, ExportConfig(target=target, **counts)), name) == TOPK_LIMIT
    counts[name] = 10_000
    assert getattr(proposal_config(checkpoint, ExportConfig(**counts)), name) == 10_000


def test_a_list_of_candidates_beyond_tensorrts_topk_is_refused(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["pyramid"])
    with pytest.raises(ExportError, match=r"nms_candidates: .* got 3841; use --set nms_candidates=3840 or less"):
        proposal_config(checkpoint, ExportConfig(target="tensorrt", nms_candidates=TOPK_LIMIT + 1))
    for candidates in ("all", TOPK_LIMIT):
        proposal_config(checkpoint, ExportConfig(target="tensorrt", nms_candidates=candidates))


def test_the_proposal_stage_has_the_exports_counts_and_the_checkpoints_rules(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["single-level"])
    given = ExportConfig(num_proposals=7, pre_nms=9, nms_iou=0.6, soft_nms_iou=0.4, score_threshold=0.25)
    config = proposal_config(checkpoint, given)
    assert (config.num_proposals, config.pre_nms, config.nms_iou, config.score_threshold) == (7, 9, 0.6, 0.25)
    assert config.soft_nms_iou == 0.4
    assert (config.min_size_px, config.nms_iterations, config.nms_scope) == (8.0, 16, "level")


def test_thresholds_that_the_export_does_not_set_are_those_of_the_evaluation_in_training(
    checkpoints: dict[str, Path],
) -> None:
    checkpoint = load_checkpoint(checkpoints["single-level"])
    rules: dict[str, Any] = {"nms_iou": 0.55, "soft_nms_iou": 0.35, "score_threshold": 0.125}
    trained = dataclasses.replace(checkpoint.settings.proposals, **rules)
    settings = dataclasses.replace(checkpoint.settings, proposals=trained)
    config = proposal_config(dataclasses.replace(checkpoint, settings=settings), ExportConfig())
    assert (config.nms_iou, config.soft_nms_iou, config.score_threshold) == (0.55, 0.35, 0.125)


@pytest.mark.parametrize(
    ("size", "suggestion"), [((60, 96), "64x96"), ((384, 650), "384x640"), ((385, 655), "384x640"), ((33, 47), "32x32")]
)
def test_a_size_that_the_strides_do_not_divide_is_refused_with_a_suggestion(
    size: tuple[int, int], suggestion: str, checkpoints: dict[str, Path]
) -> None:
    checkpoint = load_checkpoint(checkpoints["pyramid"])
    with pytest.raises(ExportError, match=rf"network size {size[0]}x{size[1]}: .*multiples of 32.*use {suggestion}"):
        network_hw(checkpoint, ExportConfig(network_hw=size))


def test_the_network_size_is_the_trained_one_unless_another_is_asked(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["pyramid"])
    assert network_hw(checkpoint, ExportConfig()) == (128, 192)
    assert network_hw(checkpoint, ExportConfig(network_hw=(128, 32))) == (128, 32)


@pytest.mark.parametrize("name", ["pyramid", "single-level"])
@pytest.mark.parametrize("source_hw", [None, (100, 150)])
@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_the_module_gives_the_networks_proposals(
    name: str, source_hw: tuple[int, int] | None, nms: Any, checkpoints: dict[str, Path]
) -> None:
    model, checkpoint = load_model(checkpoints[name])
    config = ExportConfig(num_proposals=20, pre_nms=50, source_hw=source_hw, nms=nms)
    proposals = proposal_config(checkpoint, config)
    before = copy.deepcopy(model.state_dict())
    module = export_module(model, proposals, config, (64, 96))
    reference = Detector(model, proposals, network_hw=(64, 96), source_hw=source_hw).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, *(source_hw or (64, 96)), 3), dtype=np.uint8)
    with torch.inference_mode():
        found, expected = module(torch.from_numpy(frames)), reference(torch.from_numpy(frames))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in module.modules())
    assert torch.equal(found.count, expected.count)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.05)
    # The checkpoint's network stays fit for training.
    assert not model.std_is_folded
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

"""`edgerpn import torchvision`, on state dicts written after torchvision's naming scheme; it need not be installed."""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgerpn.errors import CheckpointError, ConfigError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.manifest import Manifest
from edgerpn.train import import_cli
from edgerpn.train.checkpoint import load_model
from edgerpn.train.import_torchvision import ARCHITECTURES, import_settings, import_torchvision
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn

HW = (128, 192)
State = dict[str, Tensor]


@functools.cache
def network(name: str) -> Rpn:
    """Our network for one of torchvision's, with weights and statistics as if it had been trained."""
    torch.manual_seed(0)
    model = Rpn(import_settings(ARCHITECTURES[name], HW).model)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
                for part, low, high in (
                    (norm.weight, 0.8, 1.2),
                    (norm.bias, -0.2, 0.2),
                    (norm.running_mean, -0.2, 0.2),
                ):
                    part.uniform_(low, high)
                norm.running_var.uniform_(0.5, 2.0)
        for conv, spread in ((model.head.objectness, 0.05), (model.head.deltas, 0.005)):
            conv.weight.normal_(0, spread)
            assert conv.bias is not None
            conv.bias.normal_(0, 0.1)
    return model


def state_of(name: str, *, is_old: bool = False, is_frozen: bool = False) -> State:
    """Returns the tensors of `network(name)` under torchvision's names, and one tensor of a layer after the RPN."""
    dot = "." if is_old else ".0."
    starts = {
        "backbone.features.": "backbone.body.", "backbone.": "backbone.body.",
        "neck.lateral.": "backbone.fpn.inner_blocks.", "neck.output.": "backbone.fpn.layer_blocks.",
        "head.objectness.": "rpn.head.cls_logits.",
        "head.deltas.": "rpn.head.bbox_pred.", "head.window.conv": "rpn.head.conv" + ("" if is_old else ".0.0"),
    }  # fmt: skip
    state = State()
    for key, value in network(name).state_dict().items():
        start = next(start for start in starts if key.startswith(start))
        rest = key.removeprefix(start)
        if not (is_frozen and key.endswith("num_batches_tracked")):
            state[starts[start] + (rest.replace(".", dot) if start.startswith("neck") else rest)] = value.clone()
    return state | {"roi_heads.box_head.fc6.weight": torch.rand(4, 8)}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any, name: str = "weights.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_generations_of_names_give_the_same_network(is_old: bool, prefix: str, save: Callable[..., Path]) -> None:
    state = {prefix + key: value for key, value in state_of("resnet18_fpn", is_old=is_old).items()}
    imported = import_torchvision(save(state), input_hw=HW)
    weights = imported.checkpoint.weights
    source = state_of("resnet18_fpn")
    assert imported.architecture == "resnet18_fpn"
    assert torch.equal(weights["neck.lateral.2.weight"], source["backbone.fpn.inner_blocks.2.0.weight"])
    assert torch.equal(weights["neck.output.3.bias"], source["backbone.fpn.layer_blocks.3.0.bias"])
    assert torch.equal(weights["head.window.conv.weight"], source["rpn.head.conv.0.0.weight"])
    assert torch.equal(weights["backbone.layer4.1.bn2.running_var"], source["backbone.body.layer4.1.bn2.running_var"])
    # Our networks see BGR.
    assert torch.equal(weights["backbone.conv1.weight"][:, 2], source["backbone.body.conv1.weight"][:, 0])
    # With one size in a cell the order of the anchors is the same.
    assert torch.equal(weights["head.objectness.weight"], source["rpn.head.cls_logits.weight"])
    assert torch.equal(weights["head.deltas.bias"], source["rpn.head.bbox_pred.bias"])


def test_settings_are_torchvisions_defaults(save: Callable[..., Path]) -> None:
    settings = import_torchvision(save(state_of("resnet18_fpn"))).checkpoint.settings
    assert settings.data.input_hw == (800, 1344)
    anchors = settings.model.anchors
    assert anchors.level_hw((800, 1344))[-2:] == ((25, 42), (13, 21))
    assert (anchors.center_offset, anchors.rounding, anchors.spacing) == (0.0, "corners", "grid")
    assert (settings.proposals.num_proposals, settings.proposals.pre_nms) == (1000, 1000)
    assert (settings.proposals.nms_iou, settings.proposals.min_size_px) == (0.7, 1e-3)
    assert settings.proposals.soft_nms_iou == 1
    assert (settings.proposals.score_threshold, settings.proposals.nms_scope) == (0.0, "level")
    assert settings.model.mean_bgr == pytest.approx([255 * v for v in (0.406, 0.456, 0.485)])
    assert settings.model.std_bgr == pytest.approx([255 * v for v in (0.225, 0.224, 0.229)])
    assert settings.data.views_hw == ((800, 1344),)
    augment = settings.data.augment
    assert (augment.mosaic_probability, augment.scale_range, augment.flip_probability) == (0.0, (1.0, 1.0), 0.5)


def test_anchors_of_a_cell_are_reordered_from_ratio_by_ratio_to_size_by_size(save: Callable[..., Path]) -> None:
    state = state_of("mobilenet_v3_large_fpn")
    weights = import_torchvision(save(state), input_hw=HW).checkpoint.weights
    for ratio in range(3):
        for size in range(5):
            theirs, ours = ratio * 5 + size, size * 3 + ratio
            assert torch.equal(weights["head.objectness.weight"][ours], state["rpn.head.cls_logits.weight"][theirs])
            assert weights["head.objectness.bias"][ours] == state["rpn.head.cls_logits.bias"][theirs]
            rows = slice(4 * ours, 4 * ours + 4), slice(4 * theirs, 4 * theirs + 4)
            assert torch.equal(weights["head.deltas.weight"][rows[0]], state["rpn.head.bbox_pred.weight"][rows[1]])
            assert torch.equal(weights["head.deltas.bias"][rows[0]], state["rpn.head.bbox_pred.bias"][rows[1]])


@pytest.mark.parametrize("eps", [0.0, pytest.param(1e-5, marks=pytest.mark.slow), 0.3])
def test_a_batch_norm_with_another_epsilon_gives_the_same_numbers(eps: float, save: Callable[..., Path]) -> None:
    state = state_of("resnet18_fpn")
    state["backbone.body.bn1.running_var"][:3] = torch.tensor([1e-6, 1e-4, 1e-2])
    imported = import_torchvision(save(state), input_hw=HW, norm_eps=eps)
    model = Rpn(imported.checkpoint.settings.model)
    model.load_state_dict(imported.checkpoint.weights)
    ours: Any = model.eval().backbone
    x = torch.randn(2, 64, 5, 7)
    weight, bias, mean, variance = (
        state[f"backbone.body.bn1.{part}"].double().view(1, 64, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    expected = (x - mean) * weight / (variance + eps).sqrt() + bias
    with torch.inference_mode():
        torch.testing.assert_close(ours.bn1(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("is_old", "is_frozen", "eps"),
    [
        (False, False, 1e-5),
        (True, True, 1e-5),
        pytest.param(False, True, 1e-5, marks=pytest.mark.slow),
        pytest.param(True, False, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_the_epsilon_of_networks_other_than_the_published_resnet50_is_pytorchs(
    is_old: bool, is_frozen: bool, eps: float, save: Callable[..., Path]
) -> None:
    state = state_of("resnet18_fpn", is_old=is_old, is_frozen=is_frozen)
    assert import_torchvision(save(state), input_hw=HW).norm_eps == eps
    assert import_torchvision(save(state), input_hw=HW, norm_eps=0.0).norm_eps == 0.0


@pytest.mark.parametrize(
    ("is_old", "is_frozen", "eps"),
    [
        (True, True, 0.0),
        pytest.param(False, True, 1e-5, marks=pytest.mark.slow),
        pytest.param(True, False, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_the_published_resnet50_is_taken_to_have_no_epsilon(
    is_old: bool, is_frozen: bool, eps: float, save: Callable[..., Path]
) -> None:
    imported = import_torchvision(save(state_of("resnet50_fpn", is_old=is_old, is_frozen=is_frozen)), input_hw=HW)
    assert (imported.architecture, imported.norm_eps) == ("resnet50_fpn", eps)


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
def test_weights_come_from_safetensors_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file(state_of("resnet18_fpn"), file)
    assert import_torchvision(file, input_hw=HW).architecture == "resnet18_fpn"


def without(state: State, *parts: str) -> State:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


RETINANET = {"backbone.body.conv1.weight": torch.zeros(1), "backbone.fpn.inner_blocks.0.0.weight": torch.zeros(1)}
BAD: dict[str, tuple[Callable[[State], Any], str]] = {
    "classifier": (lambda s: {"fc.weight": torch.zeros(1)}, r"not a feature pyramid with an RPN .*'fc.weight'"),
    "retinanet": (lambda s: RETINANET, "not a feature pyramid with an RPN"),
    "empty": (lambda s: {}, r"not a feature pyramid with an RPN \(its first tensor is 'nothing'\)"),
    "other backbone": (lambda s: without(s, ".body."), "its backbone is not one of resnet18_fpn, resnet34_fpn"),
    "missing": (
        lambda s: without(s, "layer_blocks.3", "bbox_pred"),
        r"not torchvision's fasterrcnn_resnet18_fpn: 4 of 142 tensors are missing, first 'backbone.fpn.layer_blocks",
    ),
    "deeper head": (
        lambda s: s | {"rpn.head.conv.1.0.weight": torch.zeros(1), "rpn.head.conv.1.0.bias": torch.zeros(1)},
        r"unexpected tensor 'rpn.head.conv.1.0.weight' and 1 more",
    ),
    "other anchors": (
        lambda s: s | {"rpn.head.cls_logits.weight": torch.zeros(9, 256, 1, 1)},
        r"its own anchors: 'rpn.head.cls_logits.weight' has shape \(9, 256, 1, 1\), expected \(3, 256, 1, 1\)",
    ),
    "training checkpoint": (lambda s: {"model": s, "epoch": 3}, r"expected a state dict \(name -> tensor\), got dict"),
    "whole model": (lambda s: nn.Linear(2, 2), "holds more than tensors and plain values"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_of_something_else_are_refused_in_one_sentence(case: str, save: Callable[..., Path]) -> None:
    change, message = BAD[case]
    file = save(change(state_of("resnet18_fpn")))
    with pytest.raises(CheckpointError, match=message) as caught:
        import_torchvision(file, input_hw=HW)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_below_a_cell_is_one_error(save: Callable[..., Path]) -> None:
    file = save(state_of("resnet18_fpn"))
    with pytest.raises(
        ConfigError, match=r"^--size \(input_hw\): .* at least 64, the coarsest stride, got \(30, 64\)$"
    ):
        import_torchvision(file, input_hw=(30, 64))


def test_an_architecture_that_is_not_the_files_is_refused(save: Callable[..., Path]) -> None:
    file = save(state_of("resnet18_fpn"))
    with pytest.raises(CheckpointError, match=r"not torchvision's fasterrcnn_mobilenet_v3_large_fpn: \d+ of"):
        import_torchvision(file, architecture="mobilenet_v3_large_fpn", input_hw=HW)
    with pytest.raises(CheckpointError, match=r"fasterrcnn_resnet34_fpn: 80 of \d+ tensors are missing"):
        import_torchvision(file, architecture="resnet34_fpn", input_hw=HW)


def command(*words: object) -> int:
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_cli.add_arguments(parser)
    return import_cli.run(parser.parse_args([str(word) for word in words]))


def test_the_command_writes_a_checkpoint_that_detects(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = save(state_of("resnet18_fpn")), tmp_path / "new" / "imported.pt"
    assert command("torchvision", file, "-o", output, "--size", "128x192") == 0
    printed = capsys.readouterr().out
    assert "resnet18_fpn: 14.4 million parameters" in printed
    assert f"wrote {output} for 128x192" in printed
    model, checkpoint = load_model(output)
    assert (checkpoint.step, checkpoint.metrics, checkpoint.settings.data.input_hw) == (0, {}, HW)
    detector = Detector(model, checkpoint.settings.proposals, network_hw=HW).eval()
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *HW, 3), dtype=np.uint8))
    with torch.inference_mode():
        assert detector(frame).count.item() > 50
    assert torch.equal(model.head.objectness.weight, network("resnet18_fpn").head.objectness.weight)


def test_the_command_has_every_architecture() -> None:
    assert set(import_cli.ARCHITECTURES) == set(ARCHITECTURES)


def test_the_command_overwrites_neither_its_input_nor_a_folder(save: Callable[..., Path], tmp_path: Path) -> None:
    file = save(state_of("resnet18_fpn"))
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="would replace the weights"):
        command("torchvision", file, "-o", file)
    with pytest.raises(CheckpointError, match="this is a folder"):
        command("torchvision", file, "-o", tmp_path)
    with pytest.raises(argparse.ArgumentError, match="expected a number from 0 to below 1, got 'much'"):
        command("torchvision", file, "-o", tmp_path / "x.pt", "--norm-eps", "much")
    assert file.read_bytes() == before


def export(name: str, config: ExportConfig, folder: Path, root: Path) -> Manifest:
    """Imports and exports a network; parity is checked on a part of the repository's picture."""
    torch.save(state_of(name), folder / "weights.pth")
    command("torchvision", folder / "weights.pth", "-o", folder / "m.pt", "--size", "128x192")
    photograph = folder / "photograph.png"
    assert cv2.imwrite(str(photograph), cv2.imread(str(root / "docs" / "proposals.jpg"))[:400, :600])
    return export_onnx(folder / "m.pt", folder / "m.onnx", config, images=[photograph])


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["standard", "portable"])
def test_an_imported_mobilenet_exports(nms: Any, tmp_path: Path, root: Path) -> None:
    config = ExportConfig(nms=nms, batch=1, num_proposals=50, pre_nms=200)
    manifest = export("mobilenet_v3_large_fpn", config, tmp_path, root)
    assert manifest.backbone == "mobilenet_v3_large"
    assert manifest.anchors.strides_px == (32, 32, 64)
    assert manifest.parity is not None
    assert manifest.parity.num_matched == 50


@pytest.mark.slow
@pytest.mark.rtx
@pytest.mark.parametrize("name", ["resnet18_fpn", "mobilenet_v3_large_fpn"])
def test_an_imported_network_compiles_with_tensorrt_rtx(name: str, tmp_path: Path, root: Path) -> None:
    trt: Any = importlib.import_module("tensorrt_rtx")
    export(name, ExportConfig(target="tensorrt-rtx", num_proposals=50, pre_nms=200), tmp_path, root)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse_from_file(str(tmp_path / "m.onnx"))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    assert plan.nbytes > 1_000_000

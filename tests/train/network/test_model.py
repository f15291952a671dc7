"""The network: its size, its shapes, its start, and the rewriting of its weights for export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgerpn.errors import ConfigError
from edgerpn.train.config import TrainSettings, load_settings
from edgerpn.train.network.anchors import AnchorConfig
from edgerpn.train.network.layers import ConvNormAct, LevelConv, ResidualBlock, fuse_batch_norm, set_norm_momentum
from edgerpn.train.network.model import ModelConfig, Pyramid, Rpn

NINE = AnchorConfig(strides_px=(16,), sizes_px=((32.0, 64.0, 128.0),), ratios_hw=(0.5, 1.0, 2.0))
RESNET_ANCHORS = AnchorConfig(strides_px=(4, 8, 16), sizes_px=((16.0,), (32.0,), (64.0,)))


def randomise_norms(model: nn.Module, seed: int = 0) -> None:
    """Gives every batch norm statistics and weights as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.3, 3.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)


def test_the_edge_preset_stays_within_3_million_parameters_and_3_gflops() -> None:
    model = Rpn(load_settings(preset="edge").model).eval()
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) <= 3e6
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 384, 640))
    # The counter takes a multiply-add for two operations: one 3x3 convolution of 3 to 16 channels at half size
    # alone has 2 * 9 * 3 * 16 * 192 * 320.
    assert 2 * 9 * 3 * 16 * 192 * 320 < counter.get_total_flops() <= 3e9


def test_the_edge_preset_is_made_of_operations_that_tensorrt_fuses() -> None:
    model = Rpn(load_settings(preset="edge").model)
    leaves = {type(m).__name__ for m in model.modules() if not list(m.children()) and not isinstance(m, nn.ModuleList)}
    assert leaves <= {"Conv2d", "BatchNorm2d", "ReLU", "Identity"}


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (31, 70), (96, 33)])
def test_every_anchor_gets_a_logit_and_four_deltas_at_any_size(
    height: int, width: int, tiny_settings: Callable[..., TrainSettings]
) -> None:
    config = tiny_settings().model
    with torch.inference_mode():
        levels = Rpn(config).eval()(torch.zeros(2, 3, height, width))
    for (logits, deltas), (rows, columns) in zip(levels, config.anchors.level_hw((height, width)), strict=True):
        assert logits.shape == (2, rows * columns)
        assert deltas.shape == (2, rows * columns, 4)


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_strides_of_known_backbones_are_right_at_odd_sizes(backbone: str) -> None:
    model = Rpn(ModelConfig(backbone=backbone, anchors=RESNET_ANCHORS, neck_channels=8, head_channels=8)).eval()
    with torch.inference_mode():
        levels = model(torch.zeros(1, 3, 45, 61))
    assert [logits.shape[1] for logits, _ in levels] == [12 * 16, 6 * 8, 3 * 4]


def test_a_pyramid_may_end_in_convolutions_and_add_coarser_levels() -> None:
    torch.manual_seed(0)
    plain = Pyramid((4, 6), 3, strides_px=(8, 16))
    assert set(plain.state_dict()) == {f"lateral.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    full = Pyramid((4, 6), 3, strides_px=(8, 16), output_conv=True, extra_levels=2)
    full.load_state_dict(plain.state_dict(), strict=False)
    maps = [torch.randn(1, 4, 9, 14), torch.randn(1, 6, 5, 7)]
    with torch.inference_mode():
        merged, levels = plain(maps), full(maps)
        assert full.output is not None
        expected = [conv(x) for conv, x in zip(full.output, merged, strict=True)]
    assert [tuple(x.shape[2:]) for x in levels] == [(9, 14), (5, 7), (3, 4), (2, 2)]
    for found, wanted in zip(levels, expected, strict=False):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(levels[2], levels[1][..., ::2, ::2])
    assert torch.equal(levels[3], levels[2][..., ::2, ::2])


def test_extra_levels_have_anchors_of_their_own() -> None:
    anchors = AnchorConfig(strides_px=(8, 16, 32), sizes_px=((16.0,), (32.0,), (64.0,)))
    config = ModelConfig(backbone="resnet18", neck_channels=8, head_channels=8, neck_extra_levels=1, anchors=anchors)
    model = Rpn(config).eval()
    assert not any("layer4" in name for name in model.state_dict())  # the backbone ends at stride 16
    with torch.inference_mode():
        assert [logits.shape[1] for logits, _ in model(torch.zeros(1, 3, 64, 96))] == [8 * 12, 4 * 6, 2 * 3]


def test_the_order_of_the_outputs_is_that_of_the_anchors() -> None:
    # Weights that copy the picture: a bright pixel at column 3, row 2 of the cells raises the logits of that cell.
    config = ModelConfig(stage_channels=(8,), stage_blocks=(0,), neck_channels=0, head_channels=8, anchors=NINE_AT_2)
    model = Rpn(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.zero_()
        stage: Any = model.backbone.stages
        stage[0][0].conv.weight[:, 0, 1, 1] = 1.0
        window: Any = model.head.window
        window.conv.weight[:, :, 1, 1] = torch.eye(8)
        model.head.objectness.weight[:, 0] = torch.arange(1.0, 10.0).view(9, 1, 1)
        model.head.deltas.weight[:, 0] = torch.arange(1.0, 37.0).view(36, 1, 1)
        picture = torch.zeros(1, 3, 12, 16)
        picture[0, 0, 2 * 2, 3 * 2] = 10.0
        ((logits, deltas),) = model(picture)
    raised = (logits[0] - logits[0, 0]).view(6, 8, 9)
    gain = raised[2, 3, 0].item()
    assert gain > 5
    torch.testing.assert_close(raised[2, 3], gain * torch.arange(1.0, 10.0))
    assert raised.abs().sum().item() == pytest.approx(gain * 45, rel=1e-5)
    torch.testing.assert_close(deltas[0].view(6, 8, 9, 4)[2, 3], gain * torch.arange(1.0, 37.0).view(9, 4))


NINE_AT_2 = AnchorConfig(strides_px=(2,), sizes_px=((4.0, 8.0, 16.0),), ratios_hw=(0.5, 1.0, 2.0))


def test_the_softmax_of_two_logits_is_the_sigmoid_of_their_difference() -> None:
    config = ModelConfig(
        stage_channels=(4, 4, 4, 8), stage_blocks=(0,) * 4, neck_channels=0, head_channels=8, objectness="softmax",
        head_norm=False, anchors=NINE,
    )  # fmt: skip
    model = Rpn(config).eval()
    nn.init.normal_(model.head.objectness.weight, std=1.0)
    assert model.head.objectness.bias is not None
    nn.init.normal_(model.head.objectness.bias)
    images = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        ((logits, _),) = model(images)
        (features,) = model.backbone(images)
        pairs = model.head.objectness(model.head.window(features, 0))
    assert pairs.shape == (2, 18, 2, 3)
    probabilities = pairs.view(2, 2, 9, 2, 3).softmax(dim=1)[:, 1]  # (background, object) of every anchor
    expected = probabilities.permute(0, 2, 3, 1).reshape(2, -1)
    torch.testing.assert_close(logits.sigmoid(), expected)


@pytest.mark.parametrize("objectness", ["sigmoid", "softmax"])
@pytest.mark.parametrize("prior", [0.01, 0.5])
def test_the_first_scores_are_near_the_prior(objectness: Any, prior: float) -> None:
    config = ModelConfig(
        stage_channels=(8, 8, 8, 8), stage_blocks=(0,) * 4, neck_channels=0, head_channels=8, anchors=NINE,
        objectness=objectness, prior_score=prior,
    )  # fmt: skip
    torch.manual_seed(0)
    ((logits, deltas),) = Rpn(config).eval()(torch.randn(1, 3, 64, 64))
    assert logits.sigmoid().mean().item() == pytest.approx(prior, rel=0.2)
    assert deltas.abs().mean().item() < 0.5


def test_frames_are_normalised_by_channel() -> None:
    config = ModelConfig(mean_bgr=(10.0, 20.0, 30.0), std_bgr=(2.0, 4.0, 5.0))
    frame = torch.tensor([[[[12, 28, 35], [10, 20, 30]]]], dtype=torch.uint8)
    images = Rpn(config).normalize(frame)
    assert images.shape == (1, 3, 1, 2)
    assert images.dtype == torch.float32
    assert images[0, :, 0].T.tolist() == [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]]


def outputs(model: Rpn, frames: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [tensor for level in model(model.normalize(frames)) for tensor in level]


@pytest.mark.parametrize("backbone", ["edge", "resnet18", "vgg16"])
def test_folding_batch_norm_and_deviation_keeps_the_outputs(backbone: str) -> None:
    torch.manual_seed(1)
    model = Rpn(ModelConfig(backbone=backbone, anchors=RESNET_ANCHORS, neck_channels=8, head_channels=8)).eval()
    randomise_norms(model)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 45, 61, 3), dtype=np.uint8))
    expected = outputs(model, frames)
    folded = copy.deepcopy(model)
    fuse_batch_norm(folded)
    folded.fold_std()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for found, wanted in zip(outputs(folded, frames), expected, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * scale)
    # The original is untouched, and the statistics were no identity.
    for found, wanted in zip(outputs(model, frames), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_batch_norm_with_an_activation_of_its_own_is_left_alone() -> None:
    class NormAct(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), NormAct(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    model = nn.Sequential(Stem(), nn.Conv2d(4, 5, 1), NormAct(5)).eval()
    randomise_norms(model)
    images = torch.randn(2, 3, 8, 8)
    expected = model(images)
    fuse_batch_norm(model)
    torch.testing.assert_close(model(images), expected)


def test_levels_share_a_convolution_and_each_has_its_norm() -> None:
    window = LevelConv(2, 4, num_levels=2)
    fine, coarse = torch.randn(2, 2, 8, 8), 5 + 3 * torch.randn(2, 2, 4, 4)
    window.train()
    for _ in range(200):
        in_training = [window(x, level) for level, x in enumerate((fine, coarse))]
    window.eval()
    # Training and inference compute the same for each level.
    for level, x in enumerate((fine, coarse)):
        torch.testing.assert_close(window(x, level), in_training[level], rtol=0.02, atol=0.05)
    assert (window(coarse, 0) - in_training[1]).abs().max() > 1
    assert sum(p.numel() for p in window.parameters()) == 4 * 2 * 9 + 2 * (4 + 4)
    before = [window(x, level) for level, x in enumerate((fine, coarse))]
    window.fuse()
    for level, x in enumerate((fine, coarse)):
        torch.testing.assert_close(window(x, level), before[level])
    plain = LevelConv(2, 4, num_levels=2, norm=False)
    plain.fuse()
    assert torch.equal(plain(fine, 0), plain(fine, 1))


def test_statistics_begin_as_the_mean_of_the_first_steps() -> None:
    layer: Any = nn.BatchNorm2d(1)
    norm = nn.Sequential(layer).train()
    for step in range(3):
        set_norm_momentum(norm, step)
        norm(torch.full((2, 1, 4, 4), 10.0 * (step + 1)))
    assert layer.running_mean.item() == pytest.approx(20.0)
    assert layer.running_var.item() == pytest.approx(0.0, abs=1e-6)
    for step in (9, 10, 500):
        # Any earlier momentum, as in a network that has just been created to resume a run.
        layer.momentum = 0.01
        set_norm_momentum(norm, step)
        assert layer.momentum == 0.1


def test_the_bottom_up_path_brings_fine_levels_to_coarse_ones() -> None:
    torch.manual_seed(0)
    channels = (4, 4, 4)
    sides = (16, 8, 4)
    maps = [torch.zeros(1, 4, side, side) for side in sides]
    changed = [maps[0] + 1, *maps[1:]]
    top_down, both = (
        Pyramid(channels, 4, strides_px=(8, 16, 32), bottom_up=bottom_up).eval() for bottom_up in (False, True)
    )
    both.load_state_dict(top_down.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(top_down(maps)[2], top_down(changed)[2])
        assert not torch.equal(both(maps)[2], both(changed)[2])
        assert [x.shape for x in both(maps)] == [x.shape for x in maps]
        assert torch.equal(both(changed)[0], top_down(changed)[0])


def test_blocks_keep_what_they_promise() -> None:
    assert ConvNormAct(3, 5, stride=2)(torch.zeros(1, 3, 9, 12)).shape == (1, 5, 5, 6)
    block = ResidualBlock(4).eval()
    nn.init.zeros_(block.second.conv.weight)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_channels": (8, 8)}, "stage_channels: expected one positive number for each of stage_blocks"),
        ({"head_channels": 0}, "neck_channels: expected at least 0, and head_channels at least 1"),
        ({"neck_channels": 0, "neck_output_conv": True}, "need a pyramid, got neck_channels 0"),
        ({"neck_extra_levels": 4}, "neck_extra_levels: expected fewer than the levels"),
        (
            {"neck_extra_levels": 1, "anchors": AnchorConfig(strides_px=(8, 32), sizes_px=((8.0,), (9.0,)))},
            "neck_extra_levels: expected each of the last 1 of anchors.strides_px to be twice the one before",
        ),
        ({"prior_score": 1.0}, "prior_score: expected a number between 0 and 1"),
        ({"std_bgr": (1.0, 0.0, 1.0)}, "std_bgr: expected positive numbers"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(("backbone", "extra"), [("resnet18", 1), ("mobilenet_v3_large", 1), ("vgg16", 2), ("edge", 0)])
def test_the_pyramid_adds_the_levels_that_a_backbone_lacks(backbone: str, extra: int) -> None:
    config = ModelConfig(backbone=backbone)
    assert config.num_extra_levels == extra
    with torch.inference_mode():
        levels = Rpn(config).eval()(torch.zeros(1, 3, 64, 128))
    assert [logits.shape[1] for logits, _ in levels] == [8 * 16, 4 * 8, 2 * 4, 1 * 2]


def test_strides_need_not_double() -> None:
    anchors = AnchorConfig(strides_px=(8, 32), sizes_px=((16.0,), (64.0,)))
    with torch.inference_mode():
        levels = Rpn(ModelConfig(anchors=anchors)).eval()(torch.zeros(1, 3, 64, 96))
    assert [logits.shape[1] for logits, _ in levels] == [8 * 12, 2 * 3]


def test_several_levels_of_different_width_need_a_pyramid() -> None:
    with pytest.raises(ConfigError, match=r"neck_channels: levels of \(48, 88, 128, 128\) channels need a pyramid"):
        Rpn(ModelConfig(neck_channels=0))

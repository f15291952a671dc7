"""MobileNetV3-Large: torchvision's names and shapes, published counts, and the operations it is made of."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgerpn.errors import ConfigError
from edgerpn.train.network.backbones import HardSwish, SqueezeExcite, hard_sigmoid, make_backbone
from edgerpn.train.network.layers import Backbone, fuse_batch_norm
from edgerpn.train.network.weights import load_backbone_weights


def build(*strides: int) -> Backbone:
    return make_backbone("mobilenet_v3_large", strides, stage_channels=(), stage_blocks=())


def test_parameters_are_as_many_as_published() -> None:
    # torchvision's has 5,483,032 with the classifier: 960 -> 1280 -> 1000.
    classifier = 960 * 1280 + 1280 + 1280 * 1000 + 1000
    with torch.device("meta"):
        backbone = build(32)
    assert sum(p.numel() for p in backbone.parameters()) == 5_483_032 - classifier


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        state = build(32).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["features.0.0.weight"] == (16, 3, 3, 3)
    assert shapes["features.1.block.0.0.weight"] == (16, 1, 3, 3)  # as wide as its input: no widening
    assert shapes["features.1.block.1.0.weight"] == (16, 16, 1, 1)
    assert shapes["features.4.block.1.0.weight"] == (72, 1, 5, 5)
    assert shapes["features.4.block.2.fc1.weight"] == (24, 72, 1, 1)
    assert shapes["features.4.block.2.fc2.bias"] == (72,)
    assert shapes["features.4.block.3.1.running_var"] == (40,)
    assert shapes["features.11.block.2.fc1.weight"] == (120, 480, 1, 1)
    assert shapes["features.15.block.3.0.weight"] == (160, 960, 1, 1)
    assert shapes["features.16.0.weight"] == (960, 160, 1, 1)
    assert not any(key.startswith("features.17") for key in shapes)


@pytest.mark.parametrize(
    ("strides", "channels"),
    [
        ((4, 8, 16, 32), (24, 40, 112, 960)),
        ((16,), (112,)),
        ((32, 32), (160, 960)),  # the first and the last map of that stride
        ((2, 8, 8), (16, 40, 40)),
    ],
)
def test_maps_have_the_asked_strides(strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    backbone = build(*strides).eval()
    assert backbone.channels == channels
    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, 70, 45))
    expected = [(1, c, math.ceil(70 / s), math.ceil(45 / s)) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected
    assert len({m.sum().item() for m in maps}) == len(maps)


def test_layers_beyond_the_coarsest_stride_are_not_built() -> None:
    assert not any(name.startswith("features.13") for name in build(16).state_dict())


def test_a_missing_stride_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mobilenet_v3_large has strides .*, not \[64\]"):
        build(32, 64)
    with pytest.raises(ConfigError, match=r"not \[32\]"):
        build(32, 32, 32)
    with pytest.raises(ConfigError, match=r"ResNet has strides \(4, 8, 16, 32\), not \[32\]"):
        make_backbone("resnet18", (32, 32), stage_channels=(), stage_blocks=())


def test_hard_swish_and_hard_sigmoid_are_pytorchs() -> None:
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(HardSwish()(x), functional.hardswish(x))
    torch.testing.assert_close(hard_sigmoid(x), functional.hardsigmoid(x))


def test_squeeze_and_excite_weighs_each_channel_by_the_whole_map() -> None:
    layer: Any = SqueezeExcite(2, 1)
    with torch.no_grad():
        layer.fc1.weight.copy_(torch.tensor([[1.0, -1.0]]).view(1, 2, 1, 1))
        layer.fc1.bias.fill_(0.5)
        layer.fc2.weight.copy_(torch.tensor([2.0, -3.0]).view(2, 1, 1, 1))
        layer.fc2.bias.copy_(torch.tensor([0.0, 1.0]))
        x = torch.tensor([[[[1.0, 3.0]], [[0.0, 1.0]]]])
        found = layer(x)
    squeezed = 2.0 - 0.5 + 0.5  # means 2 and 0.5, then relu
    gates = [(2 * squeezed + 3) / 6, max(0.0, (1 - 3 * squeezed + 3) / 6)]
    expected = x * torch.tensor([min(gates[0], 1.0), gates[1]]).view(1, 2, 1, 1)
    torch.testing.assert_close(found, expected)


def test_batch_norms_fold_into_the_convolutions() -> None:
    torch.manual_seed(0)
    backbone = build(8, 32)
    with torch.no_grad():
        backbone.train()(torch.rand(4, 3, 64, 64))  # statistics that are no identity
    backbone.eval()
    folded = copy.deepcopy(backbone)
    fuse_batch_norm(folded)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        for found, wanted in zip(folded(images), backbone(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_a_classification_checkpoint_loads_with_its_input_channels_swapped(tmp_path: Path) -> None:
    backbone = build(32)
    state: dict[str, Tensor] = {key: torch.rand_like(value.float()) for key, value in backbone.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.rand(8, 960)}, tmp_path / "weights.pth")
    assert load_backbone_weights(backbone, tmp_path / "weights.pth") == len(state)
    own = backbone.state_dict()
    assert torch.equal(own["features.0.0.weight"], state["features.0.0.weight"].flip(1))
    assert torch.equal(own["features.16.0.weight"], state["features.16.0.weight"])

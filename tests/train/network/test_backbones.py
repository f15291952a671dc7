"""Backbones: torchvision's names and shapes, loading of its checkpoints, and clear errors."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgerpn.errors import CheckpointError, ConfigError, MissingDependencyError
from edgerpn.train.network.backbones import make_backbone
from edgerpn.train.network.layers import Backbone
from edgerpn.train.network.weights import load_backbone_weights

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Parameters of torchvision's models, from its documentation.
WITH_CLASSIFIER = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}
VGG16_FEATURES = 14_714_688


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def resnet_shapes(name: str) -> Shapes:
    """torchvision's state dict of a ResNet without its classifier, from the naming scheme."""
    is_bottleneck = name == "resnet50"
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **dict(norm("bn1", 64))}
    channels = 64
    for stage, count in enumerate(BLOCKS[name]):
        width = 64 * 2**stage
        for block in range(count):
            prefix = f"layer{stage + 1}.{block}"
            out = width * 4 if is_bottleneck else width
            convs = (
                [(width, channels, 1), (width, width, 3), (out, width, 1)]
                if is_bottleneck
                else [(width, channels, 3), (width, width, 3)]
            )
            for i, (outputs, inputs, kernel) in enumerate(convs, start=1):
                shapes[f"{prefix}.conv{i}.weight"] = (outputs, inputs, kernel, kernel)
                shapes |= dict(norm(f"{prefix}.bn{i}", outputs))
            if block == 0 and (stage > 0 or is_bottleneck):
                shapes[f"{prefix}.downsample.0.weight"] = (out, channels, 1, 1)
                shapes |= dict(norm(f"{prefix}.downsample.1", out))
            channels = out
    return shapes


def vgg16_shapes() -> Shapes:
    """torchvision's `features` of VGG16: numbers of the convolutions in configuration D."""
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    shapes: Shapes = {}
    for number, outputs, inputs in zip(numbers, widths, (3, *widths), strict=False):
        shapes[f"features.{number}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"features.{number}.bias"] = (outputs,)
    return shapes


def shapes_of(name: str) -> Shapes:
    return vgg16_shapes() if name == "vgg16" else resnet_shapes(name)


def build(name: str, *strides: int) -> Backbone:
    return make_backbone(name, strides, stage_channels=(8, 8, 16), stage_blocks=(0, 1, 0))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vgg16"])
def test_names_shapes_and_counts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name, 16 if name == "vgg16" else 32)
    assert {key: tuple(value.shape) for key, value in backbone.state_dict().items()} == shapes_of(name)
    parameters = sum(p.numel() for p in backbone.parameters())
    if name == "vgg16":
        assert parameters == VGG16_FEATURES
    else:
        features = 2048 if name == "resnet50" else 512
        assert parameters + features * 1000 + 1000 == WITH_CLASSIFIER[name]


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("resnet18", (4, 8, 16, 32), (64, 128, 256, 512)),
        ("resnet50", (8, 32), (512, 2048)),
        ("vgg16", (4, 8, 16), (256, 512, 512)),
        ("edge", (2, 8), (8, 16)),
    ],
)
def test_feature_maps_have_the_asked_strides_and_the_promised_channels(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    backbone = build(name, *strides).eval()
    assert backbone.channels == channels
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 70, 33))
    expected = [(1, c, math.ceil(70 / s), math.ceil(33 / s)) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_layers_beyond_the_coarsest_stride_are_not_built() -> None:
    assert not any(name.startswith("layer3") for name in build("resnet18", 8).state_dict())
    assert not any(name.startswith("features.24") for name in build("vgg16", 8).state_dict())


def torchvision_checkpoint(name: str) -> dict[str, Tensor]:
    """Random weights under torchvision's names, classifier included."""
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for key, shape in shapes_of(name).items()
    }
    classifier = "classifier.6" if name == "vgg16" else "fc"
    return state | {f"{classifier}.weight": torch.rand(10, 512), f"{classifier}.bias": torch.rand(10)}


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body."])
def test_a_torchvision_checkpoint_loads_with_its_input_channels_swapped(name: str, prefix: str, tmp_path: Path) -> None:
    state = torchvision_checkpoint(name)
    file = tmp_path / "weights.pth"
    torch.save({prefix + key: value for key, value in state.items()}, file)
    backbone = build(name, 8)
    loaded = load_backbone_weights(backbone, file)
    own = backbone.state_dict()
    assert loaded == len(own)
    first = "features.0.weight" if name == "vgg16" else "conv1.weight"
    for key, value in own.items():
        expected = state[key].flip(1) if key == first else state[key]
        assert torch.equal(value, expected), key
    # The network takes BGR: torchvision's red channel (0) is our last one.
    assert torch.equal(own[first][:, 2], state[first][:, 0])


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
def test_weights_come_from_safetensors_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = torchvision_checkpoint("resnet18")
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    backbone = build("resnet18", 8)
    assert load_backbone_weights(backbone, file) == len(backbone.state_dict())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not weights, or damaged"):
        load_backbone_weights(backbone, file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(torchvision_checkpoint("vgg16"), file)
    with pytest.raises(CheckpointError, match=r"tensors are missing, first 'conv1.weight'"):
        load_backbone_weights(build("resnet18", 8), file)
    torch.save(torchvision_checkpoint("resnet18") | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    with pytest.raises(CheckpointError, match=r"'conv1.weight' has shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        load_backbone_weights(build("resnet18", 8), file)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    backbone = build("resnet18", 8)
    with pytest.raises(CheckpointError, match="not weights, or damaged"):
        load_backbone_weights(backbone, tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="not weights, or damaged"):
        load_backbone_weights(backbone, tmp_path / "text.pth")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        load_backbone_weights(backbone, tmp_path / "nested.pth")


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        ("resnet19", (16,), "model.backbone: expected one of edge, resnet18"),
        ("resnet18", (2, 16), r"ResNet has strides \(4, 8, 16, 32\), not \[2\]"),
        ("vgg16", (32,), r"vgg16 has strides \(4, 8, 16\), not \[32\]"),
        ("edge", (16,), r"edge \(with these stage_channels\) has strides \(2, 4, 8\), not \[16\]"),
    ],
)
def test_a_backbone_that_cannot_be_made_is_named(name: str, strides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, *strides)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_its_backbones_name_the_missing_package() -> None:
    with pytest.raises(MissingDependencyError, match="timm"):
        build("timm:resnet10t", 8)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_timm_backbone_gives_the_asked_levels() -> None:
    backbone = build("timm:resnet10t", 8, 16).eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [m.shape[2:] for m in maps] == [(8, 12), (4, 6)]
    assert tuple(m.shape[1] for m in maps) == backbone.channels
    with pytest.raises(ConfigError, match="timm cannot make"):
        build("timm:no_such_model_here", 8)

"""Backbones: our small one, ResNets, VGG16 and MobileNetV3 with torchvision's parameter names, and timm's.

A backbone is a module with `channels` (one number per output level). Its forward takes (N, 3, H, W) float BGR,
normalised, and returns one feature map per requested stride, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from edgerpn.errors import ConfigError, require
from edgerpn.train.network.layers import Backbone, ConvNormAct, ResidualBlock, check_strides

NAMES = ("edge", "resnet18", "resnet34", "resnet50", "vgg16", "mobilenet_v3_large")
EXPECTED = f"one of {', '.join(NAMES)} or timm:NAME"
"""Names of backbones, for errors."""
COARSEST_STRIDE_PX = {"resnet18": 32, "resnet34": 32, "resnet50": 32, "vgg16": 16, "mobilenet_v3_large": 32}
"""Coarsest stride of each backbone with a fixed architecture."""


class EdgeBackbone(Backbone):
    """Plain 3x3 convolutions and residual blocks; 1 to 2 million parameters."""

    def __init__(self, strides: Sequence[int], stage_channels: Sequence[int], stage_blocks: Sequence[int]) -> None:
        """Creates stages at strides 2, 4, 8, ... with `stage_channels`, each with `stage_blocks` residual blocks."""
        super().__init__()
        self.strides = tuple(strides)
        widths = (3, *stage_channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(widths[i], widths[i + 1], stride=2),
                *(ResidualBlock(widths[i + 1]) for _ in range(stage_blocks[i])),
            )
            for i in range(len(stage_channels))
            if 2 << i <= max(strides)
        )
        self.channels = tuple(stage_channels[s.bit_length() - 2] for s in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if 2 << i in self.strides:
                maps.append(x)
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; parameter names as in torchvision."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Creates the layers; the output has `width` channels and 1 / `stride` of the rows."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1; parameter names as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Creates the layers; the output has 4 * `width` channels and 1 / `stride` of the rows."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _projection(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(Backbone):
    """He et al. 2016 (arXiv:1512.03385), stride in the 3x3 convolution as in torchvision."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: Sequence[int], strides: Sequence[int]
    ) -> None:
        """Creates the stages up to the coarsest of `strides` (out of 4, 8, 16, 32)."""
        super().__init__()
        check_strides(strides, (4, 8, 16, 32), "ResNet")
        self.strides = tuple(strides)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers: list[str] = []
        in_channels, channels = 64, {}
        for i, count in enumerate(blocks):
            stride = 4 << i
            if stride > max(strides):
                break
            width = 64 << i
            first = block(in_channels, width, 1 if i == 0 else 2)
            in_channels = width * block.expansion
            rest = [block(in_channels, width, 1) for _ in range(count - 1)]
            self.layers.append(f"layer{i + 1}")
            self.add_module(self.layers[-1], nn.Sequential(first, *rest))
            channels[stride] = in_channels
        self.channels = tuple(channels[s] for s in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        maps = []
        for i, name in enumerate(self.layers):
            x = self.get_submodule(name)(x)
            if 4 << i in self.strides:
                maps.append(x)
        return maps


class Vgg16(Backbone):
    """Simonyan and Zisserman 2014 (arXiv:1409.1556), configuration D; stride 16 is conv5_3, before the last pool."""

    def __init__(self, strides: Sequence[int]) -> None:
        """Creates the layers up to the coarsest of `strides` (out of 4, 8, 16)."""
        super().__init__()
        check_strides(strides, (4, 8, 16), "vgg16")
        self.strides = tuple(strides)
        plan = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
        layers: list[nn.Module] = []
        self.ends: dict[int, int] = {}
        in_channels, channels = 3, {}
        for i, widths in enumerate(plan):
            if 1 << i > max(strides):
                break
            if i > 0:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            for width in widths:
                layers += [nn.Conv2d(in_channels, width, 3, 1, 1), nn.ReLU(inplace=True)]
                in_channels = width
            self.ends[len(layers) - 1] = 1 << i
            channels[1 << i] = in_channels
        self.features = nn.Sequential(*layers)
        self.channels = tuple(channels[s] for s in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self.ends.get(i) in self.strides:
                maps.append(x)
        return maps


class InvertedResidualShape(NamedTuple):
    """One row of the paper's table."""

    kernel: int
    """Side of the depthwise window."""
    expanded: int
    """Channels of the depthwise convolution."""
    out: int
    """Channels of the output."""
    squeeze: int
    """Channels inside the squeeze-and-excite branch; 0: no branch."""
    is_hard_swish: bool
    """Whether the activation is hard swish instead of ReLU."""
    stride: int
    """Stride of the depthwise convolution."""


_STEM_CHANNELS, _TAIL_CHANNELS = 16, 960
"""Channels of the first and of the last convolution."""

_MOBILENET_BLOCKS = (
    InvertedResidualShape(3, 16, 16, 0, False, 1),
    InvertedResidualShape(3, 64, 24, 0, False, 2),
    InvertedResidualShape(3, 72, 24, 0, False, 1),
    InvertedResidualShape(5, 72, 40, 24, False, 2),
    InvertedResidualShape(5, 120, 40, 32, False, 1),
    InvertedResidualShape(5, 120, 40, 32, False, 1),
    InvertedResidualShape(3, 240, 80, 0, True, 2),
    InvertedResidualShape(3, 200, 80, 0, True, 1),
    InvertedResidualShape(3, 184, 80, 0, True, 1),
    InvertedResidualShape(3, 184, 80, 0, True, 1),
    InvertedResidualShape(3, 480, 112, 120, True, 1),
    InvertedResidualShape(3, 672, 112, 168, True, 1),
    InvertedResidualShape(5, 672, 160, 168, True, 2),
    InvertedResidualShape(5, 960, 160, 240, True, 1),
    InvertedResidualShape(5, 960, 160, 240, True, 1),
)

MOBILENET_NORM_EPS = 1e-3
"""Epsilon of every batch norm; not PyTorch's default."""


def hard_sigmoid(x: Tensor) -> Tensor:
    """Piecewise linear sigmoid; section 5.2 of the paper."""
    return functional.relu6(x + 3) / 6


class HardSwish(nn.Module):
    """x * hard_sigmoid(x), in operations that every compiler supports."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * hard_sigmoid(x)


class SqueezeExcite(nn.Module):
    """Weights channels by the pooled map (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * hard_sigmoid(self.fc2(functional.relu(self.fc1(pooled))))


def _conv(
    in_channels: int, out_channels: int, act: nn.Module | None, *, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and perhaps an activation, numbered 0, 1, 2 as in torchvision."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(
        conv, nn.BatchNorm2d(out_channels, eps=MOBILENET_NORM_EPS), *([act] if act is not None else [])
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excite, projection; adds the input if the shapes agree."""

    def __init__(self, in_channels: int, shape: InvertedResidualShape) -> None:
        """Creates the layers; the output has `shape.out` channels and 1 / `shape.stride` of the rows."""
        super().__init__()
        act: type[nn.Module] = HardSwish if shape.is_hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if shape.expanded != in_channels:
            layers.append(_conv(in_channels, shape.expanded, act()))
        layers.append(
            _conv(
                shape.expanded, shape.expanded, act(), kernel=shape.kernel, stride=shape.stride, groups=shape.expanded
            )
        )
        if shape.squeeze:
            layers.append(SqueezeExcite(shape.expanded, shape.squeeze))
        layers.append(_conv(shape.expanded, shape.out, None))
        self.block = nn.Sequential(*layers)
        self.is_residual = shape.stride == 1 and in_channels == shape.out

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        y = self.block(x)
        return x + y if self.is_residual else y


class MobileNetV3Large(Backbone):
    """MobileNetV3-Large without its classifier; Howard et al. 2019 (arXiv:1905.02244), table 1.

    The map of a stride is the deepest one. A stride requested twice returns two maps, the shallowest and the deepest:
    torchvision's `fasterrcnn_mobilenet_v3_large_fpn` uses stride 32 in this way.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        """Creates the layers up to the deepest that `strides` (out of 2, 4, 8, 16, 32, each at most twice) need."""
        super().__init__()
        check_strides(strides, (2, 2, 4, 4, 8, 8, 16, 16, 32, 32), "mobilenet_v3_large")
        layers: list[nn.Module] = [_conv(3, _STEM_CHANNELS, HardSwish(), kernel=3, stride=2)]
        widths, at_stride = [_STEM_CHANNELS], [2]
        for shape in _MOBILENET_BLOCKS:
            layers.append(InvertedResidual(widths[-1], shape))
            widths.append(shape.out)
            at_stride.append(at_stride[-1] * shape.stride)
        layers.append(_conv(widths[-1], _TAIL_CHANNELS, HardSwish()))
        widths.append(_TAIL_CHANNELS)
        at_stride.append(at_stride[-1])
        self.taps = tuple(
            # The first of two equal strides means the shallowest map of that stride.
            at_stride.index(s) if s in strides[i + 1 :] else len(at_stride) - 1 - at_stride[::-1].index(s)
            for i, s in enumerate(strides)
        )
        self.features = nn.Sequential(*layers[: max(self.taps) + 1])
        self.channels = tuple(widths[tap] for tap in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at the requested strides."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


class TimmBackbone(Backbone):
    """Any convolutional model of the timm package, with random weights, without a download."""

    def __init__(self, name: str, strides: Sequence[int]) -> None:
        """Takes the levels of `strides` from `timm.create_model(name, features_only=True)`."""
        super().__init__()
        timm = require("timm", extra="timm", purpose=f"the backbone timm:{name}")
        try:
            self.body = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, ValueError) as error:
            raise ConfigError([f"model.backbone: timm cannot create {name!r}: {error}"]) from error
        reductions = self.body.feature_info.reduction()
        check_strides(strides, reductions, f"timm:{name}")
        self.indices = [reductions.index(s) for s in strides]
        self.channels = tuple(self.body.feature_info.channels()[i] for i in self.indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at the requested strides."""
        maps = self.body(x)
        return [maps[i] for i in self.indices]


def make_backbone(
    name: str, strides: Sequence[int], *, stage_channels: Sequence[int], stage_blocks: Sequence[int]
) -> Backbone:
    """Creates a backbone by name, with random weights; the last two arguments apply to `edge` only.

    Raises:
        ConfigError: The name is unknown, or the backbone has no level of a requested stride.
    """
    if name == "edge":
        check_strides(strides, [2 << i for i in range(len(stage_channels))], "edge (with these stage_channels)")
        return EdgeBackbone(strides, stage_channels, stage_blocks)
    if name == "resnet18":
        return ResNet(BasicBlock, (2, 2, 2, 2), strides)
    if name == "resnet34":
        return ResNet(BasicBlock, (3, 4, 6, 3), strides)
    if name == "resnet50":
        return ResNet(Bottleneck, (3, 4, 6, 3), strides)
    if name == "vgg16":
        return Vgg16(strides)
    if name == "mobilenet_v3_large":
        return MobileNetV3Large(strides)
    if name.startswith("timm:"):
        return TimmBackbone(name.removeprefix("timm:"), strides)
    raise ConfigError([f"model.backbone: expected {EXPECTED}, got {name!r}"])

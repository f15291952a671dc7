"""MobileNetV3-Large without its classifier, of plain operations and with torchvision's parameter names.

Source: Howard et al. 2019 (arXiv:1905.02244), table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from edgerpn.train.network.layers import Backbone, check_strides


class Block(NamedTuple):
    """One row of the paper's table."""

    kernel: int
    """Side of the depthwise window."""
    expanded: int
    """Channels of the depthwise convolution."""
    out: int
    """Channels of the output."""
    squeeze: int
    """Channels inside the squeeze-and-excite branch; 0: none."""
    is_hard_swish: bool
    """Hard swish instead of ReLU."""
    stride: int
    """Of the depthwise convolution."""


STEM_CHANNELS, TAIL_CHANNELS = 16, 960
"""Channels of the first and of the last convolution."""

BLOCKS = (
    Block(3, 16, 16, 0, False, 1),
    Block(3, 64, 24, 0, False, 2),
    Block(3, 72, 24, 0, False, 1),
    Block(5, 72, 40, 24, False, 2),
    Block(5, 120, 40, 32, False, 1),
    Block(5, 120, 40, 32, False, 1),
    Block(3, 240, 80, 0, True, 2),
    Block(3, 200, 80, 0, True, 1),
    Block(3, 184, 80, 0, True, 1),
    Block(3, 184, 80, 0, True, 1),
    Block(3, 480, 112, 120, True, 1),
    Block(3, 672, 112, 168, True, 1),
    Block(5, 672, 160, 168, True, 2),
    Block(5, 960, 160, 240, True, 1),
    Block(5, 960, 160, 240, True, 1),
)

NORM_EPS = 1e-3
"""Of every batch norm; not PyTorch's default."""


def hard_sigmoid(x: Tensor) -> Tensor:
    """The sigmoid as three straight lines; section 5.2 of the paper."""
    return functional.relu6(x + 3) / 6


class HardSwish(nn.Module):
    """x * hard_sigmoid(x), in operations that every compiler knows."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * hard_sigmoid(x)


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole map holds (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeeze: int) -> None:
        """Keeps the number of channels."""
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
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=NORM_EPS), *([act] if act is not None else []))


class InvertedResidual(nn.Module):
    """Widens, looks around channel by channel, weighs the channels, narrows; adds the input where shapes allow."""

    def __init__(self, in_channels: int, shape: Block) -> None:
        """Output has `shape.out` channels and `shape.stride` times fewer rows."""
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
    """Howard et al. 2019 (arXiv:1905.02244); the map of a stride is the deepest one.

    A stride that is asked for twice gives two maps, the shallowest and the deepest: torchvision's
    `fasterrcnn_mobilenet_v3_large_fpn` takes stride 32 so.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        """Builds the layers up to the deepest that `strides` (out of 2, 4, 8, 16, 32, each at most twice) need."""
        super().__init__()
        check_strides(strides, (2, 2, 4, 4, 8, 8, 16, 16, 32, 32), "mobilenet_v3_large")
        layers: list[nn.Module] = [_conv(3, STEM_CHANNELS, HardSwish(), kernel=3, stride=2)]
        widths, at_stride = [STEM_CHANNELS], [2]
        for shape in BLOCKS:
            layers.append(InvertedResidual(widths[-1], shape))
            widths.append(shape.out)
            at_stride.append(at_stride[-1] * shape.stride)
        layers.append(_conv(widths[-1], TAIL_CHANNELS, HardSwish()))
        widths.append(TAIL_CHANNELS)
        at_stride.append(at_stride[-1])
        self.taps = tuple(
            # The first of two equal strides is the shallowest map of that stride.
            at_stride.index(s) if s in strides[i + 1 :] else len(at_stride) - 1 - at_stride[::-1].index(s)
            for i, s in enumerate(strides)
        )
        self.features = nn.Sequential(*layers[: max(self.taps) + 1])
        self.channels = tuple(widths[tap] for tap in self.taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at the asked strides."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps

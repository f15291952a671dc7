"""Building blocks of the networks: the base of all backbones, and plain convolutions that every compiler fuses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgerpn.errors import ConfigError

FIRST_STEPS = 10
"""Number of first steps over which batch-norm statistics are plain means."""


class Backbone(nn.Module):
    """Base of all backbones: stages with rising stride, of which some are returned."""

    channels: tuple[int, ...]
    """Channels of the returned feature maps, finest first."""


def check_strides(strides: Sequence[int], available: Sequence[int], name: str) -> None:
    """Checks that the backbone `name` has a map for each of `strides`; `available` has one stride per map.

    Raises:
        ConfigError: A map is missing.
    """
    missing = [s for s in sorted(set(strides)) if strides.count(s) > available.count(s)]
    if missing:
        raise ConfigError(
            [
                f"model.anchors.strides_px: {name} has strides {tuple(available)}, not {missing}; the pyramid can add "
                "coarser ones (model.neck_extra_levels, their number)"
            ]
        )


class ConvNormAct(nn.Module):
    """A 3x3 convolution, batch norm, ReLU; after `fuse` only convolution and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, act: bool = True) -> None:
        """Creates the layers; padding makes the output ceil(input / stride) rows and columns."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        return self.act(self.norm(self.conv(x)))


class LevelConv(nn.Module):
    """A 3x3 convolution shared by all levels of a pyramid, a batch norm per level, ReLU.

    Levels differ in mean and deviation. Training normalises each by its own statistics, but the running statistics of a
    shared batch norm would be a mixture that fits no level, so inference would miss objects of levels far from it.
    After `fuse` each level has its own convolution, as fast as a shared one.
    """

    def __init__(self, in_channels: int, out_channels: int, num_levels: int, *, norm: bool = True) -> None:
        """Creates the layers; without `norm` the convolution has a bias instead."""
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=not norm)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(num_levels if norm else 0))
        self.fused = nn.ModuleList()

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(N, in, H, W) of a level to (N, out, H, W)."""
        if self.fused:
            return functional.relu(self.fused[level](x))
        x = self.conv(x)
        return functional.relu(self.norms[level](x) if self.norms else x)

    def fuse(self) -> None:
        """Folds the batch norms into a convolution for each level, in place; eval mode only."""
        if isinstance(self.conv, nn.Conv2d) and self.norms:
            norms = [norm for norm in self.norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
            self.fused = nn.ModuleList(fuse_conv_bn_eval(self.conv, norm) for norm in norms)
            self.conv, self.norms = nn.Identity(), nn.ModuleList()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels)
        self.second = ConvNormAct(channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return functional.relu(x + self.second(self.first(x)))


def set_norm_momentum(module: nn.Module, step: int) -> None:
    """Makes the running statistics of batch norms the mean over the first steps.

    After ten steps they are moving averages with a momentum of 0.1 (PyTorch's default); earlier, such averages would
    consist mostly of their initial values 0 and 1.

    Args:
        module: The network.
        step: Number of the next step, from 0.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.momentum is not None:
            norm.momentum = 1 / min(step + 1, FIRST_STEPS)


def fuse_batch_norm(module: nn.Module) -> None:
    """Folds every batch norm that directly follows a convolution into it, in place; eval mode only.

    Handles `ConvNormAct`, `LevelConv`, sequences, and siblings named conv1/bn1 as in torchvision's ResNets. Subclasses
    of batch norm stay: timm has some with a built-in activation, which folding would lose.
    """
    for child in list(module.modules()):
        if isinstance(child, LevelConv):
            child.fuse()
        if isinstance(child, ConvNormAct) and isinstance(child.norm, nn.BatchNorm2d):
            child.conv = fuse_conv_bn_eval(child.conv, child.norm)
            child.norm = nn.Identity()
        for name, norm in list(child.named_children()):
            conv = getattr(child, name.replace("bn", "conv"), None) if name.startswith("bn") else None
            if type(norm) is nn.BatchNorm2d and isinstance(conv, nn.Conv2d):
                setattr(child, name.replace("bn", "conv"), fuse_conv_bn_eval(conv, norm))
                setattr(child, name, nn.Identity())
        if isinstance(child, nn.Sequential):
            _fuse_sequence(child)


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Folds batch norms inside an `nn.Sequential`, such as the downsample branches of a ResNet."""
    for index in range(len(sequence) - 1):
        conv, norm = sequence[index], sequence[index + 1]
        if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
            sequence[index] = fuse_conv_bn_eval(conv, norm)
            sequence[index + 1] = nn.Identity()

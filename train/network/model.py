"""The Region Proposal Network: backbone, feature pyramid, 3x3 sliding-window convolution, objectness and deltas.

Legend of shape suffixes: N images, C channels, H and W rows and columns, A anchors of all levels in the order of
`edgerpn.train.network.anchors`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgerpn.errors import ConfigError, check_setting
from edgerpn.train.network.anchors import AnchorConfig
from edgerpn.train.network.backbones import COARSEST_STRIDE_PX, EXPECTED, NAMES, make_backbone
from edgerpn.train.network.layers import ConvNormAct, LevelConv
from edgerpn.train.network.region_head import RegionHead

ALL_CLASSES = ("*",)
"""`ModelConfig.classes` before a training has read the names of the classes in its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of the network."""

    backbone: str = "edge"
    """`edge`, `resnet18`, `resnet34`, `resnet50`, `vgg16`, `mobilenet_v3_large`, or `timm:NAME` (package timm)."""
    stage_channels: tuple[int, ...] = (16, 32, 48, 88, 128, 128)
    """edge: channels of the stages at strides 2, 4, 8, 16, 32, 64."""
    stage_blocks: tuple[int, ...] = (0, 0, 1, 2, 2, 2)
    """edge: residual blocks of each stage after its strided convolution."""
    neck_channels: int = 48
    """Channels of the top-down feature pyramid (arXiv:1612.03144); 0: no pyramid, as in the paper."""
    neck_bottom_up: bool = True
    """Add a bottom-up path after the pyramid's top-down path (arXiv:1803.01534, section 3.1)."""
    neck_output_conv: bool = False
    """Add a 3x3 convolution to every output level of the pyramid."""
    neck_extra_levels: int = 0
    """Levels that the pyramid adds after the backbone's coarsest, each with every second cell of the level before. If
    the backbone (other than timm's) ends before the coarsest stride, the pyramid adds at least the missing ones."""
    head_channels: int = 48
    """Channels of the 3x3 sliding-window convolution, shared by all levels."""
    head_norm: bool = True
    """Batch norm after the sliding-window convolution, one per level; not in the paper."""
    objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    """One logit per anchor (`sigmoid`), or two with softmax, as in the paper."""
    prior_score: float = 0.01
    """Score of every anchor before training, 0..1 (arXiv:1708.02002, section 4.1)."""
    mean_bgr: tuple[float, float, float] = (103.53, 116.28, 123.675)
    """Mean of each channel, which is subtracted, 0..255 scale; default: ImageNet."""
    std_bgr: tuple[float, float, float] = (57.375, 57.12, 58.395)
    """Standard deviation of each channel, the divisor, 0..255 scale; default: ImageNet."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchors of every level."""
    classes: tuple[str, ...] = ()
    """Names of the classes that a second stage gives to the proposals; `["*"]`: those of the objects in the training
    set; empty: no second stage."""
    region_channels: int = 256
    """Width of the hidden layers of the second stage."""

    def __post_init__(self) -> None:
        is_known = self.backbone in NAMES or self.backbone.startswith("timm:")
        check_setting(is_known, "backbone", EXPECTED, self.backbone)
        if len(self.stage_channels) != len(self.stage_blocks) or min(self.stage_channels, default=0) < 1:
            raise ValueError(
                f"stage_channels: expected one positive number for each of stage_blocks, got {self.stage_channels} "
                f"and {self.stage_blocks}"
            )
        if self.neck_channels < 0 or self.head_channels < 1:
            raise ValueError("neck_channels: expected at least 0, and head_channels at least 1")
        if (self.neck_output_conv or self.neck_extra_levels) and not self.neck_channels:
            raise ValueError("neck_output_conv, neck_extra_levels: need a pyramid, got neck_channels 0")
        extra = self.num_extra_levels
        if not 0 <= extra < len(self.anchors.strides_px):
            raise ValueError(
                f"neck_extra_levels: expected fewer than the levels of anchors.strides_px {self.anchors.strides_px}, "
                f"got {extra}"
            )
        start = len(self.anchors.strides_px) - extra
        if any(b != 2 * a for a, b in pairwise(self.anchors.strides_px[start - 1 :])):
            raise ValueError(
                f"neck_extra_levels: expected each of the last {extra} of anchors.strides_px to be "
                f"twice the one before, got {self.anchors.strides_px}"
            )
        check_setting(len({*self.classes, ""}) == len(self.classes) + 1, "classes", "different names", self.classes)
        check_setting(self.region_channels >= 1, "region_channels", "at least 1", self.region_channels)
        check_setting(0 < self.prior_score < 1, "prior_score", "a number between 0 and 1", self.prior_score)
        check_setting(min(self.std_bgr) > 0, "std_bgr", "positive numbers", self.std_bgr)

    @property
    def num_extra_levels(self) -> int:
        """Number of levels that the pyramid adds after the backbone's coarsest."""
        if not self.neck_channels:
            return self.neck_extra_levels
        end = COARSEST_STRIDE_PX.get(self.backbone, math.inf)
        return max(self.neck_extra_levels, sum(stride > end for stride in self.anchors.strides_px))


class Pyramid(nn.Module):
    """Top-down path: each level is its lateral 1x1 convolution plus the coarser level, upsampled (nearest).

    An optional bottom-up path follows: it adds to each level the finer one through a strided 3x3 convolution, a short
    path from fine positions to the levels of large objects.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        *,
        strides_px: tuple[int, ...],
        output_conv: bool = False,
        extra_levels: int = 0,
        bottom_up: bool = False,
    ) -> None:
        """Creates the layers; `strides_px` are the backbone's, and options as in `ModelConfig`."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        outputs = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in in_channels)
        self.output = nn.ModuleList(outputs) if output_conv else None
        steps = [coarse // fine for fine, coarse in pairwise(strides_px)] if bottom_up else []
        self.down = nn.ModuleList(ConvNormAct(channels, channels, stride=step) for step in steps)
        self.extra_levels = extra_levels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature maps, finest first, to maps of the same sizes, followed by the extra levels."""
        merged: list[Tensor] = []
        for lateral, fine in zip(reversed(self.lateral), reversed(maps), strict=True):
            x = lateral(fine)
            if merged:
                x = x + _upsample(merged[0], (x.shape[-2], x.shape[-1]))
            merged.insert(0, x)
        levels = merged
        if self.output is not None:
            levels = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        for index, conv in enumerate(self.down):
            levels[index + 1] = levels[index + 1] + conv(levels[index])
        for _ in range(self.extra_levels):
            # A window of one cell just takes every second cell, as a layer that every compiler supports.
            levels.append(functional.max_pool2d(levels[-1], 1, 2))
        return levels


def _upsample(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Upsamples to `hw` by nearest neighbour; a factor of 2 is exact unless the finer map has an odd size."""
    if (x.shape[-2], x.shape[-1]) == hw:
        return x
    if (x.shape[-2] * 2, x.shape[-1] * 2) == hw:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return functional.interpolate(x, size=hw, mode="nearest")


class RpnHead(nn.Module):
    """The sliding window, shared by all levels: a 3x3 convolution, then 1x1 convolutions to objectness and deltas."""

    def __init__(self, in_channels: int, config: ModelConfig) -> None:
        """Creates outputs for `config.anchors.num_per_cell` anchors per cell."""
        super().__init__()
        per_cell = config.anchors.num_per_cell
        self.num_logits = 2 if config.objectness == "softmax" else 1
        num_levels = len(config.anchors.strides_px)
        self.window = LevelConv(in_channels, config.head_channels, num_levels, norm=config.head_norm)
        if not config.head_norm:
            nn.init.normal_(self.window.conv.get_parameter("weight"), std=0.01)
        self.objectness = nn.Conv2d(config.head_channels, per_cell * self.num_logits, 1)
        self.deltas = nn.Conv2d(config.head_channels, per_cell * 4, 1)
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
        prior = math.log(config.prior_score / (1 - config.prior_score))
        # With two logits the score is the sigmoid of their difference (object minus background).
        self.objectness.bias = nn.Parameter(
            torch.tensor([0.0] * (self.num_logits - 1) + [prior]).repeat_interleave(per_cell)
        )
        self.deltas.bias = nn.Parameter(torch.zeros(per_cell * 4))

    def forward(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) of a level to logits (N, H*W*A) and deltas (N, H*W*A, 4), A anchors per cell."""
        x = self.window(x, level)
        logits, deltas = self.objectness(x), self.deltas(x)
        if self.num_logits == 2:
            background, foreground = logits.chunk(2, dim=1)
            # softmax over (background, foreground) is the sigmoid of the difference.
            logits = foreground - background
        batch = logits.shape[0]
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1)
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4)
        return logits, deltas


class Rpn(nn.Module):
    """The whole network, from normalised images to logits and deltas of every anchor."""

    mean: Tensor
    """(1, 3, 1, 1) means of the channels, 0..255 scale."""
    std: Tensor
    """(1, 3, 1, 1) deviations of the channels, 0..255 scale."""

    def __init__(self, config: ModelConfig) -> None:
        """Builds the network with random weights (He et al. 2015 initialisation)."""
        super().__init__()
        self.config = config
        self.std_is_folded = False
        strides = config.anchors.strides_px[: len(config.anchors.strides_px) - config.num_extra_levels]
        self.backbone = make_backbone(
            config.backbone, strides, stage_channels=config.stage_channels, stage_blocks=config.stage_blocks
        )
        channels = self.backbone.channels
        self.neck: nn.Module = nn.Identity()
        if config.neck_channels:
            self.neck = Pyramid(
                channels,
                config.neck_channels,
                strides_px=strides,
                output_conv=config.neck_output_conv,
                extra_levels=config.num_extra_levels,
                bottom_up=config.neck_bottom_up,
            )
        elif len(set(channels)) != 1:
            raise ConfigError([f"model.neck_channels: levels of {channels} channels need a pyramid, got 0"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                bias: Tensor | None = module.bias
                if bias is not None:
                    nn.init.zeros_(bias)
        self.head = RpnHead(self.map_channels, config)
        self.region_head: RegionHead | None = None
        if config.classes:
            self.region_head = RegionHead(self.map_channels, len(config.classes), width=config.region_channels)
        self.register_buffer("mean", torch.tensor(config.mean_bgr).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std_bgr).view(1, 3, 1, 1), persistent=False)

    def normalize(self, frames_NHWC: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR to (N, 3, H, W) float32, mean 0 and deviation 1; channels-last in memory."""
        # The cast comes first: TensorRT supports uint8 as a network input only.
        return self.standardize(frames_NHWC.float().permute(0, 3, 1, 2))

    def standardize(self, images_N3HW: Tensor) -> Tensor:
        """Float images in 0..255 to mean 0 and deviation 1."""
        centered = images_N3HW - self.mean
        return centered if self.std_is_folded else centered / self.std

    def fold_std(self) -> None:
        """Divides the weights of the first convolution by the channels' deviation, instead of every image.

        For inference only: the weights no longer match the checkpoint. The mean cannot become a bias, because the
        convolution pads with zeros, which represent the mean.
        """
        first = next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            first.weight.div_(self.std)
        self.std_is_folded = True

    def forward(self, images_N3HW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Normalised images to logits (N, A_level) and deltas (N, A_level, 4) per level, finest first."""
        return self.outputs(self.maps(images_N3HW))

    @property
    def map_channels(self) -> int:
        """C of `maps`."""
        return self.config.neck_channels or self.backbone.channels[0]

    def maps(self, images_N3HW: Tensor) -> list[Tensor]:
        """Normalised images to the feature maps (N, C, H, W) that the head reads, per level, finest first."""
        maps: list[Tensor] = self.neck(self.backbone(images_N3HW))
        return maps

    def outputs(self, maps_NCHW: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Feature maps to the results of `forward`."""
        return [self.head(x, level) for level, x in enumerate(maps_NCHW)]


class RpnWithMaps(nn.Module):
    """The network as training calls it: with the maps, from which a second stage reads features."""

    def __init__(self, model: Rpn) -> None:
        """Wraps `model`, whose weights it shares."""
        super().__init__()
        self.model = model

    def forward(self, images_N3HW: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Normalised images to the results of `Rpn.maps` and `Rpn.forward`."""
        maps = self.model.maps(images_N3HW)
        return maps, self.model.outputs(maps)

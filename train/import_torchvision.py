"""Conversion of torchvision's Faster R-CNN weights: backbone, feature pyramid and RPN become a checkpoint.

It reads state dicts of `fasterrcnn_resnet50_fpn`, `fasterrcnn_mobilenet_v3_large_fpn` (and its 320 variant), of models
on `resnet_fpn_backbone("resnet18")` and `("resnet34")`, and of the mask and keypoint R-CNNs with the same RPN; it
skips the layers after the RPN. It converts these differences:

1. Names; torchvision itself has two generations of them.
2. torchvision's networks take RGB and ours BGR: the input channels of the first convolution are swapped. Our means and
   deviations contain the scaling to 0..1.
3. torchvision orders the anchors of a cell by ratio and ours by size: the head's channels are permuted.
4. The files do not contain the epsilon of the batch norms: the weight of each is scaled so that ours computes the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgerpn.errors import CheckpointError, ConfigError
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.augment import AugmentConfig
from edgerpn.train.data.loader import DataConfig
from edgerpn.train.learning.assign import AssignConfig
from edgerpn.train.learning.loss import LossConfig
from edgerpn.train.network.anchors import AnchorConfig
from edgerpn.train.network.model import ModelConfig, Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig
from edgerpn.train.network.weights import read_state_dict

RATIOS_HW = (0.5, 1.0, 2.0)
MIRRORED = AugmentConfig(scale_range=(1.0, 1.0), aspect_jitter=0.0, color_probability=0.0, mosaic_probability=0.0)
"""The augmentation of torchvision's reference training."""
PYRAMID_SIZES_PX = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
MOBILE_SIZES_PX = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3
RESNET_STRIDES_PX, MOBILE_STRIDES_PX = (4, 8, 16, 32, 64), (32, 32, 64)

DEFAULT_HW = (800, 1344)
"""torchvision scales the shorter side to 800 as long as the longer stays below 1333, and pads to multiples of 32."""

LIKELY = "Expected the state dict of torchvision's fasterrcnn_resnet50_fpn or fasterrcnn_mobilenet_v3_large_fpn"


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchvisionArchitecture:
    """Properties of a network that its state dict does not contain."""

    backbone: str
    """Name of our backbone."""
    strides_px: tuple[int, ...]
    """Strides of the levels; the last level is subsampled from the one before."""
    sizes_px: tuple[tuple[float, ...], ...]
    """Anchor sizes of the levels."""
    body: str
    """Prefix of the backbone's names in our checkpoints, instead of torchvision's `backbone.body.`."""
    score_threshold: float = 0.0
    """Score below which proposals are dropped at test time, 0..1."""


ARCHITECTURES = {
    **{
        f"{name}_fpn": TorchvisionArchitecture(
            backbone=name, strides_px=RESNET_STRIDES_PX, sizes_px=PYRAMID_SIZES_PX, body="backbone."
        )
        for name in ("resnet18", "resnet34", "resnet50")
    },
    "mobilenet_v3_large_fpn": TorchvisionArchitecture(
        backbone="mobilenet_v3_large",
        strides_px=MOBILE_STRIDES_PX,
        sizes_px=MOBILE_SIZES_PX,
        body="backbone.features.",
        score_threshold=0.05,
    ),
}
"""By torchvision's names, without `fasterrcnn_`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedModel:
    """Result of `import_torchvision`."""

    checkpoint: Checkpoint
    """Ready to save, evaluate or export."""
    architecture: str
    """Key of `ARCHITECTURES`."""
    norm_eps: float
    """Epsilon assumed for the source's batch norms."""
    num_parameters: int
    """Number of parameters of backbone, pyramid and head."""


def import_torchvision(
    file: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    input_hw: tuple[int, int] = DEFAULT_HW,
    norm_eps: float | None = None,
) -> ImportedModel:
    """Reads a state dict of torchvision and returns the network with the same proposals.

    Args:
        file: Written by `torch.save(model.state_dict(), file)`, or .safetensors; no code from it runs.
        architecture: Key of `ARCHITECTURES`; None: read from the names in the file.
        input_hw: Height and width at which the network will work, pixels.
        norm_eps: Epsilon of the source's batch norms; None: as in torchvision, 0 for its published resnet50 weights
            (frozen norms and the older names), otherwise 1e-5.

    Raises:
        CheckpointError: The file cannot be read, or belongs to another network.
        ConfigError: `input_hw` is smaller than a cell of the coarsest level.
    """
    path = Path(file)
    source, is_old = _with_new_names(read_state_dict(path))
    name = architecture or _guess(source, path)
    shape = ARCHITECTURES[name]
    if norm_eps is None:
        is_frozen = not any(key.endswith("num_batches_tracked") for key in source)
        norm_eps = 0.0 if is_old and is_frozen and shape.backbone == "resnet50" else 1e-5
    try:
        settings = import_settings(shape, input_hw)
    except ValueError as error:
        raise ConfigError([f"--size (input_hw): {error}"]) from error
    model = Rpn(settings.model)
    origins = _origins(model, shape)
    _check(source, origins, model, name, path)
    weights = {own: source[origin].float() for own, origin in origins.items() if origin in source}
    model.load_state_dict(weights, strict=False)
    _convert(model, norm_eps)
    return ImportedModel(
        checkpoint=Checkpoint(settings=settings, weights=model.state_dict(), step=0),
        architecture=name,
        norm_eps=norm_eps,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def import_settings(shape: TorchvisionArchitecture, input_hw: tuple[int, int]) -> TrainSettings:
    """Returns our settings for torchvision's network, its proposal stage at test time, and its training rules."""
    anchors = AnchorConfig(
        strides_px=shape.strides_px,
        sizes_px=shape.sizes_px,
        ratios_hw=RATIOS_HW,
        center_offset=0.0,
        rounding="corners",
        spacing="grid",
    )
    model = ModelConfig(
        backbone=shape.backbone,
        neck_channels=256,
        neck_output_conv=True,
        neck_extra_levels=1,
        neck_bottom_up=False,
        head_channels=256,
        head_norm=False,
        prior_score=0.5,
        anchors=anchors,
    )
    return TrainSettings(
        model=model,
        assign=AssignConfig(kind="max_iou", samples_per_image=256),
        loss=LossConfig(objectness="bce", box="smooth_l1", smooth_l1_beta=1 / 9, box_weight=1.0),
        proposals=ProposalConfig(
            num_proposals=1000,
            pre_nms=1000,
            nms_iou=0.7,
            soft_nms_iou=1.0,
            min_size_px=1e-3,
            score_threshold=shape.score_threshold,
        ),
        data=DataConfig(input_hw=input_hw, view_sides_px=(), augment=MIRRORED),
    )


def _with_new_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Returns the state dict with the names of torchvision 0.13 and later, and whether it had the older ones."""
    new, is_old = {}, False
    for key, value in state.items():
        name = key.removeprefix("module.")
        for block in ("inner_blocks", "layer_blocks"):
            start = f"backbone.fpn.{block}."
            parts = name.removeprefix(start).split(".")
            if name.startswith(start) and len(parts) == 2:
                name, is_old = f"{start}{parts[0]}.0.{parts[1]}", True
        if name in ("rpn.head.conv.weight", "rpn.head.conv.bias"):
            name, is_old = name.replace("conv.", "conv.0.0."), True
        new[name] = value
    return new, is_old


def _guess(state: Mapping[str, Tensor], path: Path) -> str:
    """Returns the architecture, from names that only one of them has.

    Raises:
        CheckpointError: No architecture fits.
    """
    if "rpn.head.cls_logits.weight" not in state or not any(key.startswith("backbone.fpn.") for key in state):
        found = next(iter(state), "nothing")
        raise CheckpointError(f"{path}: not a feature pyramid with an RPN (its first tensor is {found!r}). {LIKELY}.")
    if "backbone.body.16.0.weight" in state:
        return "mobilenet_v3_large_fpn"
    if "backbone.body.layer1.0.conv3.weight" in state:
        return "resnet50_fpn"
    if "backbone.body.layer1.0.conv1.weight" in state:
        return "resnet34_fpn" if "backbone.body.layer3.5.conv1.weight" in state else "resnet18_fpn"
    raise CheckpointError(f"{path}: its backbone is not one of {', '.join(ARCHITECTURES)}. {LIKELY}.")


def _origins(model: Rpn, shape: TorchvisionArchitecture) -> dict[str, str]:
    """Returns torchvision's name for each of our names."""
    prefixes = {
        "neck.lateral.": ("backbone.fpn.inner_blocks.", ".0."),
        "neck.output.": ("backbone.fpn.layer_blocks.", ".0."),
        "head.window.conv.": ("rpn.head.conv.0.0.", "."),
        "head.objectness.": ("rpn.head.cls_logits.", "."),
        "head.deltas.": ("rpn.head.bbox_pred.", "."),
        shape.body: ("backbone.body.", "."),
    }
    origins = {}
    for own in model.state_dict():
        ours, (theirs, dot) = next((ours, rule) for ours, rule in prefixes.items() if own.startswith(ours))
        origins[own] = theirs + own.removeprefix(ours).replace(".", dot)
    return origins


def _check(state: Mapping[str, Tensor], origins: Mapping[str, str], model: Rpn, name: str, path: Path) -> None:
    """Checks that the file has exactly this network's tensors, up to the end of the RPN, with their shapes.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or is surplus.
    """
    what = f"{path}: not torchvision's fasterrcnn_{name}"
    missing = [o for o in origins.values() if o not in state and not o.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(f"{what}: {len(missing)} of {len(origins)} tensors are missing, first {missing[0]!r}")
    for own, tensor in model.state_dict().items():
        found = state.get(origins[own])
        if found is not None and found.shape != tensor.shape:
            raise CheckpointError(
                f"{what} with its own anchors: {origins[own]!r} has shape {tuple(found.shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
    known = set(origins.values())
    surplus = [key for key in state if key.startswith(("backbone.", "rpn.")) and key not in known]
    if surplus:
        raise CheckpointError(f"{what}: unexpected tensor {surplus[0]!r} and {len(surplus) - 1} more")


def _convert(model: Rpn, norm_eps: float) -> None:
    """Steps 2 to 4 of the module docstring, in place."""
    sizes, ratios = len(model.config.anchors.sizes_px[0]), len(model.config.anchors.ratios_hw)
    # The anchor of ratio r and size s is number r * sizes + s there and s * ratios + r here.
    order = torch.arange(ratios * sizes).view(ratios, sizes).t().reshape(-1)
    with torch.no_grad():
        first = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
        first.weight.copy_(first.weight.flip(1))
        for layer, outputs in ((model.head.objectness, 1), (model.head.deltas, 4)):
            for parameter in layer.parameters():
                by_anchor = parameter.view(ratios * sizes, outputs, *parameter.shape[1:])
                parameter.copy_(by_anchor[order].reshape(parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                variance = module.running_var.double()
                module.weight.mul_(((variance + module.eps) / (variance + norm_eps)).sqrt())

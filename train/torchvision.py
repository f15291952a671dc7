"""Our backbone and proposals inside torchvision's detectors: GeneralizedRCNN, FasterRCNN, MaskRCNN and the like.

Such a detector is a transform, a backbone, an RPN and RoI heads. `as_rpn` returns backbone and RPN, and options of the
transform with which the network sees the pixels that it sees in a `Detector`:

1. torchvision normalises RGB in 0..1, and the network takes BGR: the backbone reverses the channels.
2. torchvision pads with zeros after it subtracts the mean, `Detector` with grey before: the mean of the options is that
   grey, and the backbone adds its difference from the network's mean.
3. Both scale a picture to fit and pad it at the right and at the bottom, here to multiples of the coarsest stride.

This module needs torch only: it follows torchvision's interfaces and does not import it.

Legend of shape suffixes: N images, C channels, H and W rows and columns, A anchors, G ground-truth boxes (padded).
"""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from edgerpn.errors import InputError, check_setting
from edgerpn.letterbox import PAD_VALUE
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.config import TrainSettings
from edgerpn.train.learning.assign import assign, sample
from edgerpn.train.learning.loss import rpn_loss_sums
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import select_proposals


class ImageBatch(Protocol):
    """The part of torchvision's `ImageList` that is used here."""

    tensors: Tensor
    """(N, 3, H, W) float images, normalised and padded."""
    image_sizes: list[tuple[int, int]]
    """Height and width of each image before it was padded, pixels."""


class TorchvisionParts(NamedTuple):
    """Result of `as_rpn`."""

    backbone: PyramidBackbone
    """For the argument `backbone` of a detector."""
    rpn: ProposalRpn
    """For the attribute `rpn` of a detector, or the argument of `GeneralizedRCNN`."""
    transform: dict[str, Any]
    """Arguments of `GeneralizedRCNNTransform`, which `FasterRCNN` and its subclasses accept too."""


def as_rpn(
    checkpoint: str | os.PathLike[str],
    *,
    size_hw: tuple[int, int] | None = None,
    num_proposals: int | None = None,
    frozen_norms: bool = True,
) -> TorchvisionParts:
    """Returns the network of a checkpoint as the parts of a torchvision detector.

        backbone, rpn, transform = as_rpn("general")
        model = FasterRCNN(backbone, num_classes=3, **transform)
        model.rpn = rpn

    Both modules are in training mode and on the CPU, as those that torchvision makes.

    Args:
        checkpoint: A .pt or .safetensors file, or `general`.
        size_hw: Height and width in pixels that a picture is scaled to fit; a portrait fits it on its side. None: the
            size that the checkpoint was trained for.
        num_proposals: The largest number of proposals of an image; None: as in the checkpoint.
        frozen_norms: Keep the batch norms as they are in training too, as torchvision does: the few images of a
            detector's batch give poor statistics.

    Raises:
        CheckpointError: The file is not a checkpoint.
        ValueError: A size or a number is not positive.
    """
    model, loaded = load_model(checkpoint)
    # torchvision has a second stage of its own.
    settings = dataclasses.replace(loaded.settings, model=dataclasses.replace(loaded.settings.model, classes=()))
    if num_proposals is not None:
        proposals = dataclasses.replace(settings.proposals, num_proposals=num_proposals)
        settings = dataclasses.replace(settings, proposals=proposals)
    sides = size_hw or settings.data.input_hw
    check_setting(min(sides) > 0, "size_hw", "a positive height and width in pixels", sides)
    transform = {
        "min_size": min(sides),
        "max_size": max(sides),
        "image_mean": [PAD_VALUE / 255] * 3,
        "image_std": [deviation / 255 for deviation in reversed(settings.model.std_bgr)],
        "size_divisible": max(settings.model.anchors.strides_px),
    }
    backbone = PyramidBackbone(model, frozen_norms=frozen_norms)
    rpn = ProposalRpn(model, settings, frozen_norms=frozen_norms)
    return TorchvisionParts(backbone.train(), rpn.train(), transform)


def as_checkpoint(backbone: PyramidBackbone, rpn: ProposalRpn) -> Checkpoint:
    """Returns the network of two parts, for example after training, with copies of the weights on the CPU.

    `edgerpn.train.checkpoint.save_checkpoint` writes it to a file that every command takes. The settings, the size of
    the input too, are those of the checkpoint that the parts come from; `num_proposals` is that of `as_rpn`.
    """
    state = {**backbone.state_dict(), **rpn.state_dict()}
    weights = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
    return Checkpoint(settings=rpn.settings, weights=weights, step=0)


def as_rois(boxes: Sequence[Tensor | npt.NDArray[np.float32]]) -> Tensor:
    """Returns (K, 5) float32 rows of all images, as `roi_pool` and `roi_align` take them: image, x1, y1, x2, y2.

    Args:
        boxes: (k, 4) x1, y1, x2, y2 of each image, in the order of the batch; at least one image.
    """
    rows = [torch.as_tensor(of_image).float() for of_image in boxes]
    return torch.cat([functional.pad(of_image, (1, 0), value=float(index)) for index, of_image in enumerate(rows)])


class _NormKeeper(nn.Module):
    """Base of both parts: keeps batch norms in eval mode, without gradients, if they are frozen."""

    def __init__(self, *, frozen_norms: bool) -> None:
        super().__init__()
        self.frozen_norms = frozen_norms

    def train(self, mode: bool = True) -> Any:
        """Changes the mode of all modules but frozen norms; returns self."""
        super().train(mode)
        if self.frozen_norms:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(False)
        return self


class PyramidBackbone(_NormKeeper):
    """Backbone and feature pyramid of our network, with the interface of torchvision's `BackboneWithFPN`."""

    shift: Tensor
    """(1, 3, 1, 1) difference of the padding from the network's mean, BGR, in deviations."""

    def __init__(self, model: Rpn, *, frozen_norms: bool) -> None:
        """Takes the modules of `model`, which share their weights with it."""
        super().__init__(frozen_norms=frozen_norms)
        self.backbone, self.neck = model.backbone, model.neck
        self.out_channels = model.config.neck_channels or model.backbone.channels[0]
        """C, the channels of every level."""
        self.register_buffer("shift", (PAD_VALUE - model.mean) / model.std, persistent=False)

    def forward(self, images_N3HW: Tensor) -> OrderedDict[str, Tensor]:
        """Images of torchvision's transform to (N, C, H / stride, W / stride) of each level, "0" the finest."""
        maps = self.neck(self.backbone(images_N3HW.flip(1) + self.shift))
        return OrderedDict((str(level), x) for level, x in enumerate(maps))


class ProposalRpn(_NormKeeper):
    """Head, proposal stage and losses of our network, with the interface of torchvision's `RegionProposalNetwork`."""

    def __init__(self, model: Rpn, settings: TrainSettings, *, frozen_norms: bool) -> None:
        """Takes the head of `model`, which shares its weights, and the rules for anchors, losses and proposals."""
        super().__init__(frozen_norms=frozen_norms)
        self.head = model.head
        self.in_channels = model.config.neck_channels or model.backbone.channels[0]
        self.settings = settings

    def forward(
        self,
        images: ImageBatch,
        features: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposes boxes, and in training mode computes the losses of the checkpoint's settings.

        Args:
            images: A torchvision `ImageList`.
            features: Maps of the backbone, finest first.
            targets: In training mode one for each image; `boxes` (g, 4) x1, y1, x2, y2 in pixels of `images`.

        Returns:
            Proposals (k, 4) float32 of each image, best first, in pixels of `images` and inside the picture, without a
            gradient; and `loss_objectness` and `loss_rpn_box_reg`, weighted as our training adds them, or nothing in
            eval mode.

        Raises:
            InputError: The size of the images does not fit the network, or the maps come from another backbone.
            ValueError: No targets in training mode.
        """
        image_hw = (images.tensors.shape[-2], images.tensors.shape[-1])
        self._check(image_hw, features)
        levels = [self.head(x, level) for level, x in enumerate(features.values())]
        device = images.tensors.device
        anchors = [level.to(device) for level in grid_anchors(self.settings.model.anchors, image_hw)]
        losses = self._losses(levels, anchors, targets, image_hw) if self.training else {}
        return self._propose(levels, anchors, images.image_sizes), losses

    def _check(self, image_hw: tuple[int, int], features: Mapping[str, Tensor]) -> None:
        anchors = self.settings.model.anchors
        misfit = anchors.misfit(image_hw)
        if misfit is not None:
            raise InputError(
                f"images: {misfit}, got {image_hw[0]}x{image_hw[1]}; give the detector the options of its transform "
                "that as_rpn returns: FasterRCNN(backbone, num_classes, **transform)"
            )
        expected = [(self.in_channels, *hw) for hw in anchors.level_hw(image_hw)]
        found = [tuple(x.shape[1:]) for x in features.values()]
        if found != expected:
            raise InputError(
                f"features: expected maps of {expected} (C, H, W) for images of {image_hw[0]}x{image_hw[1]}, got "
                f"{found}; use the backbone that as_rpn returned with this RPN"
            )

    @torch.no_grad()
    def _propose(
        self, levels: list[tuple[Tensor, Tensor]], anchors: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Runs the proposal stage image by image, because each has a size of its own."""
        boxes = []
        for index, size_hw in enumerate(image_sizes):
            part = slice(index, index + 1)
            batch = select_proposals(
                [(logits_NA[part], deltas_NA4[part]) for logits_NA, deltas_NA4 in levels],
                anchors,
                content_hw=size_hw,
                config=self.settings.proposals,
            )
            boxes.append(batch.boxes[0, : int(batch.count)])
        return boxes

    def _losses(
        self,
        levels: list[tuple[Tensor, Tensor]],
        anchors: list[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None,
        image_hw: tuple[int, int],
    ) -> dict[str, Tensor]:
        if targets is None:
            raise ValueError("targets: expected boxes of each image in training mode; call eval() for proposals alone")
        gt_boxes_NG4, gt_mask_NG = _pad([target["boxes"] for target in targets])
        no_regions_N04 = gt_boxes_NG4[:, :0]
        assignment = assign(
            anchors,
            gt_boxes_NG4,
            gt_mask_NG,
            no_regions_N04,
            gt_mask_NG[:, :0],
            image_hw=image_hw,
            config=self.settings.assign,
        )
        # torchvision draws its samples from the global generator, so that torch.manual_seed decides about them.
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator(gt_boxes_NG4.device).manual_seed(seed)
        sampled_NA = sample(assignment.labels_NA, config=self.settings.assign, generator=generator)
        logits_NA, deltas_NA4 = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        config = self.settings.loss
        sums = rpn_loss_sums(
            logits_NA, deltas_NA4, torch.cat(anchors), assignment, sampled_NA, gt_boxes_NG4, config=config
        )
        normalizer = sums.normalizer.clamp(min=1)
        return {
            "loss_objectness": sums.objectness / normalizer,
            "loss_rpn_box_reg": config.box_weight * sums.box / normalizer,
        }


def _pad(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads (g, 4) boxes of N images to (N, G, 4) float32, G at least 1, with a mask (N, G) of the real ones."""
    counts_N1 = torch.tensor([[len(rows)] for rows in boxes])
    padded_NG4 = pad_sequence([functional.pad(rows.float(), (0, 0, 0, 1)) for rows in boxes], batch_first=True)
    mask_NG = torch.arange(padded_NG4.shape[1]) < counts_N1
    return padded_NG4, mask_NG.to(padded_NG4.device)

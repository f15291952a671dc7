"""The whole detector as one module: uint8 frames in, proposals in frame pixels out.

Evaluation runs it, and the export converts it to a graph, with another form of the NMS. Its interface is that of the
graph (see `edgerpn.manifest`).

Legend of shape suffixes: N frames, H and W rows and columns, C channels, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgerpn.errors import InputError
from edgerpn.letterbox import PAD_VALUE, Letterbox, letterbox
from edgerpn.proposals import Proposals
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.boxes import clip_boxes, row_xyxy
from edgerpn.train.network.class_stage import classify_proposals
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalBatch, ProposalConfig, select_proposals
from edgerpn.train.network.region_features import RoiForm, cell_embeddings, roi_align


class Detector(nn.Module):
    """Normalisation, network, proposal stage and, with classes, class stage; with fixed shapes throughout."""

    def __init__(
        self,
        model: Rpn,
        proposals: ProposalConfig,
        *,
        network_hw: tuple[int, int],
        source_hw: tuple[int, int] | None = None,
        num_channels: Literal[3, 4] = 3,
        nms: Literal["standard", "portable"] = "standard",
        embeddings: bool = False,
        roi_hw: tuple[int, int] | None = None,
        roi_form: RoiForm = "table",
    ) -> None:
        """Wraps `model`, which the caller still owns.

        Args:
            model: The network, in eval mode.
            proposals: Counts and thresholds of the proposal stage.
            network_hw: Height and width of the network's input, pixels.
            source_hw: Height and width of the frames if the module scales them; None if frames are already letterboxed
                to `network_hw`.
            num_channels: 3 for BGR frames, 4 for BGRx, whose last channel is ignored.
            nms: Form of the NMS, see `edgerpn.train.network.proposal_stage.select_proposals`.
            embeddings: Whether the proposals come with the features of their cells.
            roi_hw: Rows and columns of the features that each box is pooled to; None: none.
            roi_form: Form of the pooling, also that for the classes; see `roi_align`.
        """
        super().__init__()
        self.model = model
        self.proposals = proposals
        self.network_hw = network_hw
        self.frame_shape = (*(source_hw or network_hw), num_channels)
        self.nms: Literal["standard", "portable"] = nms
        self.embeddings = embeddings
        self.roi_hw = roi_hw
        self.roi_form: RoiForm = roi_form
        self.geometry: Letterbox | None = letterbox(source_hw, network_hw) if source_hw else None
        self.content_hw = self.geometry.content_hw if self.geometry else network_hw
        self.num_levels = len(model.config.anchors.strides_px)
        for level, anchors in enumerate(grid_anchors(model.config.anchors, network_hw)):
            self.register_buffer(f"anchors_{level}", anchors, persistent=False)

    def forward(self, frames_NHWC: Tensor) -> ProposalBatch:
        """(N, H, W, C) uint8 BGR frames to proposals in frame pixels, with features if asked for, without anchors."""
        maps = self.model.maps(self._to_network(frames_NHWC))
        anchors = [self.get_buffer(f"anchors_{level}") for level in range(self.num_levels)]
        batch = select_proposals(
            self.model.outputs(maps),
            anchors,
            content_hw=self.content_hw,
            config=self.proposals,
            nms=self.nms,
            tracks_anchors=self.embeddings,
        )
        if self.model.region_head is not None:
            batch = classify_proposals(
                batch,
                maps,
                self.model.region_head,
                strides_px=self.model.config.anchors.strides_px,
                content_hw=self.content_hw,
                config=self.proposals,
                nms=self.nms,
                roi_form=self.roi_form,
            )
        batch = self._described(batch, maps)
        if self.geometry is None:
            return batch
        boxes = batch.boxes / row_xyxy(batch.boxes, *self.geometry.scale_xy)
        return batch._replace(boxes=clip_boxes(boxes, self.geometry.source_hw))

    def _described(self, batch: ProposalBatch, maps: list[Tensor]) -> ProposalBatch:
        """Adds the features of the boxes, which are in pixels of the network's input."""
        anchors = self.model.config.anchors
        if batch.anchors is not None:
            embeddings = cell_embeddings(maps, batch.anchors, num_per_cell=anchors.num_per_cell)
            batch = batch._replace(anchors=None, embeddings=embeddings)
        if self.roi_hw is not None:
            features = roi_align(maps, batch.boxes, anchors.strides_px, output_hw=self.roi_hw, form=self.roi_form)
            # Proposals have an area, rows beyond the count do not.
            is_box = (batch.boxes[..., 2] > batch.boxes[..., 0]).to(torch.float32)[..., None, None, None]
            batch = batch._replace(features=features * is_box)
        return batch

    def network_levels(self, frames_NHWC: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(N, H, W, C) uint8 BGR frames to logits and deltas per level, the input of the proposal stage."""
        levels: list[tuple[Tensor, Tensor]] = self.model(self._to_network(frames_NHWC))
        return levels

    def _to_network(self, frames_NHWC: Tensor) -> Tensor:
        """Frames to normalised images of `network_hw`, letterboxed if the frames have another size."""
        # The cast comes first: TensorRT supports uint8 as a network input only.
        images = frames_NHWC.float().permute(0, 3, 1, 2)
        if self.frame_shape[2] == 4:
            images = images[:, :3]
        if self.geometry is None:
            return self.model.standardize(images)
        if self.geometry.content_hw != self.geometry.source_hw:
            images = functional.interpolate(images, size=self.content_hw, mode="bilinear", align_corners=False)
        bottom = self.network_hw[0] - self.content_hw[0]
        right = self.network_hw[1] - self.content_hw[1]
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), value=float(PAD_VALUE))
        return self.model.standardize(images)


def detect(detector: Detector, frame: npt.NDArray[np.uint8]) -> Proposals:
    """Runs one frame of any size; the rest is as in `detect_batch`."""
    return detect_batch(detector, [frame])[0]


@torch.inference_mode()
def detect_batch(detector: Detector, frames: Sequence[npt.NDArray[np.uint8]]) -> list[Proposals]:
    """Runs frames of any sizes through a detector without a fixed source size, together.

    Args:
        detector: In eval mode, on any device.
        frames: (H, W, 3) uint8 BGR each; at least one.

    Returns:
        The proposals of each frame, without boxes that lie entirely in the padding.

    Raises:
        InputError: A frame is not (H, W, 3) uint8.
    """
    import cv2  # late: the network itself needs PyTorch only

    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise InputError(f"frame: expected (H, W, 3) uint8 BGR, got shape {frame.shape} and dtype {frame.dtype}")
    geometries = [letterbox((frame.shape[0], frame.shape[1]), detector.network_hw) for frame in frames]
    images = [
        torch.from_numpy(geometry.apply(frame, cv2.resize)) for geometry, frame in zip(geometries, frames, strict=True)
    ]
    device = detector.get_buffer("anchors_0").device
    batch = detector(torch.stack(images).to(device))
    names = detector.model.config.classes
    columns = {"scores": batch.scores, "labels": batch.labels, "class_scores": batch.class_scores}
    arrays = {name: column.cpu().numpy() for name, column in columns.items() if column is not None}
    found = []
    for row, (geometry, boxes, count) in enumerate(
        zip(geometries, batch.boxes.cpu().numpy(), batch.count.tolist(), strict=True)
    ):
        values = {name: array[row, :count] for name, array in arrays.items()}
        proposals = Proposals(geometry.to_frame(boxes[:count]), class_names=names, **values)
        is_visible = (proposals.boxes[:, 2] > proposals.boxes[:, 0]) & (proposals.boxes[:, 3] > proposals.boxes[:, 1])
        found.append(proposals[is_visible])
    return found

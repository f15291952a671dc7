"""From a trained network to the module that is exported: same numbers, fewer operations."""

from __future__ import annotations

import copy

from edgerpn.errors import ExportError
from edgerpn.export.export_config import ExportConfig
from edgerpn.targets import TOPK_LIMIT
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig


def proposal_config(checkpoint: Checkpoint, config: ExportConfig) -> ProposalConfig:
    """The proposal stage of the graph: the checkpoint's settings with those that the export sets.

    Raises:
        ExportError: A count is beyond what the target can do.
    """
    trained = checkpoint.settings.proposals
    if config.target != "onnxruntime":
        flags = {"pre_nms": "--pre-nms ", "num_proposals": "--proposals ", "nms_candidates": "--set nms_candidates="}
        for name, flag in flags.items():
            count = getattr(config, name)
            if isinstance(count, int) and count > TOPK_LIMIT:
                raise ExportError(
                    f"{name}: {config.target} takes at most the best {TOPK_LIMIT} of a list, got {count}; use "
                    f"{flag}{TOPK_LIMIT} or less"
                )
    return ProposalConfig(
        num_proposals=config.num_proposals,
        pre_nms=config.pre_nms,
        nms_iou=trained.nms_iou if config.nms_iou is None else config.nms_iou,
        soft_nms_iou=trained.soft_nms_iou if config.soft_nms_iou is None else config.soft_nms_iou,
        nms_scope=trained.nms_scope,
        score_threshold=trained.score_threshold if config.score_threshold is None else config.score_threshold,
        min_size_px=trained.min_size_px,
        nms_iterations=trained.nms_iterations,
    )


def network_hw(checkpoint: Checkpoint, config: ExportConfig) -> tuple[int, int]:
    """Height and width that the exported network works at.

    Raises:
        ExportError: A side is not a multiple of the coarsest stride, so that pyramid levels would not line up.
    """
    hw = config.network_hw or checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ExportError(f"network size {hw[0]}x{hw[1]}: {misfit}")
    return hw


def export_module(model: Rpn, proposals: ProposalConfig, config: ExportConfig, hw: tuple[int, int]) -> Detector:
    """The detector to export, made from a copy of `model`.

    1. Batch norms are folded into the convolutions before them.
    2. The division by the channels' standard deviation is folded into the first convolution.
    """
    exported = copy.deepcopy(model).eval()
    fuse_batch_norm(exported)
    exported.fold_std()
    detector = Detector(exported, proposals, network_hw=hw, source_hw=config.source_hw, nms=config.resolved_nms)
    return detector.eval()

"""Parity: an exported graph and its network must give the same proposals on real images.

Proposals are matched one to one: the same box (IoU at least 0.99) with the same score (within 1e-3). Where a decision
falls within rounding, either answer is right: the report counts such proposals separately, see
`edgerpn.export.onnx.agreement`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from edgerpn.errors import ParityError
from edgerpn.export.onnx.agreement import (
    FrameAgreement,
    FrameProposals,
    ProposalThresholds,
    describe_disagreement,
    level_cut_scores,
    pair_proposals,
    valid_rows,
)
from edgerpn.export.photographs import read_photograph
from edgerpn.files import native_path
from edgerpn.images.header import Exif
from edgerpn.manifest.parts import ParitySpec
from edgerpn.matching import EXACT, other_class_share, pair_classes, pair_cosines, unlike_share
from edgerpn.progress import track
from edgerpn.proposals import Outputs
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.proposal_stage import select_proposals

NAMES = ("PyTorch", "the graph")
_MANY_TIES = 4
"""Names of the two sides in errors."""


def check_parity(
    reference: Detector, graph_file: Path, images: Sequence[Path], *, batch: int | None, exif: Exif = "ignore"
) -> ParitySpec:
    """Compares an ONNX file with the network; returns the entry for its manifest.

    Args:
        reference: The network with exact NMS, in eval mode, with the same sizes and counts as the graph.
        graph_file: The ONNX file.
        images: Photographs; each is letterboxed into the graph's input.
        batch: Fixed batch size of the graph, or None when it takes any: then 1 and 2 are compared.
        exif: Reading of the photographs.

    Raises:
        ParityError: They disagree; the message names the image and the worst pair. Or nothing was proposed.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with native_path(graph_file) as native:
        session = onnxruntime.InferenceSession(native, options, providers=["CPUExecutionProvider"])
    frames = [read_photograph(image, reference.frame_shape, exif) for image in images]
    batch_sizes = (batch,) if batch else (1, 2)
    scale_xy = reference.geometry.scale_xy if reference.geometry else (1.0, 1.0)
    has_classes = reference.model.region_head is not None
    thresholds = ProposalThresholds.of(reference.proposals, has_classes=has_classes, scale_xy=scale_xy)
    counter = _ParityCounter(thresholds, has_classes=has_classes)
    for size in batch_sizes:
        starts = range(0, len(frames), size)
        for start in track(starts, f"parity, batch {size}", unit="batch"):
            # Images from the beginning fill the last batch, so that every image takes part.
            indices = [(start + i) % len(frames) for i in range(size)]
            stack = np.stack([frames[i] for i in indices])
            expected, cut_scores = run_reference(reference, stack)
            names = list(expected.present)
            found = Outputs(**dict(zip(names, session.run(names, {"frames": stack}), strict=True)))
            for row, i in enumerate(indices):
                where = f"{images[i].name}, batch {size}"
                rows = valid_rows(expected, row, where), valid_rows(found, row, where)
                agreement = counter.add(*rows, where, cut_scores=cut_scores[row])
                counter.add_cosines(pair_cosines(expected, found, row, agreement.pairs))
                counter.add_classes(pair_classes(expected, found, row, agreement.pairs, EXACT))
    report = counter.report(len(images), batch_sizes)
    if not report.num_matched:
        raise ParityError(
            f"neither PyTorch nor the graph proposes anything on any of {len(images)} images, so nothing was compared. "
            "Either no score reaches the score threshold (--set score_threshold=0 keeps all boxes), or the weights are "
            "dead: see the model's recall with `edgerpn eval`, and train again"
        )
    return report


def run_reference(reference: Detector, frames: np.ndarray) -> tuple[Outputs, list[tuple[float, ...]]]:
    """Runs a network on frames (N, H, W, C) uint8.

    Returns:
        What a graph would return, and for each frame the scores at the cuts: before NMS, and with
        soft NMS after the boxes that are rescored.
    """
    levels: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: torch.nn.Module, __: object, level: tuple[torch.Tensor, torch.Tensor]) -> None:
        levels.append(level)

    device = reference.get_buffer("anchors_0").device
    hook = reference.model.head.register_forward_hook(keep)
    try:
        with torch.inference_mode():
            batch = reference(torch.from_numpy(frames).to(device))
            found = {name: array for name, array in batch._asdict().items() if array is not None}
            outputs = Outputs(**{name: array.cpu().numpy() for name, array in found.items() if name != "anchors"})
            behind = _rescoring_cuts(reference, levels)
    finally:
        hook.remove()
    logits = [level.float().cpu().numpy() for level, _ in levels]
    pre_nms = reference.proposals.pre_nms
    before = [level_cut_scores([level[row] for level in logits], pre_nms) for row in range(len(frames))]
    return outputs, [first + second for first, second in zip(before, behind, strict=True)]


def _rescoring_cuts(reference: Detector, levels: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[float, ...]]:
    """For each frame the score of the last box that soft NMS rescores, where there are more boxes."""
    config = reference.proposals
    num_frames = len(levels[0][0])
    if config.soft_nms_iou == 1:
        return [()] * num_frames
    hard = dataclasses.replace(config, num_proposals=config.num_kept, soft_nms_iou=1.0)
    anchors = [reference.get_buffer(f"anchors_{level}") for level in range(reference.num_levels)]
    kept = select_proposals(levels, anchors, content_hw=reference.content_hw, config=hard)
    is_full = (kept.count == hard.num_proposals).tolist()
    return [(float(scores[-1]),) if full else () for scores, full in zip(kept.scores, is_full, strict=True)]


class _ParityCounter:
    """Counts matches over images."""

    def __init__(self, thresholds: ProposalThresholds, *, has_classes: bool = False) -> None:
        self._thresholds = thresholds
        self._has_classes = has_classes
        self.num_matched = 0
        self.num_boundary = 0
        self.num_unexplained = 0
        self.min_iou = 1.0
        self.max_score_difference = 0.0
        self._cosines: list[npt.NDArray[np.float64]] = []
        self._same_class: list[npt.NDArray[np.bool_]] = []
        self._worst: tuple[int, str] = (0, "")
        """Boundary cases of the image that has most, and their description."""

    def add(
        self, expected: FrameProposals, found: FrameProposals, where: str, *, cut_scores: tuple[float, ...] = ()
    ) -> FrameAgreement:
        """Matches the proposals of one image.

        Raises:
            ParityError: A proposal has no counterpart, and no threshold explains it, without classes.
        """
        agreement = pair_proposals(expected, found, EXACT, self._thresholds, cut_scores=cut_scores)
        if agreement.num_unexplained and not self._has_classes:
            raise ParityError(
                f"{where}: the graph and PyTorch disagree. {describe_disagreement(agreement, NAMES, EXACT)}"
                + _describe_ties(expected[1])
            )
        self.num_matched += len(agreement.pairs)
        self.num_boundary += agreement.num_boundary
        self.num_unexplained += agreement.num_unexplained
        num_unmatched = agreement.num_boundary + agreement.num_unexplained
        if num_unmatched > self._worst[0]:
            self._worst = (
                num_unmatched,
                f"most of them on {where}. {describe_disagreement(agreement, NAMES, EXACT)}",
            )
        self.min_iou = min([self.min_iou, *agreement.ious])
        self.max_score_difference = max([self.max_score_difference, *agreement.score_differences])
        return agreement

    def add_cosines(self, cosines: npt.NDArray[np.float64]) -> None:
        """Counts the cosines of the features of matched proposals of one image."""
        self._cosines.append(cosines)

    def add_classes(self, is_same_class: npt.NDArray[np.bool_]) -> None:
        """Counts the matched proposals of one image with the same class."""
        self._same_class.append(is_same_class)

    def report(self, num_images: int, batch_sizes: tuple[int, ...]) -> ParitySpec:
        """Returns the totals as a report.

        Raises:
            ParityError: Too many proposals are at thresholds, or have another class or other features, for this to be
                rounding.
        """
        num_unmatched = self.num_boundary + self.num_unexplained
        total = max(1, self.num_matched + num_unmatched)
        if num_unmatched / total > EXACT.max_unmatched_share:
            raise ParityError(
                f"{num_unmatched} of {total} proposals are in one of graph and PyTorch only, {self.num_boundary} of "
                f"them at a threshold; expected at most {EXACT.max_unmatched_share:.0%}; {self._worst[1]}"
            )
        same_class = np.concatenate([np.zeros(0, np.bool_), *self._same_class])
        share = other_class_share(same_class)
        if share > EXACT.max_unmatched_share:
            raise ParityError(
                f"the class of {share:.1%} of {len(same_class)} proposals, or its score, differs between graph and "
                f"PyTorch; expected at most {EXACT.max_unmatched_share:.0%}"
            )
        cosines = np.concatenate(self._cosines)
        share = unlike_share(cosines, EXACT)
        if share > EXACT.max_unmatched_share:
            raise ParityError(
                f"the features of {share:.1%} of {len(cosines)} proposals differ between graph and PyTorch (cosine "
                f"below {EXACT.min_cosine}); expected at most {EXACT.max_unmatched_share:.0%}"
            )
        return ParitySpec(
            reference="checkpoint",
            num_images=num_images,
            batch_sizes=batch_sizes,
            num_matched=self.num_matched,
            num_boundary=self.num_boundary,
            num_unexplained=self.num_unexplained,
            min_iou=round(self.min_iou, 6),
            max_score_difference=float(f"{self.max_score_difference:.3g}"),
            min_cosine=round(float(cosines.min()), 6) if len(cosines) else None,
            num_other_class=int((~same_class).sum()) if self._has_classes else None,
        )


def _describe_ties(scores: npt.NDArray[np.float32]) -> str:
    """Names proposals with equal scores, which graph and PyTorch may put in different orders; empty: there are few."""
    num_tied = len(scores) - len(np.unique(scores))
    if num_tied < _MANY_TIES:
        return ""
    return (
        f" {num_tied + 1} of {len(scores)} proposals share their scores with others, so their order is arbitrary: the "
        "scores of this network saturate at 1. Train longer, or with a lower learning rate."
    )

"""Proof that an exported graph and the network that it came from give the same proposals on real images.

Proposals are matched one to one: the same box (IoU at least 0.99) with the same score (within 1e-3). Where a decision
falls within rounding (an overlap at the NMS threshold, a score at the cut after K), either answer is right: such
proposals are counted apart and named in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch

from edgerpn.errors import ParityError
from edgerpn.letterbox import letterbox
from edgerpn.matching import EXACT, match, pairwise_iou
from edgerpn.progress import track
from edgerpn.train.coco import read_image
from edgerpn.train.detector import Detector

THRESHOLD_MARGIN = 1e-3
"""An overlap this near to the NMS threshold may fall on either side of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """Agreement of a graph and its network."""

    num_images: int
    """Images compared."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which they were run."""
    num_matched: int
    """Proposals found in both."""
    num_boundary: int
    """Proposals in one only, by a decision within rounding."""
    min_iou: float
    """Smallest overlap of a matched pair."""
    max_score_difference: float
    """Largest difference of scores of a matched pair."""

    def summary(self) -> str:
        """One line for people."""
        batches = " and ".join(map(str, self.batch_sizes))
        return (
            f"parity with PyTorch on {self.num_images} images, batch {batches}: {self.num_matched} proposals matched, "
            f"IoU >= {self.min_iou:.5f}, score difference <= {self.max_score_difference:.1e}"
            + (f", {self.num_boundary} at a threshold" if self.num_boundary else "")
        )


def check_parity(reference: Detector, graph_file: Path, images: Sequence[Path], *, batch: int | None) -> ParityReport:
    """Compares an ONNX file with the network.

    Args:
        reference: The network with exact NMS, in eval mode, with the same sizes and counts as the graph.
        graph_file: The ONNX file.
        images: Photographs; each is laid into the graph's input.
        batch: Fixed batch size of the graph, or None when it takes any: then 1 and 2 are compared.

    Raises:
        ParityError: They disagree; the message names the image and the worst pair.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph_file), options, providers=["CPUExecutionProvider"])
    frames = [_frame(reference, image) for image in images]
    batch_sizes = (batch,) if batch else (1, 2)
    tally = _Tally(nms_iou=reference.proposals.nms_iou, capacity=reference.proposals.num_proposals)
    for size in batch_sizes:
        starts = range(0, len(frames), size)
        for start in track(starts, f"parity, batch {size}", unit="batch"):
            # The last batch is filled up from the beginning, so that every image takes part.
            indices = [(start + i) % len(frames) for i in range(size)]
            stack = np.stack([frames[i] for i in indices])
            with torch.inference_mode():
                expected = [output.numpy() for output in reference(torch.from_numpy(stack))]
            found = session.run(["boxes", "scores", "count"], {"frames": stack})
            for row, i in enumerate(indices):
                tally.add(_rows(expected, row), _rows(found, row), f"{images[i].name}, batch {size}")
    return tally.report(len(images), batch_sizes)


def _frame(detector: Detector, image: Path) -> np.ndarray:
    """A photograph in the size of the graph's input, (H, W, 3) uint8."""
    frame = read_image(image)
    hw = detector.geometry.source_hw if detector.geometry else detector.network_hw
    return letterbox((frame.shape[0], frame.shape[1]), hw).apply(frame, cv2.resize)


def _rows(outputs: Sequence[np.ndarray], row: int) -> tuple[np.ndarray, np.ndarray]:
    """Valid boxes and scores of one image, after checking that padding is zero."""
    boxes, scores, count = outputs[0][row], outputs[1][row], int(outputs[2][row])
    if boxes[count:].any() or scores[count:].any():
        raise ParityError(f"rows beyond count ({count}) are not zero")
    return boxes[:count], scores[:count]


class _Tally:
    """Adds up matches over images."""

    def __init__(self, *, nms_iou: float, capacity: int) -> None:
        self.nms_iou = nms_iou
        self.capacity = capacity
        self.num_matched = 0
        self.num_boundary = 0
        self.min_iou = 1.0
        self.max_score_difference = 0.0

    def add(self, expected: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], where: str) -> None:
        """Matches the proposals of one image.

        Raises:
            ParityError: A proposal has no counterpart, and no threshold explains it.
        """
        pairs, ious = match(expected, found)
        only_expected = sorted(set(range(len(expected[1]))) - {e for e, _ in pairs})
        only_found = sorted(set(range(len(found[1]))) - {f for _, f in pairs})
        for own, other, indices, side in (
            (expected, found, only_expected, "PyTorch"),
            (found, expected, only_found, "the graph"),
        ):
            for index in indices:
                if not self._is_boundary(own, other, index):
                    raise ParityError(self._describe(own, other, index, side, where))
        differences = [abs(float(expected[1][e] - found[1][f])) for e, f in pairs]
        self.num_matched += len(pairs)
        self.num_boundary += len(only_expected) + len(only_found)
        self.min_iou = min([self.min_iou, *ious])
        self.max_score_difference = max([self.max_score_difference, *differences])

    def _is_boundary(
        self, own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], index: int
    ) -> bool:
        """Whether the other side may have left this proposal out by rounding alone."""
        boxes, scores = own
        cut = float(other[1][-1]) if len(other[1]) == self.capacity else -1.0
        if scores[index] <= cut + EXACT.max_score_difference:
            return True
        overlaps = pairwise_iou(boxes[index : index + 1], np.concatenate((other[0], boxes)))[0]
        return bool((np.abs(overlaps - self.nms_iou) <= THRESHOLD_MARGIN).any())

    @staticmethod
    def _describe(
        own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], index: int, side: str, where: str
    ) -> str:
        box = ", ".join(f"{value:.2f}" for value in own[0][index])
        overlaps = pairwise_iou(own[0][index : index + 1], other[0])[0] if len(other[0]) else np.zeros(1)
        nearest = int(overlaps.argmax())
        score = float(other[1][nearest]) if len(other[1]) else float("nan")
        return (
            f"{where}: the graph and PyTorch disagree. Proposal {index} of {side}, [{box}] with score "
            f"{float(own[1][index]):.5f}, has no counterpart; the nearest has IoU {float(overlaps[nearest]):.4f} and "
            f"score {score:.5f}, expected IoU >= {EXACT.min_iou} and scores within {EXACT.max_score_difference}."
        )

    def report(self, num_images: int, batch_sizes: tuple[int, ...]) -> ParityReport:
        """The whole as a report.

        Raises:
            ParityError: Too many proposals hang on thresholds to call it rounding.
        """
        total = max(1, self.num_matched + self.num_boundary)
        if self.num_boundary / total > EXACT.max_unmatched_share:
            raise ParityError(
                f"{self.num_boundary} of {total} proposals are in one of graph and PyTorch only, at a threshold; "
                f"expected at most {EXACT.max_unmatched_share:.0%}"
            )
        return ParityReport(
            num_images=num_images,
            batch_sizes=batch_sizes,
            num_matched=self.num_matched,
            num_boundary=self.num_boundary,
            min_iou=self.min_iou,
            max_score_difference=self.max_score_difference,
        )

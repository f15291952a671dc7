"""Recall and speed of any detector on annotated images; needs no torch, so that it also runs on a device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerpn.progress import track
from edgerpn.proposals import Proposals
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import read_image, read_split, require_objects
from edgerpn.train.data.splits import Split
from edgerpn.train.recall.average_precision import average_precision
from edgerpn.train.recall.average_recall import BUDGETS, average_recall
from edgerpn.train.recall.open_world import check_parts, open_world_recall
from edgerpn.train.recall.results import FoundBoxes

Detect = Callable[[npt.NDArray[np.uint8]], Proposals]
"""From a frame (H, W, 3) uint8 BGR to the proposals in its pixels."""

NUM_WARM_UP = 3
"""Images that run once before the clock starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Recall and speed of a model on annotated images."""

    metrics: dict[str, float]
    """Recall by name, 0..1: AR@10, AR@100, ...; see `edgerpn.train.recall.average_recall.average_recall`. With classes
    AP and AP50 too."""
    latency_ms: dict[str, float]
    """Milliseconds from decoded frame to proposals: p50, p90, p95, p99, mean."""
    images_per_s: float
    """Images per second, one at a time, without the time to read them from disk."""
    num_images: int
    """Measured images."""
    num_proposals: int
    """Largest number of proposals that the model returns for an image."""
    data_sha256: str
    """Hash of the annotation file."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """AP and AP50 of each class, see `edgerpn.train.recall.average_precision`; empty: the model has no classes."""
    holdout_classes: tuple[str, ...] = ()
    """Classes that training did not see."""
    open_world: dict[str, dict[str, float]] = field(default_factory=dict)
    """With held-out classes: the metrics on all objects, on those of seen and on those of unseen classes."""

    @property
    def budgets_beyond(self) -> list[str]:
        """Names of the metrics AR@K whose K exceeds the number of proposals that the model returns."""
        return [f"AR@{budget}" for budget in BUDGETS if budget > self.num_proposals]

    def speed(self) -> str:
        """Images per second and latencies on one line, for people."""
        ms = self.latency_ms
        return (
            f"{self.num_images} images, {self.images_per_s:.1f} images/s; latency p50 {ms['p50']:.2f} ms, "
            f"p95 {ms['p95']:.2f} ms, p99 {ms['p99']:.2f} ms"
        )


def measure(
    detect_frame: Detect,
    split: Split,
    *,
    name: str,
    num_proposals: int,
    class_names: Sequence[str] = (),
    holdout_classes: Sequence[str] = (),
    limit: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures any detector on the images of a split.

    Args:
        detect_frame: The detector.
        split: The images.
        name: Label of the progress bar.
        num_proposals: Proposals that the detector returns for an image, at most.
        class_names: Names of the detector's classes; objects of others count for recall only. Empty: it has none.
        holdout_classes: As in `evaluate`.
        limit: As there.
        log: As there.
    """
    dataset = read_split(split, verify="header", holdout_classes=holdout_classes, by_class=bool(class_names))
    if holdout_classes:
        check_parts(dataset)
    else:
        require_objects(dataset, f"{split.annotations}", "to measure recall on")
    if log is not None:
        for problem in dataset.problems:
            log(f"{split.label}: {problem}")
    if limit is not None:
        dataset = dataclasses.replace(dataset, records=dataset.records[:limit])
    unknown = [name for name in class_names if name not in dataset.present_classes]
    if unknown and log is not None:
        log(f"{split.label}: no objects of {', '.join(unknown)}, so their AP is not defined")
    for record in dataset.records[:NUM_WARM_UP]:
        detect_frame(read_image(record.file, record.exif))
    results: dict[ImageId, FoundBoxes] = {}
    elapsed_ms = []
    for record in track(dataset.records, f"evaluating {name}", unit="image"):
        frame = read_image(record.file, record.exif)
        start = time.perf_counter()
        proposals = detect_frame(frame)
        elapsed_ms.append(1000 * (time.perf_counter() - start))
        results[record.image_id] = FoundBoxes.of(proposals.boxes, proposals.scores, proposals.labels)
    quantiles = {f"p{q}": float(np.percentile(elapsed_ms, q)) for q in (50, 90, 95, 99)}
    open_world = open_world_recall(dataset, results) if holdout_classes else {}
    metrics = open_world.get("all") or average_recall(dataset.coco_ground_truth(), results)
    precision = average_precision(dataset.with_classes(class_names), results) if class_names else None
    return Evaluation(
        metrics=metrics | (precision.metrics if precision else {}),
        classes=precision.classes if precision else {},
        latency_ms={**quantiles, "mean": float(np.mean(elapsed_ms))},
        images_per_s=1000 / float(np.mean(elapsed_ms)),
        num_images=len(dataset.records),
        num_proposals=num_proposals,
        data_sha256=dataset.sha256,
        holdout_classes=tuple(holdout_classes),
        open_world=open_world,
    )

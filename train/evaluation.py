"""Recall and speed of a detector on annotated images."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgerpn.errors import ConfigError
from edgerpn.progress import track
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.data.coco import class_names, read_image, read_split
from edgerpn.train.data.splits import Split, find_split
from edgerpn.train.network.detector import Detector, detect
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn
from edgerpn.train.recall.average_recall import BUDGETS, average_recall, coco_results
from edgerpn.train.recall.open_world import check_parts, open_world_recall
from edgerpn.train.run.device import place

Detect = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""From a frame (H, W, 3) uint8 BGR to boxes (M, 4) in frame pixels and scores (M,), best first."""

NUM_WARM_UP = 3
"""Images that run once before the clock starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Recall and speed of a model on annotated images."""

    metrics: dict[str, float]
    """Recall by name, 0..1: AR@10, AR@100, ...; see `edgerpn.train.recall.average_recall.average_recall`."""
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


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | Split,
    *,
    images: str | os.PathLike[str] | None = None,
    num_proposals: int = 1000,
    size_hw: tuple[int, int] | None = None,
    holdout_classes: Sequence[str] | None = None,
    limit: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures the recall and the speed of a checkpoint; uses a GPU if PyTorch sees one.

    Args:
        checkpoint: A .pt file that `train` wrote, such as RUN/best.pt.
        data: Folder of a data set, or an annotation file, see `find_split`; or a split that it returned.
        images: Folder of the images; None: images/ beside the annotations.
        num_proposals: Proposals of each image, at most.
        size_hw: Height and width at which the network works, pixels; None: as in training.
        holdout_classes: Classes whose recall is also measured separately; None: those that training held out.
        limit: Measure only the first `limit` images.
        log: Called with a line for the layout of the data and one for each kind of problem in it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: The network cannot work at `size_hw`.
        DataError: The annotations or images cannot be used.
        MissingDependencyError: The package that measures recall is not installed.
    """
    file = Path(checkpoint)
    split = data if isinstance(data, Split) else find_split(Path(data), "val", log=log)
    if images is not None:
        split = split._replace(images=Path(images))
    model, content = load_model(file)
    if holdout_classes is None:
        holdout_classes = _known_holdout_classes(content, split, log)
    return measure(
        partial(detect, make_detector(model, content, num_proposals=num_proposals, size_hw=size_hw)),
        split,
        name=file.name,
        num_proposals=num_proposals,
        holdout_classes=holdout_classes,
        limit=limit,
        log=log,
    )


def measure(
    detect_frame: Detect,
    split: Split,
    *,
    name: str,
    num_proposals: int,
    holdout_classes: Sequence[str] = (),
    limit: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures any detector on the images of a split; `name` labels the progress bar, the rest is as in `evaluate`."""
    dataset = read_split(split, verify="header", holdout_classes=holdout_classes)
    if holdout_classes:
        check_parts(dataset)
    if log is not None:
        for problem in dataset.problems:
            log(f"{split.label}: {problem}")
    if limit is not None:
        dataset = dataclasses.replace(dataset, records=dataset.records[:limit])
    for record in dataset.records[:NUM_WARM_UP]:
        detect_frame(read_image(record.file))
    results: list[dict[str, Any]] = []
    elapsed_ms = []
    for record in track(dataset.records, f"evaluating {name}", unit="image"):
        frame = read_image(record.file)
        start = time.perf_counter()
        boxes, scores = detect_frame(frame)
        elapsed_ms.append(1000 * (time.perf_counter() - start))
        results += coco_results(record.image_id, boxes, scores)
    quantiles = {f"p{q}": float(np.percentile(elapsed_ms, q)) for q in (50, 90, 95, 99)}
    open_world = open_world_recall(dataset, results) if holdout_classes else {}
    return Evaluation(
        metrics=open_world.get("all") or average_recall(dataset.coco_ground_truth(), results),
        latency_ms={**quantiles, "mean": float(np.mean(elapsed_ms))},
        images_per_s=1000 / float(np.mean(elapsed_ms)),
        num_images=len(dataset.records),
        num_proposals=num_proposals,
        data_sha256=dataset.sha256,
        holdout_classes=tuple(holdout_classes),
        open_world=open_world,
    )


def _known_holdout_classes(checkpoint: Checkpoint, split: Split, log: Callable[[str], None] | None) -> tuple[str, ...]:
    """Returns the classes that training held out, if the annotations have all of them, otherwise no classes."""
    names = checkpoint.settings.data.holdout_classes
    known = class_names(split) if names else frozenset()
    missing = [name for name in names if name not in known]
    if not missing:
        return names
    if log is not None:
        log(
            f"{split.label}: the checkpoint was trained without {', '.join(names)}, but there is no class named "
            f"{', '.join(missing)} here: recall covers all objects"
        )
    return ()


def make_detector(
    model: Rpn, checkpoint: Checkpoint, *, num_proposals: int, size_hw: tuple[int, int] | None
) -> Detector:
    """Returns the detector of a checkpoint with exact NMS, on a GPU if PyTorch sees one; arguments as in `evaluate`.

    Raises:
        ConfigError: The network cannot work at `size_hw`.
    """
    hw = size_hw or checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ConfigError([f"size {hw[0]}x{hw[1]}: {misfit}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    proposals = dataclasses.replace(checkpoint.settings.proposals, num_proposals=num_proposals, nms_candidates=None)
    fuse_batch_norm(model)
    return place(Detector(model, proposals, network_hw=hw), device)

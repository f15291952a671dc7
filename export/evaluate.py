"""Recall and speed of a checkpoint, an ONNX file or an engine on annotated images; recall of a results file."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ConfigError, DataError
from edgerpn.letterbox import letterbox
from edgerpn.manifest import DIGEST_KEY
from edgerpn.manifest.parts import RecallSpec
from edgerpn.progress import track
from edgerpn.train.data.coco import class_names, read_coco, read_image
from edgerpn.train.recall.average_recall import BUDGETS, average_recall
from edgerpn.train.recall.open_world import check_parts, open_world_recall
from edgerpn.train.recall.validation import coco_results

if TYPE_CHECKING:
    import onnx

Detect = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Frame (H, W, 3) uint8 BGR to boxes (M, 4) in frame pixels and scores (M,), best first."""

NUM_WARM_UP = 3
"""Images run once before the clock starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Recall and speed of a model on annotated images."""

    metrics: dict[str, float]
    """See `edgerpn.train.recall.average_recall.average_recall`."""
    latency_ms: dict[str, float]
    """Milliseconds from decoded frame to proposals: p50, p90, p95, p99, mean."""
    images_per_s: float
    """Images a second, one after the other, without reading them from disk."""
    num_images: int
    """Images measured."""
    num_proposals: int
    """Most proposals that the model gives for an image."""
    data_sha256: str
    """Hash of the annotation file."""
    holdout_classes: tuple[str, ...] = ()
    """Classes that training did not see."""
    open_world: dict[str, dict[str, float]] = field(default_factory=dict)
    """With held-out classes, the metrics by part of the objects: all, seen, unseen."""

    @property
    def budgets_beyond(self) -> list[str]:
        """Names of the metrics AR@K whose K is more than the model gives."""
        return [f"AR@{budget}" for budget in BUDGETS if budget > self.num_proposals]

    def speed(self) -> str:
        """Images a second and latencies on one line, for people."""
        ms = self.latency_ms
        return (
            f"{self.num_images} images, {self.images_per_s:.1f} images/s; latency p50 {ms['p50']:.2f} ms, "
            f"p95 {ms['p95']:.2f} ms, p99 {ms['p99']:.2f} ms"
        )


def evaluate_model(
    model: Path,
    annotations: Path,
    images: Path,
    *,
    num_proposals: int = 1000,
    network_hw: tuple[int, int] | None = None,
    limit: int | None = None,
    holdout_classes: tuple[str, ...] | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measures a model.

    Args:
        model: Checkpoint (.pt), ONNX file or engine.
        annotations: COCO annotations.
        images: Folder of the images.
        num_proposals: K of a checkpoint; exported models have their own.
        network_hw: Height and width that a checkpoint's network works at, pixels; None: as trained.
        limit: Measure the first so many images only.
        holdout_classes: Classes whose recall is measured separately; None: those that a checkpoint was trained without.
        log: Called with one line of text for each kind of problem in the data.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        EngineLoadError: The exported model cannot be loaded.
        ManifestError: The exported model's manifest is missing or does not fit.
        DataError: The annotations or images cannot be used.
    """
    if holdout_classes is None:
        holdout_classes = _holdout_of(model, annotations, log)
    dataset = read_coco(annotations, images, verify="header", holdout_classes=holdout_classes)
    if holdout_classes:
        check_parts(dataset)
    for problem in dataset.problems:
        log(f"{annotations.name}: {problem}")
    if limit is not None:
        dataset = dataclasses.replace(dataset, records=dataset.records[:limit])
    detect, capacity = _open(model, num_proposals, network_hw)
    for record in dataset.records[:NUM_WARM_UP]:
        detect(read_image(record.file))
    results: list[dict[str, Any]] = []
    elapsed_ms = []
    for record in track(dataset.records, f"evaluating {model.name}", unit="image"):
        frame = read_image(record.file)
        start = time.perf_counter()
        boxes, scores = detect(frame)
        elapsed_ms.append(1000 * (time.perf_counter() - start))
        results += coco_results(record.image_id, boxes, scores)
    quantiles = {f"p{q}": float(np.percentile(elapsed_ms, q)) for q in (50, 90, 95, 99)}
    open_world = open_world_recall(dataset, results) if holdout_classes else {}
    return Evaluation(
        metrics=open_world.get("all") or average_recall(dataset.coco_ground_truth(), results),
        latency_ms={**quantiles, "mean": float(np.mean(elapsed_ms))},
        images_per_s=1000 / float(np.mean(elapsed_ms)),
        num_images=len(dataset.records),
        num_proposals=capacity,
        data_sha256=dataset.sha256,
        holdout_classes=holdout_classes,
        open_world=open_world,
    )


def _holdout_of(model: Path, annotations: Path, log: Callable[[str], None]) -> tuple[str, ...]:
    """The classes that a checkpoint was trained without, if these annotations name all of them; none for exports."""
    if model.suffix != ".pt":
        return ()
    from edgerpn.train.checkpoint import load_checkpoint

    names = load_checkpoint(model).settings.data.holdout_classes
    known = class_names(annotations) if names else frozenset()
    missing = [name for name in names if name not in known]
    if missing:
        log(
            f"{annotations.name}: the checkpoint was trained without {', '.join(names)}, but there is no class named "
            f"{', '.join(missing)} here: recall is that on all objects"
        )
        return ()
    return names


def _open(model: Path, num_proposals: int, network_hw: tuple[int, int] | None) -> tuple[Detect, int]:
    """A function that runs `model` on frames of any size, and the most proposals that it gives."""
    return _open_checkpoint(model, num_proposals, network_hw) if model.suffix == ".pt" else _open_artifact(model)


def _open_checkpoint(file: Path, num_proposals: int, network_hw: tuple[int, int] | None) -> tuple[Detect, int]:
    import torch

    from edgerpn.train.checkpoint import load_model
    from edgerpn.train.network.detector import Detector, detect
    from edgerpn.train.network.layers import fuse_batch_norm
    from edgerpn.train.run.device import place

    model, checkpoint = load_model(file)
    hw = network_hw or checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ConfigError([f"--size {hw[0]}x{hw[1]}: {misfit}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = checkpoint.settings.proposals
    proposals = dataclasses.replace(trained, num_proposals=num_proposals, nms_candidates=None)
    fuse_batch_norm(model.eval())
    detector = place(Detector(model, proposals, network_hw=hw), device)
    return lambda frame: detect(detector, frame), num_proposals


def _open_artifact(file: Path) -> tuple[Detect, int]:
    import cv2

    from edgerpn.runtime import load

    model = load(file)
    source_hw = model.manifest.input.source_hw

    def run(frame: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        if source_hw is None:
            proposals = model(frame)
            return proposals.boxes, proposals.scores
        # A model for one camera size takes photographs of other sizes laid into that size.
        geometry = letterbox((frame.shape[0], frame.shape[1]), source_hw)
        proposals = model(geometry.apply(frame, cv2.resize))
        return geometry.to_frame(proposals.boxes), proposals.scores

    return run, model.manifest.proposals.num_proposals


class RecallMeter:
    """Measures the recall of graphs that are still in memory, each on the same images."""

    def __init__(self, annotations: Path, images: Path, *, limit: int = 500) -> None:
        """Reads the annotations.

        Args:
            annotations: COCO annotations of images that the model was not trained on.
            images: Folder of the images.
            limit: Measure the first so many images only.

        Raises:
            DataError: The annotations or images cannot be used.
        """
        self._annotations, self._images, self._limit = annotations, images, limit
        records = read_coco(annotations, images, verify="header").records[:limit]
        self.num_images = len(records)
        self.num_objects = sum(len(record.boxes_xyxy) for record in records)
        self.files = frozenset(record.file.resolve() for record in records)

    def __call__(self, proto: onnx.ModelProto, *, limit: int | None = None) -> float:
        """Measures AR@100, 0..1, of a graph that holds its manifest, on the first `limit` of the images.

        Raises:
            ManifestError: The graph's metadata hold no manifest.
            EngineLoadError: ONNX Runtime refuses the graph.
            DataError: The images cannot be used.
        """
        return self._measure(proto, min(limit or self._limit, self._limit)).metrics["AR@100"]

    def recall(self, proto: onnx.ModelProto) -> RecallSpec:
        """Measures the recall of such a graph for its manifest; errors as above."""
        evaluation = self._measure(proto, self._limit)
        shown = [name for name in evaluation.metrics if name != "AR@1000" or evaluation.num_proposals >= 1000]
        return RecallSpec(
            data_sha256=evaluation.data_sha256,
            num_images=evaluation.num_images,
            metrics=tuple((name, round(evaluation.metrics[name], 5)) for name in shown),
        )

    def _measure(self, proto: onnx.ModelProto, limit: int) -> Evaluation:
        import onnx

        with tempfile.TemporaryDirectory(prefix="edgerpn-recall-") as folder:
            file = Path(folder) / "graph.onnx"
            # The digest is that of another file, which the graph comes from.
            unsealed = onnx.ModelProto()
            unsealed.CopyFrom(proto)
            properties = {entry.key: entry.value for entry in proto.metadata_props if entry.key != DIGEST_KEY}
            onnx.helper.set_model_props(unsealed, properties)
            onnx.save(unsealed, file)
            return evaluate_model(file, self._annotations, self._images, limit=limit)


def evaluate_results(results: Path, annotations: Path) -> dict[str, float]:
    """Measures the recall of a COCO results file (a JSON list of image_id, bbox, score) of any program.

    Raises:
        DataError: A file cannot be read, or is not in COCO's format.
    """
    rows = _read_json(results)
    if not isinstance(rows, list):
        raise DataError(f"{results}: expected a JSON list of results, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not (_has_box(row) and isinstance(row.get("image_id"), (int, str)) and _is_number(row.get("score"))):
            raise DataError(
                f"{results}: result {number}: expected image_id, bbox [x, y, width, height] and score, got {row}"
            )
    truth = _read_json(annotations)
    if not isinstance(truth, dict) or not all(isinstance(truth.get(key), list) for key in ("images", "annotations")):
        raise DataError(f"{annotations}: expected COCO annotations with lists 'images' and 'annotations'")
    for number, image in enumerate(truth["images"]):
        if not (isinstance(image, dict) and "id" in image):
            raise DataError(f"{annotations}: image {number}: expected an object with id, got {image}")
    for number, row in enumerate(truth["annotations"]):
        if not (_has_box(row) and "image_id" in row):
            raise DataError(f"{annotations}: annotation {number}: expected image_id and bbox, got {row}")
    return average_recall(truth, rows)


def _has_box(row: Any) -> bool:
    box = row.get("bbox") if isinstance(row, dict) else None
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error

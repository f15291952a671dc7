"""Recall and speed of a checkpoint, an ONNX file or an engine on annotated images; figures of a results file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError, NotFiniteError, UsageError
from edgerpn.export.model_names import find_any_model
from edgerpn.manifest import DIGEST_KEY
from edgerpn.manifest.parts import RecallSpec
from edgerpn.models import is_checkpoint
from edgerpn.proposals import Proposals
from edgerpn.runtime.model import Model, load
from edgerpn.train.data.annotations import ImageId, class_ids, read_json, twin_id
from edgerpn.train.data.coco import read_split, read_truth, require_objects
from edgerpn.train.data.formats.content import Content
from edgerpn.train.data.listing import load_content
from edgerpn.train.data.splits import Split, find_split
from edgerpn.train.recall.average_precision import average_precision
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.measurement import Detect, Evaluation, measure
from edgerpn.train.recall.results import by_image

if TYPE_CHECKING:
    import onnx


def evaluate_model(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | Split,
    *,
    images: str | os.PathLike[str] | None = None,
    num_proposals: int | None = None,
    size_hw: tuple[int, int] | None = None,
    holdout_classes: Sequence[str] | None = None,
    limit: int | None = None,
    allow_host_code: bool = False,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measures the recall and the speed of a checkpoint or of an exported model.

    Args:
        model: Checkpoint, ONNX file or engine; or the name of an installed model, such as `general`.
        data: Folder of a data set, or an annotation file, see `find_split`; or a split that it returned.
        images: Folder of the images; None: images/ beside the annotations.
        num_proposals: Proposals of a checkpoint for each image, at most; None: 1000. Exported models have their own.
        size_hw: Height and width that a checkpoint's network works at, pixels; None: as trained.
        holdout_classes: Classes whose recall is measured separately; None: those that a checkpoint was trained without.
        limit: Measure only the first `limit` images.
        allow_host_code: Whether a version-compatible engine may contain code for the CPU.
        log: Called with a line for the layout of the data and one for each kind of problem in it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        UsageError: The model is an exported one, whose size and number of proposals are fixed.
        EngineLoadError: The exported model cannot be loaded.
        ManifestError: The exported model's manifest is missing or does not fit.
        DataError: The annotations or images cannot be used.
    """
    file = find_any_model(model)
    if is_checkpoint(file):
        # Imported late: a device measures exported models without torch.
        from edgerpn.train.evaluation import evaluate

        return evaluate(
            file,
            data,
            images=images,
            num_proposals=num_proposals or 1000,
            size_hw=size_hw,
            holdout_classes=holdout_classes,
            limit=limit,
            log=log,
        )
    if size_hw is not None or num_proposals is not None:
        raise UsageError([f"{file}: --size and --proposals are for checkpoints; an exported model has its own"])
    split = data if isinstance(data, Split) else find_split(Path(data), "val", log=log)
    if images is not None:
        split = split._replace(images=Path(images))
    if holdout_classes and log is not None:
        names = ", ".join(holdout_classes)
        log(f"{file.name}: an exported model does not say what it was trained on; it may have seen objects of {names}")
    with load(file, allow_host_code=allow_host_code) as opened:
        return measure(
            _detect(opened),
            split.read_like(opened.manifest.input.exif),
            name=file.name,
            num_proposals=opened.manifest.proposals.num_proposals,
            class_names=opened.manifest.class_names,
            holdout_classes=holdout_classes or (),
            limit=limit,
            log=log,
        )


def _detect(model: Model) -> Detect:
    """Returns a function that runs an exported model on frames of any size."""

    def run(frame: npt.NDArray[np.uint8]) -> Proposals:
        (proposals,) = model.batch_fitted([frame])
        return proposals

    return run


class RecallMeter:
    """Measures the recall of graphs that are still in memory, each on the same images."""

    def __init__(self, split: Split, *, limit: int = 500) -> None:
        """Reads the annotations.

        Args:
            split: Images that the model was not trained on.
            limit: Measure the first so many images only.

        Raises:
            DataError: The annotations or images cannot be used.
        """
        self._split, self._limit = split, limit
        records = read_split(split, verify="header").records[:limit]
        self.num_images = len(records)
        self.num_objects = sum(len(record.boxes_xyxy) for record in records)
        self.files = frozenset(record.file.resolve() for record in records)

    def __call__(self, proto: onnx.ModelProto, *, limit: int | None = None) -> float:
        """Measures AR@100, 0..1, of a graph that holds its manifest, on the first `limit` of the images.

        It is 0 if the graph gives NaN or infinite values on any of them, which a runtime would refuse.

        Raises:
            ManifestError: The graph's metadata hold no manifest.
            EngineLoadError: ONNX Runtime refuses the graph.
            DataError: The images cannot be used.
        """
        try:
            return self._measure(proto, min(limit or self._limit, self._limit)).metrics["AR@100"]
        except NotFiniteError:
            return 0.0

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
            return evaluate_model(file, self._split, limit=limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsEvaluation:
    """Recall of a results file, and its precision where it has classes."""

    metrics: dict[str, float]
    """As in `Evaluation`."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """AP and AP50 of each class of the annotations; empty: the results do not tell classes apart."""


def evaluate_results(
    results: Path, data: Path | Split, *, log: Callable[[str], None] | None = None
) -> ResultsEvaluation:
    """Measures a COCO results file (a JSON list of image_id, bbox, score and maybe category_id) of any program.

    Precision is measured if the results have several category ids and all are those of classes of the annotations.

    Args:
        results: The results.
        data: COCO annotation file, or a split. Sets without image ids number their images from 1 in the order of
            file names, and the classes in their own order.
        log: Called with a line for each kind of problem in the annotations, and if category ids do not fit.

    Raises:
        DataError: A file cannot be read, or is not in COCO's format.
    """
    log = log or (lambda line: None)
    split = data if isinstance(data, Split) else Split(data, data.parent)
    rows = _read_results(results)
    content = load_content(split)
    split = split._replace(load=lambda: content)
    names = _names_by_id(rows, content, split.label, log)
    dataset = read_truth(split, by_class=bool(names))
    require_objects(dataset, f"{split.annotations}", "to measure recall on")
    for problem in dataset.problems:
        log(f"{split.label}: {problem}")
    truth = dataset.coco_ground_truth()
    found = by_image(_of_images(rows, {record.image_id for record in dataset.records}), truth)
    metrics = average_recall(truth, found)
    if not names:
        return ResultsEvaluation(metrics=metrics)
    numbers = {category: dataset.class_names.index(name) + 1 for category, name in names.items()}
    numbered = {
        image_id: boxes._replace(category_ids=np.array([numbers[category] for category in boxes.category_ids]))
        for image_id, boxes in found.items()
    }
    precision = average_precision(dataset, numbered)
    return ResultsEvaluation(metrics=metrics | precision.metrics, classes=precision.classes)


def _read_results(results: Path) -> list[dict[str, Any]]:
    """Reads COCO results.

    Raises:
        DataError: The file cannot be read, or a result lacks something.
    """
    rows, _ = read_json(results, "a JSON list of COCO results")
    if not isinstance(rows, list):
        raise DataError(f"{results}: expected a JSON list of results, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        image_id = row.get("image_id") if isinstance(row, dict) else None
        if type(image_id) not in (int, str) or not _has_box(row) or not _is_number(row.get("score")):
            raise DataError(
                f"{results}: result {number}: expected image_id, bbox [x, y, width, height] and score, got {row}"
            )
    return rows


def _names_by_id(
    rows: Sequence[Mapping[str, Any]], content: Content, label: str, log: Callable[[str], None]
) -> dict[int, str]:
    """Returns the names of the annotations' classes by category id; none if the results do not tell them apart."""
    ids = [row.get("category_id") for row in rows]
    used = {number for number in ids if type(number) is int}
    if len(used) < 2:
        return {}
    names = {number: name for name, number in class_ids(content.root) if isinstance(number, int)}
    num_others = sum(type(number) is not int or number not in names for number in ids)
    if num_others:
        log(f"{label}: no AP, because it has no class for the category_id of {num_others} of {len(ids)} results")
    return {} if num_others else names


def _of_images(rows: Sequence[dict[str, Any]], known: Set[ImageId]) -> list[dict[str, Any]]:
    """Returns the results with image ids as in `known`, which may be texts instead of numbers, or numbers for texts."""
    found = []
    for row in rows:
        twin = twin_id(row["image_id"]) if row["image_id"] not in known else None
        found.append({**row, "image_id": twin} if twin in known else row)
    return found


def _has_box(row: Any) -> bool:
    box = row.get("bbox")
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    # Larger whole numbers do not fit into a float.
    return type(value) in (int, float) and abs(value) < 1e300

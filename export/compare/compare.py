"""Compares two models on photographs: they must agree up to the rounding of their precision.

Steps of `compare_models`:
    1. Open both; refuse models that cannot be compared, and name the differences of their settings.
    2. Letterbox every photograph into the graph's input and run both, at every batch size that they have.
    3. Pair the proposals of each frame, see `edgerpn.export.onnx.agreement`.
    4. Recall of both, when the photographs are annotated.
    5. Judge: two float32 forms must agree except for decisions within rounding; below float32, and with classes, a
       share of proposals may differ, in all images together and in each; int8 against another precision is judged by
       recall alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgerpn.errors import ConfigError
from edgerpn.export.compare.compared_model import ComparedModel, differences, open_models
from edgerpn.export.compare.comparison import Comparison, ImageComparison
from edgerpn.export.onnx.agreement import FrameProposals, ProposalThresholds, pair_proposals, valid_rows
from edgerpn.export.photographs import fit_photograph
from edgerpn.images.header import Exif
from edgerpn.letterbox import Letterbox, letterbox
from edgerpn.manifest.parts import Precision
from edgerpn.matching import TOLERANCES, pair_classes, pair_cosines
from edgerpn.progress import track
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import Backend
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset, read_image
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.results import FoundBoxes

_ORDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def compare_models(
    a: Path | Backend,
    b: Path | Backend,
    images: Sequence[Path],
    *,
    dataset: Dataset | None = None,
    allow_host_code: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compares model `a` with the reference `b`.

    Args:
        a: Checkpoint, ONNX file, engine, or an opened backend, which stays open.
        b: The reference, in any of the same forms.
        images: Photographs, at least one.
        dataset: Annotations of these images, to measure recall; only those of `images` count.
        allow_host_code: Whether a version-compatible engine may contain code for the CPU.
        log: Called with one line of text for people, now and then.

    Returns:
        The comparison; its `culprit` names the place where they disagree.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        ConfigError: The models cannot be compared, or there are no images.
        DataError: An image cannot be read.
        EngineLoadError: An artifact cannot be loaded.
        InferenceError: A model fails.
        ManifestError: A manifest is missing or does not fit.
        ParityError: A model returns rows beyond its count.
    """
    if not images:
        raise ConfigError(["no images to compare the models on"])
    # One rule holds for all images of a set.
    exif: Exif = dataset.records[0].exif if dataset is not None else "ignore"
    with contextlib.ExitStack() as stack:
        models = open_models(a, b, stack, allow_host_code=allow_host_code)
        unlike = differences(*models)  # step 1
        for line in (f"{models[0].title}", f"against {models[1].title}", *_warnings(unlike)):
            log(line)
        precision = max((model.precision for model in models), key=_ORDER.index)
        is_by_recall = precision == "int8" and models[0].precision != models[1].precision
        if is_by_recall and dataset is None:
            raise ConfigError(
                [
                    "int8 rounds too coarsely to compare single proposals with another precision: recall decides, and "
                    "needs annotated photographs; name them with --data PATH"
                ]
            )
        batch_sizes = tuple(sorted({*models[0].batch_sizes, *models[1].batch_sizes})) or (1,)
        compared: list[ImageComparison] = []
        for size in batch_sizes:
            compared += _compare_batches(models, images, size, precision, exif)
    recalls = _recalls(compared, batch_sizes[0], dataset) if dataset is not None else ({}, {})
    return Comparison(
        a=models[0].title,
        b=models[1].title,
        names=_short_names(*models),
        precision=precision,
        tolerance=TOLERANCES[precision],
        is_by_recall=is_by_recall,
        has_classes=all(model.class_names for model in models),
        differences=unlike,
        num_images=len(images),
        num_proposals=min(model.proposals.num_proposals for model in models),
        batch_sizes=batch_sizes,
        images=tuple(compared),
        recall_a=tuple(recalls[0].items()),
        recall_b=tuple(recalls[1].items()),
    )


def _warnings(unlike: tuple[str, ...]) -> tuple[str, ...]:
    return ("These are different models:", *(f"  {line}" for line in unlike)) if unlike else ()


def _short_names(a: ComparedModel, b: ComparedModel) -> tuple[str, str]:
    """Names of the files; their kind or side where the names are the same."""
    if a.name != b.name:
        return a.name, b.name
    return (a.kind, b.kind) if a.kind != b.kind else (f"{a.name} (A)", f"{b.name} (B)")


def _compare_batches(
    models: tuple[ComparedModel, ComparedModel], images: Sequence[Path], size: int, precision: Precision, exif: Exif
) -> list[ImageComparison]:
    """Steps 2 and 3 at one batch size."""
    is_same_input = models[0].frame_hw == models[1].frame_hw
    compared = []
    for start in track(range(0, len(images), size), f"comparing, batch {size}", unit="batch"):
        # Images from the beginning fill the last batch; they are not counted again.
        indices = [(start + i) % len(images) for i in range(size)]
        pictures = [read_image(images[i], exif) for i in indices]
        results = [_run(model, pictures, indices, images) for model in models]
        for row, index in enumerate(indices[: len(images) - start]):
            sides = [result[row] for result in results]
            rows = [side.rows if is_same_input else side.in_image for side in sides]
            capacity = min(model.proposals.num_proposals for model in models)
            found, expected = ((boxes[:capacity], scores[:capacity]) for boxes, scores in rows)
            agreement = pair_proposals(
                expected,
                found,
                TOLERANCES[precision],
                _thresholds(models, sides[1].geometry, precision, capacity, is_same_input=is_same_input),
                cut_scores=tuple(score for side in sides for score in side.cut_scores),
            )
            compared.append(
                ImageComparison(
                    file=images[index],
                    exif=exif,
                    batch_size=size,
                    agreement=agreement,
                    cosines=pair_cosines(sides[1].outputs, sides[0].outputs, row, agreement.pairs),
                    same_class=pair_classes(
                        sides[1].outputs, sides[0].outputs, row, agreement.pairs, TOLERANCES[precision]
                    ),
                    in_image=(sides[0].in_image, sides[1].in_image),
                )
            )
    return compared


class _ModelOutput:
    """Proposals of one model for one picture."""

    def __init__(
        self, rows: FrameProposals, cut_scores: tuple[float, ...], geometry: Letterbox, outputs: Outputs
    ) -> None:
        self.rows = rows
        self.outputs = outputs  # of its whole batch
        self.cut_scores = cut_scores
        self.geometry = geometry
        self.in_image: FrameProposals = (geometry.to_frame(rows[0]), rows[1])


def _run(
    model: ComparedModel, pictures: list[np.ndarray], indices: list[int], images: Sequence[Path]
) -> list[_ModelOutput]:
    geometries = [letterbox((picture.shape[0], picture.shape[1]), model.frame_hw) for picture in pictures]
    frames = np.stack([fit_photograph(picture, (*model.frame_hw, model.num_channels)) for picture in pictures])
    outputs, cut_scores = model.run(frames)
    return [
        _ModelOutput(rows, cut_scores[row], geometry, outputs)
        for row, geometry in enumerate(geometries)
        for rows in [valid_rows(outputs, row, f"{images[indices[row]].name}, {model.name}")]
    ]


def _thresholds(
    models: tuple[ComparedModel, ComparedModel],
    geometry: Letterbox,
    precision: Precision,
    capacity: int,
    *,
    is_same_input: bool,
) -> ProposalThresholds:
    """Returns the thresholds of the reference, in the pixels in which boxes are compared."""
    reference = models[1]
    scale_x, scale_y = (1.0, 1.0) if is_same_input else geometry.scale_xy
    if reference.source_hw is not None:
        inner_x, inner_y = letterbox(reference.source_hw, reference.network_hw).scale_xy
        scale_x, scale_y = scale_x * inner_x, scale_y * inner_y
    thresholds = ProposalThresholds.of(
        reference.proposals,
        has_classes=bool(reference.class_names),
        scale_xy=(scale_x, scale_y),
        precision=precision,
    )
    return dataclasses.replace(thresholds, capacity=capacity)


def _recalls(
    compared: Sequence[ImageComparison], batch_size: int, dataset: Dataset
) -> tuple[dict[str, float], dict[str, float]]:
    """Step 4: recall of both models at one batch size."""
    by_file = {record.file: record for record in dataset.records}
    chosen = [image for image in compared if image.batch_size == batch_size and image.file in by_file]
    truth = dataset.coco_ground_truth()
    ids = {by_file[image.file].image_id for image in chosen}
    truth = {
        **truth,
        "images": [row for row in truth["images"] if row["id"] in ids],
        "annotations": [row for row in truth["annotations"] if row["image_id"] in ids],
    }
    found: tuple[dict[ImageId, FoundBoxes], dict[ImageId, FoundBoxes]] = ({}, {})
    for image in chosen:
        for side in (0, 1):
            boxes, scores = image.in_image[side]
            visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            found[side][by_file[image.file].image_id] = FoundBoxes.of(boxes[visible], scores[visible])
    return average_recall(truth, found[0]), average_recall(truth, found[1])

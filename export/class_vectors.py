"""Vectors of classes from a few annotated examples, for an output `classify` that takes the model's own vectors.

Examples are boxes in whole photographs. A crop is no substitute: alone it is another picture to a detector, of another
size and without its surroundings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.errors import ConfigError, DataError
from edgerpn.progress import track
from edgerpn.proposals import pairwise_iou
from edgerpn.runtime.model import Model, load
from edgerpn.runtime.sinks.classify import own_vectors
from edgerpn.train.data.coco import ImageRecord, read_split
from edgerpn.train.data.image_files import read_image
from edgerpn.train.data.splits import Split, find_split

_MIN_IOU = 0.5
"""IoU of a proposal with an example from which it describes the example."""

Vectors = npt.NDArray[np.float32]


def write_class_vectors(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | Split,
    output: str | os.PathLike[str],
    *,
    vectors: Literal["features", "embeddings"] = "features",
    max_examples: int = 100,
    log: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Writes the file of `labels` for an output `classify` with the same `vectors`, from annotated examples.

    The vector of a class is the mean of those of the proposals that lie on its examples.

    Args:
        model: Exported model with that output; or the name of an installed one.
        data: Folder of a data set, or an annotation file, see `find_split`; or a split that it returned. Of a data set
            the training images are read.
        output: File .npz to write.
        vectors: The output that describes the proposals.
        max_examples: Examples of a class at most, the first ones.
        log: Called with a line for each class that is left out, because no proposal lies on an example of it.

    Returns:
        Number of examples by name of the class.

    Raises:
        ConfigError: The model does not have that output.
        DataError: The annotations or images cannot be used, or no proposal lies on any example.
        EngineLoadError: The model cannot be loaded.
        ManifestError: The model's manifest is missing or does not fit.
    """
    split = data if isinstance(data, Split) else find_split(Path(data), "train", log=log)
    with load(model) as opened:
        if vectors not in opened.manifest.outputs_by_role:
            flag = {"embeddings": "--embeddings", "features": "--roi-features 3"}[vectors]
            raise ConfigError([f"{os.fspath(model)}: does not have {vectors}; export it again with {flag}"])
        dataset = read_split(split.read_like(opened.manifest.input.exif), verify="header", by_class=True)
        found: dict[str, list[Vectors]] = {name: [] for name in dataset.present_classes}
        if not found:
            raise DataError(f"{split.annotations}: none of its objects has a class; expected named categories")
        for record in track(dataset.records, "looking at examples", unit="image"):
            wanted = [
                number >= 0 and len(found[dataset.class_names[number]]) < max_examples
                for number in record.box_classes.tolist()
            ]
            if any(wanted):
                for number, vector in _examples(opened, record, np.flatnonzero(wanted), vectors):
                    found[dataset.class_names[number]].append(vector)
    seen = {name: np.stack(examples[:max_examples]) for name, examples in found.items() if examples}
    if log is not None:
        for name in found.keys() - seen.keys():
            log(f"{split.label}: {name}: left out, because the model proposes no example of it")
    if not seen:
        raise DataError(f"{split.annotations}: the model proposes no example of any class; is it trained on such data?")
    _write(Path(output), seen)
    return {name: len(examples) for name, examples in seen.items()}


def _examples(model: Model, record: ImageRecord, rows: npt.NDArray[np.intp], kind: str) -> list[tuple[int, Vectors]]:
    """Returns class and vector of those of an image's objects on which a proposal lies."""
    (proposals,) = model.batch_fitted([read_image(record.file, record.exif)])
    if not len(proposals):
        return []
    ious = pairwise_iou(record.boxes_xyxy[rows], proposals.boxes)
    described = own_vectors(proposals, kind)
    return [
        (int(record.box_classes[row]), described[overlaps.argmax()])
        for row, overlaps in zip(rows.tolist(), ious, strict=True)
        if overlaps.max() >= _MIN_IOU
    ]


def _write(path: Path, seen: dict[str, Vectors]) -> None:
    means = np.stack([examples.mean(axis=0) for examples in seen.values()])
    # The vectors of all classes resemble each other; the file says by what.
    common = means.mean(axis=0) if len(means) > 1 else np.zeros_like(means[0])
    directions = [_unit(_unit(examples - common).mean(axis=0)) for examples in seen.values()]
    with files.replacing(path) as made, made.open("wb") as file:
        np.savez(file, names=np.array(list(seen)), vectors=np.stack(directions), mean=common)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))
    return unit

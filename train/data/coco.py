"""COCO data sets, checked before training starts: problems are counted and repaired, or they are errors.

Boxes are x1, y1, x2, y2 in pixels of the stored image (the EXIF orientation is ignored, see `image_files`).
Categories do not matter: every box is an object, unless its class is held out.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.machine import available_cores
from edgerpn.progress import progress
from edgerpn.train.data import annotations as data_annotations
from edgerpn.train.data.annotations import BROKEN_FILE, MISSING_FILE, ListedBox, ListedImage, ProblemKind, Problems
from edgerpn.train.data.formats import coco_layouts
from edgerpn.train.data.formats.content import Content, Split
from edgerpn.train.data.image_files import ImageFolder, Verify, probe_image, read_image

__all__ = ["Dataset", "ImageRecord", "Verify", "class_names", "read_coco", "read_image", "read_split"]

WRONG_SIZE = ProblemKind(
    "image whose size is not the annotated one", "image dropped, as its boxes may belong to another picture"
)
NO_BOXES = ProblemKind("image without boxes", "kept as a negative")
_DROPPING = (MISSING_FILE, BROKEN_FILE, WRONG_SIZE)
_MAX_DROPPED = 0.1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageRecord:
    """A usable image and its boxes."""

    image_id: int
    """COCO id."""
    file: Path
    """The image file."""
    hw: tuple[int, int]
    """Height and width of the stored image, pixels."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(G, 4) objects, pixels, inside the image, of positive width and height."""
    ignore_xyxy: npt.NDArray[np.float32]
    """(I, 4) regions of many objects (iscrowd), pixels, inside the image; neither object nor background."""
    held_out_xyxy: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(O, 4) objects of held-out classes, pixels, inside the image; training does not see them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """The usable images of one annotation file."""

    records: tuple[ImageRecord, ...]
    """Images in the order of the annotation file; at least one."""
    annotation_file: Path
    """The file or folder that lists them."""
    sha256: str
    """Hex digest of the annotation file's bytes; of another format, or a part of a set, of the content."""
    problems: tuple[str, ...]
    """One line per kind of problem: description, count, treatment, up to five examples."""
    folder: Path
    """Folder of the whole data set."""

    def coco_ground_truth(self, part: Literal["seen", "unseen", "all"] = "seen") -> dict[str, Any]:
        """Returns the records as a COCO data set with the single category 1, for class-agnostic evaluation.

        Args:
            part: Objects of classes that are not held out, of held-out classes, or all; crowds are in each.

        Returns:
            A new dict with "images", "annotations" (ids from 1; area = width x height; iscrowd) and "categories".
        """
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            objects = {
                "seen": record.boxes_xyxy,
                "unseen": record.held_out_xyxy,
                "all": np.concatenate((record.boxes_xyxy, record.held_out_xyxy)),
            }[part]
            for is_crowd, boxes in enumerate((objects, record.ignore_xyxy)):
                for x1, y1, x2, y2 in boxes.tolist():
                    annotations.append(
                        {
                            # From 1, because pycocotools treats a match with id 0 as no match.
                            "id": len(annotations) + 1,
                            "image_id": record.image_id,
                            "category_id": 1,
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": (x2 - x1) * (y2 - y1),
                            "iscrowd": is_crowd,
                        }
                    )
        images = [
            {"id": record.image_id, "file_name": record.file.name, "width": record.hw[1], "height": record.hw[0]}
            for record in self.records
        ]
        categories = [{"id": 1, "name": "object"}]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def read_coco(
    annotations: Path, images: Path, *, verify: Verify = "decode", holdout_classes: Sequence[str] = ()
) -> Dataset:
    """Reads a COCO annotation file; arguments and errors as in `read_split`.

    Args:
        annotations: JSON file with "images" and "annotations".
        images: Folder of the images; a "file_name" is relative to it or to its parent folder.
        verify: See `read_split`.
        holdout_classes: See `read_split`.

    Raises:
        DataError: See `read_split`.
    """
    return read_split(Split(annotations, images), verify=verify, holdout_classes=holdout_classes)


def read_split(split: Split, *, verify: Verify = "decode", holdout_classes: Sequence[str] = ()) -> Dataset:
    """Reads a split of any format and checks it against the images.

    `Dataset.problems` counts what it repairs: repeated annotation ids (kept), annotations of unlisted images, empty,
    non-finite and outside boxes (dropped), boxes partly outside (clipped), missing and broken files and files of
    another size than annotated (image dropped), images without boxes (kept as negatives).

    Args:
        split: Annotations and images; a "file_name" is relative to the folder of the images or to its parent folder.
        verify: "decode" decodes every image once; "header" reads sizes and file ends; "none" trusts the annotations.
        holdout_classes: Names of classes whose boxes go to `ImageRecord.held_out_xyxy`; their crowds are dropped.

    Raises:
        DataError: A file cannot be read or is invalid, image ids repeat, a file name leads out of the folder, a
            held-out class is unknown, or more than a tenth of the images (or all boxes) are unusable.
    """
    annotations, images = split.annotations, split.images
    content = _content(split)
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; expected the images of {annotations.name}")
    # A copy, because a split can be read again.
    root, problems = content.root, copy.deepcopy(content.problems)
    listed = data_annotations.parse_images(root["images"], annotations)
    known = {image.image_id: image for image in listed}
    held_out = data_annotations.parse_holdout(root, holdout_classes, annotations)
    num_dropped = sum(problems.count(kind) for kind in _DROPPING)
    boxes = data_annotations.parse_boxes(
        root["annotations"], annotations, known, problems, has_classes=bool(held_out), names=content.box_names
    )
    files = _usable_files(listed, images, verify, problems, annotations)
    _refuse_if_many_dropped(num_dropped + len(listed), problems, annotations, images)
    records = tuple(_records(listed, files, boxes, held_out, problems))
    if boxes and not any(len(record.boxes_xyxy) + len(record.ignore_xyxy) for record in records):
        raise DataError(f"{annotations}: none of its {len(boxes)} boxes is usable", problems=problems.lines())
    return Dataset(
        records=records,
        annotation_file=annotations,
        sha256=content.sha256,
        problems=problems.lines(),
        folder=split.folder or annotations.parent,
    )


def class_names(split: Split) -> frozenset[str]:
    """Returns the names of the classes of a split; empty if it cannot be read (see `read_split`)."""
    try:
        entries = _content(split).root.get("categories")
    except DataError:
        return frozenset()
    rows = entries if isinstance(entries, list) else []
    return frozenset(str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row)


def _content(split: Split) -> Content:
    return split.load() if split.load is not None else coco_layouts.read_file(split.annotations)


def _usable_files(
    listed: tuple[ListedImage, ...], images: Path, verify: Verify, problems: Problems, annotations: Path
) -> dict[int, Path]:
    """Checks every file in threads (decoding releases the GIL) and returns the usable ones by image id."""

    def check(image: ListedImage) -> tuple[Path | None, tuple[ProblemKind, str] | None]:
        return _check_file(image, folder, verify, annotations)

    folder = ImageFolder(images)
    files: dict[int, Path] = {}
    workers = ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="verify")
    try:
        with progress(len(listed), f"checking {annotations.name}", unit="image") as bar:
            for image, (file, problem) in zip(listed, workers.map(check, listed), strict=True):
                bar.update()
                if problem is not None:
                    problems.add(*problem)
                elif file is not None:
                    files[image.image_id] = file
    finally:
        # An error or Ctrl-C must not wait for the images in the queue.
        workers.shutdown(wait=True, cancel_futures=True)
    return files


def _check_file(
    image: ListedImage, folder: ImageFolder, verify: Verify, annotations: Path
) -> tuple[Path | None, tuple[ProblemKind, str] | None]:
    """Returns the image's file, or the problem that makes it unusable."""
    try:
        file = folder.locate(image.file_name)
    except DataError as error:
        raise DataError(f"{annotations}: image {image.image_id}: {error}") from error
    if file is None:
        return None, (MISSING_FILE, f"image {image.image_id}: {image.file_name}")
    if verify == "none":
        return file, None
    try:
        found = probe_image(file, verify).stored_hw
    except DataError as error:
        return None, (BROKEN_FILE, f"image {image.image_id}: {error}")
    if found != image.hw:
        sizes = f"{found[1]} x {found[0]}, annotated {image.hw[1]} x {image.hw[0]}"
        turned = ", as if rotated by its EXIF orientation" if found == image.hw[::-1] else ""
        return None, (WRONG_SIZE, f"image {image.image_id}: {image.file_name}: {sizes}{turned}")
    return file, None


def _refuse_if_many_dropped(total: int, problems: Problems, annotations: Path, images: Path) -> None:
    dropped = sum(problems.count(kind) for kind in _DROPPING)
    if dropped == total:
        raise DataError(
            f"{annotations}: none of its {total} images is usable in {images}; is it the right folder?",
            problems=problems.lines(),
        )
    if dropped > _MAX_DROPPED * total:
        raise DataError(
            f"{annotations}: {dropped} of {total} images are not usable in {images}, more than one in ten; "
            "is it the right folder? Repair the data set, or remove these images from the file:",
            problems=problems.lines(),
        )


def _records(
    listed: tuple[ListedImage, ...],
    files: dict[int, Path],
    boxes: list[ListedBox],
    held_out: Collection[int | None],
    problems: Problems,
) -> Iterator[ImageRecord]:
    by_image: dict[int, list[ListedBox]] = defaultdict(list)
    for box in boxes:
        by_image[box.image_id].append(box)
    for image in listed:
        if image.image_id not in files:
            continue
        kept: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = [], []
        apart: list[tuple[float, ...]] = []
        for box in by_image[image.image_id]:
            clipped = data_annotations.clip_box(box, image.hw, problems)
            if clipped is None:
                continue
            if box.category_id not in held_out:
                kept[box.is_crowd].append(clipped)
                continue
            problems.add(data_annotations.HELD_OUT_BOX, box.name)
            if not box.is_crowd:
                apart.append(clipped)
        if not kept[0]:
            problems.add(NO_BOXES, f"image {image.image_id}: {image.file_name}")
        yield ImageRecord(
            image_id=image.image_id,
            file=files[image.image_id],
            hw=image.hw,
            boxes_xyxy=np.array(kept[0], np.float32).reshape(-1, 4),
            ignore_xyxy=np.array(kept[1], np.float32).reshape(-1, 4),
            held_out_xyxy=np.array(apart, np.float32).reshape(-1, 4),
        )

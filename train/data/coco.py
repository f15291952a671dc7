"""COCO data sets, checked before training starts: problems are counted and repaired, or they are errors.

Boxes are x1, y1, x2, y2 in pixels of the image as it is read: stored, or turned by its EXIF orientation.
Categories do not matter: every box is an object, unless its class is held out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.images.header import Exif
from edgerpn.machine import threaded_map
from edgerpn.progress import track
from edgerpn.train.data.annotations import (
    BAD_IMAGE,
    BROKEN_FILE,
    MISSING_FILE,
    ImageId,
    ListedBoxes,
    ListedImage,
    ProblemKind,
    class_ids,
)
from edgerpn.train.data.choice import ImageRules
from edgerpn.train.data.findings import Finding, find_copies, refuse
from edgerpn.train.data.formats.content import Split
from edgerpn.train.data.image_files import ImageFolder, ImageProbe, Verify, probe_image, read_image
from edgerpn.train.data.listing import CheckedBoxes, Listing, check_boxes, known_sizes, load_content, read_listing
from edgerpn.train.data.orientation import TurnedImage, find_turned, size_by, turn_fractions
from edgerpn.train.data.rules import DAMAGED, IMAGES

__all__ = [
    "Dataset",
    "ImageRecord",
    "Verify",
    "category_ids",
    "class_names",
    "read_coco",
    "read_image",
    "read_split",
    "read_truth",
]

WRONG_SIZE = ProblemKind(
    "image whose size is not the annotated one", "image dropped, as its boxes may belong to another picture"
)
NO_BOXES = ProblemKind("image without boxes", "kept as a negative")
RENAMED_FILE = ProblemKind("image file found under another spelling or folder", "used")
AMBIGUOUS_FILE = ProblemKind("image file name that fits several files", "image dropped")
OTHER_READING = ProblemKind("image annotated with the size of the other EXIF reading", "used as `data.exif` says")
DAMAGED_FILE = ProblemKind("image file damaged", "image dropped")
DAMAGED_BUT_USED = ProblemKind("image file damaged, data.damaged accepts it", "used as far as it decodes")
_DROPPING = (BAD_IMAGE, MISSING_FILE, AMBIGUOUS_FILE, BROKEN_FILE, WRONG_SIZE, DAMAGED_FILE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageRecord:
    """A usable image and its boxes."""

    image_id: ImageId
    """COCO id."""
    file: Path
    """The image file."""
    hw: tuple[int, int]
    """Height and width of the image as it is read, pixels."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(G, 4) objects, pixels, inside the image, of positive width and height."""
    ignore_xyxy: npt.NDArray[np.float32]
    """(I, 4) regions of many objects (iscrowd), pixels, inside the image; neither object nor background."""
    held_out_xyxy: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(O, 4) objects of held-out classes, pixels, inside the image; training does not see them."""
    box_classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(G,) positions of the objects' classes in `Dataset.class_names`; -1: without a named class."""
    ignore_classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(I,) the same for the regions of many objects."""
    exif: Exif = "ignore"
    """Whether the image is turned by its EXIF orientation when it is read; see `image_files.read_image`."""


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
    class_names: tuple[str, ...] = ()
    """Names of the classes in file order."""
    findings: tuple[Finding, ...] = ()
    """Findings of the rules about whole sets."""
    repairs: Mapping[ProblemKind, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """Count and examples of each kind of problem in `problems`."""

    @property
    def present_classes(self) -> tuple[str, ...]:
        """Names of the classes of objects, without held-out ones and those without a box, in file order."""
        rows = np.unique(np.concatenate([record.box_classes for record in self.records]))
        return tuple(self.class_names[row] for row in rows.tolist() if row >= 0)

    def with_classes(self, names: Sequence[str]) -> Dataset:
        """Returns the set with the classes of its boxes numbered as in `names`; others become -1 and come last."""
        numbers = [names.index(name) if name in names else -1 for name in self.class_names]
        rows = np.array([*numbers, -1], np.int64)  # the last is that of boxes without a class
        records = []
        for record in self.records:
            classes = rows[record.box_classes]
            # Training learns the first class of a place, and that is one with a name.
            order = np.argsort(classes < 0, kind="stable")
            boxes, ignored = record.boxes_xyxy[order], rows[record.ignore_classes]
            records.append(replace(record, boxes_xyxy=boxes, box_classes=classes[order], ignore_classes=ignored))
        return replace(self, records=tuple(records), class_names=tuple(names))

    @property
    def num_objects(self) -> int:
        """Number of boxes of all images, without crowds and held-out classes."""
        return sum(len(record.boxes_xyxy) for record in self.records)

    def coco_ground_truth(
        self, part: Literal["seen", "unseen", "all"] = "seen", *, by_class: bool = False
    ) -> dict[str, Any]:
        """Returns the records as a COCO data set.

        Args:
            part: Objects of classes that are not held out, of held-out classes, or all; crowds are in each.
            by_class: Whether each object has the category of its class, from 1 in the order of `class_names`, and
                those without one are left out; needs `part` "seen". By default all have the single category 1, and
                objects of several classes in one place are one object, for class-agnostic evaluation.

        Returns:
            A new dict with "images", "annotations" (ids from 1; area = width x height; iscrowd) and "categories".
        """
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            seen = record.boxes_xyxy if by_class else record.boxes_xyxy[~find_copies(record.boxes_xyxy)]
            objects = {
                "seen": seen,
                "unseen": record.held_out_xyxy,
                "all": np.concatenate((seen, record.held_out_xyxy)),
            }[part]
            classes = record.box_classes if by_class else np.zeros(len(objects), np.int64)
            ignored = record.ignore_classes if by_class else np.zeros(len(record.ignore_xyxy), np.int64)
            for is_crowd, boxes, rows in ((0, objects, classes), (1, record.ignore_xyxy, ignored)):
                for (x1, y1, x2, y2), row in zip(boxes.tolist(), rows.tolist(), strict=True):
                    if row < 0:
                        continue
                    annotations.append(
                        {
                            # From 1, because pycocotools treats a match with id 0 as no match.
                            "id": len(annotations) + 1,
                            "image_id": record.image_id,
                            "category_id": row + 1,
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": (x2 - x1) * (y2 - y1),
                            "iscrowd": is_crowd,
                        }
                    )
        images = [
            {"id": record.image_id, "file_name": record.file.name, "width": record.hw[1], "height": record.hw[0]}
            for record in self.records
        ]
        names = self.class_names if by_class else ("object",)
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def read_coco(
    annotations: Path,
    images: Path,
    *,
    verify: Verify = "decode",
    holdout_classes: Sequence[str] = (),
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


def read_split(
    split: Split, *, verify: Verify = "decode", holdout_classes: Sequence[str] = (), by_class: bool = False
) -> Dataset:
    """Reads a split of any format, checks it against the images, and refuses it if a rule about whole sets does.

    Args:
        split: See `inspect_split`.
        verify: See `inspect_split`.
        holdout_classes: See `inspect_split`.
        by_class: See `inspect_split`.

    Raises:
        DataError: See `inspect_split`; or the set breaks a rule that `split.allow` does not name (too many images
            that cannot be used, boxes in another unit, ...).
    """
    dataset = inspect_split(split, verify=verify, holdout_classes=holdout_classes, by_class=by_class)
    refuse(dataset.findings, split.allow, f"{split.annotations}", dataset.problems)
    return dataset


def inspect_split(
    split: Split, *, verify: Verify = "decode", holdout_classes: Sequence[str] = (), by_class: bool = False
) -> Dataset:
    """Reads a split of any format and checks it against the images, but refuses nothing that can be read.

    `Dataset.problems` counts what it repairs: malformed entries and boxes (dropped), boxes partly outside (clipped),
    copies of boxes (kept once), missing, broken and damaged files and files of another size than annotated (image
    dropped), files found under another name (used), images without boxes (kept as negatives), and more.
    `Dataset.findings` has the rules about whole sets.

    Args:
        split: Annotations and images; a "file_name" is relative to the folder of the images or to its parent folder.
        verify: "decode" decodes every image once; "header" reads sizes and file ends; "none" trusts the annotations.
        holdout_classes: Names of classes whose boxes go to `ImageRecord.held_out_xyxy`; their crowds are dropped.
        by_class: Whether classes matter, so that boxes of different classes in one place are all kept.

    Raises:
        DataError: A file cannot be read or is no annotation file, image ids repeat, a file name leads out of the
            folder, a held-out class is unknown, or all images or all boxes are unusable.
    """
    annotations, images = split.annotations, split.images
    listing = read_listing(split, holdout_classes)
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; expected the images of {annotations.name}")
    problems = listing.problems
    found = _check_files(listing, split, verify)
    files = [one.file for one in found]
    if not any(files):
        raise DataError(
            f"{annotations}: none of its {problems.count(BAD_IMAGE) + len(files)} images is usable in {images}; is it "
            "the right folder?",
            problems=problems.lines(),
        )
    boxes, findings = _find_in_files(listing, found, split.rules)
    listing = replace(listing, boxes=boxes)
    sizes = [one.hw for one in found]
    checked = check_boxes(listing, sizes, files, by_class=by_class)
    records = tuple(_records(listing, files, sizes, checked, split.rules.reading))
    if len(checked.boxes) and not any(len(record.boxes_xyxy) + len(record.ignore_xyxy) for record in records):
        raise DataError(f"{annotations}: none of its {len(checked.boxes)} boxes is usable", problems=problems.lines())
    return Dataset(
        records=records,
        annotation_file=annotations,
        sha256=listing.sha256,
        problems=problems.lines(),
        folder=split.folder or annotations.parent,
        class_names=listing.boxes.class_names,
        findings=(*findings, *checked.findings),
        repairs=problems.kinds(),
    )


def read_truth(split: Split, *, by_class: bool = False) -> Dataset:
    """Reads the boxes of a split without its images, for results of another program; refuses it as `read_split` does.

    Args:
        split: See `inspect_split`.
        by_class: See `inspect_split`.

    Raises:
        DataError: See `read_split`, but for the files of the images.
    """
    dataset = inspect_listed(split, by_class=by_class)
    refuse(dataset.findings, split.allow, f"{split.annotations}", dataset.problems)
    return dataset


def inspect_listed(split: Split, *, by_class: bool = False) -> Dataset:
    """Reads the boxes of a split without its images, which have the listed sizes, or 0 x 0 without any.

    Args:
        split: See `inspect_split`.
        by_class: See `inspect_split`.

    Raises:
        DataError: The file cannot be read, is no annotation file, or lists no image; or image ids repeat.
    """
    listing = read_listing(split)
    names = [Path(image.file_name) for image in listing.images]
    if not names:
        raise DataError(f"{split.annotations}: no usable image entries", problems=listing.problems.lines())
    checked = check_boxes(listing, known_sizes(listing), names, by_class=by_class)
    # Recall does not depend on the size of an image.
    records = tuple(_records(listing, names, [image.hw or (0, 0) for image in listing.images], checked))
    return Dataset(
        records=records,
        annotation_file=split.annotations,
        sha256=listing.sha256,
        problems=listing.problems.lines(),
        folder=split.folder or split.annotations.parent,
        class_names=listing.boxes.class_names,
        findings=checked.findings,
        repairs=listing.problems.kinds(),
    )


def require_objects(dataset: Dataset, label: str, purpose: str) -> None:
    """Refuses a set without an object.

    Args:
        dataset: The set.
        label: Its name in messages.
        purpose: What it is for, such as "to learn from".

    Raises:
        DataError: All boxes are crowds or of held-out classes, or there is none.
    """
    if dataset.num_objects:
        return
    crowds = sum(len(record.ignore_xyxy) for record in dataset.records)
    held_out = sum(len(record.held_out_xyxy) for record in dataset.records)
    raise DataError(
        f"{label}: no objects {purpose}: its {len(dataset.records)} images have {crowds} regions of many objects "
        f"(iscrowd), {held_out} boxes of held-out classes and no other boxes; is it the right file?",
        problems=dataset.problems,
    )


def class_names(split: Split) -> frozenset[str]:
    """Returns the names of the classes of a split; empty if it cannot be read (see `read_split`)."""
    try:
        return frozenset(name for name, _ in class_ids(load_content(split).root))
    except DataError:
        return frozenset()


def category_ids(split: Split) -> dict[str, int]:
    """Returns the category id of each class of a split by its name, without those that are no numbers."""
    found = class_ids(load_content(split).root)
    return {name: number for name, number in reversed(found) if isinstance(number, int)}


class _CheckedFile(NamedTuple):
    """An image file after its check."""

    file: Path | None = None
    """The file; None: it cannot be used."""
    hw: tuple[int, int] = (0, 0)
    """Height and width of the image as it will be read, pixels."""
    problems: tuple[tuple[ProblemKind, str], ...] = ()
    """Kinds of problems, each with a description of the case."""
    probe: ImageProbe | None = None
    """The facts about the file; None: not looked at."""


def _check_files(listing: Listing, split: Split, verify: Verify) -> list[_CheckedFile]:
    """Checks every file in threads (decoding releases the GIL), in the order of the list."""

    def check(image: ListedImage) -> _CheckedFile:
        return _check_file(image, folder, verify, split)

    folder = ImageFolder(split.images, follow_links=split.rules.follow_links)
    listed, found = listing.images, []
    with contextlib.closing(threaded_map(check, listed)) as checked:
        for one in track(checked, f"checking {split.annotations.name}", total=len(listed), unit="image"):
            for kind, example in one.problems:
                # The sizes of boxes in fractions are those of the stored images, nobody has annotated them.
                if kind is not OTHER_READING or not listing.is_relative:
                    listing.problems.add(kind, example)
            found.append(one)
    return found


def _check_file(image: ListedImage, folder: ImageFolder, verify: Verify, split: Split) -> _CheckedFile:
    name = f"image {image.image_id}: {image.file_name}"
    try:
        file = folder.locate(image.file_name)
        candidates = [file] if file is not None else folder.search(image.file_name)
    except DataError as error:
        raise DataError(f"{split.annotations}: image {image.image_id}: {error}") from error
    if len(candidates) > 1:
        fitting = " and ".join(map(str, candidates[:2]))
        return _CheckedFile(problems=((AMBIGUOUS_FILE, f"{name}: {fitting}"),))
    if not candidates:
        near = folder.find_near(image.file_name)
        return _CheckedFile(problems=((MISSING_FILE, f"{name} (there is {near})" if near else name),))
    found = _check_found(image, candidates[0], verify, split)
    if file is None:
        renamed = RENAMED_FILE, f"{name} found as {candidates[0].relative_to(folder.path)}"
        found = found._replace(problems=(renamed, *found.problems))
    return found


def _check_found(image: ListedImage, file: Path, verify: Verify, split: Split) -> _CheckedFile:
    name = f"image {image.image_id}: {image.file_name}"
    if verify == "none" and image.hw is not None:
        return _CheckedFile(file, image.hw)
    try:
        probe = probe_image(file, "header" if verify == "none" else verify)
    except DataError as error:
        return _CheckedFile(problems=((BROKEN_FILE, f"image {image.image_id}: {error}"),))
    hw = size_by(split.rules.reading, probe, image.hw)
    annotated = "" if image.hw is None else f"annotated {image.hw[1]} x {image.hw[0]}"
    if hw is None:
        swapped = ", swapped as after the loss of an EXIF orientation" if image.hw == probe.stored_hw[::-1] else ""
        sizes = f"{probe.stored_hw[1]} x {probe.stored_hw[0]}, {annotated}{swapped}"
        return _CheckedFile(problems=((WRONG_SIZE, f"{name}: {sizes}"),))
    problems = []
    if image.hw not in (None, hw):
        problems.append((OTHER_READING, f"{name}: {hw[1]} x {hw[0]}, {annotated}"))
    if probe.damage:
        kind = DAMAGED_BUT_USED if split.rules.damaged == "use" else DAMAGED_FILE
        problems.append((kind, f"image {image.image_id}: {file}: {probe.damage}"))
        if kind is DAMAGED_FILE:
            return _CheckedFile(problems=tuple(problems))
    return _CheckedFile(file, hw, tuple(problems), probe)


def _find_in_files(
    listing: Listing, checked: Sequence[_CheckedFile], rules: ImageRules
) -> tuple[ListedBoxes, list[Finding]]:
    """Applies the rules about image files of a set; returns the boxes by the sizes of the images as they are read."""
    turned = [
        TurnedImage(row, one.file, one.probe.stored_hw, one.probe.orientation, listed.hw)
        for row, (one, listed) in enumerate(zip(checked, listing.images, strict=True))
        if one.file is not None and one.probe is not None and one.probe.orientation != 1
    ]
    boxes, findings = listing.boxes, []
    if rules.exif == "auto":
        finding = find_turned(turned, boxes, is_relative=listing.is_relative)
        findings += [finding] if finding is not None else []
    elif rules.exif == "apply" and listing.is_relative:
        boxes = turn_fractions(boxes, turned)
    num_dropped = listing.problems.count(*_DROPPING)
    total = listing.problems.count(BAD_IMAGE) + len(listing.images)
    if num_dropped:
        findings.append(Finding(rule=IMAGES, count=num_dropped, total=total))
    num_damaged = listing.problems.count(DAMAGED_FILE)
    if rules.damaged == "refuse" and num_damaged:
        findings.append(Finding(rule=DAMAGED, count=num_damaged, total=total))
    return boxes, findings


def _records(
    listing: Listing,
    files: Sequence[Path | None],
    sizes: Sequence[tuple[int, int]],
    checked: CheckedBoxes,
    exif: Exif = "ignore",
) -> Iterator[ImageRecord]:
    boxes = checked.boxes
    kept = np.flatnonzero(checked.is_kept & ~(boxes.is_held_out & boxes.is_crowd))
    kept = kept[np.argsort(boxes.image_rows[kept], kind="stable")]
    ends = np.searchsorted(boxes.image_rows[kept], np.arange(len(files) + 1))
    part = np.where(boxes.is_held_out, 2, boxes.is_crowd.astype(int))
    for row, (image, file, hw) in enumerate(zip(listing.images, files, sizes, strict=True)):
        if file is None:
            continue
        own = kept[ends[row] : ends[row + 1]]
        objects, crowds, apart = (own[part[own] == number] for number in range(3))
        if not len(objects):
            listing.problems.add(NO_BOXES, f"image {image.image_id}: {image.file_name}")
        yield ImageRecord(
            image_id=image.image_id,
            file=file,
            hw=hw,
            boxes_xyxy=checked.xyxy[objects],
            ignore_xyxy=checked.xyxy[crowds],
            held_out_xyxy=checked.xyxy[apart],
            box_classes=boxes.class_rows[objects],
            ignore_classes=boxes.class_rows[crowds],
            exif=exif,
        )

"""The check of a data set: reads every split as training does, and adds what only the whole set shows."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgerpn.arguments import output_problems
from edgerpn.errors import ConfigError, DataError
from edgerpn.machine import threaded_map
from edgerpn.progress import track
from edgerpn.train.check.boxes import BoxFigures, figures_of
from edgerpn.train.check.copies import CopyGroups, find_copies, fingerprint
from edgerpn.train.check.opinion import Detect, find_unmarked
from edgerpn.train.check.report import CheckItem, CheckReport, Severity, Shown, SplitFigures
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import NO_BOXES, Dataset, ImageRecord, inspect_listed, inspect_split, require_objects
from edgerpn.train.data.findings import Finding, errors_of, find_unseen
from edgerpn.train.data.formats.content import Split
from edgerpn.train.data.image_files import read_reduced
from edgerpn.train.data.rules import LEAKED
from edgerpn.train.data.splits import find_all_splits

_NUM_SHOWN = 4
_LEAST_FIT = 0.8
"""Share of the objects that an anchor should overlap by half; less costs recall, as training refines the anchors."""
_HASHED_PX = 64
"""Shortest side at which an image is decoded for its hash, at least."""
_ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}


def check_set(
    path: Path,
    choice: DataChoice,
    settings: TrainSettings,
    *,
    detect: Detect | None = None,
    has_images: bool = True,
    outputs: Sequence[tuple[str, Path | None]] = (),
) -> CheckReport:
    """Checks a data set.

    Args:
        path: Folder of the set, or its annotation file.
        choice: Format, splits, classes and accepted rules.
        settings: Settings that training would have; network input, anchors, augmentation and the rule for EXIF
            orientations count.
        detect: A trained model, to look for unmarked objects; None: without.
        has_images: Whether to read the images; otherwise the sizes in the annotations count, and no item has pictures.
        outputs: Flags of the command, and the files that it will write.

    Raises:
        ConfigError: An output would replace the annotations.
        DataError: No data set is recognised at `path`, or a split is missing.
    """
    lines: list[str] = []
    found_splits = find_all_splits(path, choice, lines.append)
    inputs = [path, *(split.annotations for split in found_splits.values())]
    if problems := [line for flag, file in outputs for line in output_problems(file, inputs, flag=flag)]:
        raise ConfigError(problems)
    splits: dict[str, SplitFigures] = {}
    items: list[CheckItem] = []
    for name, found in found_splits.items():
        split = found.read_like(settings.data.exif)
        try:
            dataset = inspect_split(split) if has_images else inspect_listed(split)
        except DataError as error:
            first, *others = str(error).split("\n  ")
            items.append(CheckItem("error", name, "unreadable", 1, first, _refusal(name), tuple(others)))
            continue
        figures = figures_of(dataset, settings, split.label)
        splits[name] = SplitFigures(dataset=dataset, boxes=figures)
        items += _rule_items(name, split, dataset, settings)
        items += _repair_items(name, dataset)
        items += _box_items(name, dataset.records, figures, settings)
        if detect is not None and has_images:
            items += _unmarked_items(name, dataset.records, detect, split.label)
    items += _class_items(splits)
    if has_images:
        items += _copy_items(splits, choice.allow)
    else:
        # The names of the files are as written: nobody has looked whether they lead out of the set.
        items = [dataclasses.replace(item, shown=()) for item in items]
    return CheckReport(
        path=path,
        layout=lines[0],
        input_hw=settings.data.input_hw,
        splits=splits,
        items=tuple(sorted(items, key=lambda item: _ORDER[item.severity])),
    )


def _rule_items(name: str, split: Split, dataset: Dataset, settings: TrainSettings) -> Iterator[CheckItem]:
    """Items of the rules about whole sets, and of a set without an object."""
    config = settings.data
    unseen = find_unseen(
        ((record.hw, record.boxes_xyxy) for record in dataset.records if min(record.hw) > 0),
        config.input_hw,
        config.augment.scale_range[1],
        config.augment.min_box_px,
    )
    findings = (*dataset.findings, *((unseen,) if name == "train" else ()))
    wrong = errors_of(findings, ())
    by_file = {record.file: record for record in dataset.records}
    for one in wrong:
        is_accepted = one.rule.name in split.allow
        done = (
            f"accepted by --allow {one.rule.name}"
            if is_accepted
            else f"{_refusal(name)}; if the set is right, accept it with --allow {one.rule.name}"
        )
        severity: Severity = "warning" if is_accepted else "error"
        yield CheckItem(severity, name, one.rule.name, one.count, str(one), done, shown=_shown_places(one, by_file))
    if name in ("train", "val"):
        try:
            require_objects(dataset, split.label, "to learn from" if name == "train" else "to measure recall on")
        except DataError as error:
            text = str(error).split("\n")[0].removeprefix(f"{split.label}: ")
            yield CheckItem("error", name, "no-objects", 1, text, "training refuses it")


def _refusal(name: str) -> str:
    """Returns the consequence of an error in a split."""
    return "training refuses it" if name in ("train", "val") else "training does not use it, but `eval` refuses it"


def _shown_places(finding: Finding, by_file: Mapping[Path, ImageRecord]) -> tuple[Shown, ...]:
    shown = []
    for file, boxes in finding.places:
        record = by_file.get(file)
        others = () if record is None or boxes else _tuples(record.boxes_xyxy)
        shown.append(
            Shown(
                file=file,
                caption=f"{file.name}: {len(boxes)} boxes",
                flagged=boxes,
                others=others,
                exif="ignore" if record is None else record.exif,
            )
        )
    return tuple(shown)


def _repair_items(name: str, dataset: Dataset) -> Iterator[CheckItem]:
    """Items of single records that training repairs or drops."""
    for kind, (count, examples) in dataset.repairs.items():
        severity: Severity = "note" if kind is NO_BOXES else "warning"
        slug = kind.what.replace(",", "").replace(" ", "-")
        yield CheckItem(severity, name, slug, count, f"{kind.what}: {count}", kind.done, examples)


def _box_items(
    name: str, records: Sequence[ImageRecord], figures: BoxFigures, settings: TrainSettings
) -> Iterator[CheckItem]:
    """Items of the sizes and places of boxes."""
    height, width = settings.data.input_hw
    num_unseen = sum(map(len, figures.unseen.values()))
    if num_unseen:
        yield CheckItem(
            "warning",
            name,
            "too-small",
            num_unseen,
            f"objects that are below {settings.data.augment.min_box_px:g} px in every view at {width} x {height}: "
            f"{num_unseen} of {figures.num_objects}",
            "training drops them; a larger --size shows them"
            if name == "train"
            else "they can hardly be found; a larger --size shows them",
            shown=_shown_boxes(records, figures.unseen, "too small objects"),
        )
    if figures.num_near_copies:
        yield CheckItem(
            "warning",
            name,
            "near-copies-of-boxes",
            figures.num_near_copies,
            f"boxes that nearly equal another of their image: {figures.num_near_copies} of {figures.num_objects}",
            "kept; the object counts twice",
            shown=_shown_boxes(records, figures.near_copies, "near copies"),
        )
    if figures.num_nested:
        yield CheckItem(
            "note",
            name,
            "nested-boxes",
            figures.num_nested,
            f"boxes inside another one of their image: {figures.num_nested} of {figures.num_objects}",
            "kept; an object and its part, if both are marked everywhere",
            shown=_shown_boxes(records, figures.nested, "nested boxes"),
        )
    fit = figures.anchors
    if fit is not None and fit.at_50 < _LEAST_FIT and name == "train":
        missed = round((1 - fit.at_50) * figures.num_objects)
        yield CheckItem(
            "note",
            name,
            "anchors",
            missed,
            f"objects that no anchor overlaps by half at {width} x {height}: about {missed} of {figures.num_objects}",
            "training refines the nearest anchor; `edgerpn anchors` fits them to these boxes",
        )


def _shown_boxes(records: Sequence[ImageRecord], found: Mapping[int, np.ndarray], what: str) -> tuple[Shown, ...]:
    worst = sorted(found, key=lambda row: (-len(found[row]), row))[:_NUM_SHOWN]
    return tuple(
        Shown(
            file=records[row].file,
            caption=f"{records[row].file.name}: {len(found[row])} {what}",
            flagged=_tuples(found[row]),
            others=_tuples(records[row].boxes_xyxy),
            exif=records[row].exif,
        )
        for row in worst
    )


def _unmarked_items(name: str, records: Sequence[ImageRecord], detect: Detect, label: str) -> Iterator[CheckItem]:
    unmarked = find_unmarked(records, detect, label)
    if unmarked:
        shown = tuple(
            Shown(
                file=records[one.row].file,
                caption=f"{records[one.row].file.name}: {len(one.boxes)} unmarked, {one.num_marked} marked",
                flagged=_tuples(one.boxes),
                others=_tuples(records[one.row].boxes_xyxy),
                exif=records[one.row].exif,
            )
            for one in unmarked[:_NUM_SHOWN]
        )
        yield CheckItem(
            "warning",
            name,
            "unmarked-objects",
            len(unmarked),
            f"images that hold more unmarked objects than marked ones, by the model's opinion: {len(unmarked)}",
            "training takes unmarked objects as background; mark them",
            tuple(one.caption for one in shown),
            shown,
        )


def _class_items(splits: Mapping[str, SplitFigures]) -> Iterator[CheckItem]:
    if {"train", "val"} <= splits.keys():
        known = splits["train"].boxes.classes
        new = {name: count for name, count in splits["val"].boxes.classes.items() if name not in known}
        if new:
            shown = ", ".join(itertools.islice((f"{name} ({count})" for name, count in new.items()), 20))
            yield CheckItem(
                "warning",
                "val",
                "classes-without-training",
                len(new),
                f"classes that no training image shows: {shown}",
                "recall includes them",
            )


def _copy_items(splits: Mapping[str, SplitFigures], allow: Sequence[str]) -> Iterator[CheckItem]:
    """Items of near copies of images, within splits and across them."""
    records = [(name, record) for name, split in splits.items() for record in split.dataset.records]
    hashes = np.zeros(len(records), np.uint64)
    thumbnails = np.zeros((len(records), 256), np.uint8)
    with contextlib.closing(threaded_map(_fingerprint, (record for _, record in records))) as prints:
        bar = track(prints, "looking for copies", total=len(records), unit="image")
        for row, (hash_value, thumbnail) in enumerate(bar):
            hashes[row], thumbnails[row] = hash_value, thumbnail
    copies = find_copies(hashes, thumbnails)
    groups = copies.members()
    for name in splits:
        inside = [[row for row in group.tolist() if records[row][0] == name] for group in groups]
        inside = sorted((rows for rows in inside if len(rows) > 1), key=len, reverse=True)
        if inside:
            count = sum(len(rows) - 1 for rows in inside)
            number = f"{len(inside)} group{'s'[: len(inside) != 1]}"
            yield CheckItem(
                "warning",
                name,
                "copies-of-images",
                count,
                f"images that are near copies of another one of their split: {count}, in {number}",
                "training sees them more often" if name == "train" else "recall counts them more often",
                tuple(", ".join(records[row][1].file.name for row in rows[:5]) for rows in inside[:3]),
                tuple(_pair(records[rows[0]][1], records[rows[1]][1]) for rows in inside[:_NUM_SHOWN]),
            )
    for name in splits:
        if name != "train" and "train" in splits:
            yield from _leaks(name, splits, records, copies, allow)


def _leaks(
    name: str,
    splits: Mapping[str, SplitFigures],
    records: Sequence[tuple[str, ImageRecord]],
    copies: CopyGroups,
    allow: Sequence[str],
) -> Iterator[CheckItem]:
    # The training images come first, so the first near copy is one of them if any is.
    num_trained = len(splits["train"].dataset.records)
    pairs = []
    for row, (owner, _) in enumerate(records):
        near = int(copies.nearest[row])
        if owner == name and near >= num_trained:
            near = int(copies.nearest[near])
        if owner == name and 0 <= near < num_trained:
            pairs.append((row, near))
    if not pairs:
        return
    finding = Finding(rule=LEAKED, count=len(pairs), total=len(splits[name].dataset.records))
    is_error = name == "val" and finding.is_error and LEAKED.name not in allow
    yield CheckItem(
        "error" if is_error else "warning",
        name,
        LEAKED.name,
        len(pairs),
        str(finding) if name == "val" else f"images that have a near copy in the training split: {len(pairs)}",
        "training takes no notice"
        + (f"; if the set is right, accept it with --allow {LEAKED.name}" if is_error else ""),
        tuple(f"{records[one][1].file.name} and {records[other][1].file.name}" for one, other in pairs[:5]),
        tuple(_pair(records[one][1], records[other][1]) for one, other in pairs[:_NUM_SHOWN]),
    )


def _pair(first: ImageRecord, second: ImageRecord) -> Shown:
    caption = f"{first.file.name} and {second.file.name}"
    boxes = _tuples(first.boxes_xyxy)
    return Shown(file=first.file, caption=caption, others=boxes, exif=first.exif, beside=second.file)


def _fingerprint(record: ImageRecord) -> tuple[int, np.ndarray]:
    reduction = next((one for one in (8, 4, 2) if min(record.hw) >= one * _HASHED_PX), 1)
    return fingerprint(read_reduced(record.file, reduction, record.exif)[0])


def _tuples(boxes_xyxy: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes_xyxy.tolist())

"""The files behind `--data`: a folder in one of the known layouts, or an annotation file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import class_ids
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.formats import coco_layouts, cvat, label_studio, labelme, open_images, voc, yolo
from edgerpn.train.data.formats.by_source import SourceSplit, split_by_source
from edgerpn.train.data.formats.classes import check_classes, select_classes
from edgerpn.train.data.formats.content import Content, Layout, Split
from edgerpn.train.data.listing import load_content

__all__ = ["Split", "SplitName", "find_layouts", "find_split", "find_splits", "find_train_and_val"]

SplitName = Literal["train", "val"]
Log = Callable[[str], None]

_FORMATS = {
    "coco": coco_layouts,
    "yolo": yolo,
    "voc": voc,
    "openimages": open_images,
    "labelme": labelme,
    "cvat": cvat,
    "labelstudio": label_studio,
}
_WITH_LABEL_FILES = ("yolo", "voc", "labelme")
"""Formats with label files for single images, which may be links as the images may."""
_DEFAULT = DataChoice()
_MAX_HINTS = 30
"""Entries of a folder in which data sets are looked for, for the message that there is none."""


def find_split(path: Path, split: SplitName, choice: DataChoice = _DEFAULT, log: Log | None = None) -> Split:
    """Finds a split of a data set.

    Args:
        path: A folder in a known layout, or an annotation file. A file of all images stands for itself, whatever the
            split, unless `choice` names a share to hold out.
        split: The split of a folder. A set without a validation split is split by source.
        choice: Format, split and classes; by default the files determine them, and all classes count.
        log: Called with one line: the layout and the split.

    Raises:
        DataError: There is no such file or folder, no layout or several are recognised, or the split is missing.
    """
    layout = _layout(path, choice)
    rule = choice.rule
    if _stands_for_itself(path, layout) and rule.fraction is None:
        found, origin = layout.splits["train"], f"all of {path.name}"
    elif rule.fraction is not None or (rule.val not in layout.splits and rule.train in layout.splits):
        train, val, summary = _hold_out(path, layout, choice)
        found = train if split == "train" else val
        rest = "all but " if split == "train" else ""
        origin = f"{rest}{summary} held out of {layout.splits[rule.train].label}"
    else:
        found = _named(path, layout, getattr(rule, split))
        origin = found.label
    if log is not None:
        log(f"{path}: {layout.title}; {split}: {origin}{_selection(choice)}")
    return _selected(found, layout, choice)


def find_train_and_val(path: Path, choice: DataChoice = _DEFAULT, log: Log | None = None) -> tuple[Split, Split]:
    """Finds both splits that training needs; arguments and errors as in `find_split`.

    Of a COCO file, the validation split is val.json beside it or the one that the layout of its folder has, or else
    images are held out of it.

    Raises:
        DataError: See `find_split`; or `path` is itself the validation file.
    """
    layout = _layout(path, choice)
    rule = choice.rule
    if layout.format == "coco" and path.is_file() and rule.fraction is None:
        layout = _with_validation(path, layout)
    if rule.fraction is not None or rule.val not in layout.splits:
        train, val, summary = _hold_out(path, layout, choice)
        origin = f"val: {summary} held out of {layout.splits[rule.train].label}"
    else:
        train, val = _named(path, layout, rule.train), layout.splits[rule.val]
        origin = f"train: {train.label}, val: {val.label}"
    if log is not None:
        unused = sorted(layout.splits.keys() - {rule.train, rule.val})
        not_used = f"; not used: {','.join(unused)}" if unused else ""
        log(f"{path}: {layout.title}; {origin}{not_used}{_selection(choice)}")
    return _selected(train, layout, choice), _selected(val, layout, choice)


def find_all_splits(path: Path, choice: DataChoice = _DEFAULT, log: Log | None = None) -> dict[str, Split]:
    """Finds the splits that training uses, "train" and "val", and those that it does not; see `find_train_and_val`."""
    train, val = find_train_and_val(path, choice, log)
    layout, rule = _layout(path, choice), choice.rule
    others = [name for name in layout.splits if name not in (rule.train, rule.val)]
    return {"train": train, "val": val} | {
        f"{name} (not used)": _selected(layout.splits[name], layout, choice) for name in others
    }


def find_splits(path: Path, choice: DataChoice = _DEFAULT, log: Log | None = None) -> dict[str, Split]:
    """Finds all splits of a data set by name; arguments and errors as in `find_split`.

    They are those that the set has, or the two that `choice` makes of it.
    """
    if choice.split:
        train, val = find_train_and_val(path, choice, log)
        return {"train": train, "val": val}
    layout = _layout(path, choice)
    if log is not None:
        found = ", ".join(f"{name}: {split.label}" for name, split in layout.splits.items())
        log(f"{path}: {layout.title}; {found}{_selection(choice)}")
    return {name: _selected(split, layout, choice) for name, split in layout.splits.items()}


def find_layouts(folder: Path, data_format: str = "auto") -> list[Layout]:
    """Returns every layout that a folder has, of any format or one.

    Raises:
        DataError: A file that describes a layout (data.yaml) cannot be used.
    """
    modules = [module for name, module in _FORMATS.items() if data_format in ("auto", name)]
    return [layout for module in modules for layout in module.find_layouts(folder)]


def _layout(path: Path, choice: DataChoice) -> Layout:
    layout = _recognised(path, choice)
    if not choice.images.follow_links or layout.format not in _WITH_LABEL_FILES:
        return layout
    linked = {
        name: split._replace(load=partial(split.load, follow_links=True))
        for name, split in layout.splits.items()
        if split.load is not None
    }
    return replace(layout, splits=linked)


def _recognised(path: Path, choice: DataChoice) -> Layout:
    looked_for = [module.LOOKED_FOR for name, module in _FORMATS.items() if choice.format in ("auto", name)]
    if path.is_file():
        layout = _layout_of_file(path)
        if choice.format not in ("auto", layout.format):
            raise DataError(f"{path}: this file is not of the format {choice.format!r}; name the folder of the set")
        return layout
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected a folder or file of one of:", problems=looked_for)
    layouts = find_layouts(path, choice.format)
    if not layouts:
        below = _data_sets_below(path, choice.format)
        hint = f"; name the folder {' or '.join(map(str, below))} in it" if below else ""
        raise DataError(f"{path}: no data set recognised in this folder{hint}; looked for:", problems=looked_for)
    if len(layouts) > 1:
        raise DataError(
            f"{path}: {len(layouts)} data sets recognised; choose one with --format, or name its annotation file:",
            problems=[layout.title for layout in layouts],
        )
    return layouts[0]


def _layout_of_file(file: Path) -> Layout:
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return yolo.layout_of_file(file)
    if suffix == ".xml":
        return cvat.layout_of_file(file)
    if suffix == ".csv":
        return open_images.layout_of_file(file)
    return (label_studio if label_studio.is_export(file) else coco_layouts).layout_of_file(file)


def _data_sets_below(folder: Path, data_format: str) -> list[Path]:
    """Returns the subfolders that are data sets; an archive often unpacks into a folder of its own."""
    found = []
    for place in sorted(folder.iterdir())[:_MAX_HINTS]:
        with contextlib.suppress(DataError):
            if place.is_dir() and find_layouts(place, data_format):
                found.append(place)
    return found


def _named(path: Path, layout: Layout, name: str) -> Split:
    if name not in layout.splits:
        raise DataError(
            f"{path}: {layout.title} has no {name} split; it has {', '.join(layout.splits)}; add it, or choose another "
            "with --split, such as --split val=test"
        )
    return layout.splits[name]


def _with_validation(file: Path, layout: Layout) -> Layout:
    """Adds the validation split that belongs to a COCO file, if there is one."""
    train = layout.splits["train"]
    beside = file.parent / "val.json"
    if beside.is_file():
        if beside.samefile(file):
            raise DataError(f"{file}: these are the validation images; name the training images or their folder")
        val = Split(beside, train.images, folder=file.parent)
        return Layout(format=layout.format, title=layout.title, splits={"train": train, "val": val})
    for folder in (file.parent, file.parent.parent):
        for around in coco_layouts.find_layouts(folder):
            splits = around.splits
            if {"train", "val"} <= splits.keys() and splits["train"].annotations.samefile(file):
                return around
            if "val" in splits and splits["val"].annotations.samefile(file):
                raise DataError(f"{file}: these are the validation images; name the training images or their folder")
    return layout


def _stands_for_itself(path: Path, layout: Layout) -> bool:
    """Returns whether a path is an annotation file of all images, rather than the description of a folder."""
    return path.is_file() and layout.format != "yolo" and list(layout.splits) == ["train"]


def _selection(choice: DataChoice) -> str:
    return f"; classes: {', '.join(choice.classes)}" if choice.classes else ""


def _selected(split: Split, layout: Layout, choice: DataChoice) -> Split:
    """Returns a split whose boxes are those of the chosen classes, and which knows the accepted rules."""
    split = split._replace(allow=choice.allow, rules=choice.images)
    if not choice.classes:
        return split
    return split._replace(load=partial(_load_classes, split, tuple(layout.splits.values()), choice.classes))


def _load_classes(split: Split, splits: tuple[Split, ...], classes: tuple[str, ...]) -> Content:
    content = load_content(split)
    known = {name: None for name, _ in class_ids(content.root)}
    if not known.keys() >= set(classes):
        # Some formats name only the classes that a split has.
        known |= {name: None for other in splits for name, _ in class_ids(load_content(other).root)}
        check_classes(classes, known, split.annotations)
    return select_classes(content, classes)


def _hold_out(path: Path, layout: Layout, choice: DataChoice) -> tuple[Split, Split, str]:
    """Splits the training images by source; returns both parts and a summary."""
    rule = choice.rule
    whole = _named(path, layout, rule.train)
    content = load_content(whole)
    parts = split_by_source(content, rule.share, rule.seed, whole.annotations, whole.images)
    return _part(whole, "train", parts), _part(whole, "val", parts), parts.summary


def _part(whole: Split, split: SplitName, parts: SourceSplit) -> Split:
    name = f"{whole.annotations.name} ({split})"
    part, rest = (parts.train, parts.val) if split == "train" else (parts.val, parts.train)
    return whole._replace(load=partial(_identity, part), name=name, rest_sha256=rest.sha256)


def _identity(content: Content) -> Content:
    return content

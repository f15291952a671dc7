"""COCO data sets in the layouts that tools write: ours, COCO's own, Roboflow's, CVAT's, Label Studio's, one file."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from edgerpn.images.formats import has_image_suffix
from edgerpn.train.data import annotations as data_annotations
from edgerpn.train.data.formats.content import SPLIT_NAMES, Content, Layout, Split
from edgerpn.train.data.formats.reading import visible_files

LOOKED_FOR = (
    "COCO: train.json, val.json and images/; train/_annotations.coco.json, valid/; "
    "annotations/instances_train2017.json and train2017/; instances.json, result.json or another single COCO file"
)

_ROBOFLOW = "_annotations.coco.json"
_INSTANCES = re.compile(r"(instances_|)(train|val|valid|validation|test)(\d{4}|)\.json")
_SINGLE = ("instances.json", "annotations/instances_default.json", "annotations/instances.json", "result.json")
"""Files of a set without splits: ours and FiftyOne's, CVAT's (two), Label Studio's."""


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the COCO layouts in a folder; one file for all images counts only if there are no files of splits."""
    with_splits = [_by_file_name(folder), _by_folder(folder), *_in_annotations(folder)]
    return [layout for layout in with_splits if layout is not None] or _single_files(folder)


def layout_of_file(file: Path) -> Layout:
    """Returns the layout of one annotation file whose images are beside it, in a folder near it."""
    folder = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = Split(file, _images_of_file(file, folder), folder=folder)
    return Layout(format="coco", title=f"COCO ({file.name})", splits={"train": split})


def read_file(file: Path) -> Content:
    """Reads a COCO annotation file.

    Raises:
        DataError: It cannot be read, or is not a COCO file.
    """
    root, digest = data_annotations.read_coco_json(file)
    return Content(root=root, sha256=digest)


def _by_file_name(folder: Path) -> Layout | None:
    """train.json, val.json and images/."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            file = folder / f"{name}.json"
            if split not in splits and file.is_file():
                choices = (folder / "images" / name, folder / "images", folder / name)
                splits[split] = Split(file, _first_folder(choices, folder / "images"), folder=folder)
    return _layout("train.json, val.json", splits)


def _by_folder(folder: Path) -> Layout | None:
    """train/_annotations.coco.json with the images beside it, as Roboflow writes it."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            file = folder / name / _ROBOFLOW
            if split not in splits and file.is_file():
                splits[split] = Split(file, file.parent, name=f"{name}/{_ROBOFLOW}", folder=folder)
    return _layout(f"{'/, '.join(s.images.name for s in splits.values())}/ with {_ROBOFLOW}", splits)


def _in_annotations(folder: Path) -> list[Layout]:
    """annotations/instances_train2017.json and train2017/, as COCO and CVAT write them; a layout for every year."""
    found: dict[tuple[str, str], dict[str, Split]] = defaultdict(dict)
    of_name = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    for file in visible_files(folder / "annotations", ".json"):
        match = _INSTANCES.fullmatch(file.name)
        if match is None:
            continue
        prefix, name, year = match.groups()
        places = (name + year, f"images/{name}{year}", name, f"images/{name}", "images")
        choices = tuple(folder / place for place in places)
        split = Split(file, _first_folder(choices, folder / f"{name}{year}"), folder=folder)
        found[prefix, year].setdefault(of_name[name], split)
    layouts = [
        _layout(f"annotations/{', '.join(split.annotations.name for split in splits.values())}", splits)
        for splits in found.values()
    ]
    return [layout for layout in layouts if layout is not None]


def _single_files(folder: Path) -> list[Layout]:
    files = [folder / name for name in (*_SINGLE, _ROBOFLOW) if (folder / name).is_file()]
    if not files:
        others = visible_files(folder, ".json") or visible_files(folder / "annotations", ".json")
        files = [file for file in others if len(others) == 1 and _looks_like_coco(file)]
    return [layout_of_file(file) for file in files]


def _looks_like_coco(file: Path) -> bool:
    try:
        root = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(root, dict) and {"images", "annotations"} <= root.keys()


def _images_of_file(file: Path, folder: Path) -> Path:
    match = _INSTANCES.fullmatch(file.name)
    tag = f"{match[2]}{match[3]}" if match is not None else "default"
    beside = [folder / tag] if match is not None else []
    choices = [folder / "images" / tag, folder / "images"]
    # Beside annotations/, the folder of the split comes first.
    choices = [*choices, *beside] if file.parent == folder else [*beside, *choices]
    if folder.is_dir() and any(has_image_suffix(path.name) for path in folder.iterdir()):
        choices.append(folder)
    return _first_folder(tuple(choices), folder / "images")


def _first_folder(choices: tuple[Path, ...], otherwise: Path) -> Path:
    return next((choice for choice in choices if choice.is_dir()), otherwise)


def _layout(title: str, splits: dict[str, Split]) -> Layout | None:
    return Layout(format="coco", title=f"COCO ({title})", splits=splits) if splits else None

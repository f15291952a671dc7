"""The domains: held-out sets, each divided once for all, and further data sets with a division of their own.

A domain becomes two data folders (train.json, val.json, images/): `whole`, to measure what was not trained on the
domain, and `parts`, to train on a part of it and to measure the rest. The ids of images are the same in both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.general.prepare import boxes_of, read_sets, split_sources
from edgerpn.errors import DataError
from edgerpn.train.data.annotations import read_coco_json
from edgerpn.train.data.choice import ImageRules
from edgerpn.train.data.coco import Dataset, read_split
from edgerpn.train.data.formats.content import Split

MEASURED_SHARE = 0.4
"""Share of the sources of a held-out set that are measured after training on the others."""
PRIOR_BOXES = 100
"""Boxes of each other set from which the frequency prior knows objects; so all sets count equally."""
ALLOWED = ("clipped",)
"""Rules about whole sets that some of the held-out sets break, and why we know better: objects cut by the border."""

Coco = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """A data set to measure on."""

    name: str
    """Name of its folder."""
    is_held_out: bool
    """Whether it counts in the mean; False for further data sets."""
    whole: Path
    """Data folder: val.json lists all images to measure without training, train.json boxes of other sets."""
    parts: Path
    """Data folder: train.json and val.json are parts of the domain."""

    def subset(self, count: int | None, seed: int) -> tuple[Path, int]:
        """Returns a data folder that trains on `count` images drawn by the seed, and its number of training images.

        With fewer images than that, or None, the folder trains on all. Those drawn for a smaller count are among those
        for a larger one.
        """
        train = read_coco_json(self.parts / "train.json")[0]
        if count is None or count >= len(train["images"]):
            return self.parts, len(train["images"])
        order = sorted(train["images"], key=lambda image: str(image["id"]))
        random.Random(f"{self.name}:{seed}").shuffle(order)
        folder = self.whole.with_name(f"{count}-{seed}")
        val = read_coco_json(self.parts / "val.json")[0]
        _write_folder(folder, (self.parts / "images").resolve(), _only(train, order[:count]), val)
        return folder, count


def read_domains(sets: Path, held_out: Iterable[str], further: Iterable[Path], work: Path) -> list[Domain]:
    """Makes the data folders of all domains below `work`.

    Args:
        sets: Folder of COCO sets: NAME/instances.json and images/.
        held_out: Names of those that are domains; the others give the boxes of the frequency prior.
        further: Folders with train.json, val.json and images/.
        work: Folder to write to; images are links.

    Raises:
        DataError: A set is missing or cannot be read, or two have one name.
    """
    known = read_sets(sets)
    names = [*held_out]
    if unknown := sorted({*names} - known.keys()):
        raise DataError(f"{sets}: no set {', '.join(unknown)} to measure on; it has {', '.join(known)}")
    others = _typical({name: content for name, content in known.items() if name not in names})
    found = []
    for name in names:
        content = known[name]
        train, val = (
            _only(content, (image for image in content["images"] if image["source"] in part))
            for part in split_sources(content["images"], MEASURED_SHARE, f"domains:{name}")
        )
        folders = work / name / "whole", work / name / "parts"
        images = (sets / name / "images").resolve()
        _write_folder(folders[0], images, others, content)
        _write_folder(folders[1], images, train, val)
        found.append(Domain(name=name, is_held_out=True, whole=folders[0], parts=folders[1]))
    for folder in further:
        name = folder.resolve().name
        if any(domain.name == name for domain in found):
            raise DataError(f"{folder}: there is already a domain {name!r}; rename the folder")
        val, whole = read_coco_json(folder / "val.json")[0], work / name / "whole"
        _write_folder(whole, (folder / "images").resolve(), others, val)
        found.append(Domain(name=name, is_held_out=False, whole=whole, parts=folder.resolve()))
    return found


def read_measured(folder: Path) -> Dataset:
    """Reads the images to measure in a data folder.

    Raises:
        DataError: They cannot be used.
    """
    rules = ImageRules(follow_links=True)
    split = Split(folder / "val.json", folder / "images", folder=folder, allow=ALLOWED, rules=rules)
    return read_split(split, verify="header")


def _only(content: Coco, images: Iterable[Coco]) -> Coco:
    """Returns the part of the annotations that belongs to some of the images."""
    images, boxes = [*images], boxes_of(content)
    return {**content, "images": images, "annotations": [row for image in images for row in boxes[image["id"]]]}


def _typical(sets: dict[str, Coco]) -> Coco:
    """Returns some boxes of every set, always the same, in one list of annotations."""
    images: list[Coco] = []
    annotations: list[Coco] = []
    for name, content in sets.items():
        of_image = {image["id"]: image for image in content["images"]}
        rows = content["annotations"]
        for row in random.Random(f"prior:{name}").sample(rows, min(PRIOR_BOXES, len(rows))):
            images.append({**of_image[row["image_id"]], "id": len(images) + 1})
            annotations.append({**row, "image_id": len(images), "id": len(images)})
    return {"images": images, "annotations": annotations}


def _write_folder(folder: Path, images: Path, train: Coco, val: Coco) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(images)
    for split, content in (("train", train), ("val", val)):
        (folder / f"{split}.json").write_text(json.dumps(content))

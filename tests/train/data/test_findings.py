"""Whole sets that would train wrongly are refused with the likely cause; counts are computed by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import ConfigError, DataError
from edgerpn.train.config import load_settings
from edgerpn.train.data.coco import Dataset, read_truth
from edgerpn.train.data.findings import Finding, errors_of, find_unseen
from edgerpn.train.data.formats.content import Split
from edgerpn.train.data.rules import RULE_NAMES, RULES
from tests.train.data.test_annotations import spoil

WIDTH, HEIGHT, NUM_IMAGES = 400, 300, 20
BOXES = [[40 + 10 * n, 30 + 5 * n, 60, 50] for n in range(NUM_IMAGES)]
"""One in each image; none has its width or height beyond its place, so they are no corners, and all are inside."""


def read(
    folder: Path,
    boxes: Sequence[Sequence[float]],
    *,
    allow: Sequence[str] = (),
    names: Sequence[str] = (),
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Dataset:
    """The set of `boxes`, the first of each image first; file names may be given."""
    names = names or [f"{n}.jpg" for n in range(NUM_IMAGES)]
    images = [{"id": n, "file_name": name, "width": width, "height": height} for n, name in enumerate(names)]
    rows: list[dict[str, Any]] = [
        {"id": n, "image_id": n % len(images), "bbox": [*box]} for n, box in enumerate(boxes, start=0)
    ]
    file = folder / "train.json"
    file.write_text(json.dumps({"images": images, "annotations": rows}))
    return read_truth(Split(file, folder, allow=tuple(allow)))


def cases(dataset: Dataset) -> dict[str, tuple[int, int]]:
    return {one.rule.name: (one.count, one.total) for one in dataset.findings}


def fractions(box: Sequence[float]) -> list[float]:
    return [box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT]


def corners(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def test_a_sound_set_has_no_findings(tmp_path: Path) -> None:
    dataset = read(tmp_path, BOXES)
    assert dataset.findings == ()
    assert dataset.num_objects == NUM_IMAGES


@pytest.mark.parametrize(
    ("boxes", "name", "message"),
    [
        ([fractions(box) for box in BOXES], "units", "20 of 20 boxes lie within 0..1: they seem to be fractions"),
        (
            [[100 * value for value in fractions(box)] for box in BOXES],
            "units",
            "20 of 20 boxes lie within 0..100, in larger images: they seem to be per cent",
        ),
        (
            # x1 = 40 + 10 n is given as left and x2 = 100 + 10 n as width: beyond 400 from n = 14 on; of the heights
            # y2 = 80 + 5 n, 110 + 10 n is beyond 300 from n = 20 on.
            [corners(box) for box in BOXES],
            "corners",
            "20 of 20 boxes fit into their images as x1, y1, x2, y2, and many do not as x, y, width, height",
        ),
        ([[box[0], box[1], 1 / 3, 1 / 3] for box in BOXES], "tiny", "20 of 20 boxes are smaller than a pixel"),
        ([[box[0], box[1], 60, 0.9 if n < 5 else 50] for n, box in enumerate(BOXES)], "tiny", "5 of 20 boxes"),
        (
            [[x + (500 if n < 3 else 0), y, w, h] for n, (x, y, w, h) in enumerate(BOXES)],
            "outside",
            "3 of 20 boxes lie wholly outside their images",
        ),
        (
            [[x, y, w + (400 if n < 7 else 0), h] for n, (x, y, w, h) in enumerate(BOXES)],
            "clipped",
            "7 of 20 boxes reach beyond their images: they may belong to images of another size",
        ),
        (BOXES * 2, "doubled", "20 of 40 boxes equal another box of their image"),
        (
            [[x, y, w, 0 if n < 3 else h] for n, (x, y, w, h) in enumerate(BOXES)],
            "dropped",
            "3 of 20 boxes are malformed and would be dropped",
        ),
    ],
)
def test_a_set_of_wrong_boxes_is_refused_and_can_be_accepted(
    boxes: list[list[float]], name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, boxes)
    assert str(caught.value).startswith(f"{tmp_path}/train.json: {message}")
    # One error: what only follows from it is not listed as well.
    assert str(caught.value).count("--allow") == 1
    assert f"accept it with --allow {name} (data.allow)" in str(caught.value)
    assert read(tmp_path, boxes, allow=[name]).records


@pytest.mark.parametrize(
    ("boxes", "wh", "found"),
    [
        # Objects in the top left corner of small pictures, and a few of them in large ones, are no percentages.
        ([[x / 8, y / 8, 30, 30] for x, y, *_ in BOXES], (120, 120), {}),
        ([[10, 10, 20, 20], *BOXES[1:]], (WIDTH, HEIGHT), {}),
        ([[n, n, 20, 20] for n in range(20)], (WIDTH, HEIGHT), {}),
        # Large objects in the middle: all would fit as corners too, but they fit as they are.
        ([[30 + n, 40, 300, 200] for n in range(20)], (WIDTH, HEIGHT), {}),
        # Some at the edge, reaching out.
        (
            [[x, y, w + (400 if n < 6 else 0), h] for n, (x, y, w, h) in enumerate(BOXES)],
            (WIDTH, HEIGHT),
            {"clipped": (6, 20)},
        ),
        ([*BOXES, *BOXES[:5]], (WIDTH, HEIGHT), {"doubled": (5, 25)}),
        ([[x, y, 0.5 if n < 4 else w, h] for n, (x, y, w, h) in enumerate(BOXES)], (WIDTH, HEIGHT), {"tiny": (4, 20)}),
        # Two are chance, whatever their share.
        (
            [[x + (500 if n < 2 else 0), y, w, h] for n, (x, y, w, h) in enumerate(BOXES)],
            (WIDTH, HEIGHT),
            {"outside": (2, 20)},
        ),
        # Of nine boxes, shares say nothing.
        ([[*box[:2], 0.3, 0.3] for box in BOXES[:9]], (WIDTH, HEIGHT), {"tiny": (9, 9)}),
    ],
)
def test_no_false_alarm(
    boxes: list[list[float]], wh: tuple[int, int], found: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    assert cases(read(tmp_path, boxes, width=wh[0], height=wh[1])) == found


def test_one_file_under_several_ids_is_refused(tmp_path: Path) -> None:
    names = [f"{n // 2}.jpg" for n in range(20)]
    with pytest.raises(DataError, match="10 of 20 images name a file that another one names too: the file may list a"):
        read(tmp_path, BOXES, names=names)
    assert len(read(tmp_path, BOXES, names=names, allow=["repeated"]).records) == 20


def test_boxes_of_other_images_are_refused_only_if_the_listed_ones_have_none(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(NUM_IMAGES)]
    rows = [{"id": n, "image_id": n + 15, "bbox": box} for n, box in enumerate(BOXES)]
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"images": images, "annotations": rows}))
    with pytest.raises(DataError, match="15 of 20 boxes belong to images that are not listed, while most"):
        read_truth(Split(file, tmp_path))
    # A file of part of the images with the boxes of all.
    rows += [{"id": 100 + n, "image_id": n, "bbox": box} for n, box in enumerate(BOXES[:15])]
    file.write_text(json.dumps({"images": images, "annotations": rows}))
    assert read_truth(Split(file, tmp_path)).findings == ()


def test_boxes_that_no_view_shows_are_found() -> None:
    # 4000 x 3000 into 640 x 640: 0.16. The largest view is 1.4 times that: 0.224, so 2 px are 8.93 px of the picture.
    boxes = np.array([[0, 0, 8.9, 50], [0, 0, 50, 9], [0, 0, 5, 5]], np.float32)
    found = find_unseen([((3000, 4000), boxes), ((3000, 4000), boxes[:0])], (640, 640), 1.4, 2.0)
    assert (found.count, found.total) == (2, 3)


def test_several_errors_are_listed_together(tmp_path: Path) -> None:
    boxes = [[x + (500 if n < 3 else 0), y, w, h] for n, (x, y, w, h) in enumerate(BOXES)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, boxes * 2)
    assert [line.partition(" boxes ")[0] for line in str(caught.value).split("\n  ")[:2]] == [
        f"{tmp_path}/train.json: 6 of 40",
        "17 of 40",
    ]
    with pytest.raises(DataError, match="17 of 40"):
        read(tmp_path, boxes * 2, allow=["outside"])


def test_the_names_of_rules_are_settings() -> None:
    assert {rule.name for rule in RULES} == set(RULE_NAMES)
    assert all(rule.replaces <= set(RULE_NAMES) for rule in RULES)
    assert load_settings(overrides=('data.allow=["tiny", "clipped"]',)).data.choice.allow == ("tiny", "clipped")
    with pytest.raises(ConfigError, match=r"data\.allow: expected names out of units, corners, .*, got \('tinny',\)"):
        load_settings(overrides=('data.allow=["tinny"]',))


def test_an_accepted_error_still_explains_what_follows_from_it() -> None:
    rules = {rule.name: rule for rule in RULES}
    units, tiny = (Finding(rule=rules[name], count=20, total=20) for name in ("units", "tiny"))
    assert errors_of([units, tiny], ()) == [units]
    assert errors_of([units, tiny], ["units"]) == []
    assert errors_of([tiny], ["units"]) == [tiny]


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_set_ends_in_one_named_error_or_is_read(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(NUM_IMAGES)]
    content: Any = {
        "images": images,
        "annotations": [{"id": n, "image_id": n, "bbox": box, "iscrowd": 0} for n, box in enumerate(BOXES)],
        "categories": [{"id": 1, "name": "fish"}],
    }
    for _ in range(rng.randrange(1, 6)):
        content = spoil(content, rng)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content), encoding=rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    message, dataset = f"{file}: ", None
    try:
        dataset = read_truth(Split(file, tmp_path))
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{file}: ")
    assert dataset is None or all(np.isfinite(record.boxes_xyxy).all() for record in dataset.records)

"""Entries of COCO files that cannot be understood are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import Problems, clip_box, parse_boxes, parse_images, parse_json

FILE = Path("train.json")
KNOWN = {1: None, 2: None, 3: None}


def images() -> list[dict[str, Any]]:
    return [{"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40} for number in (1, 2, 3)]


def boxes() -> list[dict[str, Any]]:
    return [{"id": number, "image_id": number, "bbox": [10, 5, 20, 10], "iscrowd": 0} for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON: .*; expected a COCO annotation file"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe\xff", "not valid JSON"),
        ("[]", "expected a JSON object with 'images' and 'annotations', got list"),
        (
            '{"images": [], "info": 1}',
            "expected a list 'annotations' as in COCO's instances files, got only images, info",
        ),
        ('{"images": {}, "annotations": []}', "expected a list 'images' as in COCO's instances files, got dict"),
        ('{"images": [1], "annotations": []}', r"images\[0\]: expected a JSON object, got 1"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"train\.json: {message}"):
        parse_images(parse_json(text.encode("latin-1"), FILE)["images"], FILE)


@pytest.mark.parametrize(
    ("bbox", "line"),
    [
        ([5, 5, 0, 9], "box of zero or negative size: 1, dropped (annotation 99: [5, 5, 0, 9] in 60 x 40)"),
        ([5, 5, 9, -1], "box of zero or negative size: 1, dropped (annotation 99: [5, 5, 9, -1] in 60 x 40)"),
        ([5, 5, 1e-9, 9], "box of zero or negative size: 1, dropped (annotation 99: [5, 5, 1e-09, 9] in 60 x 40)"),
        (
            [5, float("nan"), 9, 9],
            "box with a coordinate that is not finite: 1, dropped (annotation 99: [5, nan, 9, 9]",
        ),
        (
            [5, 5, float("inf"), 9],
            "box with a coordinate that is not finite: 1, dropped (annotation 99: [5, 5, inf, 9]",
        ),
        ([5, 5, 10**400, 9], "box with a coordinate that is not finite: 1, dropped (annotation 99: [5, 5, inf, 9]"),
        ([60, 5, 9, 9], "box wholly outside its image: 1, dropped (annotation 99: [60, 5, 9, 9] in 60 x 40)"),
        ([-9, 5, 9, 9], "box wholly outside its image: 1, dropped (annotation 99: [-9, 5, 9, 9] in 60 x 40)"),
        ([5, 1e300, 9, 9], "box wholly outside its image: 1, dropped (annotation 99: [5, 1e+300, 9, 9] in 60 x 40)"),
    ],
)
def test_an_unusable_box_is_dropped_and_named(bbox: list[Any], line: str) -> None:
    problems = Problems()
    (parsed,) = parse_boxes([{"id": 99, "image_id": 1, "bbox": bbox}], FILE, KNOWN, problems)
    assert clip_box(parsed, (40, 60), problems) is None
    assert len(problems.lines()) == 1
    assert problems.lines()[0].startswith(line)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    entries = images()
    entries[0] |= {"id": 1.0, "width": 60.0}
    assert parse_images(entries, FILE)[0] == parse_images(images(), FILE)[0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", "one", r"images\[2\]: id: expected a whole number, got 'one'"),
        ("id", True, r"images\[2\]: id: expected a whole number, got True"),
        ("id", 2, r"images\[2\] \(id 2\): '2\.jpg' already has this id"),
        ("width", None, r"images\[2\] \(id 3\): width: expected a whole number, got None"),
        ("height", 0, r"images\[2\] \(id 3\): expected a positive width and height, got 60 x 0"),
        ("file_name", 7, r"images\[2\] \(id 3\): file_name: expected a text, got 7"),
    ],
)
def test_an_image_entry_of_wrong_type_is_refused_by_name(key: str, value: Any, message: str) -> None:
    entries = images()
    entries[2][key] = value
    with pytest.raises(DataError, match=message):
        parse_images(entries, FILE)


@pytest.mark.parametrize("key", ["id", "file_name", "width", "height"])
def test_an_image_entry_without_a_key_is_refused_by_name(key: str) -> None:
    entries = images()
    del entries[2][key]
    with pytest.raises(DataError, match=rf"images\[2\].*: '{key}' is missing; it has "):
        parse_images(entries, FILE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", None, r"annotations\[2\]: id: expected a whole number, got None"),
        ("image_id", "3", r"annotations\[2\] \(id 3\): image_id: expected a whole number, got '3'"),
        ("bbox", [1, 2, 3], r"annotations\[2\] \(id 3\): bbox: expected 4 numbers .*, got \[1, 2, 3\]"),
        ("bbox", [1, 2, 3, "4"], r"annotations\[2\] \(id 3\): bbox: expected 4 numbers .*, got \[1, 2, 3, '4'\]"),
        ("bbox", [1, 2, 3, None], r"annotations\[2\] \(id 3\): bbox: expected 4 numbers .*None\]"),
        ("bbox", {"x": 1}, r"annotations\[2\] \(id 3\): bbox: expected 4 numbers"),
        ("iscrowd", "no", r"annotations\[2\] \(id 3\): iscrowd: expected 0 or 1, got 'no'"),
        ("iscrowd", [], r"annotations\[2\] \(id 3\): iscrowd: expected 0 or 1, got \[\]"),
    ],
)
def test_an_annotation_of_wrong_type_is_refused_by_name(key: str, value: Any, message: str) -> None:
    entries = boxes()
    entries[2][key] = value
    with pytest.raises(DataError, match=message):
        parse_boxes(entries, FILE, KNOWN, Problems())


@pytest.mark.parametrize("key", ["id", "image_id", "bbox"])
def test_an_annotation_without_a_key_is_refused_by_name(key: str) -> None:
    entries = boxes()
    del entries[2][key]
    with pytest.raises(DataError, match=rf"annotations\[2\].*: '{key}' is missing; it has "):
        parse_boxes(entries, FILE, KNOWN, Problems())

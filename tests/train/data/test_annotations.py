"""Malformed entries of COCO files are repaired or dropped, and counted; only a file that is not COCO is refused."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import (
    OUTCOMES,
    ListedBoxes,
    Problems,
    clip_boxes,
    parse_boxes,
    parse_images,
    read_coco_json,
    repair_rows,
    twin_id,
)

FILE = Path("train.json")


def images() -> list[Any]:
    return [{"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40} for number in (1, 2, 3)]


def boxes() -> list[Any]:
    return [{"id": number, "image_id": number, "bbox": [10, 5, 20, 10], "iscrowd": 0} for number in (1, 2, 3)]


def read(image_rows: list[Any], box_rows: list[Any]) -> tuple[dict[str, Any], ListedBoxes, tuple[str, ...]]:
    """The repaired file, its boxes as columns, and the lines of the problems."""
    problems = Problems()
    root, names = repair_rows({"images": image_rows, "annotations": box_rows}, FILE, problems)
    parse_images(root)
    return root, parse_boxes(root, names, frozenset(), problems), problems.lines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON: .*; expected a COCO annotation file"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe\xff", "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ("[]", "expected a JSON object with 'images' and 'annotations', got list"),
        (
            '{"images": [], "info": 1}',
            "expected a list 'annotations' as in COCO's instances files, got only images, info",
        ),
        ('{"images": {}, "annotations": []}', "expected a list 'images' as in COCO's instances files, got dict"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"train\.json: {message}"):
        read_coco_json(tmp_path / FILE)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_may_be_in_any_encoding_of_unicode(encoding: str, tmp_path: Path) -> None:
    text = json.dumps({"images": [{"file_name": "Käfer.jpg"}], "annotations": []}, ensure_ascii=False)
    data = text.replace(", ", ",\r\n").encode(encoding)
    (tmp_path / FILE).write_bytes(data)
    root, digest = read_coco_json(tmp_path / FILE)
    assert root["images"][0]["file_name"] == "Käfer.jpg"
    assert digest == hashlib.sha256(data).hexdigest()


def test_a_sound_file_stays_as_it_is() -> None:
    root, columns, problems = read(images(), boxes())
    assert problems == ()
    assert root == {"images": images(), "annotations": boxes()}
    assert columns.names == ("annotation 1", "annotation 2", "annotation 3")
    np.testing.assert_array_equal(columns.xywh, [[10, 5, 20, 10]] * 3)
    np.testing.assert_array_equal(columns.image_rows, [0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "bbox", "line"),
    [
        ({"bbox": ["10", "5.5", "20", "10"]}, [10, 5.5, 20, 10], "bbox whose numbers are texts: 1, read as numbers ("),
        ({"bbox": (10, 5, 20, 10)}, [10, 5, 20, 10], None),
        ({"bbox": [10**400, 5, 20, 10]}, [math.inf, 5, 20, 10], None),
        ({"iscrowd": None}, [10, 5, 20, 10], "iscrowd that is neither 0 nor 1: 1, taken as 0 (annotation 3: None)"),
        ({"iscrowd": "no"}, [10, 5, 20, 10], "iscrowd that is neither 0 nor 1: 1, taken as 0 (annotation 3: 'no')"),
        ({"iscrowd": []}, [10, 5, 20, 10], "iscrowd that is neither 0 nor 1: 1, taken as 0 (annotation 3: [])"),
        ({"iscrowd": False}, [10, 5, 20, 10], None),
        ({"image_id": "3"}, [10, 5, 20, 10], None),
        ({"image_id": 3.0}, [10, 5, 20, 10], None),
        ({"id": "three"}, [10, 5, 20, 10], None),
        ({"id": 2}, [10, 5, 20, 10], "annotation id used more than once: 1, kept (2)"),
        (
            {"bbox": [], "segmentation": [[4, 2, 14, 2, 9, 12]]},
            [4, 2, 10, 10],
            "annotation with a polygon but without a usable bbox: 1, box taken around the polygon (annotation 3)",
        ),
        (
            {"bbox": None, "segmentation": [[4, 2, 14, 2, 9, 12], [0, 3, 1, 3, 1, 4]]},
            [0, 2, 14, 10],
            "annotation with a polygon but without a usable bbox: 1, box taken around the polygon (annotation 3)",
        ),
    ],
)
def test_an_annotation_is_repaired_and_counted(changes: dict[str, Any], bbox: list[float], line: str | None) -> None:
    entries = boxes()
    entries[2] |= changes
    root, columns, problems = read(images(), entries)
    assert columns.xywh[2].tolist() == bbox
    assert columns.image_rows[2] == 2
    assert not columns.is_crowd.any()
    assert len(problems) == (line is not None)
    assert all(found.startswith(line or "") for found in problems)
    # Repairing twice changes nothing more.
    again = Problems()
    assert repair_rows(root, FILE, again)[0] == root
    assert {kind.what for kind in again.kinds()} <= {"annotation id used more than once"}


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"bbox": []}, "annotation without a usable bbox: 1, dropped (annotation 9: [])"),
        ({"bbox": None}, "annotation without a usable bbox: 1, dropped (annotation 9: None)"),
        ({"bbox": [1, 2, 3]}, "annotation without a usable bbox: 1, dropped (annotation 9: [1, 2, 3])"),
        ({"bbox": [1, 2, 3, "wide"]}, "annotation without a usable bbox: 1, dropped (annotation 9: [1, 2, 3, 'wide'])"),
        ({"bbox": [1, 2, 3, True]}, "annotation without a usable bbox: 1, dropped (annotation 9: [1, 2, 3, True])"),
        ({"bbox": {"x": 1}}, "annotation without a usable bbox: 1, dropped (annotation 9: {'x': 1})"),
        ({"bbox": [], "segmentation": [[1, 2]]}, "annotation without a usable bbox: 1, dropped (annotation 9: [])"),
        (
            {"bbox": [], "segmentation": {"counts": 1}},
            "annotation without a usable bbox: 1, dropped (annotation 9: [])",
        ),
        ({"image_id": 77}, "annotation of an image that is not listed: 1, dropped (annotation 9: image 77)"),
        ({"image_id": None}, "annotation of an image that is not listed: 1, dropped (annotation 9: image None)"),
        ({"image_id": [1]}, "annotation of an image that is not listed: 1, dropped (annotation 9: image [1])"),
        (
            {"image_id": "x" * 100},
            f"annotation of an image that is not listed: 1, dropped (annotation 9: image '{'x' * 56}...",
        ),
    ],
)
def test_an_unusable_annotation_is_dropped_and_named(entry: dict[str, Any], line: str) -> None:
    _, columns, problems = read(images(), [{**boxes()[0], "id": 9, **entry}, *boxes()])
    assert columns.names == ("annotation 1", "annotation 2", "annotation 3")
    assert len(problems) == 1
    assert problems[0].startswith(line)


def test_annotations_that_are_not_objects_or_have_no_id_are_named_by_their_place() -> None:
    nameless = [{"image_id": 1, "bbox": [10, 5, 20, 10]}, {"id": {}, "image_id": 2, "bbox": [10, 5, 20, 10]}]
    _, columns, problems = read(images(), [7, None, *nameless])
    assert columns.names == ("annotations[2]", "annotations[3]")
    assert problems == ("annotation without a usable bbox: 2, dropped (annotations[0]: 7; annotations[1]: None)",)


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (1, "1"),
        ({"file_name": "4.jpg"}, "id None, file_name '4.jpg'"),
        ({"id": [4], "file_name": "4.jpg"}, "id [4], file_name '4.jpg'"),
        ({"id": True, "file_name": "4.jpg"}, "id True, file_name '4.jpg'"),
        ({"id": 4, "file_name": 7}, "id 4, file_name 7"),
        ({"id": 4}, "id 4, file_name None"),
    ],
)
def test_an_unusable_image_entry_is_dropped_and_named(entry: Any, shown: str) -> None:
    root, _, problems = read([*images(), entry], boxes())
    assert len(root["images"]) == 3
    assert problems == (f"image entry without a usable id and file name: 1, image dropped (images[3]: {shown})",)


@pytest.mark.parametrize("sides", [{"width": 0}, {"height": None}, {"width": "60"}, {"width": -1}, {"height": 40.5}])
def test_a_size_that_cannot_be_used_is_left_to_the_file(sides: dict[str, Any]) -> None:
    entries = images()
    entries[1] |= sides
    root, _, problems = read(entries, boxes())
    assert [image.hw for image in parse_images(root)] == [(40, 60), None, (40, 60)]
    assert len(problems) == 1
    assert problems[0].startswith("image without a usable width and height: 1, size taken from the file (image 2: ")


def test_whole_numbers_may_be_written_with_a_point_and_ids_as_texts() -> None:
    entries = [{"id": 1.0, "file_name": "1.jpg", "width": 60.0, "height": 40}, {**images()[1], "id": "b"}, images()[2]]
    root, columns, problems = read(entries, [{**boxes()[1], "image_id": "b"}, boxes()[0]])
    assert problems == ()
    assert [image.image_id for image in parse_images(root)] == [1, "b", 3]
    assert parse_images(root)[0].hw == (40, 60)
    assert columns.image_rows.tolist() == [1, 0]


def test_an_image_listed_again_counts_once_but_two_images_with_one_id_are_refused() -> None:
    root, _, problems = read([*images(), images()[1]], boxes())
    assert len(root["images"]) == 3
    assert problems == ("image listed again with the same id and file: 1, listed once (image 2: 2.jpg)",)
    with pytest.raises(DataError, match=r"images\[3\] \(id 2\): '2\.jpg' already has this id; ids must be unique"):
        read([*images(), {**images()[1], "file_name": "other.jpg"}], boxes())


def test_the_twin_of_an_id_is_the_same_as_a_number_or_a_text() -> None:
    assert [twin_id(value) for value in (3, "3", "03", "a", "", "9" * 30)] == ["3", 3, 3, None, None, None]


def test_boxes_are_clipped_as_computed_by_hand() -> None:
    nan, inf = math.nan, math.inf
    cases = [
        # x, y, width, height; what is left in 60 x 40, and the code of the problem
        ([10, 5, 20, 10], [10, 5, 30, 15], 0),
        ([50, 30, 10.04, 10], [50, 30, 60, 40], 0),
        ([-4, 30, 24, 1e308], [0, 30, 20, 40], 4),
        ([5, 5, 0, 9], None, 2),
        ([5, 5, 9, -1], None, 2),
        ([5, 5, 1e-9, 9], None, 2),
        ([5, nan, 9, 9], None, 1),
        ([5, 5, inf, 9], None, 1),
        ([60, 5, 9, 9], None, 3),
        ([-9, 5, 9, 9], None, 3),
        ([5, 1e300, 9, 9], None, 3),
    ]
    xyxy, outcome = clip_boxes(np.array([case[0] for case in cases]), np.tile([40.0, 60.0], (len(cases), 1)))
    assert outcome.tolist() == [case[2] for case in cases]
    assert set(OUTCOMES) == {1, 2, 3, 4}
    for box, case in zip(xyxy.tolist(), cases, strict=True):
        assert case[1] is None or box == case[1]


def spoil(value: Any, rng: random.Random) -> Any:
    """Replaces something inside a COCO file by something that does not belong there."""
    junk = [None, "", "7", -1, 0.5, 1e400, math.nan, 10**30, [], [1], {}, {"a": 1}, True, "\ud800", "../x", "a" * 300]
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(junk)
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        if rng.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: spoil(value[key], rng)}
    place = rng.randrange(len(value))
    return [*value[:place], spoil(value[place], rng), *value[place + 1 :]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder for all examples."""
    return str(tmp_path_factory.mktemp("damaged"))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), damage=st.sampled_from(["values", "values", "cut", "bytes", "latin-1", "bom"]))
def test_any_damage_ends_in_one_named_error_or_in_counted_repairs(folder: str, seed: int, damage: str) -> None:
    rng = random.Random(seed)
    content: Any = {"images": images(), "annotations": boxes(), "categories": [{"id": 1, "name": "fish"}]}
    for _ in range(rng.randrange(1, 4)):
        content = spoil(content, rng)
    data = json.dumps(content).replace(",", ",\r\n").encode()
    if damage == "cut":
        data = data[: rng.randrange(len(data) + 1)]
    elif damage == "bytes":
        data = bytes(byte if rng.random() > 0.01 else rng.randrange(256) for byte in data)
    elif damage == "latin-1":
        data = data.replace(b"fish", "Käfer".encode("latin-1"))
    elif damage == "bom":
        data = rng.choice([codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b""]) + data
    problems = Problems()
    file = Path(folder) / FILE
    file.write_bytes(data)
    message = f"{file}: "
    root: dict[str, Any] = {}
    names: tuple[str, ...] = ()
    try:
        root, names = repair_rows(read_coco_json(file)[0], file, problems)
    except DataError as error:
        message = str(error)
    assert message.startswith(f"{file}: ")
    if not root:
        return
    columns = parse_boxes(root, names, frozenset(), problems)
    listed = parse_images(root)
    assert columns.xywh.shape == (len(root["annotations"]), 4)
    assert all(0 <= row < len(listed) for row in columns.image_rows)
    _, outcome = clip_boxes(columns.xywh, np.tile([40.0, 60.0], (len(columns), 1)))
    assert outcome.shape == (len(columns),)
    assert all("\n" not in line for line in problems.lines())


def test_polygons_beside_a_bbox_are_not_kept_in_memory(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "image_id": 1, "bbox": [4, 2, 10, 10.5], "segmentation": [[4, 2, 14, 2, 9, 12.5]]},
        {"id": 2, "image_id": 1, "bbox": ["4", 2, 10, 10], "segmentation": [[4, 2, 14, 2, 9, 12]]},
        {"id": 3, "image_id": 1, "segmentation": [[4, 2, 14, 2, 9, 12]]},
    ]
    (tmp_path / FILE).write_text(json.dumps({"images": images(), "annotations": rows}))
    root, _ = read_coco_json(tmp_path / FILE)
    assert ["segmentation" in row for row in root["annotations"]] == [False, True, True]

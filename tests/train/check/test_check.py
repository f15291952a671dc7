"""`edgerpn data check`: made-up sets whose faults were counted by hand, as text, JSON and page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.__main__ import main
from edgerpn.proposals import Proposals
from edgerpn.train.check.boxes import figures_of, overlaps
from edgerpn.train.check.opinion import find_unmarked
from edgerpn.train.config import load_settings
from edgerpn.train.data.coco import ImageRecord, read_coco
from edgerpn.train.data.formats.content import Split

WIDTH, HEIGHT = 160, 120


def write_picture(file: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


class DataSet:
    """Twenty training images and ten for validation, with two objects each; tests spoil it and write it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits: dict[str, dict[str, Any]] = {}
        for split, first, count in (("train", 0, 20), ("val", 100, 10)):
            numbers = range(first, first + count)
            self.splits[split] = {
                "images": [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in numbers],
                "annotations": [
                    {"id": 2 * n + k, "image_id": n, "bbox": [20 + 60 * k, 30, 40 + n % 5, 40], "category_id": 1 + k}
                    for n in numbers
                    for k in range(2)
                ],
                "categories": [{"id": 1, "name": "fish"}, {"id": 2, "name": "crab"}],
            }
            for n in numbers:
                write_picture(folder / "images" / f"{n}.jpg", n)

    def check(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Writes the set and runs the command; returns the exit status and the JSON report."""
        for split, content in self.splits.items():
            (self.folder / f"{split}.json").write_text(json.dumps(content))
        file = self.folder / "report.json"
        size = () if "--checkpoint" in words else ("--size", "128x128")
        status = main(["data", "check", str(self.folder), *size, "--json", str(file), *words])
        return status, json.loads(file.read_text())


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path)


def found(report: dict[str, Any], *severities: str) -> dict[tuple[str, str], int]:
    wanted = severities or ("error", "warning", "note")
    return {(one["split"], one["name"]): one["count"] for one in report["items"] if one["severity"] in wanted}


def test_a_sound_set_has_neither_errors_nor_warnings(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = data.check()
    assert status == 0
    assert report["is_usable"]
    assert found(report, "error", "warning") == {}
    assert report["input_hw"] == [128, 128]
    train = report["splits"]["train"]
    assert (train["num_images"], train["num_objects"], train["num_regions"]) == (20, 40, 0)
    assert train["classes"] == {"fish": 20, "crab": 20}
    assert train["objects_per_image"] == {"median": 2, "p95": 2, "max": 2}
    # 40 to 44 times 40 pixels, letterboxed from 160 to 128: 32 to 33.6.
    assert train["sizes"]["32 to 64 px"] == 40
    assert sum(train["sizes"].values()) == 40
    out = capsys.readouterr().out
    assert "train: 20 images, 40 objects, 2 classes, 0 regions of many, 0 images without objects\n" in out
    assert "\n0 errors, 0 warnings\nwritten: " in out


def test_the_faults_of_both_splits_are_counted(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = data.splits["train"]["annotations"], data.splits["val"]["annotations"]
    train += [
        {"id": 900, "image_id": 0, "bbox": [20, 30, 40, 40]},  # equals the first box of image 0
        {"id": 901, "image_id": 1, "bbox": [20, 30, 41, 41]},  # nearly equals the first box of image 1
        {"id": 902, "image_id": 2, "bbox": [25, 35, 10, 10]},  # inside the first box of image 2
        {"id": 903, "image_id": 3, "bbox": [150, 100, 40, 40]},  # partly outside
        {"id": 904, "image_id": 4, "bbox": None},
        {"id": 905, "image_id": 5, "bbox": [100, 100, 1, 1]},  # 1.12 px at most in a view
    ]
    val.append({"id": 950, "image_id": 100, "bbox": [0, 0, 9, 9], "category_id": 3})
    data.splits["val"]["categories"].append({"id": 3, "name": "ray"})
    shutil.copy(data.folder / "images" / "6.jpg", data.folder / "images" / "7.jpg")
    (data.folder / "images" / "8.jpg").write_bytes(b"")
    status, report = data.check()
    assert status == 0
    assert found(report, "error") == {}
    assert found(report, "warning") == {
        ("train", "box-that-equals-another-of-its-image"): 1,
        ("train", "box-partly-outside-its-image"): 1,
        ("train", "annotation-without-a-usable-bbox"): 1,
        ("train", "image-file-broken"): 1,
        ("train", "near-copies-of-boxes"): 1,
        ("train", "too-small"): 1,
        ("train", "copies-of-images"): 1,
        ("val", "classes-without-training"): 1,
    }
    assert found(report, "note")["train", "nested-boxes"] == 1
    out = capsys.readouterr().out
    assert "\nwarning  val: classes that no training image shows: ray (1); recall includes them\n" in out
    assert "\n           6.jpg, 7.jpg\n" in out


def test_copies_across_splits_are_an_error_that_can_be_accepted(data: DataSet) -> None:
    for number in range(3):
        picture = cv2.imread(str(data.folder / "images" / f"{number}.jpg"))
        assert cv2.imwrite(str(data.folder / "images" / f"{100 + number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 50])
    status, report = data.check()
    assert status == 1
    assert found(report, "error") == {("val", "leaked"): 3}
    (item,) = (one for one in report["items"] if one["name"] == "leaked")
    assert item["text"].startswith("3 of 10 validation images have a near copy in the training split: ")
    assert item["examples"] == ["100.jpg and 0.jpg", "101.jpg and 1.jpg", "102.jpg and 2.jpg"]
    status, report = data.check("--allow", "leaked")
    assert status == 0
    assert found(report, "warning") == {("val", "leaked"): 3}


def corners(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        x, y, w, h = row["bbox"]
        yield {**row, "bbox": [x, y, x + w, y + h]}


@pytest.mark.parametrize(
    ("split", "change", "name"),
    [
        ("train", lambda rows: list(corners(rows)), "corners"),
        ("val", lambda rows: [{**row, "bbox": [value / 200 for value in row["bbox"]]} for row in rows], "units"),
        ("val", lambda rows: [{**row, "iscrowd": 1} for row in rows], "no-objects"),
        ("train", lambda rows: [], "no-objects"),
        ("train", lambda rows: [{**row, "bbox": [1, 2]} for row in rows], "dropped"),
        ("train", lambda rows: {}, "unreadable"),
    ],
)
def test_what_training_refuses_is_an_error(
    split: str, change: Callable[[list[dict[str, Any]]], Any], name: str, data: DataSet
) -> None:
    data.splits[split]["annotations"] = change(data.splits[split]["annotations"])
    status, report = data.check()
    assert status == 1
    assert next(iter(found(report, "error"))) == (split, name)
    assert not report["is_usable"]


def test_annotations_are_checked_without_their_images(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(data.folder / "images")
    del data.splits["val"]["images"][0]["width"]
    status, report = data.check("--no-images")
    assert status == 0
    assert report["splits"]["val"]["num_objects"] == 20
    assert main(["data", "check", str(data.folder), "--no-images", "--checkpoint", "best.pt"]) == 2
    assert "--checkpoint looks at the images" in capsys.readouterr().err


def test_an_error_of_an_unused_split_does_not_speak_of_training(data: DataSet) -> None:
    (data.folder / "test.json").write_text("{}")
    status, report = data.check()
    assert status == 1
    (item,) = [one for one in report["items"] if one["severity"] == "error"]
    assert (item["split"], item["name"]) == ("test (not used)", "unreadable")
    assert item["done"] == "training does not use it, but `eval` refuses it"


def test_a_folder_is_no_page(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.check()
    assert main(["data", "check", str(data.folder), "-o", str(data.folder)]) == 1
    assert "this is a folder, expected the name of a file" in capsys.readouterr().err


def test_json_on_standard_output_is_alone_there(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.check()
    capsys.readouterr()
    assert main(["data", "check", str(data.folder), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["is_usable"]


def test_a_path_without_a_data_set_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "no data set recognised in this folder" in capsys.readouterr().err


class Elements(HTMLParser):
    """Counts elements, and collects what the page refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("href", "src")]


def test_the_page_shows_pictures_and_loads_nothing(data: DataSet) -> None:
    evil = "<script>alert(1)</script>"
    data.splits["train"]["categories"][0]["name"] = evil
    data.splits["train"]["annotations"] = list(corners(data.splits["train"]["annotations"]))
    data.check("-o", str(data.folder / "page.html"))
    html = (data.folder / "page.html").read_text()
    page = Elements(html)
    assert evil not in html
    assert "&lt;script&gt;" in html
    assert page.tags.count("image") == 4
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)
    assert "40 of 40 boxes fit into their images as x1, y1, x2, y2" in html
    # Boxes that reach out are shown beyond the right edge: 80 + 124 = 204, and a quarter of 160 is 40.
    assert re.search(r"viewBox='0 0 200 1[23]\d'", html)


def test_the_page_shows_no_file_that_the_set_only_names(data: DataSet) -> None:
    write_picture(data.folder / "private.jpg", 1)
    data.splits["train"]["images"][0]["file_name"] = str(data.folder / "private.jpg")
    data.splits["train"]["images"][1]["file_name"] = "a\0b.jpg"
    data.splits["train"]["annotations"] = list(corners(data.splits["train"]["annotations"]))
    data.check("--no-images", "-o", str(data.folder / "page.html"))
    page = Elements((data.folder / "page.html").read_text())
    assert page.references == []


def test_a_trained_model_names_images_with_unmarked_objects(
    data: DataSet, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tiny model finds next to nothing here; the rule itself is tested below.
    status, report = data.check("--checkpoint", str(finished_run / "best.pt"))
    assert status == 0
    assert report["input_hw"] == [96, 96]
    assert main(["data", "check", str(data.folder), "--checkpoint", str(finished_run / "none.pt")]) == 1
    assert "none.pt" in capsys.readouterr().err


def record(tmp_path: Path, boxes: list[list[float]]) -> ImageRecord:
    write_picture(tmp_path / "a.jpg", 0)
    objects = np.array(boxes, np.float32).reshape(-1, 4)
    none = np.zeros((0, 4), np.float32)
    return ImageRecord(image_id=1, file=tmp_path / "a.jpg", hw=(HEIGHT, WIDTH), boxes_xyxy=objects, ignore_xyxy=none)


def test_places_that_score_like_marked_objects_count_as_unmarked(tmp_path: Path) -> None:
    marked = [0.0, 0.0, 40.0, 40.0]
    proposals = [
        [marked, 0.8],
        [[60, 0, 90, 30], 0.9],
        [[61, 0, 91, 30], 0.85],  # a copy of the one before
        [[100, 60, 140, 100], 0.81],
        [[60, 60, 90, 90], 0.7],  # scores less than marked objects do
        [[5, 5, 20, 20], 0.95],  # a part of the marked one
        [[0, 0, 60, 60], 0.95],  # around it
    ]
    proposals.sort(key=lambda row: -row[1])  # type: ignore[operator]
    boxes = np.array([row[0] for row in proposals], np.float32)
    scores = np.array([row[1] for row in proposals], np.float32)

    def detect(_: npt.NDArray[np.uint8]) -> Proposals:
        return Proposals(boxes, scores)

    (one,) = find_unmarked([record(tmp_path, [marked])], detect, "train")
    assert (one.row, one.num_marked) == (0, 1)
    assert one.boxes.tolist() == [[60, 0, 90, 30], [100, 60, 140, 100]]
    assert find_unmarked([record(tmp_path, [marked, [60, 0, 90, 30]])], detect, "train") == []
    assert find_unmarked([record(tmp_path, [])], detect, "train") == []


def test_near_copies_and_nested_boxes_are_told_apart() -> None:
    boxes = np.array([[0, 0, 100, 100], [2, 2, 100, 100], [10, 10, 30, 30], [90, 90, 120, 120]], np.float32)
    is_copy, is_nested = overlaps(boxes)
    assert is_copy.tolist() == [False, True, False, False]
    assert is_nested.tolist() == [False, False, True, False]
    assert [mask.tolist() for mask in overlaps(boxes[:0])] == [[], []]


def test_the_fit_of_anchors_is_measured_at_the_network_size(data: DataSet) -> None:
    data.check()
    dataset = read_coco(data.folder / "train.json", data.folder / "images", verify="none")
    figures = figures_of(dataset, load_settings(overrides=("data.input_hw=[128, 128]",)), "train")
    assert figures.anchors is not None
    assert 0 <= figures.anchors.at_70 <= figures.anchors.at_50 <= 1
    assert Split(data.folder / "train.json", data.folder / "images").label == "train.json"

"""Merging data sets for the general weights: what trains, what validates, and what a teacher adds."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.general import prepare

Prepare = Callable[..., int]
DOGS = ("dogs", "dogs@2", "dogs@3")


@pytest.fixture
def run(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Calls the command, by default without `birds`; returns its exit status."""

    def call(*words: str) -> int:
        fixed = ["--sets", str(sets), "--hold-out", "birds", "-o", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["prepare", *fixed, *words])
        return prepare.main()

    return call


def read(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{split}.json").read_text())
    return content


def test_neither_held_out_nor_left_out_sets_are_in_the_result(run: Prepare, sets: Path, tmp_path: Path) -> None:
    assert run("--leave-out", "cups") == 0
    out = tmp_path / "out"
    train, val = read(out, "train"), read(out, "val")
    names = {split: {image["file_name"] for image in read(out, split)["images"]} for split in ("train", "val")}
    assert {name.split("/")[0] for name in names["train"] | names["val"]} == {"cars", "dogs"}
    assert {str(file.relative_to(out / "images")) for file in out.glob("images/*/*")} == names["train"] | names["val"]
    for name in ("cars", "dogs"):
        sources = {
            f"{name}/{image['file_name']}": image["source"] for image in read(sets / name, "instances")["images"]
        }
        parts = [{sources[file] for file in names[split] & sources.keys()} for split in ("train", "val")]
        assert [len(part) for part in parts] == [4, 1]  # a tenth of 5, at least one
        assert not parts[0] & parts[1]
    assert (len(train["images"]), len(val["images"])) == (16, 4)
    for content in (train, val):
        assert content["categories"] == [{"id": 1, "name": "object"}]
        assert [row["image_id"] for row in content["annotations"]] == [image["id"] for image in content["images"]]
        assert {tuple(row["bbox"]) for row in content["annotations"]} == {(36, 0, 24, 24)}
        assert {(row["category_id"], row["area"], row["iscrowd"]) for row in content["annotations"]} == {(1, 576, 0)}


def test_the_same_sources_validate_whatever_other_sets_there_are(run: Prepare, sets: Path, tmp_path: Path) -> None:
    assert run() == 0
    shown = [image["file_name"] for image in read(tmp_path / "out", "val")["images"]]
    fewer = tmp_path / "fewer"
    shutil.copytree(sets / "dogs", fewer / "dogs")
    _, val = prepare.merge(prepare.read_sets(fewer))
    assert [image["file_name"] for image in val["images"]] == [name for name in shown if name.startswith("dogs/")]


def test_a_repeated_set_trains_more_often_and_validates_once(run: Prepare, tmp_path: Path) -> None:
    assert run("--leave-out", "cups", "--repeat", "dogs=3") == 0
    out = tmp_path / "out"
    train = {image["id"]: image["file_name"] for image in read(out, "train")["images"]}
    copies = [{name.split("/")[1] for name in train.values() if name.startswith(f"{folder}/")} for folder in DOGS]
    assert copies[0] == copies[1] == copies[2]
    assert len(train) == len(set(train.values())) == 16 + 2 * 8
    assert all((out / "images" / name).is_file() for name in train.values())
    assert [train[row["image_id"]] for row in read(out, "train")["annotations"]] == list(train.values())
    assert {image["file_name"].split("/")[0] for image in read(out, "val")["images"]} == {"cars", "dogs"}


def test_only_a_set_that_is_used_can_be_repeated(
    run: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--repeat", "birds=2") == 1
    assert "no set birds to repeat; cars, cups, dogs are used" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--repeat", "dogs=0")
    assert "expected NAME=COUNT such as coco_sample=4, got 'dogs=0'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_content_is_not_written_to(
    run: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run() == 1
    assert "the folder is not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_unknown_set_and_an_image_without_source_are_errors(
    run: Prepare, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--leave-out", "fish") == 1
    assert "no set fish to hold out or leave out; it has birds, cars, cups, dogs" in capsys.readouterr().err
    broken = read(sets / "dogs", "instances")
    del broken["images"][3]["source"]
    (tmp_path / "more" / "dogs").mkdir(parents=True)
    (tmp_path / "more" / "dogs" / "instances.json").write_text(json.dumps(broken))
    assert run("--sets", str(tmp_path / "more")) == 1
    assert "expected a text `source` in each image, got {'id': 4" in capsys.readouterr().err
    assert run("--sets", str(sets / "dogs")) == 1
    assert "no data sets here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_adds_objects_and_regions_to_its_image_only() -> None:
    images = [{"id": number, "file_name": f"{number}.png", "width": 200, "height": 200} for number in (1, 2)]
    content: dict[str, Any] = {"images": images, "annotations": []}
    prepare.add_box(content, 1, [10, 10, 40, 40], is_crowd=False)
    answers = {
        "1.png": ([[100, 100, 140, 160], [10, 10, 50, 50], [150, 20, 170, 30]], [0.9, 0.8, 0.2]),
        "2.png": ([[10, 10, 50, 50]], [0.7]),
    }

    def find(file: Path) -> tuple[Any, Any]:
        boxes, scores = answers[file.name]
        return np.array(boxes, np.float32), np.array(scores, np.float32)

    assert prepare.teach(content, Path("images"), find) == (2, 1)
    rows = [(row["image_id"], row["bbox"], row["area"], row["iscrowd"]) for row in content["annotations"][1:]]
    assert rows == [
        (1, [100, 100, 40, 60], 2400, 0),
        (1, [150, 20, 20, 10], 200, 1),
        (2, [10, 10, 40, 40], 1600, 0),  # labelled in image 1, new in image 2
    ]
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3, 4]


def test_the_held_out_sets_are_those_that_the_seed_draws() -> None:
    chance = random.Random("edge-general")
    assert tuple(chance.choice(names) for names in prepare.KINDS.values()) == prepare.HELD_OUT

"""Every format holds the boxes computed by hand, and a set is whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgerpn.errors import ConfigError, DataError
from edgerpn.labels import WRITERS, LabelledImage, LabelWriter, open_writer

yaml = pytest.importorskip("yaml")

CATEGORIES = ("fish", 'it\'s <a> "crab" & 5: é')


def picture(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(f"pixels of {name}".encode())
    return file


def labelled(source: Path, name: str = "a.jpg", **more: Any) -> LabelledImage:
    """A fish at 10, 5, 30, 15 and a crab to ignore at 0.5, 1, 2.25, 20 in an image of 40 x 20 pixels."""
    values: dict[str, Any] = {
        "file_name": name,
        "source": source,
        "size_wh": (40, 20),
        "boxes_xyxy": np.array([[10, 5, 30, 15], [0.5, 1, 2.25, 20]]),
        "categories": np.array([0, 1]),
        "is_ignored": np.array([False, True]),
    }
    return LabelledImage(**(values | more))


def written(kind: str, tmp_path: Path, **more: Any) -> tuple[Path, LabelWriter]:
    folder = tmp_path / "out"
    with open_writer(kind, folder, CATEGORIES) as writer:
        writer.add(labelled(picture(tmp_path, "here/a.jpg"), **more), "val")
    return folder, writer


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_coco(tmp_path: Path) -> None:
    folder, writer = written("coco", tmp_path, scores=np.array([0.75, 0.5]), image_id=7)
    assert tree(folder) == ["images/val/a.jpg", "val.json"]
    assert json.loads((folder / "val.json").read_text(encoding="utf-8")) == {
        "categories": [{"id": 1, "name": CATEGORIES[0]}, {"id": 2, "name": CATEGORIES[1]}],
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 20}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 1,
                "bbox": [10, 5, 20, 10],
                "area": 200,
                "iscrowd": 0,
                "score": 0.75,
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 2,
                "bbox": [0.5, 1, 1.75, 19],
                "area": 33.25,
                "iscrowd": 1,
                "score": 0.5,
            },
        ],
    }
    assert (folder / "images/val/a.jpg").read_bytes() == b"pixels of here/a.jpg"
    assert (writer.num_images, writer.num_boxes, writer.notes()) == (1, 2, ())


def test_yolo(tmp_path: Path) -> None:
    folder, writer = written("yolo", tmp_path)
    assert tree(folder) == ["data.yaml", "images/val/a.jpg", "labels/val/a.txt"]
    content = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert content == {"val": "images/val", "names": dict(enumerate(CATEGORIES))}
    assert (folder / "labels/val/a.txt").read_text() == "0 0.5 0.5 0.5 0.5\n"
    assert writer.notes() == (
        "region to ignore (crowd or difficult object): 1 left out, as YOLO has no place for them",
    )


def test_yolo_lists_images_that_are_not_in_the_order_of_their_names(tmp_path: Path) -> None:
    with open_writer("yolo", tmp_path / "out", ["fish"]) as writer:
        for split, names in (("train", ("b.jpg", "c/images/a.jpg", "a.jpg")), ("val", ("a.jpg", "b.jpg"))):
            for name in names:
                writer.add(labelled(picture(tmp_path, name), name), split)
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert (content["train"], content["val"]) == ("train.txt", "images/val")
    lines = (tmp_path / "out/train.txt").read_text().splitlines()
    assert lines == ["./images/train/b.jpg", "./images/train/c/images/a.jpg", "./images/train/a.jpg"]
    # Readers replace the last "images".
    assert (tmp_path / "out/images/train/c/labels/a.txt").read_text() == "0 0.5 0.5 0.5 0.5\n"
    assert not (tmp_path / "out/val.txt").exists()


def test_voc(tmp_path: Path) -> None:
    folder, writer = written("voc", tmp_path)
    assert tree(folder) == ["Annotations/a.xml", "ImageSets/Main/val.txt", "JPEGImages/a.jpg"]
    assert (folder / "ImageSets/Main/val.txt").read_text() == "a\n"
    root = ElementTree.parse(folder / "Annotations/a.xml").getroot()
    assert [root.findtext(key) for key in ("filename", "size/width", "size/height")] == ["a.jpg", "40", "20"]
    found = [
        [
            entry.findtext(key)
            for key in ("name", "difficult", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
        ]
        for entry in root.findall("object")
    ]
    # Pixels from 1, the last one included: columns 11 to 30 span 10 to 30.
    assert found == [["fish", "0", "11", "6", "30", "15"], [CATEGORIES[1], "1", "1.5", "2", "2.25", "20"]]
    assert writer.notes() == ()


def test_label_studio(tmp_path: Path) -> None:
    folder, _ = written("labelstudio", tmp_path, file_name="a b.jpg", scores=np.array([0.75, 0.5]))
    assert tree(folder) == ["images/a b.jpg", "label_config.xml", "tasks.json"]
    (task,) = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert task["data"] == {"image": "/data/local-files/?d=images/a%20b.jpg", "split": "val"}
    (prediction,) = task["predictions"]
    assert (prediction["score"], prediction["model_version"]) == (0.75, "edgerpn")
    (result,) = prediction["result"]
    assert result["value"] == {
        "x": 25,
        "y": 25,
        "width": 50,
        "height": 50,
        "rotation": 0,
        "rectanglelabels": ["fish"],
    }
    assert (result["score"], result["original_width"], result["original_height"]) == (0.75, 40, 20)
    config = ElementTree.parse(folder / "label_config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(CATEGORIES)
    assert {result["from_name"]} == {element.get("name") for element in config.iter("RectangleLabels")}


def test_boxes_without_scores_are_annotations_of_label_studio(tmp_path: Path) -> None:
    folder, _ = written("labelstudio", tmp_path)
    (task,) = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    assert "predictions" not in task
    assert [len(annotation["result"]) for annotation in task["annotations"]] == [1]


def test_cvat(tmp_path: Path) -> None:
    folder, writer = written("cvat", tmp_path, scores=np.array([0.75, 0.5]))
    assert tree(folder) == ["annotations.xml", "images/a.jpg"]
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(CATEGORIES)
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": "a.jpg", "subset": "val", "width": "40", "height": "20"}
    (box,) = image.findall("box")
    assert [box.get(key) for key in ("label", "xtl", "ytl", "xbr", "ybr")] == ["fish", "10", "5", "30", "15"]
    assert box.findtext("attribute[@name='score']") == "0.75"
    assert "CVAT has no place" in writer.notes()[0]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_names_that_clash_or_break_a_file_are_changed_and_counted(kind: str, tmp_path: Path) -> None:
    source = picture(tmp_path, "a.jpg")
    names = ["a.jpg", "a.jpg", "b\n .jpg", "../up.jpg", "/abs\\x.jpg", "c:d.jpg", ".hid.jpg", "\udce9.jpg", "ok é.jpg"]
    with open_writer(kind, tmp_path / "out", ["fish", "crab"]) as writer:
        found = [writer.add(labelled(source, name)) for name in names]
    assert found == [
        *("a.jpg", "a_2.jpg", "b_.jpg", "_./up.jpg", "abs_x.jpg", "c_d.jpg", "_hid.jpg", "_xe9.jpg", "ok é.jpg"),
    ]
    images = [name for name in tree(tmp_path / "out") if name.endswith(".jpg")]
    assert len(images) == len(names)
    assert "image renamed in the new set: 7 ('a.jpg' -> 'a_2.jpg'; " in writer.notes()[0]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_names_too_long_for_a_file_system_are_cut(kind: str, tmp_path: Path) -> None:
    source = picture(tmp_path, "a.jpg")
    # The second one clashes with the first; each byte of the third takes four letters.
    names = ["a" * 251 + ".jpg", "a" * 251 + ".jpg", os.fsdecode(b"\xe9" * 64 + b".jpg")]
    with open_writer(kind, tmp_path / "out", ["fish", "crab"]) as writer:
        first, *others = (writer.add(labelled(source, name)) for name in names)
    assert first == names[0]
    assert [name[:8] for name in others] == ["aaaaaaaa", "_xe9_xe9"]
    images = [name for name in tree(tmp_path / "out") if name.endswith(".jpg")]
    assert len(images) == len(names)


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_two_images_never_share_a_label_file(kind: str, tmp_path: Path) -> None:
    with open_writer(kind, tmp_path / "out", ["fish", "crab"]) as writer:
        names = [writer.add(labelled(picture(tmp_path, name), name)) for name in ("a.jpg", "a.png", "b.png")]
    assert names == ["a.jpg", "a_2.png", "b.png"]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_after_an_error_nothing_remains(kind: str, tmp_path: Path) -> None:
    def write_half(folder: Path) -> None:
        with open_writer(kind, folder, CATEGORIES) as writer:
            writer.add(labelled(picture(tmp_path, "a.jpg")))
            writer.add(labelled(tmp_path / "missing.jpg"))

    for folder, remains in ((tmp_path / "new", False), (tmp_path / "empty", True)):
        if remains:
            folder.mkdir()
        with pytest.raises(DataError, match=r"missing\.jpg: cannot be copied into .*: No such file"):
            write_half(folder)
        assert folder.exists() == remains
        assert not remains or list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["labelstudio", "cvat"])
def test_a_set_whose_first_file_cannot_be_written_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_file(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LabelWriter, "_text_file", open_file)
    with pytest.raises(OSError, match="No space left"), open_writer(kind, tmp_path / "out", CATEGORIES):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    picture(tmp_path, "out/old.json")
    with pytest.raises(ConfigError, match=r"out: this folder is not empty \(it holds old\.json\); choose another"):
        open_writer("coco", tmp_path / "out", ["fish"])
    with pytest.raises(ConfigError, match=r"old\.json: this is a file; choose another output folder"):
        open_writer("coco", tmp_path / "out" / "old.json", ["fish"])


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\udce9"])
def test_a_category_that_no_format_holds_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a name in one line of printable text"):
        open_writer("yolo", tmp_path / "out", ["fish", name])


def test_images_can_be_links(tmp_path: Path) -> None:
    source = picture(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to(source)
    with open_writer("yolo", tmp_path / "out", ["fish", "crab"], link=True) as writer:
        writer.add(labelled(tmp_path / "link.jpg"))
    made = tmp_path / "out/images/train/a.jpg"
    assert not made.is_symlink()
    assert os.path.samefile(made, source)
    with pytest.raises(ConfigError, match=r"none\.jpg: cannot be linked into .*; copy the images instead"):
        link_missing(tmp_path)


def link_missing(tmp_path: Path) -> None:
    with open_writer("yolo", tmp_path / "other", ["fish"], link=True) as writer:
        writer.add(labelled(tmp_path / "none.jpg"))


def test_the_writers_need_neither_torch_nor_opencv() -> None:
    code = "import sys; sys.modules.update(torch=None, cv2=None, yaml=None, defusedxml=None); import edgerpn.labels"
    subprocess.run([sys.executable, "-c", code], check=True)

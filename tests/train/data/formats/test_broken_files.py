"""Broken files of every format end in a DataError that names a file, or in counted repairs; never in another error."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.choice import DataChoice, ImageRules
from edgerpn.train.data.coco import read_split
from edgerpn.train.data.splits import find_split, find_splits
from tests.train.data.formats.data_sets import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_open_images,
    write_voc,
    write_yolo,
)

PIECES = (
    *(
        b"1e999",
        b"-1",
        b"nan",
        b"null",
        b'"x"',
        b"[]",
        b"{}",
        b"true",
        b"0.5",
        b"images",
        b".",
        b"../",
        b"C:\\",
        b"/etc",
    ),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\r\n", b"\0", b"99999999999999999999999", b"9" * 5000),
    *(b"&e;", b"<", b">", b": ", b"- ", b"*a", b"&a ", b"? ", b"!!timestamp ", b"!!int ", b"!!set "),
)


def coco(root: Path) -> list[Path]:
    write_coco(root / "train.json", root / "images", 3)
    return [root / "train.json"]


def single(root: Path) -> list[Path]:
    write_coco(root / "instances.json", root / "images", 3)
    return [root / "instances.json"]


def yolo(root: Path) -> list[Path]:
    write_yolo(root / "images", root / "labels", 3)
    (root / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames:\n  0: a\n  1: b\nkpt_shape: [2, 3]\n")
    return [root / "data.yaml", *sorted((root / "labels").iterdir())]


def listed(root: Path) -> list[Path]:
    write_yolo(root / "images", root / "labels", 3)
    (root / "train.txt").write_text("images/0.png\n./images/1.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: [images]\nnames: [fish]\n")
    return [root / "data.yaml", root / "train.txt"]


def voc(root: Path) -> list[Path]:
    write_voc(root / "JPEGImages", root / "Annotations", 3)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n")
    return [root / "ImageSets" / "Main" / "train.txt", *sorted((root / "Annotations").iterdir())]


def open_images(root: Path) -> list[Path]:
    write_open_images(root / "train-annotations-bbox.csv", root / "train", 3)
    return [root / "train-annotations-bbox.csv", root / "class-descriptions-boxable.csv"]


def labelme(root: Path) -> list[Path]:
    write_labelme(root, 3)
    return sorted(root.glob("*.json"))


def cvat(root: Path) -> list[Path]:
    write_cvat(root / "annotations.xml", root / "images", 3)
    return [root / "annotations.xml"]


def label_studio(root: Path) -> list[Path]:
    write_label_studio(root / "tasks.json", root / "images", 3)
    return [root / "tasks.json"]


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Cuts, inserts or replaces bytes at a few places, or encodes the text otherwise."""
    if rng.random() < 0.1:
        text = data.decode()
        return rng.choice((text.encode("utf-16"), text.encode("cp037"), text.replace("\n", "\r\n").encode("utf-8-sig")))
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        cut = rng.choice((0, rng.randrange(1, 30), len(data)))
        data = data[:start] + rng.choice((b"", *PIECES)) + data[start + cut :]
    return data


FORMATS = [coco, single, yolo, listed, voc, open_images, labelme, cvat, label_studio]


@pytest.mark.parametrize("make", FORMATS)
def test_spoilt_files_end_in_one_error_or_are_read(make: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    files = make(tmp_path)
    good = {file: file.read_bytes() for file in files}
    rng = random.Random(5)
    messages = []
    for _ in range(80):
        file = rng.choice(files)
        file.write_bytes(spoil(good[file], rng))
        try:
            read_split(find_split(tmp_path, "train"))
        except DataError as error:
            messages.append(str(error))
        file.write_bytes(good[file])
    assert len(messages) >= 10
    assert [message for message in messages if not message.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("make", [yolo, voc, labelme])
def test_an_annotation_file_that_leads_out_of_the_folder_is_refused(
    make: Callable[[Path], list[Path]], tmp_path: Path
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    file = make(root)[-1]
    outside = tmp_path / f"outside{file.suffix}"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(DataError, match=rf"{file.name}: leads to {outside}, outside the data folder .*--follow-links"):
        read_split(find_split(root, "train"))
    choice = DataChoice(images=ImageRules(follow_links=True))
    assert read_split(find_split(root, "train", choice)).num_objects > 0
    assert read_split(find_splits(root, replace(choice, split="0.5"))["train"]).num_objects > 0


@pytest.mark.parametrize("make", FORMATS)
def test_an_image_that_leads_out_of_the_folder_is_refused(make: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    for image in sorted(root.rglob("*.png")):
        image.rename(tmp_path / image.name)
        image.symlink_to(tmp_path / image.name)
    with pytest.raises(DataError, match=r"leads to .*/[012]\.png, outside the image folder"):
        read_split(find_split(root, "train"))

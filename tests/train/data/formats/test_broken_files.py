"""Broken files of every format end in a DataError that names a file, or in counted repairs; never in another error."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.coco import read_split
from edgerpn.train.data.splits import find_split
from tests.train.data.formats.data_sets import write_coco, write_voc, write_yolo

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


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Cuts, inserts or replaces bytes at a few places."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        cut = rng.choice((0, rng.randrange(1, 30), len(data)))
        data = data[:start] + rng.choice((b"", *PIECES)) + data[start + cut :]
    return data


@pytest.mark.parametrize("make", [coco, single, yolo, listed, voc])
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

"""PASCAL VOC files give the boxes computed by hand; broken ones are an error that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import Dataset, class_names, read_split
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import voc_file, voc_object, write_image, write_voc


def make_set(root: Path, xml: str | bytes) -> Path:
    """One picture of 40 x 20 with this XML file."""
    write_image(root / "JPEGImages" / "a.png")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / "a.xml").write_bytes(xml.encode() if isinstance(xml, str) else xml)
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    return root


def read(root: Path) -> Dataset:
    return read_split(find_split(root, "val"))


@pytest.mark.parametrize(
    ("corners", "xyxy"),
    [
        ((1, 1, 40, 20), [0, 0, 40, 20]),  # pixels count from 1, the last one included
        ((11, 6, 30, 15), [10, 5, 30, 15]),
        ((11.5, 6.25, 30.5, " 15 "), [10.5, 5.25, 30.5, 15]),
        ((5, 5, 5, 5), [4, 4, 5, 5]),
    ],
)
def test_boxes(corners: tuple[object, ...], xyxy: list[float], tmp_path: Path) -> None:
    (record,) = read(make_set(tmp_path, voc_file("a.png", voc_object("fish", corners)))).records
    np.testing.assert_array_equal(record.boxes_xyxy, np.array([xyxy], np.float32))
    assert record.hw == (20, 40)


def test_difficult_objects_are_ignore_regions_and_parts_are_left_out(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    objects = (
        voc_object("fish", (1, 1, 10, 10), "<difficult>0</difficult>" + part),
        voc_object("crab", (21, 1, 30, 10), "<truncated>1</truncated><difficult>1</difficult>"),
    )
    dataset = read(make_set(tmp_path, voc_file("a.png", *objects)))
    np.testing.assert_array_equal(dataset.records[0].boxes_xyxy, np.array([[0, 0, 10, 10]], np.float32))
    np.testing.assert_array_equal(dataset.records[0].ignore_xyxy, np.array([[20, 0, 30, 10]], np.float32))
    assert class_names(find_split(tmp_path, "val")) == {"fish", "crab"}
    assert dataset.problems == ()


@pytest.mark.parametrize("size", [None, (0, 0), ("", ""), ("wide", 20), ("1e999", 20)])
def test_a_missing_size_comes_from_the_image(size: tuple[object, object] | None, tmp_path: Path) -> None:
    dataset = read(make_set(tmp_path, voc_file("a.png", voc_object("fish", (11, 6, 30, 15)), size=size)))
    assert dataset.records[0].hw == (20, 40)


def test_a_size_other_than_the_images_is_counted(tmp_path: Path) -> None:
    make_set(tmp_path, voc_file("a.png", size=(20, 40)))
    with pytest.raises(DataError, match="image whose size is not the annotated one: 1"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "C:\\pictures\\a.png", "../../a.png", "other.jpg", ""])
def test_the_name_of_the_xml_file_finds_the_image(name: str, tmp_path: Path) -> None:
    records = read(make_set(tmp_path, voc_file(name, voc_object("fish", (11, 6, 30, 15))))).records
    assert [record.file for record in records] == [tmp_path / "JPEGImages" / "a.png"]


def test_lists_name_the_images_of_a_split(tmp_path: Path) -> None:
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", 6)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("0\r\n2  1\r\n\r\n3.png\r\n")
    (sets / "val.txt").write_text("\ufeff1\n4\n", encoding="utf-8")
    (sets / "fish_train.txt").write_text("0 -1\n")
    lines: list[str] = []
    train, val = (read_split(split) for split in find_train_and_val(tmp_path, log=lines.append))
    assert [record.file.name for record in train.records] == ["0.png", "2.png", "3.png"]
    assert [record.file.name for record in val.records] == ["1.png", "4.png"]
    title = "PASCAL VOC (Annotations/ and JPEGImages/)"
    assert lines == [f"{tmp_path}: {title}; train: Annotations (train), val: Annotations (val)"]
    assert train.folder == tmp_path


def test_images_of_val_are_left_out_of_trainval(tmp_path: Path) -> None:
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", 4)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "trainval.txt").write_text("0\n1\n2\n3\n")
    (sets / "val.txt").write_text("1\n3.png\n")
    lines: list[str] = []
    train, val = (read_split(split) for split in find_train_and_val(tmp_path, log=lines.append))
    assert [record.file.name for record in train.records] == ["0.png", "2.png"]
    assert [record.file.name for record in val.records] == ["1.png", "3.png"]
    assert lines[0].endswith("train: Annotations (train, without val.txt), val: Annotations (val)")
    (sets / "val.txt").rename(sets / "test.txt")
    assert len(read_split(find_split(tmp_path, "train", DataChoice(split="val=test"))).records) == 4


def test_a_listed_image_without_an_xml_file_is_counted_and_not_used(tmp_path: Path) -> None:
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", 12)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("".join(f"{number}\n" for number in range(10)) + "a photo  1\nb 10\ngone\n")
    for name in ("a photo", "b 10"):
        (tmp_path / "JPEGImages" / f"{name}.png").write_bytes((tmp_path / "JPEGImages" / "0.png").read_bytes())
    val = find_split(tmp_path, "val")
    dataset = read_split(val)
    assert len(dataset.records) == 10
    assert dataset.problems[:2] == (
        "image without annotations: 2, not used (a photo: no a photo.xml; b 10: no b 10.xml)",
        "image file missing: 1, image dropped (gone: no gone.xml)",
    )
    (sets / "val.txt").write_text("0\ngone\n")
    with pytest.raises(DataError, match=r"1 of 1 images are not usable.* --allow images"):
        read_split(val)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a", r"val\.txt: line 2: '\.\./a': expected a path below the data folder"),
        ("/etc/passwd", r"val\.txt: line 2: '/etc/passwd': expected a path below the data folder"),
    ],
)
def test_a_list_with_a_wrong_name_is_refused(line: str, message: str, tmp_path: Path) -> None:
    make_set(tmp_path, voc_file("a.png"))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text(f"a\n{line}\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("images", "xml"), [("images", "annotations"), (".", "Annotations"), (".", "."), ("train", "train")]
)
def test_xml_files_without_lists(images: str, xml: str, tmp_path: Path) -> None:
    write_voc(tmp_path / images, tmp_path / xml, 5)
    train, val = find_train_and_val(tmp_path)
    assert (len(read_split(train).records), len(read_split(val).records)) == (4, 1)


def test_images_and_xml_files_without_each_other_are_counted(tmp_path: Path) -> None:
    write_voc(tmp_path / "train", tmp_path / "train", 20)
    write_voc(tmp_path / "valid", tmp_path / "valid", 2)
    (tmp_path / "train" / "3.png").unlink()
    (tmp_path / "train" / "4.xml").unlink()
    dataset = read_split(find_split(tmp_path, "train"))
    assert len(dataset.records) == 18
    assert dataset.problems == (
        "image file missing: 1, image dropped (3.xml: 3.png)",
        "image without annotations: 1, not used (4.png)",
    )


GOOD = voc_file("a.png", voc_object("fish", (11, 6, 30, 15)))
ENTITY = '<!DOCTYPE a [<!ENTITY e "boom">]>' + GOOD.replace("fish", "&e;")
OUTSIDE = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + GOOD.replace("fish", "&e;")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (GOOD[: len(GOOD) // 2], "a.xml: not valid XML: .*line 1"),
        ("", "a.xml: not valid XML"),
        (ENTITY, "a.xml: not valid XML: it declares entities"),
        (OUTSIDE, "a.xml: not valid XML: it declares entities"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "a.xml: not valid XML"),
        ("<annotations/>", "expected the root element 'annotation' of PASCAL VOC, got 'annotations'"),
    ],
)
def test_a_broken_xml_file_is_one_named_error(xml: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/.*{message}"):
        read(make_set(tmp_path, xml))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_line_ends_do_not_matter(encoding: str, tmp_path: Path) -> None:
    dataset = read(make_set(tmp_path, GOOD.replace("<", "\r\n<").strip().encode(encoding)))
    np.testing.assert_array_equal(dataset.records[0].boxes_xyxy, np.array([[10, 5, 30, 15]], np.float32))


def test_huge_and_inverted_boxes_are_counted(tmp_path: Path) -> None:
    objects = [voc_object("fish", c) for c in ((1, 1, 9, 9), (1, 1, "1e400", 9), (30, 5, 20, 9), (1, 1, "1e30", 9))]
    dataset = read(make_set(tmp_path, voc_file("a.png", *objects)))
    assert [line.partition(" (")[0] for line in dataset.problems] == [
        "box with a coordinate that is not finite: 1, dropped",
        "box of zero or negative size: 1, dropped",
        "box partly outside its image: 1, clipped to the image",
    ]
    assert "(a.xml object 2: [0, 0, inf, 9] in 40 x 20)" in dataset.problems[0]


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", GOOD)
    write_voc(root / "JPEGImages", root / "Annotations", 1)
    (root / "Annotations" / "a.xml").rename(tmp_path / "a.xml")
    (root / "Annotations" / "a.xml").symlink_to(tmp_path / "a.xml")
    with pytest.raises(DataError, match=r"leads to .*a\.xml, outside the data folder"):
        read(root)


def test_an_object_without_usable_numbers_is_counted_and_many_are_an_error(tmp_path: Path) -> None:
    good, bad = [voc_object("fish", (11, 6, 30, 15 - n)) for n in range(9)], voc_object("crab", (1, 1, "x", 5))
    dataset = read(make_set(tmp_path, voc_file("a.png", *good, bad)))
    assert len(dataset.records[0].boxes_xyxy) == 9
    expected = "object whose form or numbers cannot be read: 1, dropped (a.xml object 10 (crab): xmin '1'"
    assert dataset.problems[0].startswith(expected)
    make_set(tmp_path, voc_file("a.png", *good[:7], bad, bad, "<object><name>fish</name></object>"))
    with pytest.raises(DataError, match=r"Annotations: 3 of 10 boxes are malformed and would be dropped: .* dropped"):
        read(tmp_path)

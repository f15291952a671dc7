"""YOLO label files give the boxes computed by hand; broken ones are an error that names file and line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.coco import Dataset, class_names, read_split
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import write_image, write_yolo


def make_set(root: Path, label: str | bytes, yaml: str = "train: images\nval: images\nnames: [fish, crab]\n") -> Path:
    """One picture of 40 x 20 with this label file."""
    write_image(root / "images" / "a.png")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "a.txt").write_bytes(label.encode() if isinstance(label, str) else label)
    (root / "data.yaml").write_text(yaml)
    return root


def read(root: Path) -> Dataset:
    return read_split(find_split(root, "val"))


@pytest.mark.parametrize(
    ("line", "xyxy"),
    [
        ("0 0.5 0.5 0.5 0.5", [10, 5, 30, 15]),  # 40 * (0.5 - 0.25), 20 * (0.5 - 0.25), ...
        ("1 0.25 0.2 0.1 0.4", [8, 0, 12, 8]),
        ("0 0.5 0.5 0.5 0.5 0.87", [10, 5, 30, 15]),  # with a confidence
        ("0 0.1 0.2 0.5 0.1 0.3 0.9", [4, 2, 20, 18]),  # a triangle
        ("0 0.1 0.2 0.5 0.1 0.3 0.9 0.5", [4, 2, 20, 18]),  # with a confidence
        ("0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5", [4, 2, 36, 18]),  # a rotated box
        ("0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5 0.77", [4, 2, 36, 18]),
        ("0 0.5 0.1 0.9 0.5 0.5 1 0.1 0.5", [4, 2, 36, 20]),
        ("0 0.1 0.2 0.5 0.1 0.3 1", [4, 2, 20, 20]),
        ("0.0\t.5  5e-1 0.5 0.5", [10, 5, 30, 15]),
        ("0 0.9 0.5 0.4 0.5", [28, 5, 40, 15]),  # clipped to the picture
    ],
)
def test_boxes(line: str, xyxy: list[float], tmp_path: Path) -> None:
    (record,) = read(make_set(tmp_path, line)).records
    np.testing.assert_allclose(record.boxes_xyxy, [xyxy], atol=1e-5)
    assert record.hw == (20, 40)


@pytest.mark.parametrize("end", ["", " 0.9", " 0.9 1", " 0.9 7"])
def test_keypoints_behind_a_box_are_left_out(end: str, tmp_path: Path) -> None:
    make_set(tmp_path, f"0 0.5 0.5 0.5 0.5 0.3 0.3 2 0.4 0.4 1{end}", "train: images\nval: images\nkpt_shape: [2, 3]\n")
    np.testing.assert_allclose(read(tmp_path).records[0].boxes_xyxy, [[10, 5, 30, 15]])


@pytest.mark.parametrize(
    "label",
    [
        b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\n",
        b"0 0.5 0.5 0.5 0.5\r\n\r\n",
        b"0 0.5 0.5 0.5 0.5\r",
        "0 0.5 0.5 0.5 0.5\n".encode("utf-16"),
    ],
)
def test_byte_order_marks_and_line_ends_do_not_matter(label: bytes, tmp_path: Path) -> None:
    np.testing.assert_allclose(read(make_set(tmp_path, label)).records[0].boxes_xyxy, [[10, 5, 30, 15]])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("0 0.5 0.5 0.5 0.5\n0 0.5 0.", "line 2: expected 'class x y width height' or .* got '0 0.5 0.'"),
        ("fish 0.5 0.5 0.5 0.5", "line 1: expected numbers, 'class x y width height' or .* got 'fish 0.5"),
        ("0,0.5,0.5,0.5,0.5", "line 1: expected numbers"),
        ("0.5 0.5 0.5 0.5", "line 1: expected the number of a class first, got '0.5 0.5 0.5 0.5'"),
        ("-1 0.5 0.5 0.5 0.5", "line 1: expected the number of a class first"),
        ("1e400 0.5 0.5 0.5 0.5", "line 1: expected the number of a class first"),
        ("nan 0.5 0.5 0.5 0.5", "line 1: expected the number of a class first"),
        ("0 0.5 0.5 0.5 0.5 45", "line 1: expected .*a confidence of 0 to 1 behind it"),
        ("0", "line 1: expected 'class x y width height'"),
        (
            "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.9 7",
            "line 2: expected .* got the id of a track at the end of '0 0.5 ",
        ),
        (
            "0 0.1 0.2 0.5 0.1 0.3 0.9\n0 0.5 0.1 0.9 0.5 0.5 0.9 0.88 12",
            "line 2: expected .* got the id of a track at the end of '0 0.5 ",
        ),
    ],
)
def test_a_broken_line_is_dropped_and_named(label: str, message: str, tmp_path: Path) -> None:
    (problem,) = [line for line in read(make_set(tmp_path, label)).problems if line.startswith("object whose form")]
    assert re.search(f"1, dropped .labels/a.txt {message}", problem)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"\x80\x81", "not a text in UTF-8"),
        ("0 20 10 20 10\n", "data.yaml: 1 of 1 boxes have numbers above 1, as if in pixels .*labels/a.txt line 1"),
        ("0 0.5 0.5\n" * 2 + "0,1\n" + "0 0.5 0.5 0.5 0.5\n" * 7, "data.yaml: 3 of 10 boxes are malformed"),
    ],
)
def test_a_broken_label_file_is_one_named_error(label: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/.*{message}"):
        read(make_set(tmp_path, label))


@pytest.mark.parametrize(
    "label",
    [
        "0 0.5 0.5 0.2 0.2 0.9 1\n0 0.5 0.4 0.2 0.2 0.8 0\n",
        "0 0.5 0.5 1 1 0.9 1\n0 0.5 0.4 0.2 0.2 0.8\n" + "0 0.5 0.5 0.2 0.2 0.9 2\n",  # one box without a track
        "0 0.1 0.2 0.5 0.1 0.3 0.9 0.88 1\n",  # a polygon
        "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5 0.88 1\n",  # a rotated box
    ],
)
def test_a_set_with_ids_of_tracks_is_an_error_instead_of_polygons(label: str, tmp_path: Path) -> None:
    message = r"data.yaml: every line may end in a confidence and the id of a track, .*\(first: labels/a.txt line 1\)"
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/{message}.*; remove the ids, or repeat"):
        read(make_set(tmp_path, label))


@pytest.mark.parametrize(
    "label",
    [
        "0 0.5 0.5 0.2 0.2 0.9 1\n0 0.5 0.5 0.2 0.2\n",  # boxes beside it
        "0 0.5 0.5 0.2 0.2 0.9 1\n0 0.1 0.2 0.5 0.1 0.3 0.9\n",  # corners that do not end in a whole number
        "0 0.5 0.5 0.2 0.2 0.9 1 0.5 0.5\n",  # the first corner at the end
    ],
)
def test_a_polygon_whose_last_corner_is_on_the_edge_stays_one(label: str, tmp_path: Path) -> None:
    (record,) = read(make_set(tmp_path, label)).records
    np.testing.assert_allclose(record.boxes_xyxy[0], [8, 4, 36, 20], atol=1e-5)


def test_single_unusable_boxes_are_dropped_and_named(tmp_path: Path) -> None:
    good = "".join(f"0 0.5 0.5 0.5 0.{number}\n" for number in range(1, 5))
    make_set(tmp_path, good + "0 1e999 0.5 0.5 0.5\n0 0.5 0.5 0 0.1\n9 nan 0 1 1 0 1\n0 2 2 0.1 0.1\n")
    dataset = read(tmp_path)
    assert len(dataset.records[0].boxes_xyxy) == 4
    assert dataset.problems == (
        "label of a class without a name: 1, kept (labels/a.txt line 7: class 9)",
        "box with a coordinate that is not finite: 2, dropped (labels/a.txt line 5: [inf, 5, 20, 10] in 40 x 20; "
        "labels/a.txt line 7: [nan, nan, nan, nan] in 40 x 20)",
        "box of zero or negative size: 1, dropped (labels/a.txt line 6: [20, 9, 0, 2] in 40 x 20)",
        "box wholly outside its image: 1, dropped (labels/a.txt line 8: [78, 39, 4, 2] in 40 x 20)",
    )
    assert class_names(find_split(tmp_path, "val")) == {"fish", "crab", "class 9"}


def test_pictures_without_labels_are_negatives_and_broken_ones_dropped(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images", tmp_path / "labels", 20)
    write_image(tmp_path / "images" / "empty.png")
    (tmp_path / "labels" / "3.txt").write_text("")
    (tmp_path / "images" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "images" / "._8.png").write_bytes(b"")
    dataset = read_split(find_split(tmp_path, "train"))
    rest = read_split(find_split(tmp_path, "val"))
    assert len(dataset.records) + len(rest.records) == 20
    assert dataset.problems[0] == (
        f"image file broken: 1, image dropped ({tmp_path}/images/7.png: truncated: the PNG ends within its header)"
    )
    negatives = [line for line in (*dataset.problems, *rest.problems) if line.startswith("image without boxes")]
    assert sum(int(line.split(": ")[1][0]) for line in negatives) == 2


@pytest.mark.parametrize(
    ("yaml", "images"),
    [
        ("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n", ("train/images", "valid/images")),
        ("path: .\ntrain: images/train\nval: images/val\n", ("images/train", "images/val")),
        ("path: ../datasets/none\ntrain: images/train\nval: images/val\n", ("images/train", "images/val")),
        (
            "train: /content/datasets/x/train/images\nval: /content/datasets/x/valid/images\n",
            ("train/images", "valid/images"),
        ),
        ("train: C:\\data\\train\\images\nval: C:\\data\\valid\\images\n", ("train/images", "valid/images")),
        ("train: [images/train]\nvalid: images/val/\n", ("images/train", "images/val")),
        ("\ufefftrain: ./images/train\r\nval: ./images/val\r\n", ("images/train", "images/val")),
    ],
)
def test_folders_of_data_yaml(yaml: str, images: tuple[str, str], tmp_path: Path) -> None:
    for count, place in enumerate(images, start=2):
        write_yolo(tmp_path / place, tmp_path / place.replace("images", "labels"), count)
    (tmp_path / "data.yaml").write_text(yaml + "names:\n  0: fish\n  1: crab\n", newline="")
    for data in (tmp_path, tmp_path / "data.yaml"):
        found = [read_split(split) for split in find_train_and_val(data)]
        for count, (dataset, place) in enumerate(zip(found, images, strict=True), start=2):
            assert [r.file for r in dataset.records] == [tmp_path / place / f"{n}.png" for n in range(count)]
            assert dataset.folder == tmp_path
            assert dataset.problems == ()
    assert class_names(find_split(tmp_path, "train")) == {"fish", "crab"}


def test_a_sibling_set_is_not_taken_for_roboflows_folders(tmp_path: Path) -> None:
    for root in (tmp_path / "mine", tmp_path):
        write_yolo(root / "train" / "images", root / "train" / "labels", 5)
    (tmp_path / "mine" / "data.yaml").write_text("train: ../train/images\n")
    records = read_split(find_split(tmp_path / "mine", "train")).records
    assert {record.file.parent for record in records} == {tmp_path / "mine" / "train" / "images"}


def test_an_existing_folder_elsewhere_may_be_named_explicitly(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_yolo(tmp_path / "store" / name / "images", tmp_path / "store" / name / "labels", 2)
    (tmp_path / "mine").mkdir()
    folders = [str(tmp_path / "store" / name / "images") for name in ("a", "b")]
    (tmp_path / "mine" / "data.yaml").write_text(f"train: {folders}\nval: {folders[1]}\n")
    train, val = (read_split(split) for split in find_train_and_val(tmp_path / "mine"))
    assert [record.file.parts[-3] for record in train.records] == ["a", "a", "b", "b"]
    assert [record.file.parts[-3] for record in val.records] == ["b", "b"]
    assert train.folder == tmp_path / "mine"


@pytest.mark.parametrize(
    "line",
    [
        *("./images/0.png", "images/0.png", "images\\0.png", "{root}/images/0.png"),
        *("/content/set/images/0.png", "C:\\set\\images\\0.png", "../set/images/0.png", "data/obj/images/0.png"),
    ],
)
def test_a_text_file_lists_images(line: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / "images", tmp_path / "labels", 3)
    (tmp_path / "train.txt").write_text(f"{line.format(root=tmp_path)}\r\n\r\nimages/1.png\n")
    (tmp_path / "val.txt").write_text("images/2.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [fish]\n")
    train, val = (read_split(split).records for split in find_train_and_val(tmp_path))
    assert [record.file.name for record in train] == ["0.png", "1.png"]
    assert [record.file.name for record in val] == ["2.png"]
    np.testing.assert_array_equal(val[0].boxes_xyxy, np.array([[10, 5, 30, 15]], np.float32))


@pytest.mark.parametrize("line", ["../outside.png", "/etc/hostname", "C:\\a.png", "images/none.png", "..", "\0"])
def test_a_text_file_cannot_leave_the_data_folder(line: str, tmp_path: Path) -> None:
    write_image(tmp_path / "outside.png")
    root = tmp_path / "set"
    write_yolo(root / "images", root / "labels", 1)
    (root / "train.txt").write_text(f"images/0.png\n{line}\n")
    (root / "data.yaml").write_text("train: train.txt\nval: train.txt\n")
    with pytest.raises(DataError, match=r"train\.txt: line 2: .*no such image"):
        read(root)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("0 0.5 0.5 0.5 0.5")
    root = make_set(tmp_path / "set", "")
    (root / "labels" / "a.txt").unlink()
    (root / "labels" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match=r"labels/a\.txt: leads to .*secret\.txt, outside the data folder"):
        read(root)
    (root / "labels" / "a.txt").unlink()
    (root / "labels" / "a.txt").write_text("")
    write_image(tmp_path / "outside.png")
    (root / "images" / "b.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"b\.png.*leads to .*outside\.png, outside the image folder"):
        read(root)


@pytest.mark.parametrize(
    ("place", "labels", "data"),
    [
        ("images", "labels", "."),
        ("images/deep/er", "labels/deep/er", "."),
        ("train/images", "train/labels", "."),
        ("images/train", "labels/train", "."),
        ("train", "train", "."),
        ("obj_train_data", "obj_train_data", "."),
        (".", ".", "."),
    ],
)
def test_arrangements_without_data_yaml(place: str, labels: str, data: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / place, tmp_path / labels, 5)
    (tmp_path / "classes.txt").write_text("fish\ncrab\n")
    train, val = find_train_and_val(tmp_path / data)
    assert (len(read_split(train).records), len(read_split(val).records)) == (4, 1)
    assert class_names(train) == {"fish", "crab"}


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [images", "not valid YAML: .*line"),
        ("- a\n", "expected 'train', 'val' and 'names', got list"),
        ("names: [a]\n", "names no images; expected 'train' and 'val' with folders of images, got names"),
        ("train: nowhere\n", "train: 'nowhere': no such folder or file, also not below"),
        ("train: 5\n", "train: expected a folder, a list of folders or a text file, got 5"),
        ("train: images\nnames: 3\n", "names: expected a list of names, or a map from class numbers to names, got 3"),
        ("train: images\nnames: {a: b}\n", "names: expected a list of names"),
        ("train: images\npath: [1]\n", "path: expected a folder"),
        ("train: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("train: labels\n", "labels: no images in it; expected the images that"),
    ],
)
def test_a_broken_data_yaml_is_one_named_error(yaml: str, message: str, tmp_path: Path) -> None:
    make_set(tmp_path, "0 0.5 0.5 0.5 0.5", yaml)
    with pytest.raises(DataError, match=message):
        read_split(find_split(tmp_path, "train"))


def test_images_without_any_label_file_are_refused(tmp_path: Path) -> None:
    make_set(tmp_path, "")
    (tmp_path / "labels" / "a.txt").unlink()
    expected = "none of its 1 images has a label file; looked for .*/labels/a.txt and .*/images/a.txt"
    with pytest.raises(DataError, match=expected):
        read(tmp_path)


def test_a_named_split_that_is_missing_is_an_error_only_if_it_is_used(tmp_path: Path) -> None:
    write_yolo(tmp_path / "train" / "images", tmp_path / "train" / "labels", 5)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n")
    with pytest.raises(DataError, match=r"data\.yaml: val: '\.\./valid/images': no such folder .*or hold images out"):
        read(tmp_path)
    train, val = find_train_and_val(tmp_path, DataChoice(split="0.2"))
    assert (len(read_split(train).records), len(read_split(val).records)) == (4, 1)


def test_path_may_name_a_folder_elsewhere_with_lists(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_yolo(store / "images", store / "labels", 3)
    (store / "train.txt").write_text("./images/0.png\n./images/1.png\n")
    (store / "val.txt").write_text("./images/2.png\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(f"path: {store}\ntrain: train.txt\nval: val.txt\nnames: [fish]\n")
    train, val = (read_split(split) for split in find_train_and_val(tmp_path / "configs" / "mine.yaml"))
    assert [len(train.records), len(val.records)] == [2, 1]
    np.testing.assert_array_equal(val.records[0].boxes_xyxy, np.array([[10, 5, 30, 15]], np.float32))


def test_the_same_images_in_both_splits_are_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    find_train_and_val(make_set(tmp_path, "0 0.5 0.5 0.5 0.5"), log=lines.append)
    assert "YOLO (data.yaml, which validates on the training images)" in lines[0]


def test_the_folder_of_images_alone_is_no_end_of_a_path(tmp_path: Path) -> None:
    make_set(tmp_path, "0 0.5 0.5 0.5 0.5", "train: /content/x/train/images\nval: /content/x/valid/images\n")
    with pytest.raises(DataError, match=r"train: '/content/x/train/images': no such folder"):
        read_split(find_split(tmp_path, "train"))


@pytest.mark.parametrize("key", ["names", "train", "path"])
def test_lists_that_repeat_lists_do_not_fill_the_memory(key: str, tmp_path: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    others = "".join(f"{name}: images\n" for name in ("train", "val") if name != key)
    make_set(tmp_path, "0 0.5 0.5 0.5 0.5", f"l0: &l0 [x]\n{levels}{others}{key}: *l11\n")
    with pytest.raises(DataError, match=f"{key}: expected a ") as caught:
        read_split(find_split(tmp_path, "train"))
    assert len(str(caught.value)) < 1000

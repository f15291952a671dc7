"""Open Images, LabelMe, CVAT and Label Studio give the boxes computed by hand; pictures are 40 x 20 pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.coco import Dataset, class_names, read_split
from edgerpn.train.data.formats.label_studio import SEVERAL_IMAGES
from edgerpn.train.data.splits import find_split, find_train_and_val
from tests.train.data.formats.data_sets import (
    label_studio_result,
    label_studio_task,
    labelme_file,
    write_cvat,
    write_image,
    write_label_studio,
    write_labelme,
    write_open_images,
)

MAKERS: dict[str, Callable[[Path, int], None]] = {
    "Open Images (boxes.csv)": lambda root, count: write_open_images(root / "boxes.csv", root / "images", count),
    "LabelMe (JSON files beside images in set)": write_labelme,
    "CVAT (my export.xml)": lambda root, count: write_cvat(root / "my export.xml", root / "images", count),
    "Label Studio (project-1.json)": lambda root, count: write_label_studio(
        root / "project-1.json", root / "images", count
    ),
}


def boxes(dataset: Dataset) -> list[Any]:
    return [record.boxes_xyxy.tolist() for record in dataset.records]


@pytest.mark.parametrize("title", list(MAKERS))
def test_a_set_without_splits_is_recognised_and_split_by_source(title: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    MAKERS[title](root, 5)
    lines: list[str] = []
    train, val = (read_split(split) for split in find_train_and_val(root, log=lines.append))
    assert lines[0].startswith(f"{root}: {title}; val: 1 of 5 images (1 of 5 groups by source, seed 0) held out of ")
    assert boxes(train) == [[[10, 5, 30, 15]]] * 4
    assert boxes(val) == [[[10, 5, 30, 15]]]
    assert class_names(find_split(root, "train")) >= {"fish"}
    assert train.problems == val.problems == ()


@pytest.mark.parametrize("title", [title for title in MAKERS if not title.startswith("LabelMe")])
def test_a_file_stands_for_all_its_images(title: str, tmp_path: Path) -> None:
    MAKERS[title](tmp_path, 3)
    file = tmp_path / title.partition("(")[2].removesuffix(")")
    assert boxes(read_split(find_split(file, "val"))) == [[[10, 5, 30, 15]]] * 3


# Open Images


@pytest.mark.parametrize(
    ("files", "images"),
    [
        ("{}-annotations-bbox.csv", "{}"),
        ("annotations/oidv6-{}-annotations-bbox.csv", "images/{}"),
        ("{}/labels/detections.csv", "{}/data"),
    ],
)
def test_open_images_has_a_file_for_each_split(files: str, images: str, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 2)):
        write_open_images(tmp_path / files.format(split), tmp_path / images.format(split), count)
    train, val = find_train_and_val(tmp_path)
    assert (train.images, val.images) == (tmp_path / images.format("train"), tmp_path / images.format("validation"))
    assert (len(boxes(read_split(train))), len(boxes(read_split(val)))) == (3, 2)
    assert class_names(train) == {"fish"}


def test_open_images_counts_rows_of_other_images_and_images_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "train-annotations-bbox.csv"
    write_open_images(file, tmp_path / "train", 3)
    write_image(tmp_path / "train" / "more" / "x.png")
    with file.open("a") as stream:
        stream.write("elsewhere,xclick,/m/0ch_cf,1,0,1,0,1,0,0,0\n1,xclick,/m/9,1,0,0.5,0.5,1,0,0,1\n\n")
    dataset = read_split(find_split(file, "train"))
    assert boxes(dataset) == [[[10, 5, 30, 15]]] * 3
    assert dataset.records[1].ignore_xyxy.tolist() == [[0, 10, 20, 20]]
    assert dataset.problems == (
        "row of an image that is not in the folder: 1, not used (elsewhere)",
        "image without annotations: 1, not used (x.png)",
    )
    # A class without a description keeps its code.
    assert class_names(find_split(file, "train")) == {"fish", "/m/9"}


# LabelMe


def test_labelme_shapes(tmp_path: Path) -> None:
    shapes: tuple[Any, ...] = (
        ("fish", "rectangle", [[30, 15.5], [10, 5]]),
        ("crab", "polygon", [[1, 2], [9, 3], [4, 8]]),
        ("crab", "circle", [[20, 10], [23, 14]]),  # radius 5
        ("crab", "mask", [[2, 3], [6, 9]]),
        ("crab", "rotation", [[12, 4], [16, 8], [12, 12], [8, 8]]),
        ("crab", "a shape of tomorrow", [[3, 3], [9, 3], [6, 8]]),
        ("eye", "point", [[2, 3]]),
        ("line", "linestrip", [[2, 3], [3, 4]]),
        ("bad", "rectangle", [[2, 3]]),
        ("bad", "a shape of tomorrow", [[2, 3], [9, 3]]),
        *(("fish", "rectangle", [["1", 1], [2, 2 + n]]) for n in range(17)),
    )
    write_labelme(tmp_path / "val", 1)
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "train" / name)
    (tmp_path / "train" / "a.json").write_text(labelme_file("a.png", *shapes), encoding="utf-8-sig")
    dataset = read_split(find_split(tmp_path, "train"))
    assert boxes(dataset)[0][:7] == [
        *([10, 5, 30, 15.5], [1, 2, 9, 8], [15, 5, 25, 15], [2, 3, 6, 9], [8, 4, 16, 12], [3, 3, 9, 8]),
        [1, 1, 2, 2],
    ]
    assert dataset.problems[:3] == (
        "object without an extent (a point, a line): 2, dropped (a.json shape 7: point; a.json shape 8: linestrip)",
        "object whose form or numbers cannot be read: 2, dropped (a.json shape 9: rectangle with 1 usable points of 1; "
        "a.json shape 10: a shape of tomorrow with 2 usable points of 2)",
        "image without annotations: 1, not used (b.png)",
    )


def test_labelme_shapes_of_one_label_and_group_are_one_object(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_labelme(tmp_path / name, 1)
    file = tmp_path / "train" / "0.json"
    content = json.loads(file.read_text())
    rows = (
        *(("fish", 1, [[1, 2], [4, 6]]), ("fish", 1, [[20, 1], [24, 3]]), ("crab", 1, [[5, 5], [7, 7]])),
        *(("fish", 2, [[8, 8], [9, 9]]), ("fish", None, [[10, 10], [12, 12]]), ("fish", None, [[30, 10], [32, 12]])),
    )
    content["shapes"] = [
        {"label": label, "group_id": group, "shape_type": "rectangle", "points": points}
        for label, group, points in rows
    ]
    file.write_text(json.dumps(content))
    dataset = read_split(find_split(tmp_path, "train"))
    assert boxes(dataset) == [[[1, 1, 24, 6], [5, 5, 7, 7], [8, 8, 9, 9], [10, 10, 12, 12], [30, 10, 32, 12]]]
    assert dataset.problems == (
        "shape with the label and group_id of another one: 1, both are one object (0.json shape 2: 'fish' of group 1)",
    )


def test_labelme_folders_are_splits(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 1)):
        write_labelme(tmp_path / name, count)
    lines: list[str] = []
    train, val = find_train_and_val(tmp_path, log=lines.append)
    assert "LabelMe (JSON files beside images in train/, val/); train: train/, val: val/" in lines[0]
    assert (len(boxes(read_split(train))), len(boxes(read_split(val)))) == (3, 1)


# CVAT


def cvat_set(root: Path, content: str) -> Dataset:
    (root / "annotations.xml").write_text(f"<annotations>{content}</annotations>")
    return read_split(find_split(root / "annotations.xml", "val"))


def test_cvat_shapes(tmp_path: Path) -> None:
    cuboid = " ".join(
        f'x{corner}="{x}" y{corner}="{y}"'
        for corner, x, y in (
            *(("tl1", 1, 2), ("bl1", 1, 8), ("tr1", 7, 2), ("br1", 7, 8)),
            *(("tl2", 3, 1), ("bl2", 3, 6), ("tr2", 9, 1), ("br2", 9, 6)),
        )
    )
    shapes = (
        '<box label="fish" xtl="10.5" ytl="5" xbr="30" ybr="15"><attribute name="a">b</attribute></box>',
        '<box label="fish" xtl="16" ytl="8" xbr="24" ybr="12" rotation="90.0"/>',  # about the centre 20, 10
        '<polygon label="fish" points="1.0,2.0;9.0,3.5;4,8"/>',
        '<ellipse label="fish" cx="20" cy="10" rx="5" ry="4"/>',
        '<ellipse label="fish" cx="20" cy="10" rx="8" ry="2" rotation="90.0"/>',
        '<ellipse label="fish" cx="20" cy="10" rx="8" ry="2" rotation="1e999"/>',
        '<mask label="fish" rle="1, 2" left="3" top="4" width="5" height="6"/>',
        f'<cuboid label="fish" {cuboid}/>',
        '<points label="fish" points="1,1"/>',
        '<tag label="sea"/>',
        '<box label="fish" xtl="x" ytl="8" xbr="24" ybr="12"/>',
        *(f'<box label="fish" xtl="1" ytl="1" xbr="2" ybr="{2 + n}"/>' for n in range(5)),
    )
    write_image(tmp_path / "images" / "sub" / "a.png")
    dataset = cvat_set(tmp_path, f'<image id="0" name="sub/a.png" width="40" height="20">{"".join(shapes)}</image>')
    expected: Any = [
        *([10.5, 5, 30, 15], [18, 6, 22, 14], [1, 2, 9, 8], [15, 6, 25, 14], [18, 2, 22, 18]),
        *([3, 4, 8, 10], [1, 1, 9, 8]),
    ]
    np.testing.assert_allclose(boxes(dataset)[0][:7], expected, atol=1e-6)
    assert [line.partition(",")[0] for line in dataset.problems] == [
        "object without an extent (a point",
        "object whose form or numbers cannot be read: 1",
        "box with a coordinate that is not finite: 1",
    ]
    assert "sub/a.png box 11" in dataset.problems[1]


def test_cvat_subsets_are_splits(tmp_path: Path) -> None:
    rows = []
    for name, subset in (("a", "Train"), ("b", "Train"), ("c", "Validation"), ("d", "extra")):
        write_image(tmp_path / "images" / f"{name}.png")
        rows.append(f'<image id="0" name="{name}.png" subset="{subset}" width="40" height="20"></image>')
    (tmp_path / "annotations.xml").write_text(f"<annotations>{''.join(rows)}</annotations>")
    train, val = find_train_and_val(tmp_path)
    assert [record.file.name for record in read_split(train).records] == ["a.png", "b.png"]
    expected = "image without a known split in a file of several splits: 1, not used (d.png: extra)"
    assert read_split(train).problems[0] == expected
    assert [record.file.name for record in read_split(val).records] == ["c.png"]


def cvat_video(
    root: Path, names: Sequence[str], meta: str, frames: Sequence[int] = (0, 1, 2), project: str = ""
) -> Any:
    """A track whose box in frame N, in the order of `frames`, begins at x = 1, 2, ..."""
    for name in names:
        write_image(root / "images" / f"{name}.png")
    rows = "".join(
        f'<box frame="{frame}" outside="0" xtl="{place}" ytl="2" xbr="20" ybr="4"/>'
        for place, frame in enumerate(frames, start=1)
    )
    track = f'<track id="0" label="fish"{project}>{rows}</track>'
    dataset = cvat_set(root, f"<meta><task>{meta}</task></meta>{track}")
    return {record.file.stem: [box[0] for box in record.boxes_xyxy.tolist()] for record in dataset.records}


VIDEO = "<original_size><width>40</width><height>20</height></original_size>"


def test_cvat_tracks_give_boxes_to_frames(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "images" / f"frame_{number:06}.png")
    track = (
        '<track id="0" label="fish"><box frame="0" outside="0" xtl="1" ytl="2" xbr="3" ybr="4"/>'
        '<box frame="2" outside="0" xtl="2" ytl="2" xbr="4" ybr="4"/><box frame="1" outside="1" xtl="1" ytl="2" xbr="3"'
        ' ybr="4"/></track>'
        '<track id="1" label="crab"><box frame="2" outside="0" xtl="5" ytl="2" xbr="6" ybr="4"/></track>'
    )
    dataset = cvat_set(tmp_path, f"<meta><task>{VIDEO}</task></meta>{track}")
    assert boxes(dataset) == [[[1, 2, 3, 4]], [], [[2, 2, 4, 4], [5, 2, 6, 4]]]
    assert class_names(find_split(tmp_path / "annotations.xml", "val")) == {"fish", "crab"}


@pytest.mark.parametrize(
    ("names", "meta", "frames"),
    [
        # ffmpeg counts from 1.
        (("frame_0001", "frame_0002", "frame_0003"), f"<size>3</size>{VIDEO}", (0, 1, 2)),
        (("a", "b", "c"), "<size>3</size>", (0, 1, 2)),
        # The order of the names, not that of the numbers.
        (("cover", "f_0", "f_1"), "<size>3</size>", (0, 1, 2)),
        (("a_1", "b_0"), "<size>2</size>", (0, 1)),
        # CVAT's own names, and every fifth frame uploaded as pictures.
        (
            ("5", "15", "25"),
            f"<size>3</size>{VIDEO}<start_frame>5</start_frame><frame_filter>step=10</frame_filter>",
            (),
        ),
        (("00", "05", "10"), "<size>3</size><start_frame>0</start_frame>", (0, 1, 2)),
        # Part of a video, and a video whose numbers have no zeros.
        (("0", "1", "3"), f"<size>4</size>{VIDEO}", (0, 1, 3)),
        (tuple(map(str, range(11))), f"<size>11</size>{VIDEO}", tuple(range(11))),
    ],
)
def test_cvat_frames_are_found_by_number_or_place(
    names: tuple[str, ...], meta: str, frames: tuple[int, ...], tmp_path: Path
) -> None:
    frames = frames or tuple(map(int, names))
    assert cvat_video(tmp_path, names, meta, frames) == {name: [x] for x, name in enumerate(names, start=1)}


@pytest.mark.parametrize(
    ("names", "meta"),
    [
        (("f_1", "f_2", "f_3"), "<size>4</size>"),  # one is missing
        (("f_1", "f_2", "f_3"), ""),
        (("f_8", "f_9", "f_10"), "<size>3</size>"),  # as texts, f_10 is the first
        (("f_0", *(f"f_{number}" for number in range(1, 11))), "<size>11</size>"),
        (("a/f_0", "a/f_1", "b/f_0", "b/f_1"), "<size>2</size>"),
        ((), ""),
    ],
)
def test_cvat_images_that_do_not_tell_their_frames_are_refused(
    names: tuple[str, ...], meta: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"/annotations\.xml: has tracks over .*; export the task as 'CVAT for images'"):
        cvat_video(tmp_path, names, meta)


def test_cvat_tracks_of_several_tasks_are_refused(tmp_path: Path) -> None:
    names = ("Train/frame_000000", "Train/frame_000001", "Train/frame_000002")
    one = ' task_id="7" subset="Train"'
    assert cvat_video(tmp_path, names, VIDEO, project=one)["frame_000001"] == [2]
    other = '></track><track id="1" task_id="8" subset="Train" label="fish"'
    with pytest.raises(DataError, match=r"has tracks of 2 tasks, .*; export each task by itself, or the project as"):
        cvat_video(tmp_path, names, VIDEO, project=one + other)


# Label Studio


def test_label_studio_shapes(tmp_path: Path) -> None:
    results: tuple[Any, ...] = (
        label_studio_result("rectanglelabels", "fish", x=25, y=25, width=50, height=50, rotation=0),
        # 8 x 4 pixels at 20, 5, turned by 90 degrees about its left upper corner.
        label_studio_result("rectanglelabels", "fish", x=50, y=25, width=20, height=20, rotation=90),
        label_studio_result("polygonlabels", "fish", points=[[2.5, 10], [22.5, 15], [10, 40]]),
        label_studio_result("ellipselabels", "crab", x=50, y=50, radiusX=12.5, radiusY=20),
        # Radii of 8 and 2 pixels about 20, 10.
        label_studio_result("ellipselabels", "crab", x=50, y=50, radiusX=20, radiusY=10, rotation=90),
        label_studio_result("brushlabels", "crab", rle=[1]),
        {"type": "choices", "value": {"choices": ["good"]}},
        label_studio_result("rectanglelabels", "fish", x=None, y=25, width=50, height=50),
        *(label_studio_result("rectanglelabels", "fish", x=0, y=0, width=10 + n, height=10) for n in range(16)),
    )
    write_image(tmp_path / "images" / "a b.png")
    task = label_studio_task(1, "/data/local-files/?d=sets/a%20b.png", *results)
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    expected = [[10, 5, 30, 15], [16, 5, 20, 13], [1, 2, 9, 8], [15, 6, 25, 14], [18, 2, 22, 18]]
    np.testing.assert_allclose(boxes(dataset)[0][:5], expected, atol=1e-6)
    assert "whose form or numbers cannot be read: 2, dropped (tasks.json task 1 result 6: brush" in dataset.problems[0]
    assert "tasks.json task 1 result 8" in dataset.problems[0]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/0a1b2c3d-a_b.png",
        "s3://bucket/photos/a_b.png",
        "https://host:8080/photos/a_b.png?X-Amz-Signature=1",
        "a_b.png",
        "C:\\photos\\a_b.png",
    ],
)
def test_label_studio_addresses_of_images(address: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a_b.png")
    (tmp_path / "tasks.json").write_text(json.dumps([label_studio_task(1, address)]))
    assert boxes(read_split(find_split(tmp_path / "tasks.json", "val"))) == [[]]


def test_label_studio_takes_the_ground_truth_and_leaves_open_tasks_out(tmp_path: Path) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 4)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    other = {"result": [label_studio_result("rectanglelabels", "fish", x=0, y=0, width=10, height=10)]}
    tasks[0]["annotations"].append({**other, "ground_truth": True})
    tasks[1]["annotations"].insert(0, {**other, "was_cancelled": True})
    tasks[2]["annotations"] = []
    tasks[2]["predictions"] = [other]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert boxes(dataset) == [[[0, 0, 4, 2]], [[10, 5, 30, 15]], [[10, 5, 30, 15]]]
    assert dataset.problems == (
        "task with several annotations: 1, the ground truth or first used (tasks.json task 0)",
        "image without annotations: 1, not used (tasks.json task 2)",
    )


def test_label_studio_shapes_may_have_their_class_in_a_result_of_its_own(tmp_path: Path) -> None:
    place = {"x": 25, "y": 25, "width": 50, "height": 50}
    results: tuple[dict[str, object], ...] = (
        {"id": "a", "type": "rectangle", "value": place},
        {"id": "a", "type": "labels", "value": {**place, "labels": ["fish"]}},
        {"type": "relation", "from_id": "a", "to_id": "a", "direction": "right"},
    )
    write_image(tmp_path / "images" / "0.png")
    (tmp_path / "tasks.json").write_text(json.dumps([label_studio_task(1, "0.png", *results)]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert boxes(dataset) == [[[10, 5, 30, 15]]]
    assert dataset.class_names == ("fish",)
    assert dataset.problems == ()


def test_a_shape_without_a_label_is_an_object_without_a_class(tmp_path: Path) -> None:
    place = {"x": 25, "y": 25, "width": 50, "height": 50}
    write_image(tmp_path / "images" / "0.png")
    task = label_studio_task(1, "0.png", {"id": "a", "type": "rectangle", "value": place})
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert dataset.class_names == ()
    assert dataset.records[0].box_classes.tolist() == [-1]


def test_label_studio_counts_images_of_several_tasks(tmp_path: Path) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 1)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps([*tasks, {**tasks[0], "id": 7}]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert dataset.problems == (
        "image that is annotated more than once: 1, the first annotation used (tasks.json task 7: 0.png)",
    )


@pytest.mark.parametrize("places", [({"to_name": "before"}, {"to_name": "after"}), ({"item_index": 1},)])
def test_label_studio_tasks_with_shapes_on_several_images_are_not_used(
    places: tuple[dict[str, object], ...], tmp_path: Path
) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 12)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    [box] = tasks[0]["annotations"][0]["result"]
    choice = {"type": "choices", "to_name": "text", "value": {"choices": ["good"]}}
    tasks[0]["annotations"][0]["result"] = [{**box, **place} for place in places]
    tasks[1]["annotations"][0]["result"] = [{**box, "to_name": "before", "item_index": 0}, choice]
    (tmp_path / "tasks.json").write_text(json.dumps([{**task, "id": number} for number, task in enumerate(tasks)]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert [record.file.name for record in dataset.records] == [f"{number}.png" for number in range(1, 12)]
    assert dataset.problems == (f"{SEVERAL_IMAGES.what}: 1, not used (tasks.json task 0)",)


@pytest.mark.parametrize(
    ("data", "to_name", "used"),
    [
        ({"before": "0.png", "after": "1.png"}, "after", "1.png"),
        ({"before": "0.png", "after": "1.png"}, "img", None),
        ({"before": "0.png", "after": "0a1b2c3d-0.png", "preview": "elsewhere.png"}, "img", "0.png"),
    ],
)
def test_label_studio_shapes_are_on_the_image_that_they_name(
    data: dict[str, str], to_name: str, used: str | None, tmp_path: Path
) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 12)
    _, _, *tasks = json.loads((tmp_path / "tasks.json").read_text())
    [box] = tasks[0]["annotations"][0]["result"]
    first = {**label_studio_task(0, "", {**box, "to_name": to_name}), "data": data}
    (tmp_path / "tasks.json").write_text(json.dumps([first, *tasks]))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    others = [f"{number}.png" for number in range(2, 12)]
    assert [record.file.name for record in dataset.records] == [*filter(None, [used]), *others]
    assert dataset.problems == (() if used else (f"{SEVERAL_IMAGES.what}: 1, not used (tasks.json task 0)",))


def test_label_studio_tasks_may_name_their_splits(tmp_path: Path) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 4)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task, name in zip(tasks, ("val", "train", "train"), strict=False):
        task["data"]["split"] = name
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    train, val = (read_split(split) for split in find_train_and_val(tmp_path))
    assert [record.file.name for record in train.records] == ["1.png", "2.png"]
    assert [record.file.name for record in val.records] == ["0.png"]
    assert train.problems[0].endswith("1, not used (tasks.json task 3: None)")


def test_label_studio_predictions_count_where_nobody_annotated(tmp_path: Path) -> None:
    write_label_studio(tmp_path / "tasks.json", tmp_path / "images", 2)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks:
        task["predictions"] = task.pop("annotations")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    dataset = read_split(find_split(tmp_path / "tasks.json", "val"))
    assert boxes(dataset) == [[[10, 5, 30, 15]]] * 2
    assert dataset.problems[0].startswith("task without annotations in a file of predictions: 2, predictions used")


# Broken files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", b"<annotations><image>", "a.xml: not valid XML: .*; expected an XML file of CVAT"),
        ("a.xml", b"<other/>", "a.xml: expected the root element 'annotations' of CVAT, got 'other'"),
        (
            "a.csv",
            b"a,b\n",
            "a.csv: expected a CSV file of Open Images with the columns ImageID, XMax",
        ),
        ("a.csv", b"ImageID,XMin,XMax,YMin,YMax\n\xff", "a.csv: not a CSV file in UTF-8"),
        ("a.json", b'[{"annotations": [', "a.json: not valid JSON: .*; expected an export of Label Studio"),
        ("a.json", b'["annotations"]', "a.json: expected a list of tasks, as in Label Studio's export 'JSON'"),
        ("a.xml", b"<annotations/>", "a.xml: none of its 0 images is usable"),
    ],
)
def test_a_broken_file_is_one_named_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/.*{message}"):
        read_split(find_split(tmp_path / name, "val"))

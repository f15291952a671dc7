"""A set without a validation split is split by source, and always in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgerpn.errors import DataError
from edgerpn.train.data.formats.by_source import SourceSplit, source_of, split_by_source
from edgerpn.train.data.formats.content import Content


@pytest.mark.parametrize(
    ("name", "source", "number"),
    [
        ("fish_jpg.rf.0a1b.jpg", "/fish".removeprefix("/"), None),
        ("IMG_2275_jpeg_jpg.rf.ab.jpg", "IMG_2275_jpeg", None),
        ("street/clip_frame_0012.jpg", "street/clip", 12),
        ("clip-12.png", "/clip", 12),
        ("images/clip 12.png", "/clip", 12),
        ("clip (3).jpg", "/clip", 3),
        # The search for the number takes hours if it looks at the whole name.
        (f"{'_' * 50_000}x.jpg", f"/{'_' * 50_000}x", None),
        (f"{'b' * 200}_12.jpg", f"/{'b' * 200}", 12),
        ("000139.jpg", "/", 139),
        ("frame0001.jpg", "/", 1),
        ("photo.jpg", "/photo", None),
        ("a\\b1.jpg", "a/b", 1),
    ],
)
def test_the_source_of_a_name(name: str, source: str, number: int | None) -> None:
    assert source_of(name) == (source, number)


def split(
    names: list[str], fraction: float = 0.2, seed: int = 0, folder: Path | None = None, **extra: list[Any]
) -> SourceSplit:
    images = [
        {"id": index, "file_name": name, **{key: values[index] for key, values in extra.items()}}
        for index, name in enumerate(names)
    ]
    boxes = [{"id": index, "image_id": index} for index in range(len(names))]
    boxes.append({"id": 999, "image_id": 999})
    root = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "fish"}]}
    box_names = tuple(f"box {box['id']}" for box in boxes)
    return split_by_source(
        Content(root=root, sha256="ab", box_names=box_names), fraction, seed, Path("set.json"), folder
    )


def file_names(content: Content) -> list[str]:
    return [image["file_name"] for image in content.root["images"]]


def test_copies_of_one_picture_stay_together() -> None:
    parts = split([f"photo{chr(97 + n // 3)}_jpg.rf.{n}.jpg" for n in range(30)])
    train, val = ({name.partition(".rf.")[0] for name in file_names(part)} for part in parts[:2])
    assert not train & val
    assert len(file_names(parts.val)) == 6
    assert parts.summary == "6 of 30 images (2 of 10 groups by source, seed 0)"


def test_frames_of_one_video_stay_together() -> None:
    parts = split([f"video{chr(97 + n // 5)}_{n % 5:04}.jpg" for n in range(50)])
    train, val = ({name[:6] for name in file_names(part)} for part in parts[:2])
    assert not train & val
    assert len(file_names(parts.val)) == 10


def test_a_single_video_is_cut_into_blocks_of_neighbours() -> None:
    parts = split([f"clip_{n:04}.jpg" for n in range(200)])
    numbers = [int(name[5:9]) for name in file_names(parts.val)]
    assert len(numbers) == 40
    assert {number // 10 for number in numbers} == {number // 10 for number in numbers[::10]}


def test_a_source_that_the_file_names_counts_before_file_names() -> None:
    parts = split([f"set_{n:04}.jpg" for n in range(12)], source=[f"sea{chr(97 + n % 6)}" for n in range(12)])
    assert len(file_names(parts.val)) == 2
    first, second = (int(name[4:8]) for name in file_names(parts.val))
    assert second - first == 6


def test_the_choice_depends_on_names_and_seed_alone() -> None:
    names = [f"photo{chr(97 + n)}.jpg" for n in range(20)]
    assert file_names(split(names).val) == sorted(file_names(split(names[::-1]).val))
    assert file_names(split(names).val) != file_names(split(names, seed=1).val)


def test_boxes_go_with_their_images() -> None:
    train, val, _ = split([f"photo{chr(97 + n)}.jpg" for n in range(5)])
    for part in (train, val):
        own = {image["id"] for image in part.root["images"]}
        boxes = part.root["annotations"]
        assert len([box for box in boxes if box["image_id"] in own]) == len(own)
        assert len(boxes) == len(own)
        assert part.box_names == tuple(f"box {box['id']}" for box in boxes)
        assert part.root["categories"] == [{"id": 1, "name": "fish"}]
    assert len({train.sha256, val.sha256, "ab"}) == 3


@pytest.mark.parametrize("names", [["a.jpg"], ["a_jpg.rf.1.jpg", "a_jpg.rf.2.jpg"]])
def test_a_single_source_cannot_be_split(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"set\.json: no validation split, and all \d images are of one source"):
        split(names)


def write_photograph(file: Path, taken: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = taken
    Image.new("RGB", (8, 8)).save(file, exif=exif)


def test_photographs_of_one_burst_stay_together(tmp_path: Path) -> None:
    """Ten bursts of three in ten hours; the names mix them."""
    hours = {}
    for number in range(30):
        name = f"IMG_{(number * 7) % 30:04}.jpg"
        hours[name] = number // 3
        write_photograph(tmp_path / name, f"2026:11:30 {number // 3:02}:00:{20 * (number % 3):02}")
    train, val, summary = split(sorted(hours), folder=tmp_path)
    chosen = {hours[name] for name in file_names(val)}
    assert (len(file_names(val)), len(chosen)) == (6, 2)
    assert not chosen & {hours[name] for name in file_names(train)}
    assert summary == "6 of 30 images (2 of 10 groups by source, seed 0)"


def test_a_long_series_is_cut_and_a_clock_that_stands_still_does_not_count(tmp_path: Path) -> None:
    names = [f"photo{chr(97 + n % 25)}{n // 25}x.jpg" for n in range(50)]
    for number, name in enumerate(names):
        write_photograph(tmp_path / name, f"2026:11:30 10:{number // 2:02}:{30 * (number % 2):02}")
    places = sorted(names.index(name) for name in file_names(split(names, folder=tmp_path).val))
    assert 10 <= len(places) <= 12
    assert places == [place for place in range(50) if place // 3 in {chosen // 3 for chosen in places}]
    for name in names:
        write_photograph(tmp_path / name, "2000:01:01 00:00:00")
    assert file_names(split(names, folder=tmp_path).val) == file_names(split(names).val)


def test_another_choice_has_another_hash_although_the_annotations_are_the_same(tmp_path: Path) -> None:
    names = [f"{number:04}.jpg" for number in range(30)]
    for number, name in enumerate(names):
        write_photograph(tmp_path / name, f"2026:11:30 {number // 3:02}:00:{20 * (number % 3):02}")
    whole, found = split(names, folder=tmp_path), set()
    for name in names:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        part = split(names, folder=tmp_path)
        is_same = file_names(part.val) == file_names(whole.val)
        assert (part.train.sha256 == whole.train.sha256, part.val.sha256 == whole.val.sha256) == (is_same, is_same)
        found.add(is_same)
        (tmp_path / name).write_bytes(content)
    assert found == {True, False}


def test_a_set_without_images_is_refused_as_such() -> None:
    with pytest.raises(DataError, match="no usable image entries"):
        split([])

"""Photographs for parity and calibration: those of a data set, of a folder, and a few of many."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgerpn.errors import DataError, ExportError
from edgerpn.export.photographs import NUM_PARITY_IMAGES, calibration_images, exif_rule, parity_images, spread
from edgerpn.train.data.choice import DataChoice
from edgerpn.train.data.splits import find_split
from tests.support.models import write_model
from tests.train.data.formats.data_sets import write_yolo


def test_a_few_of_many_reach_from_the_first_to_the_last() -> None:
    assert spread(range(31), 16) == list(range(0, 31, 2))
    assert spread(range(199), 100) == list(range(0, 199, 2))
    assert spread("abcde", 1) == ["a"]
    assert spread("abcde", 2) == ["a", "e"]


@given(st.integers(0, 300), st.integers(1, 120))
def test_no_item_comes_twice_and_the_order_stays(count: int, most: int) -> None:
    found = spread(range(count), most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))


def test_parity_images_come_from_annotations_or_from_a_folder(
    photos: Path, photo_files: list[Path], tmp_path: Path
) -> None:
    assert sorted(parity_images(find_split(photos, "val"), None)) == photo_files
    assert sorted(parity_images(find_split(photos / "val.json", "val"), None)) == photo_files
    (tmp_path / "notes.txt").write_text("no picture")
    for number in range(3 * NUM_PARITY_IMAGES):
        (tmp_path / f"{number:03}.PNG").write_bytes(b"")
    chosen = [file.name for file in parity_images(None, tmp_path)]
    assert len(chosen) == NUM_PARITY_IMAGES
    assert chosen[:3] == ["000.PNG", "003.PNG", "006.PNG"]
    with pytest.raises(ExportError, match="compared with PyTorch on real images"):
        parity_images(None, None)


def test_photographs_without_a_decoder_and_apples_files_are_left_out_by_name(tmp_path: Path) -> None:
    for name, kind in (("a.jfif", "JPEG"), ("b", "PNG")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, kind)
    for name in ("c.heic", "d.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "._a.jfif").write_bytes(b"resource fork")
    lines: list[str] = []
    assert [file.name for file in parity_images(None, tmp_path, log=lines.append)] == ["a.jfif", "b"]
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {tmp_path}: 2 left out ({tmp_path / 'c.heic'}, ...): HEIC, which OpenCV ")


def copy_photos(files: list[Path], folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(files[i % len(files)], folder / f"{i:03}.png")) for i in range(count)]


def test_photographs_are_found_at_every_depth_and_few_cause_a_warning(tmp_path: Path, photo_files: list[Path]) -> None:
    expected = [*copy_photos(photo_files, tmp_path, 2), *copy_photos(photo_files, tmp_path / "night" / "rain", 3)]
    (tmp_path / "notes.txt").write_text("not a photograph")
    (tmp_path / "._000.png").write_text("a file that some systems leave behind")
    lines: list[str] = []
    assert sorted(calibration_images(tmp_path, log=lines.append)) == sorted(expected)
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {tmp_path}: only 5 photographs to calibrate on; ")
    assert "ranges from fewer than 100 may miss" in lines[0]


def test_images_are_spread_evenly_and_enough_need_no_warning(tmp_path: Path) -> None:
    files = [tmp_path / f"{i:03}.jpg" for i in range(101)]
    for file in files:
        file.touch()
    lines: list[str] = []
    assert calibration_images(tmp_path, limit=5, log=lines.append) == [files[i] for i in (0, 25, 50, 75, 100)]
    assert lines == []


def test_a_data_set_of_any_format_gives_its_training_images(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images", tmp_path / "labels", 10)
    lines: list[str] = []
    files = calibration_images(tmp_path, log=lines.append, choice=DataChoice(split="0.3"))
    assert len(files) == 7
    assert not set(files) & set(parity_images(find_split(tmp_path, "val", DataChoice(split="0.3")), None))
    assert lines[0].startswith(f"{tmp_path}: YOLO (text files for images); train: all but 3 of 10 images")


def test_a_data_folder_gives_its_training_images(photos: Path, photo_files: list[Path]) -> None:
    (photos / "images" / "unlisted.png").write_bytes(photo_files[0].read_bytes())
    try:
        assert calibration_images(photos) == photo_files
    finally:
        (photos / "images" / "unlisted.png").unlink()


@pytest.mark.parametrize(("name", "message"), [("empty", "no photographs to calibrate on"), ("none", "does not exist")])
def test_a_folder_without_photographs_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        calibration_images(tmp_path / name)


def test_the_rule_of_a_model_that_travels_alone_is_read_without_opening_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path, has_sidecar=False)
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    monkeypatch.setattr("onnx.load", None)
    assert exif_rule(model) == "auto"

"""Finding the image that an annotation file names, in every spelling."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.image_files import ImageFolder


def make(folder: Path, *names: str) -> ImageFolder:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8\xff\xe0")
    return ImageFolder(folder)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("a.jpg", "A.JPG"),
        ("a.JPG", "a.jpg"),
        ("sub/a.jpg", "a.jpg"),
        ("a.jpg", "train/images/a.jpg"),
        ("sub/a.jpg", "Sub\\A.jpg"),
        ("sub/a.jpg", "./SUB/a.jpg"),
        (unicodedata.normalize("NFD", "caf\u00e9.jpg"), "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", unicodedata.normalize("NFD", "caf\u00e9.jpg")),
        ("stra\u00dfe.jpg", "STRASSE.jpg"),
    ],
)
def test_another_spelling_or_depth_is_found(tmp_path: Path, there: str, wanted: str) -> None:
    folder = make(tmp_path, there, "other.jpg")
    assert folder.locate(wanted) is None
    assert folder.search(wanted) == [tmp_path / there]


@pytest.mark.parametrize(
    ("there", "wanted", "near"),
    [
        ("val/a.jpg", "train/a.jpg", "val/a.jpg"),
        ("a.png", "a.jpg", "a.png"),
        ("ab.jpg", "b.jpg", None),
    ],
)
def test_another_folder_or_format_is_only_named(tmp_path: Path, there: str, wanted: str, near: str | None) -> None:
    folder = make(tmp_path, there)
    assert folder.search(wanted) == []
    assert folder.find_near(wanted) == (None if near is None else Path(near))


def test_two_fitting_files_are_both_returned(tmp_path: Path) -> None:
    folder = make(tmp_path, "x/a.jpg", "y/a.jpg")
    assert folder.search("a.jpg") == [tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"]
    assert folder.locate("x/a.jpg") == tmp_path / "x" / "a.jpg"


def test_links_into_a_store_are_read_on_demand_only(tmp_path: Path) -> None:
    images, store = tmp_path / "images", tmp_path / "store"
    make(store, "0f3a")
    images.mkdir()
    (images / "a.jpg").symlink_to(store / "0f3a")
    message = r"outside the image folder .*; accept such links with --follow-links \(data\.follow_links\)"
    for name, find in (("a.jpg", ImageFolder(images).locate), ("A.jpg", ImageFolder(images).search)):
        with pytest.raises(DataError, match=message):
            find(name)
    follows = ImageFolder(images, follow_links=True)
    assert follows.locate("a.jpg") == images / "a.jpg"
    assert follows.search("A.jpg") == [images / "a.jpg"]
    with pytest.raises(DataError, match="expected a path below the image folder"):
        follows.locate("../store/0f3a")

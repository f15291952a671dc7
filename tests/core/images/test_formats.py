"""Recognising and listing image files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerpn.images.formats import image_format, is_image_file, list_images, read_format


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (b"GIF89a\x01\0\x01\0", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8L", "WebP"),
        (b"RIFF\x10\0\0\0AVI LIST", ""),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "BMP"),
        (b"BMW 320d, a line of text", ""),
        (b"P6\n60 40\n255\n", "PNM"),
        (b"P5 is the fifth point", ""),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_name_the_format(head: bytes, expected: str) -> None:
    assert image_format(head) == expected


def test_a_listing_goes_by_suffix_or_content_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    for name in ("b.JPE", "a.jfif", "photo.heic", "._a.jfif", ".hidden.png", "broken.png"):
        (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "0f3a").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "notes").write_bytes(b"no image")
    # A suffix of annotations is believed: nobody hides images there, and opening all of them takes long.
    (tmp_path / "a.txt").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "c.gif").write_bytes(b"GIF89a")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.png").write_bytes(b"anything")
    names = ["0f3a", "a.jfif", "b.JPE", "broken.png", "photo.heic"]
    assert [path.name for path in list_images(tmp_path)] == names
    assert {path.name for path in list_images(tmp_path, recursive=True)} == {*names, "c.gif"}
    assert not is_image_file(tmp_path / "missing.jpg")
    assert read_format(tmp_path / "missing.jpg") == ""

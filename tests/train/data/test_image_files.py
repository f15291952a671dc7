"""Reading image files of every kind, whole and not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerpn.errors import DataError
from edgerpn.train.data.image_files import probe_image, read_image, read_reduced

WIDTH, HEIGHT = 60, 40


def write_image(file: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A picture with some structure, so that its file has image data worth the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 7 % 256
    assert cv2.imwrite(str(file), np.dstack([ramp, 255 - ramp, ramp // 2]).astype(np.uint8))


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((4, 6), 200, np.uint8),
        np.full((4, 6), 200 * 257, np.uint16),
        np.full((4, 6, 3), 200, np.uint8),
        np.full((4, 6, 4), 200, np.uint8),
        np.full((4, 6, 3), 200 * 257, np.uint16),
    ],
    ids=["grey", "grey 16 bit", "color", "alpha", "color 16 bit"],
)
def test_images_of_any_depth_and_channels_are_read_as_8_bit_bgr(tmp_path: Path, pixels: np.ndarray) -> None:
    file = tmp_path / "a.png"
    assert cv2.imwrite(str(file), pixels)
    found = read_image(file)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.full((4, 6, 3), 200))


def test_an_image_is_not_turned_by_its_exif_orientation(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    write_image(file)
    stored = read_image(file)
    # One entry: orientation (0x0112, short) = 6, "turn right by 90 degrees".
    entry = b"\x01\x00" + b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00" + b"\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + b"II*\x00\x08\x00\x00\x00" + entry
    data = file.read_bytes()
    file.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    turned = cv2.imread(str(file))
    assert turned is not None
    assert turned.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(read_image(file), stored)


def test_a_jpeg_is_whole_only_if_its_own_end_is_there(tmp_path: Path) -> None:
    file, small = tmp_path / "a.jpg", tmp_path / "thumbnail.jpg"
    write_image(file)
    write_image(small, 8, 8)
    data, thumbnail = file.read_bytes(), small.read_bytes()
    head = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    # The end of the thumbnail is not that of the picture, and a film behind the picture does no harm.
    file.write_bytes(head + data[2:] + bytes(10_000))
    assert read_image(file).shape == (HEIGHT, WIDTH, 3)
    file.write_bytes(head + data[2:-100])
    with pytest.raises(DataError, match=r"a\.jpg: truncated: the JPEG has no end marker"):
        read_image(file)


def test_a_file_that_cannot_be_opened_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: cannot be read: No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (61, 43)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_shows_the_same_places_at_exactly_the_fraction(
    tmp_path: Path, width: int, height: int, reduction: int
) -> None:
    file = tmp_path / "a.jpg"
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[16:32, 8:40] = 255
    assert cv2.imwrite(str(file), pixels)
    image, used = read_reduced(file, reduction)
    assert used == reduction
    assert image.shape == (-(-height // reduction), -(-width // reduction), 3)
    bright = np.argwhere(image[:, :, 0] > 127)
    np.testing.assert_array_equal(bright.min(axis=0) * reduction, [16, 8])
    np.testing.assert_array_equal((bright.max(axis=0) + 1) * reduction, [32, 40])


def test_other_formats_are_never_reduced(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    write_image(file)
    image, used = read_reduced(file, 4)
    assert used == 1
    np.testing.assert_array_equal(image, read_image(file))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_the_size_from_the_header_is_the_decoded_one(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    write_image(file)
    assert probe_image(file, "header").stored_hw == probe_image(file, "decode").stored_hw == (HEIGHT, WIDTH)

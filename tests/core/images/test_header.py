"""Size, orientation and ends of image files, by their headers."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgerpn.errors import DataError
from edgerpn.images.decoding import decode_image
from edgerpn.images.faults import find_fault
from edgerpn.images.header import read_header, turn, turn_back

WIDTH, HEIGHT = 60, 40
PATTERN = np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH)).astype(np.uint8)


def encode(kind: str, orientation: int = 1, **options: Any) -> bytes:
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.dstack([PATTERN] * 3)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WebP", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {"exif": b"MM\0*\0\0\0\x08\0\0"}),
    ],
)
def test_the_header_tells_the_size_that_decoding_gives(kind: str, options: dict[str, Any]) -> None:
    header = read_header(io.BytesIO(encode(kind, **options)))
    assert header == (kind, (HEIGHT, WIDTH), 1, "", None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_turns_the_image_as_viewers_do_or_not_at_all(kind: str, orientation: int) -> None:
    data = encode(kind, orientation, **({"lossless": True} if kind == "WebP" else {}))
    header = read_header(io.BytesIO(data))
    assert header.orientation == orientation
    stored, _ = decode_image(cv2, data, header, Path("a"), exif="ignore")
    upright, _ = decode_image(cv2, data, header, Path("a"), exif="apply")
    expected = decoded_by_opencv(PATTERN, orientation)
    tolerance = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(stored[:, :, 0].astype(int), PATTERN.astype(int), atol=tolerance)
    np.testing.assert_allclose(upright[:, :, 0].astype(int), expected.astype(int), atol=tolerance)


def decoded_by_opencv(pattern: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """The pattern as OpenCV itself turns a PNG of that orientation."""
    options = Image.Exif()
    options[0x112] = orientation
    file = io.BytesIO()
    Image.fromarray(pattern).save(file, "PNG", exif=options)
    image = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(image, np.uint8)[:, :, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_undoes_turning(orientation: int) -> None:
    image = np.dstack([PATTERN] * 3)
    turned = turn(image, orientation)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turn_back(turned, orientation), image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF", "BMP"])
def test_a_file_that_was_cut_is_named_truncated(kind: str) -> None:
    data = encode(kind)
    for length in (len(data) // 2, 20):
        assert read_header(io.BytesIO(data[:length])).fault.startswith("truncated: the ")
    assert read_header(io.BytesIO(b"")).fault == "the file is empty"


def test_damaged_exif_data_count_as_upright() -> None:
    data = encode("JPEG", 6)
    for damage in (b"XX*\0", b"MM\0*\xff\xff\xff\xff"):
        place = data.index(b"MM\0*")
        broken = data[:place] + damage + data[place + len(damage) :]
        assert read_header(io.BytesIO(broken)).orientation == 1
    entry = data.index(b"\x01\x12\0\x03")
    broken = data[: entry + 8] + b"\0\x63" + data[entry + 10 :]
    assert read_header(io.BytesIO(broken)) == ("JPEG", (HEIGHT, WIDTH), 1, "", None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970:01:02 00:00:03", 86403),
        ("2026:11:30 12:00:00", 1796040000),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2026", None),
    ],
)
def test_the_time_of_a_photograph(kind: str, text: str, seconds: int | None) -> None:
    exif = Image.Exif()
    exif[0x112] = 3
    exif.get_ifd(0x8769)[0x9003] = text
    header = read_header(io.BytesIO(encode(kind, exif=exif)))
    assert (header.orientation, header.taken_s) == (3, seconds)


def test_no_damage_of_a_file_is_an_error_of_the_parsers(tmp_path: Path) -> None:
    chance = random.Random(0)
    exif = Image.Exif()
    exif[0x112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:11:30 12:00:00"
    kinds = [("JPEG", exif), ("PNG", exif), ("WebP", exif), ("TIFF", exif), ("GIF", None), ("BMP", None), ("PPM", None)]
    options: list[dict[str, Any]] = [{} if given is None else {"exif": given} for _, given in kinds]
    whole = [encode(kind, **option) for (kind, _), option in zip(kinds, options, strict=True)]
    outcomes = set()
    for _ in range(200):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(1, min(len(data), chance.choice([40, 200, 1 << 20])))
            change = chance.choice(["byte", "cut", "lost", "more"])
            if change == "byte":
                data[place] = chance.randrange(256)
            elif change == "cut":
                del data[place + 1 :]
            else:
                data[place : place + (9 if change == "lost" else 0)] = b"" if change == "lost" else b"\xff" * 9
            data = data if len(data) > 1 else bytearray(b"\0\0")
        header = read_header(io.BytesIO(bytes(data)))
        assert header.stored_hw is None or min(header.stored_hw) > 0
        find_fault(bytes(data))
        (tmp_path / "a").write_bytes(data)
        try:
            image, _ = decode_image(cv2, bytes(data), header, tmp_path / "a", exif="apply")
        except DataError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        assert header.hw("apply") in (None, image.shape[:2])
    assert outcomes == {"refused", "decoded"}

"""Damage inside images that decode nevertheless."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgerpn.images.faults import find_fault

NOISE = np.random.default_rng(0).integers(0, 255, (64, 96, 4), np.uint8)


def encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE[..., : len(mode)] if len(mode) > 1 else NOISE[..., 0], mode).save(file, kind, **options)
    return file.getvalue()


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "color": ("RGB", {}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "restart markers": ("RGB", {"restart_marker_blocks": 4}),
}


@pytest.fixture(params=list(KINDS))
def jpeg(request: pytest.FixtureRequest) -> bytes:
    pytest.importorskip("simplejpeg", reason="only cut files are found without it")
    mode, options = KINDS[request.param]
    return encode("JPEG", mode, **options)


def test_a_whole_jpeg_has_no_fault(jpeg: bytes) -> None:
    assert find_fault(jpeg) == ""
    # A film behind the picture, and the zeros by which some cameras fill a file up.
    assert find_fault(jpeg + b"film" * 1000) == ""
    assert find_fault(jpeg[:-2] + bytes(40) + jpeg[-2:]) == ""


def test_a_jpeg_that_was_cut_and_closed_again_is_damaged(jpeg: bytes) -> None:
    assert find_fault(jpeg[: len(jpeg) * 3 // 4] + b"\xff\xd9") != ""


def test_a_jpeg_that_lost_a_piece_in_the_middle_is_damaged(jpeg: bytes) -> None:
    middle = len(jpeg) * 3 // 4
    assert find_fault(jpeg[:middle] + jpeg[middle + 600 :]) != ""


def test_a_png_chunk_with_a_wrong_checksum_is_damaged() -> None:
    data = encode("PNG")
    assert find_fault(data) == ""
    place = data.index(b"IDAT") + 100
    broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert find_fault(broken) == f"wrong checksum of the chunk IDAT at byte {data.index(b'IDAT') - 4}"
    # The same data with the right checksum are another, whole file.
    start, end = data.index(b"IDAT"), data.index(b"IEND") - 8
    repaired = broken[:end] + zlib.crc32(broken[start:end]).to_bytes(4, "big") + broken[end + 4 :]
    assert find_fault(repaired) == ""


def test_other_formats_are_left_to_their_decoders() -> None:
    assert find_fault(encode("BMP")) == find_fault(b"no image at all") == find_fault(b"") == ""

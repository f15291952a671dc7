"""Size, EXIF orientation and time, and ends of image files, read from their headers without decoding."""

from __future__ import annotations

import calendar
import io
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.images.formats import HEAD_BYTES, image_format

Exif = Literal["apply", "ignore"]
"""Rule for images that their EXIF orientation turns or mirrors: as viewers show them, or as they are stored."""

_JPEG_END = b"\xff\xd9"
# Frame headers SOF0..SOF15 without DHT (C4), JPG (C8) and DAC (CC); ITU-T T.81, table B.1.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# TEM and RST0..RST7 have no length.
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_SCAN, _JPEG_EXIF = 0xDA, 0xE1
_EXIF_PREFIX = b"Exif\0\0"
_TAIL_BYTES = 4096
# Tags of TIFF, which EXIF shares (TIFF 6.0, section 8, and EXIF 2.3, tables 4 and 7).
_ORIENTATION = 0x112
_EXIF_DIRECTORY, _TAKEN = 0x8769, 0x9003
# Uncompressed, with or without masks of the colours.
_BMP_PLAIN = {0, 3, 6}


class Header(NamedTuple):
    """The facts about an image file that its structure tells."""

    format: str
    """Name of the format; "": not an image."""
    stored_hw: tuple[int, int] | None = None
    """Height and width of the stored image, pixels; None: only decoding tells."""
    orientation: int = 1
    """EXIF orientation, 1..8; 1: upright as stored."""
    fault: str = ""
    """Why the file cannot be whole: empty or truncated; "": nothing seen."""
    taken_s: int | None = None
    """EXIF time of the photograph in seconds since 1970, by the camera's clock; None: not given."""

    def hw(self, exif: Exif) -> tuple[int, int] | None:
        """Height and width after `exif`, pixels."""
        return turned_hw(self.stored_hw, self.orientation if exif == "apply" else 1) if self.stored_hw else None


def turned_hw(hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Returns height and width after `turn`."""
    return hw[::-1] if orientation >= 5 else hw


def turn(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turns and mirrors an (H, W, C) image by its EXIF orientation, as viewers do; the result is contiguous.

    Source: EXIF 2.3, tag Orientation: the side at which the stored row 0 and column 0 belong.
    """
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def turn_back(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undoes `turn`: quarter turns to the left and to the right are each other's inverse, the rest its own."""
    return turn(image, {6: 8, 8: 6}.get(orientation, orientation))


def read_header(stream: BinaryIO) -> Header:
    """Reads the header of an image file from its start; of formats without a parser here only the name."""
    head = stream.read(HEAD_BYTES)
    if not head:
        return Header("", fault="the file is empty")
    name = image_format(head)
    read = _READERS.get(name)
    if read is None:
        return Header(name)
    stream.seek(0)
    try:
        header = read(stream)
    except struct.error:
        return Header(name, fault=f"truncated: the {name} ends within its header")
    # The rare JPEG that stores its height at the end says 0; in other formats it is damage.
    has_size = header.stored_hw is not None and min(header.stored_hw) > 0
    return header if has_size else header._replace(stored_hw=None)


def _jpeg(stream: BinaryIO) -> Header:
    """Parses the segments up to the first scan, then searches for the end marker after it.

    Inside a scan a stuffed zero or a restart marker follows every 0xFF, so the end marker is unambiguous there. In the
    segments before it is not: an EXIF thumbnail is itself a JPEG.
    """
    stream.seek(2)
    size, orientation, taken_s = None, 1, None
    while (marker := _jpeg_marker(stream)) != _JPEG_SCAN:
        if marker is None:
            return Header("JPEG", size, orientation, "truncated: the JPEG ends before its image data")
        if marker in _JPEG_ALONE:
            continue
        length = int.from_bytes(stream.read(2), "big")
        segment = stream.tell()
        if marker in _JPEG_FRAMES:
            header = stream.read(5)
            size = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
        elif marker == _JPEG_EXIF and stream.read(len(_EXIF_PREFIX)) == _EXIF_PREFIX:
            orientation, taken_s = _read_exif(stream.read(max(length - 2 - len(_EXIF_PREFIX), 0)))
        stream.seek(segment + max(length - 2, 0))
    scan = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    # The end is nearly always in the last bytes; some cameras append a video after it.
    for start in (max(scan, end - _TAIL_BYTES), scan):
        stream.seek(start)
        if _JPEG_END in stream.read():
            return Header("JPEG", size, orientation, taken_s=taken_s)
    return Header("JPEG", size, orientation, "truncated: the JPEG has no end marker", taken_s)


def _jpeg_marker(stream: BinaryIO) -> int | None:
    """Returns the next marker's code, or None at the end of the file; skips fill and stray bytes as libjpeg does."""
    byte = stream.read(1)
    while byte:
        previous, byte = byte, stream.read(1)
        if previous == b"\xff" and byte not in (b"\xff", b"\x00", b""):
            return byte[0]
    return None


def _png(stream: BinaryIO) -> Header:
    stream.seek(16)
    width, height = struct.unpack(">2I", stream.read(8))
    orientation, taken_s = 1, None
    stream.seek(8)
    while len(chunk := stream.read(8)) == 8:
        if chunk[4:] == b"IEND":
            return Header("PNG", (height, width), orientation, taken_s=taken_s)
        length = int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"eXIf":
            orientation, taken_s = _read_exif(stream.read(length))
            length = 0
        stream.seek(length + 4, os.SEEK_CUR)
    return Header("PNG", (height, width), orientation, "truncated: the PNG has no end chunk")


def _webp(stream: BinaryIO) -> Header:
    _, num_bytes, _, kind, _ = struct.unpack("<4sI4s4sI", stream.read(20))
    first = stream.read(10)
    size: tuple[int, int] | None = None
    if kind == b"VP8X":
        # 24-bit width and height, each less one.
        size = int.from_bytes(first[7:10], "little") + 1, int.from_bytes(first[4:7], "little") + 1
    elif kind == b"VP8 ":
        width, height = struct.unpack("<2H", first[6:10])
        size = height & 0x3FFF, width & 0x3FFF
    elif kind == b"VP8L":
        bits = int.from_bytes(first[1:5], "little")
        size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    end = stream.seek(0, os.SEEK_END)
    if end < num_bytes + 8:
        return Header("WebP", size, fault="truncated: the WebP file is shorter than it says")
    orientation, taken_s = _webp_exif(stream) if kind == b"VP8X" else (1, None)
    return Header("WebP", size, orientation, taken_s=taken_s)


def _webp_exif(stream: BinaryIO) -> tuple[int, int | None]:
    stream.seek(12)
    while len(chunk := stream.read(8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"EXIF":
            return _read_exif(stream.read(length).removeprefix(_EXIF_PREFIX))
        stream.seek(length + length % 2, os.SEEK_CUR)
    return 1, None


def _gif(stream: BinaryIO) -> Header:
    stream.seek(6)
    width, height = struct.unpack("<2H", stream.read(4))
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(end - _TAIL_BYTES, 0))
    is_whole = stream.read().rstrip(b"\0").endswith(b";")
    return Header("GIF", (height, width), fault="" if is_whole else "truncated: the GIF has no trailer")


def _bmp(stream: BinaryIO) -> Header:
    stream.seek(10)
    start, num_bytes = struct.unpack("<2I", stream.read(8))
    # A negative height: the first row is the top one.
    layout = "<4H" if num_bytes == 12 else "<2i2HI"
    width, height, _, bits, *compression = struct.unpack(layout, stream.read(struct.calcsize(layout)))
    size = abs(height), width
    rows_bytes = size[0] * ((width * bits + 31) // 32 * 4) if not {*compression} - _BMP_PLAIN else 0
    is_whole = stream.seek(0, os.SEEK_END) >= start + rows_bytes
    return Header("BMP", size, fault="" if is_whole else "truncated: the BMP lacks rows")


def _tiff(stream: BinaryIO) -> Header:
    # Its strips lie anywhere in the file: only decoding tells whether they are there.
    return Header("TIFF", orientation=_checked(_tiff_tags(stream).get(_ORIENTATION, 1)))


def _read_exif(data: bytes) -> tuple[int, int | None]:
    """Returns orientation and time in EXIF data, which have the form of a TIFF file; 1 and None if damaged."""
    stream = io.BytesIO(data)
    orientation = 1
    try:
        tags = _tiff_tags(stream)
        orientation = _checked(tags.get(_ORIENTATION, 1))
        return orientation, _exif_time(stream, tags[_EXIF_DIRECTORY]) if _EXIF_DIRECTORY in tags else None
    except struct.error:
        return orientation, None


def _exif_time(stream: BinaryIO, directory: int) -> int | None:
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    for tag, kind, number, value in _tiff_entries(stream, order, directory):
        if (tag, kind, number) == (_TAKEN, 2, 20):
            stream.seek(*struct.unpack(f"{order}I", value))
            text = stream.read(19).decode("ascii", errors="replace")
            try:
                return calendar.timegm(time.strptime(text, "%Y:%m:%d %H:%M:%S"))
            except ValueError:  # "0000:00:00 00:00:00", from a camera without a clock
                return None
    return None


def _checked(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_tags(stream: BinaryIO) -> dict[int, int]:
    """Returns the tags of the first directory that hold one short or long number."""
    order = {b"II": "<", b"MM": ">"}.get(stream.read(2))
    if order is None:
        return {}
    _, offset = struct.unpack(f"{order}HI", stream.read(6))
    return {
        tag: struct.unpack(f"{order}{'H' if kind == 3 else 'I'}", value[: 2 if kind == 3 else 4])[0]
        for tag, kind, number, value in _tiff_entries(stream, order, offset)
        if number == 1 and kind in (3, 4)
    }


def _tiff_entries(stream: BinaryIO, order: str, offset: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields tag, type, count and value (or its offset) of a directory."""
    stream.seek(offset)
    (count,) = struct.unpack(f"{order}H", stream.read(2))
    entries = [struct.unpack(f"{order}HHI4s", stream.read(12)) for _ in range(count)]
    yield from entries


_READERS: dict[str, Callable[[BinaryIO], Header]] = {
    "BMP": _bmp,
    "GIF": _gif,
    "JPEG": _jpeg,
    "PNG": _png,
    "TIFF": _tiff,
    "WebP": _webp,
}

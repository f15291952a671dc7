"""Image files: finding them below a folder, reading them, and detecting truncated ones.

Boxes refer to the stored pixel grid, as in other COCO tools: pycocotools, torchvision and PIL do not rotate by the
EXIF orientation, so neither does this module (`cv2.IMREAD_IGNORE_ORIENTATION`).

OpenCV decodes a truncated JPEG without an error and leaves the rest grey, so this module checks the structure of JPEG
and PNG files before it decodes them.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError

Verify = Literal["decode", "header", "none"]
"""Check of images before use: decode each, read sizes and ends of files only, or trust the annotations."""

_REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Frame headers SOF0..SOF15 without DHT (C4), JPG (C8) and DAC (CC); ITU-T T.81, table B.1.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# TEM and RST0..RST7 have no length.
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_SCAN = 0xDA
_TAIL_BYTES = 4096


def read_image(file: Path) -> npt.NDArray[np.uint8]:
    """Reads an image of any depth and channels as 8-bit BGR; ignores the EXIF orientation.

    Args:
        file: Any format that OpenCV reads.

    Returns:
        (H, W, 3) uint8 BGR, a new array; grey becomes three equal channels, alpha is dropped.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    return read_reduced(file, 1)[0]


def read_reduced(file: Path, reduction: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Reads an image at 1 / `reduction` of its size if that is cheaper (JPEG), otherwise at full size.

    libjpeg scales in the frequency domain: pixel (x, y) of the result covers `reduction` x `reduction` stored pixels
    from (x * reduction, y * reduction), so coordinates divide by `reduction` exactly, and sizes round up.

    Args:
        file: Any format that OpenCV reads.
        reduction: 1, 2, 4 or 8.

    Returns:
        The image as (H, W, 3) uint8 BGR, and the actual reduction: `reduction` or 1.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if not data.startswith(_JPEG_START):
        reduction = 1
    stored_hw(io.BytesIO(data), file)
    return _decode(data, file, _REDUCED_FLAGS[reduction]), reduction


def probe_hw(file: Path, verify: Literal["decode", "header"]) -> tuple[int, int]:
    """Returns height and width of an image in stored pixels, after the check that `verify` names.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    if verify == "header":
        try:
            with file.open("rb") as stream:
                size = stored_hw(stream, file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        if size is not None:
            return size
    height, width = read_image(file).shape[:2]
    return height, width


class ImageFolder:
    """The folder that must contain all images of a data set."""

    def __init__(self, folder: Path) -> None:
        """Resolves `folder`, which may itself be a link."""
        self._base = Path(os.path.abspath(folder))
        self._root = os.path.realpath(folder)

    def locate(self, file_name: str) -> Path | None:
        """Finds the file that an annotation file calls `file_name`, never outside the folder.

        The name is relative to the folder, or else to its parent ("images/a.jpg").

        Returns:
            Path of a file, or None if the folder has no such file.

        Raises:
            DataError: The name is empty or absolute, contains "..", or leads out of the folder through a link.
        """
        # Backslashes and drive letters count on every system, so that a data set means the same everywhere.
        parts = file_name.replace("\\", "/").split("/")
        is_absolute = not parts[0] or (parts[0][:1].isalpha() and parts[0][1:2] == ":")
        if is_absolute or ".." in parts or "\0" in file_name:
            raise DataError(f"file_name {file_name!r}: expected a path below the image folder {self._base}")
        if "\\" in file_name and not os.path.isfile(self._base / file_name):
            file_name = "/".join(parts)
        below = self._base / file_name
        if os.path.isfile(below):
            target = os.path.realpath(below)
            if not _is_inside(target, self._root):
                raise DataError(
                    f"file_name {file_name!r}: leads to {target}, outside the image folder {self._root}; "
                    "put the file itself into the folder, or make the whole folder a link"
                )
            return below
        beside = self._base.parent / file_name
        if os.path.isfile(beside) and _is_inside(os.path.realpath(beside), self._root):
            return beside
        return None


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def stored_hw(stream: BinaryIO, file: Path) -> tuple[int, int] | None:
    """Reads height and width from the header of a JPEG or PNG, and checks that the file has its end marker.

    Returns:
        The size in pixels, or None for other formats (and for the rare JPEG that stores its height at the end).

    Raises:
        DataError: The file is empty or truncated.
    """
    head = stream.read(len(_PNG_START))
    if not head:
        raise DataError(f"{file}: the file is empty")
    if head.startswith(_JPEG_START):
        return _jpeg_hw(stream, file)
    if head == _PNG_START:
        return _png_hw(stream, file)
    return None


def _decode(data: bytes, file: Path, flags: int) -> npt.NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError(f"{file}: OpenCV cannot decode it: {error.err}") from error
    if image is None:
        raise DataError(f"{file}: not an image that OpenCV can decode ({len(data)} bytes)")
    return np.asarray(image, np.uint8)


def _jpeg_hw(stream: BinaryIO, file: Path) -> tuple[int, int] | None:
    """Parses the segments up to the first scan, then searches for the end marker after it.

    Inside a scan a stuffed zero or a restart marker follows every 0xFF, so the end marker is unambiguous there. In the
    segments before it is not: an EXIF thumbnail is itself a JPEG.
    """
    stream.seek(len(_JPEG_START))
    size = None
    while (marker := _jpeg_marker(stream)) != _JPEG_SCAN:
        if marker is None:
            raise DataError(f"{file}: truncated: the JPEG ends before its image data")
        if marker in _JPEG_ALONE:
            continue
        length = int.from_bytes(stream.read(2), "big")
        segment = stream.tell()
        if marker in _JPEG_FRAMES:
            header = stream.read(5)
            size = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
        stream.seek(segment + max(length - 2, 0))
    scan = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    # The end is nearly always in the last bytes; some cameras append a video after it.
    for start in (max(scan, end - _TAIL_BYTES), scan):
        stream.seek(start)
        if _JPEG_END in stream.read():
            return size if size is not None and min(size) > 0 else None
    raise DataError(f"{file}: truncated: the JPEG has no end marker")


def _jpeg_marker(stream: BinaryIO) -> int | None:
    """Returns the next marker's code, or None at the end of the file; skips fill and stray bytes as libjpeg does."""
    byte = stream.read(1)
    while byte:
        previous, byte = byte, stream.read(1)
        if previous == b"\xff" and byte not in (b"\xff", b"\x00", b""):
            return byte[0]
    return None


def _png_hw(stream: BinaryIO, file: Path) -> tuple[int, int]:
    stream.seek(len(_PNG_START) + 8)
    header = stream.read(8)
    stream.seek(len(_PNG_START))
    while len(chunk := stream.read(8)) == 8:
        if chunk[4:] == b"IEND":
            return int.from_bytes(header[4:], "big"), int.from_bytes(header[:4], "big")
        stream.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    raise DataError(f"{file}: truncated: the PNG has no end chunk")

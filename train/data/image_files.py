"""Image files of data sets: reading them, checking them, and finding them below a folder.

OpenCV decodes a truncated JPEG without an error and leaves the rest grey, so this module checks the structure of a file
before it decodes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.images.decoding import decode_image, read_bytes
from edgerpn.images.faults import find_fault
from edgerpn.images.header import Exif, Header, read_header

Verify = Literal["decode", "header", "none"]
"""Check of images before use: decode each, read sizes and ends of files only, or trust the annotations."""


class ImageProbe(NamedTuple):
    """The facts about an image file that can be used."""

    stored_hw: tuple[int, int]
    """Height and width of the stored image, pixels."""
    orientation: int = 1
    """EXIF orientation, 1..8; 1: upright as stored."""
    damage: str = ""
    """Damage inside the image, see `edgerpn.images.faults`; "": none seen, or not looked for."""


def read_image(file: Path, exif: Exif = "ignore") -> npt.NDArray[np.uint8]:
    """Reads an image of any depth and channels as 8-bit BGR.

    Args:
        file: Any format that OpenCV reads.
        exif: Whether to turn the image by its EXIF orientation.

    Returns:
        (H, W, 3) uint8 BGR, a new array; grey becomes three equal channels, alpha is dropped.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    return read_reduced(file, 1, exif)[0]


def read_reduced(file: Path, reduction: int, exif: Exif = "ignore") -> tuple[npt.NDArray[np.uint8], int]:
    """Reads an image at 1 / `reduction` of its size if that is cheaper, see `edgerpn.images.decoding.decode_image`.

    Returns:
        The image as (H, W, 3) uint8 BGR, and the actual reduction: `reduction` or 1.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    data, header = read_bytes(file)
    _refuse_fault(header, file)
    return decode_image(cv2, data, header, file, exif=exif, reduction=reduction)


def probe_image(file: Path, verify: Literal["decode", "header"]) -> ImageProbe:
    """Checks an image as `verify` says.

    Raises:
        DataError: The file is missing, truncated or not an image.
    """
    if verify == "header":
        try:
            with file.open("rb") as stream:
                header = read_header(stream)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        _refuse_fault(header, file)
        if header.stored_hw is not None:
            return ImageProbe(header.stored_hw, header.orientation)
    data, header = read_bytes(file)
    _refuse_fault(header, file)
    height, width = decode_image(cv2, data, header, file, exif="ignore")[0].shape[:2]
    return ImageProbe((height, width), header.orientation, find_fault(data) if verify == "decode" else "")


def _refuse_fault(header: Header, file: Path) -> None:
    if header.fault:
        raise DataError(f"{file}: {header.fault}")


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

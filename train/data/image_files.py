"""Image files of data sets: reading them, checking them, and finding them below a folder.

OpenCV decodes a truncated JPEG without an error and leaves the rest grey, so this module checks the structure of a file
before it decodes it.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.images.decoding import decode_image, read_bytes
from edgerpn.images.faults import find_fault
from edgerpn.images.formats import list_images
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
    """The folder that must contain all images of a data set; threads may share it."""

    def __init__(self, folder: Path, *, follow_links: bool = False) -> None:
        """Resolves `folder`, which may itself be a link.

        Args:
            folder: The folder.
            follow_links: Whether its files may be links that lead out of it.
        """
        self.path = Path(os.path.abspath(folder))
        self._root = os.path.realpath(folder)
        self._follow_links = follow_links
        self._index: dict[str, list[Path]] | None = None
        self._lock = threading.Lock()

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
            raise DataError(f"file_name {file_name!r}: expected a path below the image folder {self.path}")
        if "\\" in file_name and not os.path.isfile(self.path / file_name):
            file_name = "/".join(parts)
        below = self.path / file_name
        if os.path.isfile(below):
            self._check_inside(below, file_name)
            return below
        beside = self.path.parent / file_name
        if os.path.isfile(beside) and (self._follow_links or _is_inside(os.path.realpath(beside), self._root)):
            return beside
        return None

    def search(self, file_name: str) -> list[Path]:
        """Finds files whose path differs from `file_name` in letter case, in Unicode form, or by outer folders.

        Raises:
            DataError: A found file leads out of the folder through a link.
        """
        if os.path.isfile(self.path.parent / file_name):
            # It exists outside the folder: one of the same name inside is another picture.
            return []
        wanted = _spelling(file_name).split("/")
        found = []
        for file in self._files_named(wanted[-1]):
            parts = _spelling(file.relative_to(self.path).as_posix()).split("/")
            depth = min(len(parts), len(wanted))
            if parts[-depth:] == wanted[-depth:]:
                self._check_inside(file, file_name)
                found.append(file)
        return found

    def find_near(self, file_name: str) -> Path | None:
        """Finds a file of the same name in another folder, or of the same stem with another suffix, for messages."""
        name = _spelling(file_name).rpartition("/")[2]
        with self._lock:
            index = self._listed()
        stem = os.path.splitext(name)[0]
        near = index.get(name) or index.get(f"{stem}.*")
        return near[0].relative_to(self.path) if near else None

    def _files_named(self, name: str) -> list[Path]:
        with self._lock:
            return self._listed().get(name, [])

    def _listed(self) -> dict[str, list[Path]]:
        """Returns all files by the spelling of their names, and by "STEM.*"; made at the first miss."""
        if self._index is None:
            self._index = {}
            for file in list_images(self.path, recursive=True):
                name = _spelling(file.name)
                for key in (name, f"{os.path.splitext(name)[0]}.*"):
                    self._index.setdefault(key, []).append(file)
        return self._index

    def _check_inside(self, file: Path, file_name: str) -> None:
        target = os.path.realpath(file)
        if not self._follow_links and not _is_inside(target, self._root):
            raise DataError(
                f"file_name {file_name!r}: leads to {target}, outside the image folder {self._root}; accept such links "
                "with --follow-links (data.follow_links), put the file itself into the folder, or make the whole "
                "folder a link"
            )


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _spelling(name: str) -> str:
    """Returns a path in the form in which its spellings on different systems are equal."""
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().split("/")
    return "/".join(part for part in parts if part not in ("", "."))

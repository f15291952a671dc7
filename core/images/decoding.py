"""Decodes image files by OpenCV, and explains why one cannot be decoded.

OpenCV is an argument, because this package is needed where it is not installed.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.files import native_path, printable
from edgerpn.images.faults import find_fault
from edgerpn.images.formats import read_format
from edgerpn.images.header import Exif, Header, read_header, turn, turn_back

_SIGNATURE_BYTES = 4096
"""Bytes by which OpenCV recognises the format of a file."""


def read_bytes(file: Path) -> tuple[bytes, Header]:
    """Returns the bytes and the header of an image file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(str(file))}: cannot be read: {error.strerror}") from error
    return data, read_header(io.BytesIO(data))


def decode_image(
    cv2: ModuleType, data: bytes, header: Header, file: Path | str, *, exif: Exif, reduction: int = 1
) -> tuple[npt.NDArray[np.uint8], int]:
    """Decodes an image of any depth and channels to 8-bit BGR.

    libjpeg scales in the frequency domain: pixel (x, y) of a reduced image covers `reduction` x `reduction` pixels
    from (x * reduction, y * reduction), so coordinates divide by `reduction` exactly, and sizes round up.

    Args:
        cv2: The module.
        data: Bytes of the file.
        header: Their header.
        file: Name in messages: a path, or a URL.
        exif: Whether to turn the image by its EXIF orientation.
        reduction: 1, 2, 4 or 8: decode at this fraction of the size if that is cheaper (JPEG).

    Returns:
        The image as (H, W, 3) uint8 BGR, a new array (grey becomes three equal channels, alpha is dropped), and the
        actual reduction: `reduction` or 1.

    Raises:
        DataError: OpenCV cannot decode it; says why.
    """
    orientation = header.orientation if exif == "apply" else 1
    if header.format != "JPEG" or (orientation != 1 and not _divides(header, reduction)):
        reduction = 1
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[reduction]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    except cv2.error as error:
        raise DataError(f"{printable(str(file))}: OpenCV cannot decode it: {error.err}") from error
    if image is None:
        raise DataError(f"{printable(str(file))}: {_why_undecodable(cv2, data, header)}")
    image = np.asarray(image, np.uint8)
    if header.format == "TIFF":
        # OpenCV turns these whatever the flags say.
        return (turn_back(image, header.orientation) if exif == "ignore" else image), reduction
    return (turn(image, orientation) if orientation != 1 else image), reduction


def damage_note(data: bytes, header: Header, file: Path | str) -> str:
    """Returns a line on the damage of an image that decodes nevertheless; "" if none is seen.

    Args:
        data: Bytes of the file.
        header: Their header.
        file: Name in the line.
    """
    fault = header.fault or find_fault(data)
    return f"{printable(str(file))}: damaged ({fault}); used as far as it decodes" if fault else ""


def split_decodable(cv2: ModuleType, files: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Separates the images that this OpenCV has a decoder for; damaged files stay, their reader reports them.

    Returns:
        These files, and a line for each format of the others: how many, their first name and the reason.
    """
    decodable, others = [], dict[str, list[Path]]()
    has_decoder = {"": True}
    for file in files:
        name = read_format(file)
        if name not in has_decoder:
            has_decoder[name] = _has_decoder(cv2, file)
        if has_decoder[name]:
            decodable.append(file)
        else:
            others.setdefault(name, []).append(file)
    lines = [
        f"{len(found)} left out ({printable(str(found[0]))}{', ...' if len(found) > 1 else ''}): "
        f"{_no_decoder(cv2, name)}"
        for name, found in others.items()
    ]
    return decodable, lines


def _divides(header: Header, reduction: int) -> bool:
    """Returns whether whole blocks cover the image: a part of a block would come first in a turned image."""
    return header.stored_hw is not None and not any(side % reduction for side in header.stored_hw)


def _has_decoder(cv2: ModuleType, file: Path) -> bool:
    """Returns whether OpenCV has a decoder for the content of a file."""
    with native_path(file) as native:
        return bool(cv2.haveImageReader(native))


def _why_undecodable(cv2: ModuleType, data: bytes, header: Header) -> str:
    if header.fault:
        return header.fault
    if header.format:
        # OpenCV looks at files only, and the bytes may come from elsewhere.
        with tempfile.NamedTemporaryFile() as head:
            head.write(data[:_SIGNATURE_BYTES])
            head.flush()
            if not _has_decoder(cv2, Path(head.name)):
                return _no_decoder(cv2, header.format)
    facts = ", ".join(filter(None, (header.format, find_fault(data), f"{len(data)} bytes")))
    return f"not an image that OpenCV can decode ({facts})"


def _no_decoder(cv2: ModuleType, name: str) -> str:
    if not name:
        return "not an image in any known format"
    return f"{name}, which OpenCV {cv2.__version__} does not decode here; convert it, for example to JPEG"

"""Recognises image files by their content, and lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

HEAD_BYTES = 64
"""Bytes at the start of a file that suffice to recognise it."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".j2k"),
        *(".avif", ".heic", ".heif", ".hif", ".jxl", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".hdr", ".exr", ".ras"),
    )
)
"""Suffixes by which a file claims to be an image, in lower case; its content may say something else."""

# Files beside images that a listing need not open: with a hundred thousand of them on a network drive it takes minutes.
_OTHER_SUFFIXES = frozenset(
    (".csv", ".html", ".json", ".jsonl", ".log", ".md", ".mp4", ".npy", ".npz", ".txt", ".xml", ".yaml", ".yml")
)

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"\x59\xa6\x6a\x95", "Sun raster"),
    (0, b"8BPS", "Photoshop"),
)
# Brands of the ISO container, which films share; ISO/IEC 23008-12 and 23000-22.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    b"crx ": "Canon CR3",
}
_PORTABLE = re.compile(rb"P[1-6][ \t\r\n]+[\d#]|P[Ff]\n-?\d|P7\n")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def image_format(head: bytes) -> str:
    """Returns the name of the image format that the first `HEAD_BYTES` of a file show; "" if they show none."""
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    if head[4:8] == b"ftyp":
        # The major brand and the compatible ones: a phone's HEIC may call itself mif1, an AVIF too.
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(int.from_bytes(head[:4], "big"), len(head)), 4))]
        names = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in names else "" if head[8:12] not in _BRANDS else names[0]
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "PNM" if _PORTABLE.match(head) else ""


def is_hidden(name: str) -> bool:
    """Returns whether a listing leaves a file out: hidden files, such as Apple's "._" files beside every image."""
    return name.startswith(".")


def has_image_suffix(name: str) -> bool:
    """Returns whether a file that is not hidden claims by its suffix to be an image."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_image_file(path: Path) -> bool:
    """Returns whether a listing counts a file as an image: by its suffix or its content, and not hidden.

    A file that only claims to be an image counts, so that its reader reports it instead of leaving it out in silence.
    """
    if is_hidden(path.name) or not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix not in _OTHER_SUFFIXES and bool(read_format(path)))


def read_format(path: Path) -> str:
    """Returns the name of the image format of a file by its content; "" if it has none or cannot be read."""
    try:
        with path.open("rb") as file:
            return image_format(file.read(HEAD_BYTES))
    except OSError:
        return ""


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Returns the images of a folder, sorted by path; see `is_image_file`.

    Args:
        folder: Where to look.
        recursive: Whether to look at every depth; hidden folders and folders that are links are not entered.

    Raises:
        OSError: The folder cannot be read.
    """
    return sorted(path for path in _files(folder, recursive) if is_image_file(path))


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    if not recursive:
        yield from folder.iterdir()
        return
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(root) / name for name in names)

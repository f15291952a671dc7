"""From what a user types to pictures or a video file, read in this process.

Cameras, streams and pipelines are read by processes of their own, see `edgerpn.runtime.sources.live_source`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Source
from edgerpn.runtime.sources.spec import parse_source

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are read as images; any other file is tried as a video."""


def open_source(spec: str | os.PathLike[str]) -> Source:
    """Opens a file, a folder or a pattern, and makes sure that it delivers.

    Args:
        spec: A video file; an image; a folder or a glob of images.

    Returns:
        The source; close it when done.

    Raises:
        StreamOpenError: There is no such thing, it cannot be read, or it is none of these; no password is shown.
        MissingDependencyError: OpenCV is not installed.
    """
    text = os.fspath(spec)
    if not isinstance(text, str):
        raise StreamOpenError("source: expected a file, folder, camera, URL or GStreamer pipeline, got bytes")
    parsed = parse_source(text)
    if parsed.is_live:
        raise StreamOpenError(f"{parsed.shown}: expected a file, a folder or a pattern, got a live source")
    return _open_path(parsed.path)


def image_paths(sources: Sequence[str]) -> list[Path]:
    """Several sources as pictures in the order given, if they all are; else nothing."""
    if len(sources) < 2:
        return []
    specs = [parse_source(source) for source in sources]
    is_images = all(
        not spec.is_live and spec.path.lower().endswith(IMAGE_SUFFIXES) and not glob.has_magic(spec.path)
        for spec in specs
    )
    return [Path(spec.path) for spec in specs] if is_images else []


def natural_key(path: Path) -> tuple[object, ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    # Numbers stand at odd places, so that numbers and texts are never compared; the path itself breaks ties.
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path.as_posix())


def _open_path(text: str) -> Source:
    from edgerpn.runtime.sources.file_sources import ImageSource, VideoSource

    path = Path(text)
    if path.is_dir():
        return ImageSource(_images_in(path), name=text)
    if path.is_file():
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        return ImageSource([path], name=text, is_single=True) if is_image else VideoSource(path)
    if path.exists():
        raise StreamOpenError(f"{text}: neither a file nor a folder, and not a camera (/dev/videoN)")
    if glob.has_magic(text):
        return ImageSource(_images_matching(text), name=text)
    raise StreamOpenError(f"{text}: no such file or folder")


def _images_in(folder: Path) -> list[Path]:
    try:
        paths = [path for path in folder.iterdir() if _is_image(path)]
    except OSError as error:
        raise StreamOpenError(f"{folder}: cannot be read: {error.strerror}") from error
    if not paths:
        raise StreamOpenError(
            f"{folder}: no images in this folder (looked for {', '.join(IMAGE_SUFFIXES)}). Folders below it are not "
            f"searched; a glob does that: '{folder}/**/*.jpg'"
        )
    return sorted(paths, key=natural_key)


def _images_matching(pattern: str) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    if not matches:
        raise StreamOpenError(f"{pattern}: the pattern matches no file")
    paths = [path for path in matches if _is_image(path)]
    if not paths:
        raise StreamOpenError(f"{pattern}: the pattern matches {len(matches)} paths, but no image among them")
    return sorted(paths, key=natural_key)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()

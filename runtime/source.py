"""From what a user types to a source of frames."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Source
from edgerpn.runtime.redaction import redact, redact_url

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are read as images; any other file is tried as a video."""

URL_SCHEMES = ("http", "https", "rtmp", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
"""Schemes that are read as streams."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CAMERA = re.compile(r"(?:/dev/video)?(\d+)")


def open_source(spec: str | int | os.PathLike[str]) -> Source:
    """Opens a source of frames and makes sure that it delivers.

    Args:
        spec: A video file; an image; a folder or a glob of images; a camera index or /dev/videoN; a URL
            (rtsp, http, ...); or a GStreamer pipeline (a text with " ! ") that ends in appsink.

    Returns:
        The source; close it when done.

    Raises:
        StreamOpenError: There is no such thing, or it cannot be read; the message holds no password.
        MissingDependencyError: OpenCV is not installed.
    """
    if isinstance(spec, int):
        return _open_camera(spec)
    text = os.fspath(spec)
    if not isinstance(text, str) or not text.strip():
        raise StreamOpenError("source: expected a file, folder, camera, URL or GStreamer pipeline, got nothing")
    if " ! " in text:
        return _open_pipeline(text)
    if scheme := _SCHEME.match(text):
        return _open_url(text, scheme.group(1).lower())
    if camera := _CAMERA.fullmatch(text):
        return _open_camera(int(camera.group(1)))
    return _open_path(text)


def natural_key(path: Path) -> tuple[object, ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    # Numbers stand at odd places, so that numbers and texts are never compared; the path itself breaks ties.
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path.as_posix())


def _open_camera(index: int) -> Source:
    from edgerpn.runtime.source_live import open_camera

    return open_camera(index)


def _open_pipeline(pipeline: str) -> Source:
    from edgerpn.runtime.source_live import open_gstreamer

    return open_gstreamer(pipeline, redact(pipeline))


def _open_url(url: str, scheme: str) -> Source:
    if scheme == "file":
        return _open_path(unquote(urlsplit(url).path))
    if scheme not in URL_SCHEMES:
        raise StreamOpenError(f"{redact_url(url)}: unknown kind of URL {scheme!r}; known: {', '.join(URL_SCHEMES)}")
    from edgerpn.runtime.source_live import open_url

    return open_url(url, redact_url(url))


def _open_path(text: str) -> Source:
    from edgerpn.runtime.source_files import ImageSource, VideoSource

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

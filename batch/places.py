"""Files by path or URL: local ones, and those of every file system that fsspec knows."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs

from edgerpn.errors import ConfigError
from edgerpn.files import printable
from edgerpn.images.formats import is_hidden
from edgerpn.runtime.redaction import redact_url

_CHAIN = "::"
"""Separates the URL inside an archive from that of the archive."""


def is_url(place: str) -> bool:
    """Returns whether a text is a URL: any other is a local path, whatever its characters."""
    return "://" in place


def absolute(place: str, folder: str = "") -> str:
    """Returns a place that all machines understand: an absolute path, or a URL.

    Args:
        place: A path or a URL; `file://` becomes a path.
        folder: Folder, path or URL, that a relative path starts from; empty: the working folder.

    Raises:
        ConfigError: The URL holds a password, which would be written into the output, or its file system is unknown.
    """
    if is_url(place):
        shown = redact_url(place)
        if shown != place:
            raise ConfigError([f"{shown}: this URL holds a password; leave it to the settings of fsspec"])
        if place.startswith("file://") and _CHAIN not in place:
            return str(open_system(place)[1])
        head, chain, rest = place.partition(_CHAIN)
        return head + (chain + (rest if is_url(rest) else os.path.abspath(rest)) if chain else "")
    if is_url(folder) and not os.path.isabs(place):
        return f"{folder}/{place}"
    return os.path.abspath(os.path.join(folder, place))


def open_system(place: str) -> tuple[Any, str]:
    """Returns the file system of a place, and the path in it.

    Raises:
        ConfigError: fsspec does not know the file system, or lacks the package for it.
    """
    if not is_url(place):
        return fsspec.filesystem("file"), place
    head, chain, rest = place.partition(_CHAIN)
    try:
        if not chain:
            return url_to_fs(place)
        protocol, _, path = head.partition("://")
        return _open_archive(protocol, rest), path
    except (ValueError, ImportError) as error:
        raise ConfigError([f"{printable(place)}: fsspec cannot open this file system: {error}"]) from error


@functools.lru_cache(maxsize=8)
def _open_archive(protocol: str, place: str) -> Any:
    """Returns the file system inside an archive; kept, because opening one reads its whole directory."""
    return url_to_fs(f"{protocol}://{_CHAIN}{place}")[0]


def open_file(place: str) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        OSError: It cannot be opened.
    """
    system, path = open_system(place)
    return system.open(path, "rb")


def read_file(place: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: It cannot be read.
    """
    with open_file(place) as file:
        return file.read()


def is_folder(place: str) -> bool:
    """Returns whether a place is a folder."""
    system, path = open_system(place)
    return bool(system.isdir(path))


def list_folder(place: str) -> Iterator[str]:
    """Yields the files of a folder at every depth, by name; no hidden ones."""
    if is_url(place):
        system, path = open_system(place)
        yield from (_rejoin(system, found, place) for found in sorted(system.find(path)) if not is_hidden(_name(found)))
        return
    for root, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(root, name) for name in sorted(names) if not is_hidden(name))


def list_matches(pattern: str) -> list[str]:
    """Returns the files that match a pattern, by name; none when the text is no pattern."""
    if not glob.has_magic(pattern):
        return []
    if not is_url(pattern):
        return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    system, path = open_system(pattern)
    return [_rejoin(system, found, pattern) for found in sorted(system.glob(path))]


def folder_of(place: str) -> str:
    """Returns the folder in which a file lies."""
    return place.rpartition("/")[0]


def suffix_of(place: str) -> str:
    """Returns the suffix of a file's name in lower case, such as ".jpg", without the query of a URL."""
    name = place.partition(_CHAIN)[0].partition("?")[0] if is_url(place) else place
    return os.path.splitext(name)[1].lower()


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _rejoin(system: Any, path: str, place: str) -> str:
    """Returns the URL of a path that was found in the file system of `place`."""
    _, chain, rest = place.partition(_CHAIN)
    return f"{system.unstrip_protocol(path)}{chain}{rest}"

"""The listing and reading of files that the formats share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgerpn.errors import DataError, require
from edgerpn.images.formats import has_image_suffix, is_hidden
from edgerpn.machine import available_cores
from edgerpn.progress import track
from edgerpn.train.data.annotations import BROKEN_FILE, Problems
from edgerpn.train.data.image_files import probe_image


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files of a folder that end in `suffix` (any case), sorted, without hidden ones; [] if missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == suffix and not is_hidden(path.name) and path.is_file()
    )


def annotated_images(folder: Path, suffix: str) -> bool:
    """Returns whether a folder holds an image with an annotation file of the same stem and `suffix` beside it."""
    if not folder.is_dir():
        return False
    stems = {path.stem for path in visible_files(folder, suffix)}
    return bool(stems) and any(has_image_suffix(path.name) and path.stem in stems for path in folder.iterdir())


def read_text(file: Path, what: str) -> str:
    """Reads a text file in UTF-8 or UTF-16 with a byte order mark, or in UTF-8 without one.

    Raises:
        DataError: It cannot be read, or is in another encoding.
    """
    try:
        data = file.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected {what}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not a text in UTF-8 ({error.reason} at byte {error.start}); expected {what}; save it as UTF-8"
        ) from error


def parse_xml(file: Path, what: str) -> Any:
    """Reads an XML file in any encoding that it declares.

    Returns:
        The root element, as of `xml.etree`.

    Raises:
        DataError: It cannot be read, is not XML, or has entities.
    """
    with _xml_errors(file, what):
        return _safe_xml(what).fromstring(file.read_bytes())


def iterate_xml(file: Path, what: str, root_tag: str) -> Iterator[Any]:
    """Yields the children of the root element one at a time, so that a large file does not stand in memory.

    Raises:
        DataError: It cannot be read, is not XML, has entities or another root element.
    """
    depth, root = 0, None
    with _xml_errors(file, what), file.open("rb") as stream:
        for event, element in _safe_xml(what).iterparse(stream, events=("start", "end")):
            if root is None:
                root = element
                if root.tag != root_tag:
                    raise DataError(f"{file}: expected the root element {root_tag!r} of {what}, got {root.tag!r}")
            depth += 1 if event == "start" else -1
            if depth == 1 and event == "end":
                yield element
                root.clear()


def _safe_xml(what: str) -> ModuleType:
    """Returns the parser for which entities and external references are errors."""
    return require("defusedxml.ElementTree", extra="train", purpose=f"reading {what}")


@contextmanager
def _xml_errors(file: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected an XML file of {what}") from error
    except (SyntaxError, ValueError, LookupError, RecursionError) as error:
        # defusedxml's own errors show a Python object.
        is_refused = isinstance(error, ValueError) and type(error).__module__.startswith("defusedxml")
        reason = "it declares entities, which may be huge or name other files" if is_refused else str(error)
        raise DataError(f"{file}: not valid XML: {reason}; expected an XML file of {what}") from error


def check_confined(file: Path, folder: Path) -> None:
    """Refuses a file that leads out of a folder, which may itself be a link.

    Raises:
        DataError: Names the file and its target.
    """
    root, target = os.path.realpath(folder), os.path.realpath(file)
    if not target.startswith(root.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{file}: leads to {target}, outside the data folder {root}; accept such links with --follow-links "
            "(data.follow_links), or put the file itself into the folder"
        )


def relative_parts(text: str, where: str) -> tuple[str, ...]:
    """Splits a path of an annotation file, with slashes of any system, that must stay below the data folder.

    Raises:
        DataError: It is empty or absolute, or contains "..".
    """
    parts = tuple(part for part in text.replace("\\", "/").split("/") if part != ".")
    is_absolute = not parts or not parts[0] or parts[0][1:2] == ":"
    if is_absolute or ".." in parts or "\0" in text:
        raise DataError(f"{where}: {text!r}: expected a path below the data folder")
    return parts


def stored_sizes(files: Iterable[Path], problems: Problems) -> dict[Path, tuple[int, int]]:
    """Reads heights and widths from the headers of images; broken images are added to `problems` and left out."""
    sizes = {}
    with ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="sizes") as workers:
        found = workers.map(lambda file: (file, _probe(file)), files)
        for file, size in track(found, "reading sizes", unit="image"):
            if isinstance(size, DataError):
                problems.add(BROKEN_FILE, str(size))
            else:
                sizes[file] = size
    return sizes


def stored_size(file: Path, problems: Problems) -> tuple[int, int] | None:
    """Reads height and width of a single image, as `stored_sizes` does; None if it is broken."""
    size = _probe(file)
    if isinstance(size, DataError):
        problems.add(BROKEN_FILE, str(size))
        return None
    return size


def _probe(file: Path) -> tuple[int, int] | DataError:
    try:
        return probe_image(file, "header").stored_hw
    except DataError as error:
        return error

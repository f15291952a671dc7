"""PASCAL VOC data sets: an XML file for each image, in Annotations/ or beside the images.

Coordinates count pixels from 1 and include the last pixel, so the box of columns 1 to 10 spans 0 to 10. Objects that
are marked as difficult become ignore regions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn.errors import DataError, require
from edgerpn.train.data.annotations import MISSING_FILE, ProblemKind, Problems
from edgerpn.train.data.formats.content import (
    SPLIT_NAMES,
    Content,
    Layout,
    Split,
    annotated_images,
    check_confined,
    digest_of,
    is_image,
    list_images,
    read_text,
    relative_parts,
    stored_sizes,
    visible_files,
)

LOOKED_FOR = "PASCAL VOC: Annotations/ (XML files) and JPEGImages/; XML files beside images, also in train/ and valid/"

UNANNOTATED = ProblemKind("image without an XML file", "not used")

_LISTS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """The files of a split."""

    folder: Path
    """The data folder, or the folder of a split with XML files beside images."""
    xml: Path
    """Folder of the XML files."""
    images: Path
    """Folder of the images."""
    listed: Path | None = None
    """Text file that lists the images of the split; None: all."""


@dataclass(slots=True)
class _Image:
    """The content of an XML file."""

    name: str
    """Base name of the image, as written."""
    hw: tuple[int, int] | None
    """Height and width; None if not given."""
    objects: list[tuple[str, list[float], bool]] = field(default_factory=list)
    """Class, x, y, width, height in pixels, and whether it is difficult."""


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the PASCAL VOC layout in a folder, if there is one."""
    for name in ("Annotations", "annotations"):
        if visible_files(folder / name, ".xml"):
            places = (folder / place for place in ("JPEGImages", "images", "Images"))
            images = next((place for place in places if place.is_dir()), folder)
            sources = _listed_sources(folder, folder / name, images)
            return [_layout(f"{name}/ and {images.relative_to(folder)}/", folder, sources)]
    sources = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if split not in sources and annotated_images(folder / name, ".xml"):
                place = folder / name
                sources[split] = _Source(folder=place, xml=place, images=place)
    if sources:
        titles = ", ".join(f"{source.folder.name}/" for source in sources.values())
        return [_layout(f"XML files beside the images of {titles}", folder, sources)]
    if annotated_images(folder, ".xml"):
        return [
            _layout("XML files beside images", folder, {"train": _Source(folder=folder, xml=folder, images=folder)})
        ]
    return []


def read_content(source: _Source) -> Content:
    """Reads the XML files of a split.

    Raises:
        DataError: Names the XML file, its object and the expected form.
    """
    problems = Problems()
    index = _ImageIndex(source.images)
    parsed: dict[Path, tuple[str, _Image]] = {}
    for stem, file in _xml_files(source):
        check_confined(file, source.xml)
        content = _parse(file)
        image = index.find(stem, content.name)
        if image is None:
            problems.add(MISSING_FILE, f"{file.name}: {content.name or stem}")
        else:
            parsed.setdefault(image, (file.name, content))
    if source.listed is None:
        for image in index.files:
            if image not in parsed:
                problems.add(UNANNOTATED, image.name)
    sizes = stored_sizes((image for image, (_, content) in parsed.items() if not content.hw), source.images, problems)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    box_names: list[str] = []
    classes: dict[str, int] = {}
    for image, (name, content) in parsed.items():
        hw = content.hw or sizes.get(image)
        if hw is None:
            continue
        file_name = image.relative_to(source.images).as_posix()
        images.append({"id": len(images) + 1, "file_name": file_name, "width": hw[1], "height": hw[0]})
        for number, (category, xywh, is_difficult) in enumerate(content.objects, start=1):
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": len(images),
                    "category_id": classes.setdefault(category, len(classes) + 1),
                    "bbox": xywh,
                    "iscrowd": int(is_difficult),
                }
            )
            box_names.append(f"{name} object {number}")
    categories = [{"id": number, "name": name} for name, number in classes.items()]
    root = {"images": images, "annotations": boxes, "categories": categories}
    return Content(root=root, sha256=digest_of(root), box_names=tuple(box_names), problems=problems)


class _ImageIndex:
    """Finds images by the names in XML files: the path without its suffix, or else the base name."""

    def __init__(self, folder: Path) -> None:
        self.files = list_images(folder)
        self._by_stem: dict[str, list[Path]] = {}
        self._by_name: dict[str, Path] = {}
        for file in self.files:
            self._by_stem.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
            self._by_name.setdefault(file.name, file)

    def find(self, stem: str, name: str) -> Path | None:
        choices = self._by_stem.get(stem, [])
        return next((file for file in choices if file.name == name), choices[0] if choices else self._by_name.get(name))


def _listed_sources(folder: Path, xml: Path, images: Path) -> dict[str, _Source]:
    sources = {}
    for split, names in _LISTS.items():
        files = [folder / "ImageSets" / "Main" / f"{name}.txt" for name in names]
        listed = next((file for file in files if file.is_file()), None)
        if listed is not None:
            sources[split] = _Source(folder=folder, xml=xml, images=images, listed=listed)
    return sources or {"train": _Source(folder=folder, xml=xml, images=images)}


def _layout(title: str, folder: Path, sources: dict[str, _Source]) -> Layout:
    splits = {
        split: Split(source.xml, source.images, partial(read_content, source), f"{source.xml.name} ({split})", folder)
        for split, source in sources.items()
    }
    return Layout(format="voc", title=f"PASCAL VOC ({title})", splits=splits)


def _xml_files(source: _Source) -> Iterator[tuple[str, Path]]:
    """Yields the path of each image below the folder, without its suffix, and its XML file."""
    if source.listed is None:
        for root, folders, names in os.walk(source.xml):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(".xml") and not name.startswith("."):
                    file = Path(root) / name
                    yield file.relative_to(source.xml).with_suffix("").as_posix(), file
        return
    for number, line in enumerate(read_text(source.listed, "a list of images").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{source.listed}: line {number}"
        stem = "/".join(relative_parts(words[0], where))
        if is_image(stem):
            stem = os.path.splitext(stem)[0]
        file = source.xml / f"{stem}.xml"
        # Unlike Path.is_file, it takes a name that is too long.
        if not os.path.isfile(file):
            raise DataError(f"{where}: {stem!r} has no {file}; add the file, or remove the line")
        yield stem, file


def _parse(file: Path) -> _Image:
    root = _parse_xml(file)
    if root.tag != "annotation":
        raise DataError(f"{file}: expected the root element 'annotation' of PASCAL VOC, got {root.tag!r}")
    name = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2].strip()
    image = _Image(name=name, hw=_size(root, file))
    for number, entry in enumerate(root.findall("object"), start=1):
        category = (entry.findtext("name") or "").strip()
        where = f"{file}: object {number} ({category or 'without a name'})"
        x1, y1, x2, y2 = _corners(entry, where)
        is_difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "", "false", "False")
        image.objects.append((category or "unnamed", [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], is_difficult))
    return image


def _parse_xml(file: Path) -> Any:
    tree = require("defusedxml.ElementTree", extra="train", purpose="reading PASCAL VOC")
    try:
        # Entities and external references are errors.
        return tree.fromstring(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected an XML file of PASCAL VOC") from error
    except (SyntaxError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{file}: not valid XML: {error}; expected an annotation file of PASCAL VOC") from error


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    """Returns height and width; None if they are missing or 0, as some tools write them."""
    texts = [(root.findtext(f"size/{key}") or "").strip() or "0" for key in ("height", "width")]
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{file}: size: expected a width and height in pixels, got {' and '.join(texts)}") from error
    return (height, width) if min(height, width) > 0 else None


def _corners(entry: Any, where: str) -> list[float]:
    texts = [(entry.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        got = ", ".join(f"{corner} {text!r}" for corner, text in zip(_CORNERS, texts, strict=True))
        raise DataError(f"{where}: bndbox: expected 4 numbers in pixels, got {got}; correct or remove it") from error

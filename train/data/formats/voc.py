"""PASCAL VOC data sets: an XML file for each image, in Annotations/ or beside the images.

Coordinates count pixels from 1 and include the last pixel, so the box of columns 1 to 10 spans 0 to 10. Objects that
are marked as difficult become ignore regions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edgerpn.errors import DataError
from edgerpn.images.formats import has_image_suffix
from edgerpn.progress import track
from edgerpn.train.data.annotations import BAD_OBJECT, MISSING_FILE, Problems, numbers
from edgerpn.train.data.formats.building import ANNOTATED_AGAIN, UNANNOTATED, ContentBuilder, FoundObject, ImageIndex
from edgerpn.train.data.formats.content import SPLIT_NAMES, Content, Layout, Split
from edgerpn.train.data.formats.reading import annotated_images, check_confined, parse_xml, read_text, relative_parts
from edgerpn.train.data.formats.shapes import size_hw

LOOKED_FOR = "PASCAL VOC: Annotations/ (XML files) and JPEGImages/; XML files beside images, also in train/ and valid/"

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
    left_out: Path | None = None
    """Text file that lists images which are not of the split."""


@dataclass(slots=True)
class _Image:
    """The content of an XML file."""

    name: str
    """Base name of the image, as written."""
    hw: tuple[int, int] | None
    """Height and width; None if not given."""
    objects: list[FoundObject] = field(default_factory=list)


def find_layouts(folder: Path) -> list[Layout]:
    """Returns the PASCAL VOC layout in a folder, if there is one."""
    for name in ("Annotations", "annotations"):
        if next((folder / name).rglob("*.[xX][mM][lL]"), None) is not None:
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


def read_content(source: _Source, *, follow_links: bool = False) -> Content:
    """Reads the XML files of a split, which may lead out of their folder if `follow_links`.

    Raises:
        DataError: Names the XML file, its object and the expected form.
    """
    problems = Problems()
    index = ImageIndex(source.images)
    builder = ContentBuilder(source.images, problems)
    used = set()
    for stem, file in track(_xml_files(source), f"reading {source.xml.name}", unit="file"):
        if file is None:
            kind = MISSING_FILE if index.by_stem(stem, stem) is None else UNANNOTATED
            problems.add(kind, f"{stem}: no {stem}.xml")
            continue
        if not follow_links:
            check_confined(file, source.xml)
        found = _parse(file, problems)
        image = index.by_stem(stem, found.name)
        if image is None:
            problems.add(MISSING_FILE, f"{file.name}: {found.name or stem}")
        elif image in used:
            problems.add(ANNOTATED_AGAIN, f"{file.name}: {image.name}")
        else:
            used.add(image)
            builder.add(image, found.hw, found.objects)
    if source.listed is None:
        for image in index.files:
            if image not in used:
                problems.add(UNANNOTATED, image.name)
    return builder.content()


def _listed_sources(folder: Path, xml: Path, images: Path) -> dict[str, _Source]:
    sources = {}
    for split, names in _LISTS.items():
        files = [folder / "ImageSets" / "Main" / f"{name}.txt" for name in names]
        listed = next((file for file in files if file.is_file()), None)
        if listed is not None:
            sources[split] = _Source(folder=folder, xml=xml, images=images, listed=listed)
    train, val = sources.get("train"), sources.get("val")
    if train is not None and val is not None and train.listed is not None and train.listed.stem == "trainval":
        sources["train"] = replace(train, left_out=val.listed)
    return sources or {"train": _Source(folder=folder, xml=xml, images=images)}


def _layout(title: str, folder: Path, sources: dict[str, _Source]) -> Layout:
    splits = {}
    for split, source in sources.items():
        without = f", without {source.left_out.name}" if source.left_out is not None else ""
        name = f"{source.xml.name} ({split}{without})"
        splits[split] = Split(source.xml, source.images, partial(read_content, source), name, folder)
    return Layout(format="voc", title=f"PASCAL VOC ({title})", splits=splits)


def _xml_files(source: _Source) -> Iterator[tuple[str, Path | None]]:
    """Yields the path of each image below the folder, without its suffix, and its XML file if there is one."""
    if source.listed is None:
        for root, folders, names in os.walk(source.xml):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(".xml") and not name.startswith("."):
                    found = Path(root) / name
                    yield found.relative_to(source.xml).with_suffix("").as_posix(), found
        return
    left_out = {stem for stem, _ in _listed_files(source.left_out, source)} if source.left_out is not None else set()
    for stem, file in _listed_files(source.listed, source):
        if stem not in left_out:
            yield stem, file


def _listed_files(listed: Path, source: _Source) -> Iterator[tuple[str, Path | None]]:
    for number, line in enumerate(read_text(listed, "a list of images").splitlines(), start=1):
        if line.strip():
            yield _listed_file(line, source, f"{listed}: line {number}")


def _listed_file(line: str, source: _Source, where: str) -> tuple[str, Path | None]:
    """Returns the image of a line, which may have a 1, 0 or -1 behind it, and its XML file if there is one."""
    for text in (line.strip(), re.sub(r"\s+(-1|0|1)$", "", line.strip())):
        stem = "/".join(relative_parts(text, where))
        stem = os.path.splitext(stem)[0] if has_image_suffix(stem) else stem
        file = source.xml / f"{stem}.xml"
        # Unlike Path.is_file, it takes a name that is too long.
        if os.path.isfile(file):
            return stem, file
    return stem, None


def _parse(file: Path, problems: Problems) -> _Image:
    root = parse_xml(file, "PASCAL VOC")
    if root.tag != "annotation":
        raise DataError(f"{file}: expected the root element 'annotation' of PASCAL VOC, got {root.tag!r}")
    name = (root.findtext("filename") or "").replace("\\", "/").rpartition("/")[2].strip()
    image = _Image(name=name, hw=size_hw(root.findtext("size/height"), root.findtext("size/width")))
    for number, entry in enumerate(root.findall("object"), start=1):
        category = (entry.findtext("name") or "").strip()
        found_name = f"{file.name} object {number}"
        texts = [(entry.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        corners = numbers(texts)
        if corners is None:
            got = ", ".join(f"{corner} {text!r}" for corner, text in zip(_CORNERS, texts, strict=True))
            problems.add(BAD_OBJECT, f"{found_name} ({category or 'without a name'}): {got}")
            continue
        x1, y1, x2, y2 = corners
        is_difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "", "false", "False")
        xywh = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
        image.objects.append(FoundObject(found_name, category, xywh, is_difficult))
    return image

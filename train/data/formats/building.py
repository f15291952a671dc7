"""The parts that readers of other formats share: images found by name, and boxes collected in COCO's structure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgerpn.images.formats import list_images
from edgerpn.train.data.annotations import ProblemKind, Problems
from edgerpn.train.data.formats.content import Content, digest_of
from edgerpn.train.data.formats.reading import stored_size

UNANNOTATED = ProblemKind("image without annotations", "not used")
ANNOTATED_AGAIN = ProblemKind("image that is annotated more than once", "the first annotation used")
OTHER_SPLIT = ProblemKind("image without a known split in a file of several splits", "not used")
NO_BOX = ProblemKind("object without an extent (a point, a line)", "dropped")


class FoundObject(NamedTuple):
    """An object of an annotation file; its numbers are not checked yet."""

    name: str
    """Its name in messages."""
    category: str
    """Its class; "" if it has none, so that it is an object without a class."""
    xywh: Sequence[float]
    """Left, top, width, height in pixels."""
    is_ignored: bool = False
    """Whether it is a region to ignore."""


class ContentBuilder:
    """Collects the images and boxes of a set."""

    def __init__(self, images: Path, problems: Problems) -> None:
        """Starts an empty set of images in a folder; the problems receive those whose size cannot be read."""
        self._folder = images
        self._problems = problems
        self._classes: dict[str, int] = {}
        self._images: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        self._names: list[str] = []

    def declare(self, categories: Iterable[str]) -> None:
        """Adds classes in their order; others follow in the order of appearance."""
        for name in categories:
            self._number(name)

    def add(self, image: Path, hw: tuple[int, int] | None, objects: Iterable[FoundObject]) -> None:
        """Adds an image.

        Args:
            image: The file.
            hw: Height and width as annotated; None: those of the file.
            objects: Its objects.

        Raises:
            DataError: The file leads out of the folder of the images.
        """
        hw = hw or stored_size(image, self._problems)
        if hw is None:
            return
        name = image.relative_to(self._folder).as_posix()
        self._images.append({"id": len(self._images) + 1, "file_name": name, "width": hw[1], "height": hw[0]})
        for found in objects:
            box = {
                "id": len(self._boxes) + 1,
                "image_id": len(self._images),
                "category_id": self._number(found.category),
                "bbox": list(found.xywh),
                "iscrowd": int(found.is_ignored),
            }
            self._boxes.append(box)
            self._names.append(found.name)

    def _number(self, category: str) -> int | None:
        return self._classes.setdefault(category, len(self._classes) + 1) if category else None

    def content(self, *, is_relative: bool = False) -> Content:
        """Returns the set; `is_relative` as in `Content`."""
        categories = [{"id": number, "name": name} for name, number in self._classes.items()]
        root = {"images": self._images, "annotations": self._boxes, "categories": categories}
        return Content(
            root=root,
            sha256=digest_of(root),
            box_names=tuple(self._names),
            problems=self._problems,
            is_relative=is_relative,
        )


class ImageIndex:
    """The images below a folder, found by the names in annotation files."""

    def __init__(self, folder: Path) -> None:
        """Lists the folder."""
        self.files = list_images(folder, recursive=True)
        self._by_stem: dict[str, list[Path]] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_base_stem: dict[str, list[Path]] = {}
        for file in self.files:
            self._by_stem.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
            self._by_name.setdefault(file.name, []).append(file)
            self._by_base_stem.setdefault(file.stem, []).append(file)

    def by_stem(self, stem: str, path: str = "") -> Path | None:
        """Returns the image with this path below the folder but for the suffix, or else the image of a path.

        Args:
            stem: Path below the folder, without the suffix.
            path: Path of the image as written; it chooses among images with one stem.
        """
        choices = self._by_stem.get(stem, [])
        name = _parts(path)[-1]
        return next((file for file in choices if file.name == name), choices[0] if choices else self.by_path(path))

    def by_path(self, path: str) -> Path | None:
        """Returns the image with this path below the folder, or whose path agrees in most parts from the end.

        It is None if several agree in as many.

        Args:
            path: As written, maybe on another machine; without a suffix, any suffix fits.
        """
        *folders, name = _parts(path)
        exact = self._by_stem.get("/".join((*folders, os.path.splitext(name)[0])), [])
        if (found := next((file for file in exact if file.name == name), None)) is not None:
            return found
        choices = self._by_name.get(name) or self._by_base_stem.get(name, [])
        ranked = sorted((-_common_tail(file.parts[:-1], folders), file) for file in choices)
        is_clear = len(ranked) == 1 or (len(ranked) > 1 and ranked[0][0] < ranked[1][0])
        return ranked[0][1] if is_clear else None


def _parts(path: str) -> list[str]:
    return [part.strip() for part in path.replace("\\", "/").split("/")]


def _common_tail(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

"""The part that all writers of data sets share: names, image files, and a folder that is whole or absent."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ConfigError, DataError
from edgerpn.files import filling, fitting, printable

_MAX_EXAMPLES = 5
# XML and YAML have no place for them, and a line of a list ends at some.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")

Writer = TypeVar("Writer", bound="LabelWriter")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledImage:
    """An image and its boxes."""

    file_name: str
    """Name in the new set: a relative path with slashes."""
    source: Path
    """The image file, which the writer copies or links."""
    size_wh: tuple[int, int]
    """Width and height, pixels."""
    boxes_xyxy: npt.NDArray[np.float64]
    """(M, 4) x1, y1, x2, y2, pixels; finite."""
    categories: npt.NDArray[np.int64] | None = None
    """(M,) index of each box's category; None: all 0."""
    scores: npt.NDArray[np.float64] | None = None
    """(M,) scores of predicted boxes, 0..1; None: a person drew the boxes."""
    is_ignored: npt.NDArray[np.bool_] | None = None
    """(M,) whether a box is a region to ignore (a crowd, a difficult object); None: none is."""
    image_id: int | str | None = None
    """Id in a COCO file; None: numbered from 1."""


class Label(NamedTuple):
    """A box as the formats need it."""

    box_xyxy: tuple[float, float, float, float]
    """Pixels."""
    category: int
    """Index of the category."""
    score: float | None
    """None: a person drew it."""
    is_ignored: bool
    """Whether it is a region to ignore."""


class LabelWriter(ABC):
    """Writes a data set image by image; a context manager.

    The set is written into a temporary folder and moves to its place at the end of the block. After an error nothing
    remains. Memory does not grow with the number of images.
    """

    title: ClassVar[str]
    """Name of the format in messages."""
    holds_ignored: ClassVar[bool] = False
    """Whether the format has a place for regions to ignore."""

    def __init__(self, folder: Path, categories: Sequence[str], *, link: bool) -> None:
        """Checks the arguments, see `open_writer`; writes nothing yet."""
        for name in categories:
            if not is_category_name(name):
                raise DataError(f"category {printable(name)!r}: expected a name in one line of printable text")
        if folder.exists() and not folder.is_dir():
            raise ConfigError([f"{folder}: this is a file; choose another output folder"])
        if folder.is_dir() and (entry := next(folder.iterdir(), None)) is not None:
            raise ConfigError(
                [f"{folder}: this folder is not empty (it holds {printable(entry.name)}); choose another output folder"]
            )
        self.categories = tuple(categories)
        self.folder = folder
        """The folder of the set."""
        self.num_images = 0
        """Images written so far."""
        self.num_boxes = 0
        """Boxes written so far, with regions to ignore."""
        self._links = link
        self._num_left_out = 0
        self._num_renamed = 0
        self._renamed: list[str] = []
        self._files: dict[str, IO[str]] = {}
        self._stack = ExitStack()
        self._partial = folder

    def __enter__(self: Writer) -> Writer:
        with self._stack:
            self._partial = self._stack.enter_context(filling(self.folder))
            self._begin()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._finish()

    def add(self, image: LabelledImage, split: str = "train") -> str:
        """Writes an image and its boxes.

        Args:
            image: The image.
            split: "train", "val" or "test".

        Returns:
            Its name in the set: `file_name`, changed if that is taken or would break a file of the format.

        Raises:
            DataError: The image file cannot be copied.
            ConfigError: It cannot be linked.
        """
        name = self._free_name(image.file_name, split)
        self._place(image.source, self._partial / self._image_path(name, split))
        labels = list(self._labels(image))
        self._write(image, labels, name, split)
        self.num_images += 1
        self.num_boxes += len(labels)
        return name

    def notes(self) -> tuple[str, ...]:
        """Returns a line for each difference between the set and the images that were given."""
        notes = []
        if self._num_renamed:
            more = "; ..." if self._num_renamed > _MAX_EXAMPLES else ""
            notes.append(f"image renamed in the new set: {self._num_renamed} ({'; '.join(self._renamed)}{more})")
        if self._num_left_out:
            notes.append(
                f"region to ignore (crowd or difficult object): {self._num_left_out} left out, as {self.title} has no "
                "place for them"
            )
        return tuple(notes)

    def _begin(self) -> None:  # noqa: B027 - a format may begin with its first image
        """Writes the start of the set's files."""

    @abstractmethod
    def _image_path(self, name: str, split: str) -> str:
        """Returns the path of an image below the folder."""

    def _label_path(self, name: str, split: str) -> str | None:
        """Returns the path of the file that belongs to one image alone, if there is one."""
        return None

    @abstractmethod
    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        """Writes the labels of an image."""

    @abstractmethod
    def _finish(self) -> None:
        """Writes the rest, when all images are there."""

    def _text_file(self, path: str) -> IO[str]:
        """Returns a new file below the folder, or the same again; it is closed with the set."""
        if path not in self._files:
            place = self._partial / path
            place.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = self._stack.enter_context(place.open("w+", encoding="utf-8"))
        return self._files[path]

    def _labels(self, image: LabelledImage) -> Iterator[Label]:
        """Yields the boxes that the format can hold."""
        count = len(image.boxes_xyxy)
        categories = [0] * count if image.categories is None else image.categories.tolist()
        scores = [None] * count if image.scores is None else image.scores.tolist()
        ignored = [False] * count if image.is_ignored is None else image.is_ignored.tolist()
        boxes = np.asarray(image.boxes_xyxy, np.float64).reshape(-1, 4).tolist()
        for (x1, y1, x2, y2), category, score, is_ignored in zip(boxes, categories, scores, ignored, strict=True):
            if is_ignored and not self.holds_ignored:
                self._num_left_out += 1
            else:
                yield Label((x1, y1, x2, y2), category, score, is_ignored)

    def _free_name(self, given: str, split: str) -> str:
        base = PurePosixPath(_safe_name(given))
        name, number = fitting(str(base)), 1
        while self._is_taken(name, split):
            number += 1
            name = fitting(str(base.with_name(f"{base.stem}_{number}{base.suffix}")))
        if name != given:
            self._num_renamed += 1
            if len(self._renamed) < _MAX_EXAMPLES:
                self._renamed.append(f"{printable(given)!r} -> {name!r}")
        return name

    def _is_taken(self, name: str, split: str) -> bool:
        paths = (self._image_path(name, split), self._label_path(name, split))
        return any(path is not None and os.path.lexists(self._partial / path) for path in paths)

    def _place(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self._links:
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                raise DataError(f"{source}: cannot be copied into {self.folder}: {error.strerror}") from error
            return
        try:
            os.link(os.path.realpath(source), target)
        except OSError as error:
            problem = f"{source}: cannot be linked into {self.folder}: {error.strerror}; copy the images instead"
            raise ConfigError([problem]) from error


def is_category_name(name: str) -> bool:
    """Returns whether every format can hold the name of a category: one line of printable text."""
    return bool(name.strip()) and not _CONTROLS.search(name) and printable(name) == name


def _safe_name(name: str) -> str:
    """Returns a relative path that every format and its readers take."""
    parts = []
    for part in printable(name).split("/"):
        text = _CONTROLS.sub("_", part).replace("\\", "_")
        stem, suffix = os.path.splitext(text)
        text = f"{stem.strip()}{suffix.strip()}"
        # Hidden files are not part of a data set.
        text = f"_{text[1:]}" if text.startswith(".") else text
        if text:
            parts.append(text)
    if parts and parts[0][1:2] == ":":
        # It would read as the letter of a drive.
        parts[0] = f"{parts[0][0]}_{parts[0][2:]}"
    return "/".join(parts) or "_"

"""The structure that every format is converted to, and the splits and layouts in which it is found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import Problems
from edgerpn.train.data.choice import ExifChoice, ImageRules

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Names of folders and files that tools give to each split."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Content:
    """A data set, or a part of one, in COCO's structure; its values are not checked yet."""

    root: dict[str, Any]
    """Lists "images", "annotations" and maybe "categories", as in a COCO annotation file."""
    sha256: str
    """Hex digest of the annotations."""
    box_names: tuple[str, ...] | None = None
    """A name in messages for each annotation, such as "labels/1.txt line 2"; None: its id."""
    problems: Problems = field(default_factory=Problems)
    """Repairs during the conversion."""
    is_repaired: bool = False
    """Whether malformed entries have been repaired, see `edgerpn.train.data.listing.load_content`."""
    is_relative: bool = False
    """Whether the boxes were fractions of the images, which are converted by the sizes of the stored images."""


class Split(NamedTuple):
    """The files of one split; `edgerpn.train.data.coco.read_split` reads it."""

    annotations: Path
    """The annotation file or folder."""
    images: Path
    """Folder of its images."""
    load: Callable[..., Content] | None = None
    """Reads the annotations; None: they are a COCO file. With label files for single images it takes `follow_links`."""
    name: str = ""
    """Name in log lines."""
    folder: Path | None = None
    """Folder of the whole data set; None: the folder of the annotations."""
    allow: tuple[str, ...] = ()
    """Rules about whole sets that are accepted, see `edgerpn.train.data.rules`."""
    rules: ImageRules = ImageRules()
    """Treatment of image files."""
    rest_sha256: str = ""
    """Digest of the other part, with all classes, where this one was held out of a split; empty: it was not."""

    def read_like(self, exif: ExifChoice) -> Split:
        """Returns the split for a model that was trained with this rule, unless another one was chosen for the set."""
        is_free = self.rules.exif == "auto"
        return self._replace(rules=dataclasses.replace(self.rules, exif=exif)) if is_free else self

    @property
    def label(self) -> str:
        """The name in log lines: `name`, or the annotation file's."""
        return self.name or self.annotations.name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """A data set that was found, with its splits."""

    format: str
    """One of `edgerpn.train.data.choice.FORMATS`, but not "auto"."""
    title: str
    """Its name in messages: the format and the files by which it was recognised."""
    splits: Mapping[str, Split]
    """The splits by name ("train", "val", "test"); a set without splits is all "train"."""


def splits_in_file(file: Path, pattern: re.Pattern[bytes], expected: str) -> tuple[str, ...]:
    """Returns the splits of a file that marks each image with a value; empty if no value means training.

    Args:
        file: The file.
        pattern: Its first group is a value.
        expected: The kind of file, for the message.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        values = {value.decode(errors="replace") for value in pattern.findall(file.read_bytes())}
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; expected {expected}") from error
    found = {split_of_value(value) for value in values}
    return tuple(split for split in SPLIT_NAMES if split in found) if "train" in found else ()


def images_beside(file: Path) -> Path:
    """Returns the folder of a file's images: images/ beside it, or else its own folder."""
    images = file.parent / "images"
    return images if images.is_dir() else file.parent


def split_of_value(value: str | None) -> str | None:
    """Returns the split that such a value means, or None."""
    return next((split for split, names in SPLIT_NAMES.items() if value is not None and value.lower() in names), None)


def digest_of(root: Mapping[str, Any]) -> str:
    """Returns the hex digest of a converted set; it does not depend on the place of the files."""
    digest = hashlib.sha256()
    for key in sorted(root):
        digest.update(key.encode())
        for row in root[key]:  # one at a time: the text of a large set would take more memory than the set
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()

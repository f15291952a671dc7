"""Photographs that the export measures and compares on: finds them in a folder, and takes a few of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from edgerpn.errors import ExportError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Endings of files that are looked at in a folder of photographs."""

NUM_PARITY_IMAGES = 16
"""Images on which two models are compared."""

Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, at even distances from the first to the last, in their order."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def parity_images(folder: Path | None, images: Path | None, *, most: int = NUM_PARITY_IMAGES) -> list[Path]:
    """At most so many photographs to compare on, spread over the validation images of `folder`, or over `images`.

    Raises:
        ExportError: There are none.
        DataError: The annotations cannot be used.
    """
    if folder is not None:
        from edgerpn.train.data.coco import read_coco

        found = [record.file for record in read_coco(folder / "val.json", folder / "images", verify="header").records]
    elif images is not None:
        found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if images.is_dir() else []
    else:
        raise ExportError(
            "the graph must be compared with PyTorch on real images, and the training folder is not here; name one "
            "with --data DIR (val.json and images/) or a folder of photographs with --images DIR"
        )
    if not found:
        what = "this folder does not exist" if images is not None and not images.is_dir() else "no photographs in it"
        raise ExportError(f"{images or folder}: {what}; expected a folder of photographs to compare on")
    return spread(found, most)

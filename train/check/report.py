"""The report of a check, as text and as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgerpn.images.header import Exif
from edgerpn.train.check.boxes import SIZE_LIMITS_PX, BoxFigures
from edgerpn.train.data.coco import Dataset

Severity = Literal["error", "warning", "note"]
"""error: training refuses the set, or its recall would mislead; warning: training repairs it, or it is unusual."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A picture of an item."""

    file: Path
    """The image file."""
    caption: str
    """A line of text."""
    flagged: tuple[tuple[float, float, float, float], ...] = ()
    """Boxes x1, y1, x2, y2 that the item is about, pixels of the image; they may reach out."""
    others: tuple[tuple[float, float, float, float], ...] = ()
    """The other boxes of the image."""
    exif: Exif = "ignore"
    """Whether its images are turned by their EXIF orientation."""
    beside: Path | None = None
    """Another image to show beside it."""


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One thing that the check found."""

    severity: Severity
    """Its weight."""
    split: str
    """Name of the split."""
    name: str
    """A short name, stable for programs; of an error of a rule, the name for `--allow`."""
    count: int
    """Number of cases."""
    text: str
    """The cases and their likely cause."""
    done: str
    """The reaction of training, such as "kept once"."""
    examples: tuple[str, ...] = ()
    """A few of the cases."""
    shown: tuple[Shown, ...] = ()
    """Pictures of the worst cases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFigures:
    """The figures of one split."""

    dataset: Dataset
    """Its images and boxes."""
    boxes: BoxFigures
    """Figures of its boxes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Everything that a check found."""

    path: Path
    """The data set."""
    layout: str
    """Format, file and origin of the splits, as the log of training shows them."""
    input_hw: tuple[int, int]
    """Height and width of the network's input, pixels."""
    splits: Mapping[str, SplitFigures]
    """The splits that could be read."""
    items: tuple[CheckItem, ...]
    """The findings, errors first."""

    @property
    def num_errors(self) -> int:
        """Number of errors."""
        return sum(item.severity == "error" for item in self.items)

    def text(self) -> str:
        """Returns the report for a terminal."""
        lines = [self.layout]
        for name, split in self.splits.items():
            boxes = split.boxes
            counts = f"{len(split.dataset.records)} images, {boxes.num_objects} objects, {len(boxes.classes)} classes"
            rest = f"{boxes.num_regions} regions of many, {boxes.num_empty_images} images without objects"
            lines.append(f"{name}: {counts}, {rest}")
        for item in self.items:
            lines.append(f"{item.severity:<7}  {item.split}: {item.text}; {item.done}")
            lines += [f"{'':<9}  {example}" for example in item.examples]
        errors, warnings = self.num_errors, sum(item.severity == "warning" for item in self.items)
        lines.append(f"{errors} error{'s'[: errors != 1]}, {warnings} warning{'s'[: warnings != 1]}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns the report for programs."""
        return {
            "path": str(self.path),
            "is_usable": self.num_errors == 0,
            "input_hw": list(self.input_hw),
            "splits": {name: _figures(split) for name, split in self.splits.items()},
            "items": [
                {
                    "severity": item.severity,
                    "split": item.split,
                    "name": item.name,
                    "count": item.count,
                    "text": item.text,
                    "done": item.done,
                    "examples": list(item.examples),
                }
                for item in self.items
            ],
        }


def size_names() -> list[str]:
    """Returns the names of the classes of size."""
    limits = SIZE_LIMITS_PX
    between = [f"{low} to {high} px" for low, high in itertools.pairwise(limits)]
    return [f"below {limits[0]} px", *between, f"{limits[-1]} px and more"]


def _figures(split: SplitFigures) -> dict[str, Any]:
    boxes = split.boxes
    median, high, largest = boxes.objects_per_image
    anchors = boxes.anchors
    return {
        "annotations": str(split.dataset.annotation_file),
        "sha256": split.dataset.sha256,
        "num_images": len(split.dataset.records),
        "num_objects": boxes.num_objects,
        "num_regions": boxes.num_regions,
        "num_empty_images": boxes.num_empty_images,
        "objects_per_image": {"median": median, "p95": high, "max": largest},
        "sizes": dict(zip(size_names(), boxes.sizes, strict=True)),
        "classes": boxes.classes,
        "anchors": None if anchors is None else {"AR": anchors.average, "iou50": anchors.at_50, "iou70": anchors.at_70},
    }

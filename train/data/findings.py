"""Applies the rules about whole data sets to boxes and images, and refuses a set that breaks one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.letterbox import letterbox
from edgerpn.train.data.annotations import ListedBoxes
from edgerpn.train.data.rules import CLIPPED, CORNERS, FRACTIONS, OUTSIDE, PERCENT, REPEATED, TINY, UNSEEN, Rule

_FEW_BOXES = 10
"""Of fewer boxes, shares say little."""
_LARGEST_PERCENT = 100.5
_MIN_SIDE_PX = 150
"""Boxes in per cent are recognised in images of at least this size."""
_BEYOND_PX = 1.0
_SAME_PX = 0.1
"""Boxes whose corners agree so far are the same."""

_MAX_PLACES, _MAX_BOXES = 4, 100
"""Pictures of a finding, and boxes in each of them."""

Mask = npt.NDArray[np.bool_]


class Place(NamedTuple):
    """A picture with cases of a rule."""

    file: Path
    """The image."""
    boxes_xyxy: tuple[tuple[float, float, float, float], ...]
    """Boxes that are cases, as read; they may reach out of the image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finding:
    """The cases of one rule in a set."""

    rule: Rule
    """The rule."""
    count: int
    """Number of cases."""
    total: int
    """Number of boxes or images."""
    mask: Mask | None = None
    """(M,) bool: the cases among the listed boxes or images; None: the rule has no list, or it is no longer needed."""
    places: tuple[Place, ...] = ()
    """The pictures with most of them."""

    @property
    def is_error(self) -> bool:
        """Whether a sound set does not have so many."""
        says_something = self.rule.of != "boxes" or self.total >= _FEW_BOXES
        return says_something and self.count >= self.rule.least and self.count > self.rule.limit * self.total

    def __str__(self) -> str:
        return f"{self.count} of {self.total} {self.rule.of} {self.rule.what}: {self.rule.cause}"


def find_in_boxes(boxes: ListedBoxes, image_hw: npt.NDArray[np.float64]) -> list[Finding]:
    """Applies the rules about the places of boxes in their images; returns the rules that have cases.

    Args:
        boxes: All N boxes of a set.
        image_hw: (N, 2) height and width of the image of each, pixels; infinite if unknown.
    """
    if not len(boxes):
        return []
    x, y, width, height = np.where(np.isfinite(boxes.xywh), boxes.xywh, np.nan).T
    image_h, image_w = image_hw.T
    with np.errstate(invalid="ignore", over="ignore"):
        right, bottom = x + width, y + height
        far, smaller = np.maximum(right, bottom), np.minimum(width, height)
        near = np.minimum(x, y)
        beyond = np.maximum(np.maximum(-x, -y), np.maximum(right - image_w, bottom - image_h))
        is_outside = (x >= image_w) | (y >= image_h) | (right <= 0) | (bottom <= 0)
        has_size = smaller > 0
        is_first = (width > x) & (height > y) & (near >= -_BEYOND_PX)
        masks = {
            FRACTIONS: has_size & (near > -1) & (far <= 1.01),
            PERCENT: has_size & (near >= 0) & (far <= _LARGEST_PERCENT) & (image_hw.min(axis=1) >= _MIN_SIDE_PX),
            CORNERS: is_first & (width <= image_w + _BEYOND_PX) & (height <= image_h + _BEYOND_PX),
            TINY: has_size & (smaller < 1),
            OUTSIDE: has_size & is_outside,
            CLIPPED: has_size & ~is_outside & (beyond > _BEYOND_PX),
        }
        # Per cent reach far into their range, and boxes read by the wrong rule reach out.
        if not np.nanmax(np.where(has_size, far, -np.inf), initial=-np.inf) > _LARGEST_PERCENT / 2:
            masks[PERCENT][:] = False
        if (beyond > _BEYOND_PX).mean() < 0.1:
            masks[CORNERS][:] = False
    found = [of_mask(rule, mask) for rule, mask in masks.items()]
    # These two mean something only as the whole.
    return [one for one in found if one.count and (one.is_error or one.rule not in (PERCENT, CORNERS))]


def find_doubles(boxes: ListedBoxes, xyxy: npt.NDArray[np.float32], *, by_class: bool = False) -> Mask:
    """Returns which boxes equal an earlier one of their image and kind (object, crowd, held out).

    Args:
        boxes: N boxes.
        xyxy: (N, 4) the same, clipped to their images; finite.
        by_class: Whether boxes of different classes are no doubles; held-out ones have no class.
    """
    kinds = [boxes.image_rows, boxes.is_crowd, boxes.is_held_out]
    if by_class:
        kinds.append(np.where(boxes.is_held_out, -1, boxes.class_rows))
    return find_copies(xyxy, *kinds)


def find_copies(xyxy: npt.NDArray[np.float32], *kinds: npt.NDArray[Any]) -> Mask:
    """Returns which of N boxes (N, 4), finite, equal an earlier one in their place and in each of `kinds` (N,)."""
    columns = np.column_stack((*kinds, np.round(xyxy.astype(np.float64) / _SAME_PX)))
    order = np.lexsort(columns.T)
    is_copy = np.zeros(len(columns), np.bool_)
    is_copy[order[1:]] = (columns[order[1:]] == columns[order[:-1]]).all(axis=1)
    return is_copy


def find_unseen(
    boxes_of_images: Iterable[tuple[tuple[int, int], npt.NDArray[np.float32]]],
    input_hw: tuple[int, int],
    largest_scale: float,
    min_box_px: float,
) -> Finding:
    """Finds boxes that are smaller than `min_box_px` in the largest view of their image.

    Args:
        boxes_of_images: Height and width of each image, and its boxes (G, 4) x1, y1, x2, y2, pixels.
        input_hw: Height and width of the network's input, pixels.
        largest_scale: Largest size of a view relative to the image letterboxed into the input.
        min_box_px: Smallest side of a box in a view, pixels.
    """
    count = total = 0
    for hw, boxes in boxes_of_images:
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        count += int((sides * letterbox(hw, input_hw).scale_xy[0] * largest_scale < min_box_px).sum())
        total += len(boxes)
    return Finding(rule=UNSEEN, count=count, total=total)


def find_repeated(files: Sequence[Path | str | None]) -> Finding:
    """Finds images whose file an earlier one has; None: an image without a file."""
    seen: set[Path | str | None] = {None}
    is_again = np.zeros(len(files), np.bool_)
    for row, file in enumerate(files):
        is_again[row] = file is not None and file in seen
        seen.add(file)
    return of_mask(REPEATED, is_again)


def of_mask(rule: Rule, mask: Mask) -> Finding:
    """Returns the cases that a mask over all boxes or images marks."""
    return Finding(rule=rule, count=int(mask.sum()), total=len(mask), mask=mask)


def with_places(finding: Finding, boxes: ListedBoxes, files: Sequence[Path | str | None]) -> Finding:
    """Replaces the mask of a finding, which grows with the set, by the pictures with most cases."""
    if finding.mask is None:
        return finding
    if finding.rule.of != "boxes":
        rows = np.flatnonzero(finding.mask)[:_MAX_PLACES].tolist()
        return replace(finding, mask=None, places=tuple(Place(Path(str(files[row])), ()) for row in rows))
    cases = np.flatnonzero(finding.mask)
    images, counts = np.unique(boxes.image_rows[cases], return_counts=True)
    places = []
    for row in images[np.argsort(-counts, kind="stable")][:_MAX_PLACES].tolist():
        own = boxes.xywh[cases[boxes.image_rows[cases] == row]][:_MAX_BOXES].tolist()
        corners = tuple((x, y, x + width, y + height) for x, y, width, height in own)
        places.append(Place(Path(str(files[row])), corners))
    return replace(finding, mask=None, places=tuple(places))


def errors_of(findings: Iterable[Finding], allow: Collection[str]) -> list[Finding]:
    """Returns the findings that are errors, without the accepted ones and those that only follow from another one."""
    wrong = [one for one in findings if one.is_error]
    following = frozenset().union(*(one.rule.replaces for one in wrong))
    return [one for one in wrong if one.rule.name not in {*allow, *following}]


def refuse(findings: Iterable[Finding], allow: Collection[str], where: str, problems: Sequence[str] = ()) -> None:
    """Refuses a set with errors that are not accepted.

    Args:
        findings: What the rules found.
        allow: Names of the rules that are accepted.
        where: The set, for messages.
        problems: Lines on single records, to show below.

    Raises:
        DataError: Names each error, its cause, and how to accept it.
    """
    first, *others = [
        f"{one}. If the set is right, accept it with --allow {one.rule.name} (data.allow)"
        for one in errors_of(findings, allow)
    ] or [""]
    if first:
        raise DataError(f"{where}: {first}", problems=[*others, *problems])

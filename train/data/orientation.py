"""EXIF orientation in a set: the size of an image under a rule, and the rule that the annotations fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.images.header import Exif, turned_hw
from edgerpn.train.data.annotations import ListedBoxes
from edgerpn.train.data.findings import Finding, Place
from edgerpn.train.data.image_files import ImageProbe
from edgerpn.train.data.rules import EXIF

_BEYOND_PX = 1.0
_NUM_PLACES = 6
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


class TurnedImage(NamedTuple):
    """An image that its EXIF orientation turns or mirrors."""

    row: int
    """Its position in the list of images."""
    file: Path
    """The file."""
    stored_hw: tuple[int, int]
    """Height and width of the stored image, pixels."""
    orientation: int
    """EXIF orientation, 2..8."""
    listed_hw: tuple[int, int] | None
    """Height and width as annotated; None: not annotated."""

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width as viewers show it."""
        return turned_hw(self.stored_hw, self.orientation)


def size_by(rule: Exif, probe: ImageProbe, listed_hw: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns height and width of an image under a rule; None: the annotated size belongs to another image.

    The size of the other reading is accepted: labelling tools that show the upright image note either.
    """
    upright_hw = turned_hw(probe.stored_hw, probe.orientation)
    if listed_hw not in (None, probe.stored_hw, upright_hw):
        return None
    return upright_hw if rule == "apply" else probe.stored_hw


def turn_fractions(boxes: ListedBoxes, turned: Sequence[TurnedImage]) -> ListedBoxes:
    """Returns boxes that a format gives as fractions of the image as fractions of the upright image.

    Args:
        boxes: In pixels, by the sizes of the stored images.
        turned: The images that are turned.
    """
    scale_wh = np.ones((int(boxes.image_rows.max(initial=-1)) + 1, 2))
    for image in turned:
        if image.row < len(scale_wh):
            scale_wh[image.row] = np.divide(image.upright_hw, image.stored_hw)[::-1]
    return replace(boxes, xywh=boxes.xywh * np.tile(scale_wh[boxes.image_rows], 2))


def find_turned(turned: Sequence[TurnedImage], boxes: ListedBoxes, *, is_relative: bool) -> Finding | None:
    """Finds the images with boxes whose meaning depends on the orientation; says which rule the annotations fit.

    Args:
        turned: The images that an orientation turns.
        boxes: All boxes of the set.
        is_relative: Whether the format gives boxes as fractions of the image, which fit both rules.
    """
    order = np.argsort(boxes.image_rows, kind="stable")
    rows = [image.row for image in turned]
    starts, ends = (np.searchsorted(boxes.image_rows[order], rows, side=side) for side in _SIDES)
    own = [boxes.xywh[order[start:end]] for start, end in zip(starts, ends, strict=True)]
    affected = [(image, xywh) for image, xywh in zip(turned, own, strict=True) if len(xywh)]
    if not affected:
        return None
    votes = Counter("both" if is_relative else _vote(image, xywh) for image, xywh in affected)
    first, _ = affected[0]
    cause = (
        f"{votes['apply']} fit the upright picture only, {votes['ignore']} the stored one only, {votes['both']} both "
        f"(first: {first.file}, orientation {first.orientation}). {_advice(votes)}"
    )
    places = tuple(Place(image.file, ()) for image, _ in affected[:_NUM_PLACES])
    return Finding(rule=replace(EXIF, cause=cause), count=len(affected), total=len(turned), places=places)


def _vote(image: TurnedImage, xywh: npt.NDArray[np.float64]) -> str:
    """Returns the rule that an image's boxes fit, or else its annotated size; "both" if neither tells."""
    fits_stored, fits_upright = (_fits(xywh, hw) for hw in (image.stored_hw, image.upright_hw))
    if fits_stored != fits_upright:
        return "ignore" if fits_stored else "apply"
    if image.upright_hw == image.stored_hw or image.listed_hw is None:
        return "both"
    return "apply" if image.listed_hw == image.upright_hw else "ignore"


def _fits(xywh: npt.NDArray[np.float64], hw: tuple[int, int]) -> bool:
    corners = xywh[:, :2] + xywh[:, 2:]
    return bool((corners <= np.array(hw[::-1]) + _BEYOND_PX).all())


def _advice(votes: Counter[str]) -> str:
    if votes["apply"] > 0 == votes["ignore"]:
        return "Turn the images: --exif apply (data.exif)"
    if votes["ignore"] > 0 == votes["apply"]:
        return "Read them as stored: --exif ignore (data.exif)"
    return (
        "Look at some with their boxes, and choose --exif apply or --exif ignore (data.exif): labelling tools in a "
        "browser show upright pictures, programs on top of pycocotools stored ones"
    )

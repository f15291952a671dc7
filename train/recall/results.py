"""The boxes that a detector found in images, as arrays: what recall and precision are measured on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.errors import DataError
from edgerpn.train.data.annotations import ImageId


class FoundBoxes(NamedTuple):
    """The boxes found in an image. 1000 of them take 21 kB, and as COCO results 500 kB."""

    boxes_xywh: npt.NDArray[Any]
    """(M, 4) float32 or float64; left, top, width, height in pixels."""
    scores: npt.NDArray[Any]
    """(M,) float32 or float64; the highest is the best."""
    category_ids: npt.NDArray[Any]
    """(M,) category of each box."""

    @classmethod
    def of(
        cls, boxes_xyxy: npt.NDArray[Any], scores: npt.NDArray[Any], labels: npt.NDArray[Any] | None = None
    ) -> FoundBoxes:
        """Takes arrays as `Proposals` has them; categories are numbers of classes, from 1, without classes 1."""
        boxes_xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
        return cls(boxes_xywh, scores, np.ones(len(scores), np.uint8) if labels is None else labels + 1)

    def pick(self, rows: npt.NDArray[Any]) -> FoundBoxes:
        """Returns the boxes at `rows`, a mask (M,) or numbers."""
        return FoundBoxes(*(array[rows] for array in self))

    def best(self, count: int) -> FoundBoxes:
        """Returns the best `count` boxes in the order of COCO's tools: of equal scores the first comes first."""
        return self.pick(np.argsort(-self.scores, kind="stable")[:count])


Results = Mapping[ImageId, FoundBoxes] | Sequence[Mapping[str, Any]]
"""Boxes by image, or COCO results: image_id, bbox [x, y, width, height] in pixels, score, maybe category_id."""


def by_image(results: Results, ground_truth: Mapping[str, Any]) -> Mapping[ImageId, FoundBoxes]:
    """Returns the results of each image, in their order.

    Raises:
        DataError: A result names an image that is not in the annotations.
    """
    if isinstance(results, Mapping):
        found = results
    else:
        rows: dict[ImageId, list[Mapping[str, Any]]] = defaultdict(list)
        for row in results:
            rows[row["image_id"]].append(row)
        found = {image_id: _from_rows(own) for image_id, own in rows.items()}
    _check_images(found, ground_truth)
    return found


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> FoundBoxes:
    return FoundBoxes(
        np.array([row["bbox"] for row in rows], np.float64),
        np.array([row["score"] for row in rows], np.float64),
        # Files of other programs have all kinds of ids.
        np.array([row.get("category_id") for row in rows], object),
    )


def _check_images(found: Iterable[ImageId], ground_truth: Mapping[str, Any]) -> None:
    unknown = set(found) - {image["id"] for image in ground_truth["images"]}
    if unknown:
        raise DataError(
            f"results: {len(unknown)} image ids are not in the annotations, for example {min(unknown, key=str)!r}; "
            "the results belong to other images"
        )

"""The outputs of a graph for several frames, and the proposals of a model for one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.errors import require

Index = int | slice | list[int] | npt.NDArray[Any]


class Outputs(NamedTuple):
    """The outputs of a graph for N frames, see `edgerpn.manifest`; rows beyond `count` are zero."""

    boxes: npt.NDArray[np.float32]
    """(N, K, 4) float32 x1, y1, x2, y2 in pixels of the input frame."""
    scores: npt.NDArray[np.float32]
    """(N, K) float32, 0..1, descending."""
    count: npt.NDArray[np.int32]  # type: ignore[assignment] # hides tuple.count()
    """(N,) int32."""
    labels: npt.NDArray[np.int32] | None = None
    """(N, K) int32, number of each box's class in the manifest's `class_names`, from 0; None: the graph does not have
    classes."""
    class_scores: npt.NDArray[np.float32] | None = None
    """(N, K) float32, 0..1, probability of that class; None: the graph does not have classes."""
    embeddings: npt.NDArray[np.float32] | None = None
    """(N, K, C) float32, rows with a norm of 1; None: the graph does not have them."""
    features: npt.NDArray[np.float32] | None = None
    """(N, K, C, h, w) float32; None: the graph does not have them."""

    @property
    def present(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs that the graph has, by name."""
        return {name: array for name, array in self._asdict().items() if array is not None}

    def each(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Outputs:
        """Returns the outputs, each changed by `change`."""
        return Outputs(*(None if array is None else change(array) for array in self))  # type: ignore[arg-type]

    @classmethod
    def join(cls, parts: Sequence[Outputs]) -> Outputs:
        """Concatenates the outputs for parts of the frames."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else np.concatenate(column) for column in columns))  # type: ignore[arg-type]


CLASSES = ("labels", "class_scores")
"""Outputs, and fields of `Proposals`, of a graph with classes."""

FEATURES = ("embeddings", "features")
"""Outputs, and fields of `Proposals`, with the features of the boxes, which a graph may not have."""

DESCRIPTIONS = (*CLASSES, *FEATURES)
"""Outputs, and fields of `Proposals`, that describe the boxes and that a graph may not have."""


def output_dtype(role: str) -> type[np.int32 | np.float32]:
    """Returns the element type of an output by its name in `Outputs`."""
    return np.int32 if role in ("count", "labels") else np.float32


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Proposals:
    """Boxes and scores of one frame, best first; immutable.

    The arrays are copied and made read-only. Indexing with a number, a slice, a mask or an array of numbers
    returns `Proposals` in the order of the index.
    """

    boxes: npt.NDArray[np.float32]
    """(M, 4) float32; x1, y1, x2, y2 in pixels of the frame."""
    scores: npt.NDArray[np.float32]
    """(M,) float32, 0..1, descending as the model returns them: objectness, lowered by soft NMS where it applies; of a
    model with classes its confidence in box and class."""
    labels: npt.NDArray[np.int32] | None = None
    """(M,) int32, number of each box's class in `class_names`, from 0; None: the model does not have classes."""
    class_scores: npt.NDArray[np.float32] | None = None
    """(M,) float32, 0..1, probability of that class; None: the model does not have classes."""
    embeddings: npt.NDArray[np.float32] | None = None
    """(M, C) float32, a vector with a norm of 1 for each box: the features of the cell that proposed it; None: the
    model was exported without --embeddings."""
    features: npt.NDArray[np.float32] | None = None
    """(M, C, h, w) float32, the feature map that each box covers, pooled by RoIAlign, as the head of a classifier takes
    it; None: the model was exported without --roi-features."""
    class_names: tuple[str, ...] = ()
    """Names of all classes of the model; empty: it does not have classes."""

    def __post_init__(self) -> None:
        """Copies, checks and locks the arrays."""
        boxes = np.array(self.boxes, np.float32)
        scores = np.array(self.scores, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes: expected shape (M, 4), got {boxes.shape}")
        if scores.shape != (len(boxes),):
            raise ValueError(
                f"scores: expected shape ({len(boxes)},) as there are {len(boxes)} boxes, got {scores.shape}"
            )
        arrays: dict[str, npt.NDArray[Any]] = {"boxes": boxes, "scores": scores}
        for name in DESCRIPTIONS:
            value = getattr(self, name)
            if value is not None:
                arrays[name] = array = np.array(value, output_dtype(name))
                is_flat = array.ndim == 1
                if not array.ndim or is_flat is not (name in CLASSES) or len(array) != len(boxes):
                    kind = "number" if name in CLASSES else "row"
                    raise ValueError(
                        f"{name}: expected a {kind} for each of {len(boxes)} boxes, got shape {array.shape}"
                    )
        labels = arrays.get("labels")
        if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(
                f"labels: expected 0 to {len(self.class_names) - 1}, the numbers of {len(self.class_names)} "
                f"class_names, got {labels.min()} to {labels.max()}"
            )
        for name, array in arrays.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __reduce__(self) -> tuple[Callable[..., Proposals], tuple[Any, ...]]:
        """Makes copies by `pickle` and `copy` as read-only as the original."""
        return type(self), tuple(getattr(self, item.name) for item in fields(self))

    @property
    def names(self) -> tuple[str, ...] | None:
        """Name of each box's class; None: the model does not have classes."""
        return None if self.labels is None else tuple(self.class_names[label] for label in self.labels.tolist())

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.scores)

    def __iter__(self) -> Iterator[Proposals]:
        """Yields the boxes one at a time, best first, each as `Proposals` of length 1."""
        return (self[i : i + 1] for i in range(len(self)))

    def __repr__(self) -> str:
        """Returns the number of boxes and the range of their scores."""
        if not len(self):
            return "Proposals(0 boxes)"
        return f"Proposals({len(self)} boxes, scores {self.scores.max():.3f} to {self.scores.min():.3f})"

    def __getitem__(self, index: Index) -> Proposals:
        """Returns the boxes at `index`: one number, a slice, a mask (M,) or an array of numbers.

        Raises:
            IndexError: A number is out of range, or a mask has another length.
        """
        if isinstance(index, (slice, list)) or (isinstance(index, np.ndarray) and index.ndim):
            picked = np.asarray(index, np.intp) if isinstance(index, list) and not index else index
            return self._pick(picked)
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"proposal {row} of {len(self)}")
        row %= len(self)
        return self._pick(slice(row, row + 1))

    def _pick(self, rows: Index) -> Proposals:
        values = ((name, getattr(self, name)) for name in DESCRIPTIONS)
        described = {name: value[rows] for name, value in values if value is not None}
        return Proposals(self.boxes[rows], self.scores[rows], class_names=self.class_names, **described)

    def above(self, score: float) -> Proposals:
        """Returns the boxes whose score is at least `score`."""
        return self[self.scores >= score]

    def nms(self, iou: float, *, limit: int | None = None, by_class: bool = True) -> Proposals:
        """Leaves out near copies: the boxes whose IoU with a better box that is kept exceeds `iou`; greedy, best first.

        Args:
            iou: 0..1; 1 keeps all.
            limit: Maximum number of boxes; None: no limit.
            by_class: Whether boxes of different classes are no copies, where the model has classes.
        """
        return self[self.nms_rows(iou, limit=limit, by_class=by_class)]

    def nms_rows(self, iou: float, *, limit: int | None = None, by_class: bool = True) -> list[int]:
        """Returns the numbers of the boxes that `nms` keeps, ascending."""
        if iou >= 1:
            return list(range(len(self)))[:limit]
        kept: list[int] = []
        rest = np.arange(len(self))
        while len(rest) and len(kept) != limit:
            best, rest = rest[:1], rest[1:]
            kept.append(int(best[0]))
            is_other = pairwise_iou(self.boxes[best], self.boxes[rest])[0] <= iou
            if by_class and self.labels is not None:
                is_other |= self.labels[rest] != self.labels[best]
            rest = rest[is_other]
        return kept

    def to_coco(self, image_id: int | str, *, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Converts to COCO results: plain Python numbers, bbox as x, y, width, height.

        Args:
            image_id: The image's id in the annotation file.
            category_ids: The id of each of `class_names` in the annotation file; empty: their numbers, from 1. Without
                classes every category is 1.
        """
        numbers = [0] * len(self) if self.labels is None else self.labels.tolist()
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        rows = np.concatenate([self.boxes[:, :2], sizes], axis=1).tolist()
        return [
            {
                "image_id": image_id if isinstance(image_id, str) else int(image_id),
                "category_id": category_ids[number] if category_ids else number + 1,
                "bbox": row,
                "score": score,
            }
            for row, score, number in zip(rows, self.scores.tolist(), numbers, strict=True)
        ]

    def to_supervision(self) -> Any:
        """Converts to `supervision.Detections`, with the names in data["class_name"]; without classes all of class 0.

        Raises:
            MissingDependencyError: The package supervision is not installed.
        """
        supervision = require("supervision", extra="supervision", purpose="to_supervision")
        class_id = np.zeros(len(self), np.int64) if self.labels is None else self.labels.astype(np.int64)
        names = self.names
        # Writable copies, because annotators and filters of that package change arrays in place.
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=class_id,
            data={} if names is None else {"class_name": np.array(names, str)},
        )


def pairwise_iou(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Returns the IoU (M, P) of two sets of x1, y1, x2, y2 boxes, in float64."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    intersection = size[..., 0] * size[..., 1]
    areas = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1]) + (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    iou: npt.NDArray[np.float64] = intersection / np.maximum(areas - intersection, 1e-12)
    return iou

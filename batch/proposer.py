"""A model as a callable class: columns of pictures in, an Arrow table of proposals out.

The class keeps no state between calls but the model, so that any program that maps batches can hold one for each
process: Ray Data (`map_batches`), Spark (`mapInPandas`, `mapInArrow`), `multiprocessing`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from edgerpn.batch.pictures import Encoded, Picture, decode_all
from edgerpn.errors import InputError
from edgerpn.files import sha256
from edgerpn.models import find_model
from edgerpn.proposals import Proposals
from edgerpn.runtime.model import load
from edgerpn.runtime.run.runner import natural_batch


def make_schema(*, has_classes: bool, embedding_size: int | None) -> pa.Schema:
    """Returns the columns of a table of proposals, one row a picture.

    path: name of the file. frame: number in its video, from 0; null: an image. media_time_s: time in its video;
    null: an image, or unknown. width, height: pixels; null: it is broken. boxes: x1, y1, x2, y2 in pixels of the
    picture, best first; null: it is broken. scores: 0 to 1. labels, class_scores: name of each box's class, and its
    probability. embeddings: a vector with a norm of 1 for each box. model: SHA-256 of the model's file. error: the
    reason why it is broken; null: it is not. damage: the damage of a picture that decodes nevertheless; null: none is
    seen.

    Args:
        has_classes: Whether the model has classes; without them the table has neither labels nor class_scores.
        embedding_size: Size of an embedding; None: the model has none, and the table no such column.
    """
    classes = [("labels", pa.list_(pa.string())), ("class_scores", pa.list_(pa.float32()))] if has_classes else []
    vectors = [] if embedding_size is None else [("embeddings", pa.list_(pa.list_(pa.float32(), embedding_size)))]
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            ("frame", pa.int64()),
            ("media_time_s", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
            ("scores", pa.list_(pa.float32())),
            *classes,
            *vectors,
            pa.field("model", pa.string(), nullable=False),
            ("error", pa.string()),
            ("damage", pa.string()),
        ]
    )


class Proposer:
    """Finds proposals in batches of pictures; see `edgerpn.batch.proposer` for programs that can hold one."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        threads: int = 1,
        batch: int = 0,
        min_score: float = 0.0,
        max_per_image: int = 0,
        providers: Sequence[str] = (),
        allow_host_code: bool = False,
        verify: bool = True,
    ) -> None:
        """Loads the model; in a child of a fork, not before it.

        Args:
            model: ONNX file or engine, or the name of an installed model.
            threads: Threads that read and decode pictures while the model runs, and threads of one inference of an
                ONNX file; 1: one thread does all in turn.
            batch: Pictures in one inference, of any number in a call: the last are filled up with copies, whose
                proposals are dropped. 0: the batch that the model is made for, 1 on a CPU.
            min_score: Proposals scored below this are left out, 0 to 1.
            max_per_image: Maximum number of proposals of a picture, the best ones; 0: all.
            providers: ONNX Runtime execution providers in order of preference; empty: CUDA if there, else the CPU.
            allow_host_code: Whether a version-compatible engine may bring code that runs on the CPU.
            verify: False takes an ONNX file that was changed since export, with a warning in the log; see `edgerpn
                check` for a proof that it still computes the same.

        Raises:
            EngineLoadError: The model cannot be loaded.
            ManifestError: Its manifest is missing, or they do not belong together.
        """
        file = find_model(model)
        self._model = load(
            file,
            providers=providers or None,
            threads=threads,
            allow_host_code=allow_host_code,
            verify=verify,
        )
        self._threads = threads
        self._batch = batch or natural_batch(self._model)
        self._min_score = min_score
        self._limit = max_per_image or None
        self.sha256 = sha256(file)
        """SHA-256 of the model's file."""
        self.exif = self._model.manifest.input.exif_reading
        """Whether image files are turned by their EXIF orientation."""
        described = self._model.manifest.outputs_by_role.get("embeddings")
        self._embedding_size = None if described is None else int(described.shape[2])
        self._has_classes = bool(self._model.manifest.class_names)
        self.schema = make_schema(has_classes=self._has_classes, embedding_size=self._embedding_size)
        """Columns of the tables."""

    def __call__(self, batch: Mapping[str, Sequence[Any]] | Any) -> pa.Table:
        """Returns the proposals of some pictures, a row each, in order; a broken picture is a row with its error.

        Args:
            batch: Columns by name: a mapping, a pandas `DataFrame`, or a `pyarrow.Table`. Either `image`, arrays
                (H, W, 3) uint8 BGR; or `bytes`, encoded images; or `path`, paths or URLs of images. Beside the first
                two, `path` names the pictures. Other columns are ignored.

        Returns:
            A table with the columns of `make_schema`.

        Raises:
            InputError: The batch has none of these columns, or an array is not a picture.
            InferenceError: The backend failed.
        """
        return pa.concat_tables([self.schema.empty_table(), *self.tables(self._pictures(batch))])

    def tables(self, pictures: Iterable[Picture]) -> Iterator[pa.Table]:
        """Yields the proposals of pictures, in order, as tables of as many rows as run together."""
        source = iter(pictures)
        while chunk := list(itertools.islice(source, self._batch)):
            images = [picture.image for picture in chunk if picture.image is not None]
            found = iter(self._run(images))
            yield self._table([(picture, None if picture.image is None else next(found)) for picture in chunk])

    def close(self) -> None:
        """Frees the model."""
        self._model.close()

    def _pictures(self, batch: Any) -> Iterator[Picture]:
        columns = batch.to_pydict() if isinstance(batch, pa.Table) else batch
        paths = [str(path) for path in columns["path"]] if "path" in columns else None
        if "image" in columns:
            images = columns["image"]
            return (Picture(path=name, image=image) for name, image in zip(_names(paths, images), images, strict=True))
        if "bytes" in columns:
            data = [bytes(value or b"") for value in columns["bytes"]]
            encoded = [Encoded(name, value) for name, value in zip(_names(paths, data), data, strict=True)]
        elif paths is not None:
            encoded = [Encoded(path, None) for path in paths]
        else:
            raise InputError(f"batch: expected a column image, bytes or path, got {', '.join(map(str, columns))}")
        return decode_all(encoded, self.exif, num_threads=self._threads)

    def _run(self, images: list[npt.NDArray[np.uint8]]) -> list[Proposals]:
        if not images:
            return []
        filled = images + images[-1:] * (self._batch - len(images))
        found = self._model.batch_fitted(filled)[: len(images)]
        return [proposals.above(self._min_score)[: self._limit] for proposals in found]

    def _table(self, rows: Sequence[tuple[Picture, Proposals | None]]) -> pa.Table:
        pictures, found = [picture for picture, _ in rows], [proposals for _, proposals in rows]
        sizes = [(None, None) if picture.image is None else picture.image.shape[:2] for picture in pictures]
        columns = {
            "path": [picture.path for picture in pictures],
            "frame": [picture.frame for picture in pictures],
            "media_time_s": [picture.media_time_s for picture in pictures],
            "width": [width for _, width in sizes],
            "height": [height for height, _ in sizes],
            "boxes": _lists([None if one is None else one.boxes for one in found], 4),
            "scores": _lists([None if one is None else one.scores for one in found]),
            "model": [self.sha256] * len(rows),
            "error": [picture.error for picture in pictures],
            "damage": [picture.damage for picture in pictures],
        }
        if self._has_classes:
            columns["labels"] = [None if one is None else one.names for one in found]
            columns["class_scores"] = _lists([None if one is None else one.class_scores for one in found])
        if self._embedding_size is not None:
            vectors = [None if one is None else one.embeddings for one in found]
            columns["embeddings"] = _lists(vectors, self._embedding_size)
        return pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema)


def _names(paths: Sequence[str] | None, values: Sequence[Any]) -> Sequence[str]:
    return [""] * len(values) if paths is None else paths


def _lists(arrays: Sequence[npt.NDArray[np.float32] | None], size: int | None = None) -> pa.Array:
    """Returns an Arrow array whose value i is the list of the rows of array i, or null.

    Args:
        arrays: (M, size), or (M,) if `size` is None.
        size: Numbers in a row; None: a row is one number.
    """
    present = [array.ravel() for array in arrays if array is not None]
    flat = pa.array(np.concatenate([np.zeros(0, np.float32), *present]))
    ends = np.cumsum([0, *(0 if array is None else len(array) for array in arrays)], dtype=np.int32)
    rows = flat if size is None else pa.FixedSizeListArray.from_arrays(flat, size)
    missing = pa.array([array is None for array in arrays])
    return pa.ListArray.from_arrays(pa.array(ends), rows, mask=missing)

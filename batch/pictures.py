"""Reads and decodes pictures: image files, encoded bytes, and frames of videos; a broken one brings its error."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from edgerpn.batch.config import BulkConfig
from edgerpn.batch.inputs import IMAGE, VIDEO, Item, leaf_names
from edgerpn.batch.places import is_url, open_file, open_system, read_file, suffix_of
from edgerpn.errors import DataError, StreamOpenError
from edgerpn.files import printable
from edgerpn.images.decoding import damage_note, decode_image
from edgerpn.images.header import Exif, read_header
from edgerpn.machine import threaded_map
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.sources.file_sources import open_source

_ROWS_AT_ONCE = 32
"""Encoded images of a Parquet file that are in memory at a time."""
_READ_AHEAD = 2
"""Decoded images that wait, for each thread."""


class Encoded(NamedTuple):
    """An image before it is decoded."""

    path: str
    """Name in the output, and where the image is read from if `data` is None."""
    data: bytes | None
    """Bytes of the file; None: they are read when the image is decoded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """An image or a frame of a video, decoded or broken."""

    path: str
    """Name in the output."""
    frame: int | None = None
    """Number of the frame in its video, from 0; None: an image."""
    media_time_s: float | None = None
    """Time of the frame in its video, seconds; None: an image, or unknown."""
    image: npt.NDArray[np.uint8] | None = None
    """(H, W, 3) uint8 BGR; None: it cannot be read."""
    error: str | None = None
    """The reason why it cannot be read."""
    damage: str | None = None
    """The damage of an image that decodes nevertheless; None: none is seen."""


def decode(encoded: Encoded, exif: Exif) -> Picture:
    """Reads and decodes an image; thread-safe."""
    path = printable(encoded.path)
    try:
        data = read_file(encoded.path) if encoded.data is None else encoded.data
        header = read_header(BytesIO(data))
        image, _ = decode_image(load_cv2(), data, header, path, exif=exif)
    except OSError as error:
        return Picture(path=path, error=f"{path}: cannot be read: {error.strerror or error}")
    except DataError as error:
        return Picture(path=path, error=str(error))
    return Picture(path=path, image=image, damage=damage_note(data, header, path) or None)


def decode_all(encoded: Iterable[Encoded], exif: Exif, *, num_threads: int) -> Generator[Picture, None, None]:
    """Yields the images in order; several threads decode ahead, one thread decodes when it is asked."""
    if num_threads == 1:
        yield from (decode(image, exif) for image in encoded)
        return
    yield from threaded_map(
        lambda image: decode(image, exif), encoded, num_threads=num_threads, ahead=_READ_AHEAD * num_threads
    )


def read_items(items: Sequence[Item], config: BulkConfig, exif: Exif) -> Iterator[Picture]:
    """Yields the pictures of the items of a part, in order.

    Raises:
        OSError: A Parquet file cannot be read any more.
    """
    for is_video, group in itertools.groupby(items, key=lambda item: item.kind == VIDEO):
        if is_video:
            for item in group:
                yield from _frames(item.place, config.threads)
        else:
            encoded = itertools.chain.from_iterable(_encoded(item, config) for item in group)
            yield from decode_all(encoded, exif, num_threads=config.threads)


def _encoded(item: Item, config: BulkConfig) -> Iterator[Encoded]:
    if item.kind == IMAGE:
        yield Encoded(item.place, None)
        return
    try:
        yield from _rows(item, config)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{printable(item.place)}: cannot be read any more: {error}") from error


def _rows(item: Item, config: BulkConfig) -> Iterator[Encoded]:
    with open_file(item.place) as stream, pq.ParquetFile(stream) as file:
        columns = [name for name in (config.bytes_column, config.path_column) if name in leaf_names(file)]
        number = item.first
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[item.group], columns=columns):
            table = pa.Table.from_batches([batch]).flatten()
            names = table[config.path_column].to_pylist() if config.path_column in columns else [None] * len(table)
            for data, name in zip(table[config.bytes_column].to_pylist(), names, strict=True):
                yield Encoded(name or f"{item.place}#{number}", data or b"")
                number += 1


def _frames(place: str, num_threads: int) -> Iterator[Picture]:
    """Yields the frames of a video; behind them, or in their place, a broken picture with the error of the file."""
    path = printable(place)
    next_frame = 0
    try:
        with _local(place) as file:
            for item in open_source(file, name=path, decoder_threads=num_threads):
                if isinstance(item, Frame):
                    next_frame = item.index + 1
                    yield Picture(path=path, frame=item.index, media_time_s=item.media_time_s, image=item.image)
                else:
                    yield Picture(path=path, frame=next_frame, error=item.message)
    except OSError as error:
        yield Picture(path=path, error=f"{path}: cannot be read: {error.strerror or error}")
    except StreamOpenError as error:
        yield Picture(path=path, error=str(error) if not is_url(place) else f"{path}: {error}")


@contextmanager
def _local(place: str) -> Iterator[str]:
    """Yields a local path of a video: OpenCV cannot read from other file systems, so these are copied."""
    if not is_url(place):
        yield place
        return
    system, path = open_system(place)
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, f"video{suffix_of(place)}")
        system.get_file(path, copy)
        yield copy

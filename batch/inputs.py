"""The inputs of a bulk run, by folder, glob, list, Parquet file or name, and their division into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from edgerpn.batch.config import BulkConfig
from edgerpn.batch.places import (
    absolute,
    folder_of,
    is_folder,
    list_folder,
    list_matches,
    open_file,
    open_system,
    suffix_of,
)
from edgerpn.errors import ConfigError
from edgerpn.files import printable
from edgerpn.images.formats import IMAGE_SUFFIXES

LIST_SUFFIX, PARQUET_SUFFIX = ".txt", ".parquet"
VIDEO_SUFFIXES = frozenset(
    (
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
        *(".ts", ".webm", ".wmv"),
    )
)
"""Suffixes by which a file is read as a video; among millions of files none is opened to find out."""

IMAGE, VIDEO, ROWS = "image", "video", "rows"


class Item(NamedTuple):
    """An image, a video, or a row group of a Parquet file of encoded images."""

    kind: str
    """IMAGE, VIDEO or ROWS."""
    place: str
    """Path or URL of the file."""
    group: int = 0
    """Of ROWS: number of the row group in its file."""
    first: int = 0
    """Of ROWS: number of the group's first row in its file."""
    rows: int = 1
    """Pictures in it; of a video as many as fill a part, because nobody knows before it is read."""


def find_items(inputs: Sequence[str], config: BulkConfig) -> Iterator[Item]:
    """Yields the items that a user names, in order; a file that is named twice comes twice.

    Args:
        inputs: Paths or URLs: folders (images and videos at every depth), globs, lists (.txt), Parquet files
            (.parquet) of paths or of encoded images, images, videos.
        config: Columns of Parquet files, and the size of a part.

    Raises:
        ConfigError: An input does not exist, holds nothing, or cannot be read.
    """
    for text in inputs:
        place = absolute(text)
        is_empty = True
        try:
            for item in _expand(place, config):
                is_empty = False
                yield item
        except (OSError, pa.ArrowException) as error:
            raise ConfigError([f"{printable(place)}: cannot be read: {error}"]) from error
        if is_empty:
            raise ConfigError([f"{printable(place)}: no image and no video in it; expected at least one"])


def divide(items: Iterable[Item], part_rows: int) -> Iterator[list[Item]]:
    """Yields the items of each part: `part_rows` pictures or more, of the last part fewer."""
    part, num_rows = list[Item](), 0
    for item in items:
        part.append(item)
        num_rows += item.rows
        if num_rows >= part_rows:
            yield part
            part, num_rows = [], 0
    if part:
        yield part


def _expand(place: str, config: BulkConfig) -> Iterator[Item]:
    system, path = open_system(place)
    if system.isfile(path):
        yield from _of_file(place, config)
    elif is_folder(place):
        for found in list_folder(place):
            if suffix_of(found) in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                yield _named(found, config)
    else:
        matches = list_matches(place)
        if not matches:
            raise ConfigError([f"{printable(place)}: no such file or folder, and no file matches it"])
        for found in matches:
            yield from _of_file(found, config)


def _of_file(place: str, config: BulkConfig) -> Iterator[Item]:
    suffix = suffix_of(place)
    if suffix == LIST_SUFFIX:
        yield from _of_list(place, config)
    elif suffix == PARQUET_SUFFIX:
        yield from _of_parquet(place, config)
    else:
        yield _named(place, config)


def _named(place: str, config: BulkConfig) -> Item:
    return Item(VIDEO, place, rows=config.part_rows) if suffix_of(place) in VIDEO_SUFFIXES else Item(IMAGE, place)


def _of_list(place: str, config: BulkConfig) -> Iterator[Item]:
    """Yields the items of a text file, a path or a URL in each line, relative to the file; # begins a comment."""
    folder = folder_of(place)
    with open_file(place) as file:
        for line in file:
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise ConfigError([f"{printable(place)}: this list is not UTF-8 text: {error}"]) from error
            if text and not text.startswith("#"):
                yield _named(absolute(text, folder), config)


def _of_parquet(place: str, config: BulkConfig) -> Iterator[Item]:
    with open_file(place) as stream, pq.ParquetFile(stream) as file:
        names = leaf_names(file)
        if config.bytes_column in names:
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                yield Item(ROWS, place, group, first, num_rows)
                first += num_rows
        elif config.path_column in names:
            folder = folder_of(place)
            for path in _texts(file, config.path_column, place):
                yield _named(absolute(path, folder), config)
        else:
            raise ConfigError(
                [
                    f"{printable(place)}: no column {config.bytes_column!r} of encoded images and no column "
                    f"{config.path_column!r} of paths; it has {', '.join(sorted(names))}. Name one of them: "
                    "--set path_column=NAME or --set bytes_column=NAME"
                ]
            )


def leaf_names(file: Any) -> set[str]:
    """Returns the names of a Parquet file's columns, with those of fields of structures as `column.field`."""
    return {file.schema.column(i).path for i in range(len(file.schema))}


def _texts(file: Any, column: str, place: str) -> Iterator[str]:
    for batch in file.iter_batches(columns=[column]):
        (array,) = pa.Table.from_batches([batch]).flatten().columns
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)) or array.null_count:
            raise ConfigError(
                [f"{printable(place)}: the column {column!r} holds {array.type}, expected texts, no nulls"]
            )
        yield from array.to_pylist()

"""The output folder of a bulk run: the plan, which divides the inputs into parts once, and the parts that are done.

OUTPUT/part-000000.parquet   a part; it appears whole
OUTPUT/_bulk/plan.parquet    the inputs, a row group for each part
OUTPUT/_bulk/run.json        model, inputs and settings: a plan counts once this file exists
OUTPUT/_bulk/summary.json    figures of the run; it exists when all parts do
OUTPUT/_bulk/lock            names the process that writes into the folder, or wrote last
OUTPUT/_bulk/attempts/       a file for each time that a worker began a part and did not end it

Readers of Parquet folders pass over names that begin with an underscore.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from edgerpn.batch.inputs import Item
from edgerpn.batch.places import absolute, is_url, open_system
from edgerpn.errors import ConfigError
from edgerpn.files import locked, printable
from edgerpn.machine import threaded_map

_PLAN_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("place", pa.binary()),  # the bytes of the name, which need not be UTF-8
        ("group", pa.int32()),
        ("first", pa.int64()),
        ("rows", pa.int64()),
    ]
)
_READERS = 8
"""Threads that read the figures of parts, which may lie far away."""
_COUNTS = b"edgerpn.counts"
"""Key of a part's figures in the metadata of its file."""


FIGURES = ("num_pictures", "num_broken", "num_damaged", "num_proposals")
"""Figures of a part: its rows, those with an error, those with damage, and the boxes of all rows."""


class OutputFolder:
    """The files of a bulk run, on any file system; each worker has an object of its own."""

    def __init__(self, place: str) -> None:
        """Opens the folder, which need not exist."""
        self.place = absolute(place)
        self._system, self._root = open_system(self.place)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out until the block or this process ends; not out of a folder behind a URL.

        Raises:
            ConfigError: Another run writes into the folder, or it holds other files.
        """
        if is_url(self.place):
            yield
            return
        # Here too, and not in `plan` alone: a folder with other files gets no lock file.
        if self._read_json("run.json") is None:
            self._check_empty()
        self._system.makedirs(self._path(""), exist_ok=True)
        with locked(self._path("lock"), folder=self.place):
            yield

    def plan(self, parts: Iterable[list[Item]], run: Mapping[str, Any]) -> int:
        """Divides the inputs, unless an earlier call did; returns the number of parts.

        Args:
            parts: The items of each part, in order; not touched when there is a plan.
            run: Model, inputs and settings.

        Raises:
            ConfigError: The folder holds other files, or a run with another model, inputs or settings.
        """
        run = json.loads(json.dumps(run))
        found = self._read_json("run.json")
        if found is None:
            self._check_empty()
            num_parts = self._write_plan(parts)
            found = {**run, "num_parts": num_parts}
            self._write_json("run.json", found)
        differences = [key for key, value in run.items() if found.get(key) != value]
        if differences:
            raise ConfigError(
                [
                    f"{self.place}: this folder holds a run with other {' and '.join(differences)}; repeat it as it "
                    "was, or name another folder"
                ]
            )
        return int(found["num_parts"])

    def clean(self) -> None:
        """Removes what workers that died have left; only between runs."""
        for name in self._names("_bulk"):
            if name.endswith(".part"):
                self._system.rm_file(self._path(name))
        self._forget("")

    def read_plan(self, part: int) -> list[Item]:
        """Returns the items of a part."""
        with self._system.open(self._path("plan.parquet"), "rb") as stream, pq.ParquetFile(stream) as file:
            rows = file.read_row_group(part).to_pylist()
        return [Item(**{**row, "place": os.fsdecode(row["place"])}) for row in rows]

    def counts(self, part: int) -> dict[str, int] | None:
        """Returns the figures of a part; None: it is not done."""
        try:
            with self._system.open(self._part_path(part), "rb") as stream:
                metadata = pq.read_metadata(stream).metadata or {}
        except FileNotFoundError:
            return None
        return json.loads(metadata[_COUNTS]) if _COUNTS in metadata else None

    def done(self) -> dict[int, dict[str, int]]:
        """Returns the figures of the parts that are done, by number."""
        names = (re.fullmatch(r"part-(\d+)\.parquet", name) for name in self._names(""))
        parts = [int(name[1]) for name in names if name]
        found = zip(parts, threaded_map(self.counts, parts, num_threads=_READERS), strict=True)
        return {part: counts for part, counts in found if counts is not None}

    @contextmanager
    def writing(self, part: int, schema: pa.Schema) -> Iterator[_PartFile]:
        """Yields the file of a part, which appears when the block ends without an error."""
        with (
            self._appearing(self._part_path(part)) as stream,
            pq.ParquetWriter(stream, schema, compression="zstd") as writer,
        ):
            file = _PartFile(writer)
            yield file
            file.finish()

    def begin_attempt(self, part: int) -> int:
        """Notes that a worker begins a part; returns how many began it before and did not end it."""
        begun = [name for name in self._names("_bulk/attempts") if name.startswith(f"{part:06d}-")]
        self._system.makedirs(self._path("attempts"), exist_ok=True)
        self._system.pipe_file(self._path(f"attempts/{part:06d}-{secrets.token_hex(4)}"), b"-")
        return len(begun)

    def end_attempts(self, part: int) -> None:
        """Removes the notes of a part that is done."""
        self._forget(f"{part:06d}-")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the figures of a run whose parts are all done."""
        self._write_json("summary.json", summary)

    def _path(self, name: str) -> str:
        return f"{self._root}/_bulk/{name}"

    def _part_path(self, part: int) -> str:
        return f"{self._root}/part-{part:06d}.parquet"

    def _names(self, folder: str) -> list[str]:
        """Returns the names in a folder below the root; no pattern, which a character of the root could be too."""
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def _forget(self, start: str) -> None:
        for name in self._names("_bulk/attempts"):
            if name.startswith(start):
                self._system.rm_file(self._path(f"attempts/{name}"))

    def _check_empty(self) -> None:
        if self._system.isfile(self._root):
            raise ConfigError([f"{self.place}: this is a file, expected a folder"])
        others = [name for name in self._names("") if name != "_bulk"]
        if others:
            raise ConfigError(
                [f"{self.place}: this folder is not empty (it holds {printable(min(others))}); name another"]
            )

    def _write_plan(self, parts: Iterable[list[Item]]) -> int:
        num_parts = 0
        with (
            self._appearing(self._path("plan.parquet")) as stream,
            pq.ParquetWriter(stream, _PLAN_SCHEMA, compression="zstd", write_statistics=False) as writer,
        ):
            for items in parts:
                rows = [{**item._asdict(), "place": os.fsencode(item.place)} for item in items]
                writer.write_table(pa.Table.from_pylist(rows, _PLAN_SCHEMA), row_group_size=len(rows))
                num_parts += 1
        return num_parts

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self._system.cat_file(self._path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise ConfigError([f"{self.place}/_bulk/{name}: not a file of a bulk run; name another folder"]) from error
        return content

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with self._appearing(self._path(name)) as stream:
            stream.write((json.dumps(content, indent=2) + "\n").encode())

    @contextmanager
    def _appearing(self, path: str) -> Iterator[BinaryIO]:
        """Yields a file that is renamed to `path` when the block ends without an error, on any file system."""
        temporary = self._path(f"{secrets.token_hex(8)}.part")
        self._system.makedirs(self._path(""), exist_ok=True)
        try:
            with self._system.open(temporary, "wb") as stream:
                yield stream
            self._system.mv(temporary, path)
        except BaseException:
            if self._system.exists(temporary):
                self._system.rm_file(temporary)
            raise


class _PartFile:
    """Takes the tables of a part, and joins them to row groups of a size that readers like."""

    _MAX_ROWS, _MAX_BYTES = 1024, 64 << 20

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._tables: list[pa.Table] = []
        self._num_rows = self._num_bytes = 0
        self.counts = dict.fromkeys(FIGURES, 0)
        """Figures of what was written."""

    def write(self, table: pa.Table) -> None:
        """Writes a table, at once or with later ones."""
        self._tables.append(table)
        self._num_rows += len(table)
        self._num_bytes += table.nbytes
        self.counts["num_pictures"] += len(table)
        self.counts["num_broken"] += len(table) - table["error"].null_count
        self.counts["num_damaged"] += len(table) - table["damage"].null_count
        self.counts["num_proposals"] += sum(len(chunk.flatten()) for chunk in table["scores"].chunks)
        if self._num_rows >= self._MAX_ROWS or self._num_bytes >= self._MAX_BYTES:
            self._flush()

    def finish(self) -> None:
        """Writes the rest, and the figures into the file's metadata."""
        self._flush()
        self._writer.add_key_value_metadata({_COUNTS: json.dumps(self.counts)})

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables).combine_chunks(), row_group_size=self._MAX_ROWS)
        self._tables, self._num_rows, self._num_bytes = [], 0, 0

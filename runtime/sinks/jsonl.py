"""JSON lines: in a file, with or without rotation, and on the standard output."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from edgerpn.errors import SinkError, check_setting
from edgerpn.files import is_short_enough
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record
from edgerpn.runtime.sinks.sink_queue import OutputConfig
from edgerpn.settings import PATH

STAMP = r"\d{8}T\d{6}\.\d{3}Z"
"""Regular expression of `utc_stamp`."""
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLinesConfig(OutputConfig):
    """JSON lines in a file, with or without rotation, or on the standard output."""

    path: str = field(metadata=PATH)
    """File; - is the standard output. A full file FILE.jsonl becomes FILE.20260131T120000.000Z.jsonl, by UTC."""
    rotate_mb: float = 0.0
    """Size at which a new file begins, millions of bytes; 0: no limit."""
    rotate_minutes: float = 0.0
    """Age at which a new file begins, minutes; 0: no limit."""
    keep: int = 10
    """Number of full files to keep, the newest ones; 0: all."""
    embeddings: Literal["off", "base64"] = "off"
    """Embeddings in the records of frames: none, or as base64 of float32; the model must have them."""

    def __post_init__(self) -> None:
        OutputConfig.__post_init__(self)
        check_setting(bool(self.path), "path", "a file, or -", self.path)
        check_setting(self.rotate_mb >= 0, "rotate_mb", "0 or more", self.rotate_mb)
        check_setting(self.rotate_minutes >= 0, "rotate_minutes", "0 or more", self.rotate_minutes)
        check_setting(self.keep >= 0, "keep", "0 or more", self.keep)
        check_setting(
            self.path != "-" or not self.is_rotating, "path", "a file, because of rotate_mb or rotate_minutes", "-"
        )

    @property
    def is_rotating(self) -> bool:

        return bool(self.rotate_mb or self.rotate_minutes)


class JsonLinesSink:
    """Writes records as lines and renames a full file in one step, so every file holds whole lines at any time.

    With rotation, a file of an earlier run is kept as a full file. Without, a live run continues it, because cameras do
    not show the same again, and a run of files replaces it with its first record.
    """

    config_class = JsonLinesConfig
    needs_is_live = True

    def __init__(self, config: JsonLinesConfig, *, is_live: bool = False) -> None:
        """Opens the file.

        Args:
            config: File, and limits of it.
            is_live: Whether an earlier file is continued.

        Raises:
            SinkError: It cannot be opened.
        """
        self.target = "" if config.path == "-" else config.path
        # A reader that has closed a pipe does not come back.
        self.is_final = config.path == "-"
        self._config = config
        self._path = Path(config.path)
        full = f"{self._path.stem}.{utc_stamp(0)}{self._path.suffix}"
        if config.is_rotating and not is_short_enough(full):
            raise SinkError(
                f"{config.path}: the names of full files, {full}, would be too long (over 255 bytes). "
                "Choose a shorter name"
            )
        self._file = LineFile(config.path, append=config.is_rotating or is_live)
        self._begun_s = time.monotonic()
        if config.is_rotating and self._file.num_bytes:
            self._rotate()

    def write_records(self, records: Sequence[Record]) -> None:
        """Writes lines; begins a new file where this one would become too large or too old."""
        done = 0
        try:
            while done < len(records):
                if self._is_old():
                    self._rotate()
                num_fitting = self._num_fitting(records[done:])
                if not num_fitting:
                    self._rotate()
                    num_fitting = 1
                self._file.write(b"".join(record.line for record in records[done : done + num_fitting]))
                done += num_fitting
        except PartialWriteError as error:
            if self._file.is_stdout:
                # The reader has gone.
                raise
            raise NotDeliveredError(str(error), num_done=done + error.num_lines) from error
        except SinkError as error:
            raise NotDeliveredError(str(error), num_done=done) from error

    def close(self) -> None:
        self._file.close()

    def _is_old(self) -> bool:
        age_s = time.monotonic() - self._begun_s
        return bool(self._file.num_bytes) and 0 < self._config.rotate_minutes * 60 <= age_s

    def _num_fitting(self, records: Sequence[Record]) -> int:
        """Counts the records that fit into the file; an empty file takes at least one."""
        limit = self._config.rotate_mb * 1e6
        if not limit:
            return len(records)
        size = self._file.num_bytes
        for number, record in enumerate(records):
            if size and size + len(record.line) > limit:
                return number
            size += len(record.line)
        return len(records)

    def _rotate(self) -> None:
        """Renames the full file, opens the next one and removes the oldest."""
        try:
            if self._path.exists():
                os.rename(self._path, self._free_name())
            # Opened before the old one is closed: when opening fails, the sink still has a file to write.
            begun = LineFile(self._path, append=True)
        except OSError as error:
            raise SinkError(f"{self._path}: cannot be renamed: {error.strerror or error}") from error
        self._file.close()
        self._file, self._begun_s = begun, time.monotonic()
        self._remove_old()

    def _free_name(self) -> Path:
        while True:
            stamp = utc_stamp(time.time())
            path = self._path.with_name(f"{self._path.stem}.{stamp}{self._path.suffix}")
            if not path.exists():
                return path
            time.sleep(0.001)

    def _remove_old(self) -> None:
        if not self._config.keep:
            return
        name = re.compile(re.escape(self._path.stem) + r"\." + STAMP + re.escape(self._path.suffix))
        full = sorted(path for path in self._path.parent.iterdir() if name.fullmatch(path.name))
        for path in full[: -self._config.keep]:
            # A file that is gone or protected is not worth losing records.
            with contextlib.suppress(OSError):
                path.unlink()


def utc_stamp(seconds: float) -> str:
    """Formats seconds since the epoch for file names: 20260131T120000.000Z, which sorts by time."""
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


class LineFile:
    """A file, or the standard output, that holds whole lines only, also when the disk is full."""

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        """Opens the file at once, so that a wrong path shows before the work.

        Args:
            path: File to write; or "-" for the standard output.
            append: Whether to keep the whole lines of an existing file; else the first call of `write` replaces it, so
                that it stays after a failure before.

        Raises:
            SinkError: It cannot be opened.
        """
        self.is_stdout = str(path) == "-"
        self.name = "standard output" if self.is_stdout else str(path)
        self.num_bytes = 0
        self._is_closed = False
        # A pipe or a device cannot be cut.
        self._replaces = not (append or self.is_stdout) and os.path.isfile(path)
        self._descriptor = self._open(path, append)

    def write(self, lines: bytes) -> None:
        """Writes whole lines.

        Raises:
            PartialWriteError: Only the first of them fitted.
        """
        done = 0
        try:
            if self._replaces:
                os.ftruncate(self._descriptor, 0)
                self._replaces = False
            while done < len(lines):
                done += os.write(self._descriptor, lines[done:])
        except OSError as error:
            kept = lines.rfind(b"\n", 0, done) + 1
            self.num_bytes += kept
            self._cut_off()
            message = f"{self.name}: cannot be written: {error.strerror or error}"
            raise PartialWriteError(message, num_lines=lines.count(b"\n", 0, kept)) from error
        self.num_bytes += done

    def close(self) -> None:
        """Closes the file; does nothing the second time."""
        if not self._is_closed:
            self._is_closed = True
            if not self.is_stdout:
                os.close(self._descriptor)

    def _open(self, path: str | os.PathLike[str], append: bool) -> int:
        try:
            if self.is_stdout:
                sys.stdout.flush()
                return sys.stdout.fileno()
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if append and os.path.isfile(path):
                self.num_bytes = _whole_bytes(path)
                os.truncate(path, self.num_bytes)
            mode = os.O_APPEND if append else 0
            return os.open(path, os.O_WRONLY | os.O_CREAT | mode | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise SinkError(f"{self.name}: cannot be opened for writing: {error.strerror or error}") from error

    def _cut_off(self) -> None:
        """Removes the part of a line at the end."""
        if self.is_stdout:
            # Python flushes this stream once more at exit, and would complain again about a broken pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)
            return
        try:
            os.ftruncate(self._descriptor, self.num_bytes)
            os.lseek(self._descriptor, self.num_bytes, os.SEEK_SET)
        except OSError:
            # A pipe or device cannot be cut; the error at hand says what is wrong.
            return


class PartialWriteError(SinkError):
    """A file did not take all lines.

    Attributes:
        num_lines: How many it took, from the first.
    """

    def __init__(self, message: str, *, num_lines: int) -> None:
        """Keeps the number of lines that were written all the same."""
        super().__init__(message)
        self.num_lines = num_lines


def _whole_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file up to the end of its last whole line."""
    end = os.path.getsize(path)
    with open(path, "rb") as file:
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0

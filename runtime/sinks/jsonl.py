"""JSON lines: in a file, with or without rotation, and on the standard output."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgerpn.errors import SinkError
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record
from edgerpn.runtime.sinks.sink import LineFile, PartialWriteError
from edgerpn.runtime.sinks.sink_queue import OutputConfig, check_setting

STAMP = r"\d{8}T\d{6}\.\d{3}Z"
"""Regular expression of `utc_stamp`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLinesConfig(OutputConfig):
    """JSON lines in a file, with or without rotation, or on the standard output."""

    path: str
    """File; - is the standard output. A full file FILE.jsonl becomes FILE.20260131T120000.000Z.jsonl, by UTC."""
    rotate_mb: float = 0.0
    """Size from which a new file begins, millions of bytes; 0: size does not matter."""
    rotate_minutes: float = 0.0
    """Age from which a new file begins, minutes; 0: age does not matter."""
    keep: int = 10
    """Full files that are kept, the newest; 0: all."""

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
        """Whether the file is ever full."""
        return bool(self.rotate_mb or self.rotate_minutes)


class RotatingLinesSink:
    """Writes records as lines; a full file is renamed in one step, so every file holds whole lines at any time.

    With rotation, what an earlier run left under the name is kept as a full file; without, it is replaced.
    """

    config_class = JsonLinesConfig

    def __init__(self, config: JsonLinesConfig) -> None:
        """Opens the file.

        Raises:
            SinkError: It cannot be opened.
        """
        self.target = "" if config.path == "-" else config.path
        # Nobody comes back to read what is written to a pipe.
        self.is_final = config.path == "-"
        self._config = config
        self._path = Path(config.path)
        self._file = LineFile(config.path, append=config.is_rotating)
        self._begun_s = time.monotonic()
        if config.is_rotating and self._file.num_bytes:
            self._rotate()

    def write_records(self, records: Sequence[Record]) -> None:
        """Writes lines, and begins a new file before the one that would make this one too large or too old."""
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
                # Nobody reads any more.
                raise
            raise NotDeliveredError(str(error), num_done=done + error.num_lines) from error
        except SinkError as error:
            raise NotDeliveredError(str(error), num_done=done) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _is_old(self) -> bool:
        age_s = time.monotonic() - self._begun_s
        return bool(self._file.num_bytes) and 0 < self._config.rotate_minutes * 60 <= age_s

    def _num_fitting(self, records: Sequence[Record]) -> int:
        """How many of the records fit into the file; a file takes one at least."""
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
        """Gives the full file its name, removes the oldest, begins the next."""
        try:
            if self._path.exists():
                os.rename(self._path, self._free_name())
            # Opened before the old one is closed: when that fails, the sink goes on under the old name's file.
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
            # Somebody else may have removed it, or may not want it removed; neither is worth losing records.
            with contextlib.suppress(OSError):
                path.unlink()


def utc_stamp(seconds: float) -> str:
    """Seconds since the epoch as a part of a file's name: 20260131T120000.000Z, which sorts by time."""
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"

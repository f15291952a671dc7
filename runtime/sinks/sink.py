"""Where results go: the contract of a sink, and the JSON lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.record import json_line

_BUFFER_BYTES = 1 << 16


class Sink(Protocol):
    """Takes the results of one run, in order, from one thread."""

    @property
    def target(self) -> str:
        """Where the results are written, for the summary; empty when nothing is left behind."""
        ...

    def write(self, result: Result) -> None:
        """Takes one result; it may keep the frame but must not change it.

        Raises:
            SinkError: It cannot be written.
        """
        ...

    def event(self, event: Event) -> None:
        """Takes what the source said between two frames; most sinks ignore it."""
        ...

    def close(self) -> None:
        """Finishes what is open, also after an error elsewhere; does nothing the second time.

        Raises:
            SinkError: What was written is not whole.
        """
        ...


class LineFile:
    """A file, or the standard output, that only ever holds whole lines, also when the disk is full."""

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        """Opens it at once, so that a wrong path shows before the work.

        Args:
            path: File to write; or "-" for the standard output.
            append: Keep the whole lines of a file that is there, instead of replacing it.

        Raises:
            SinkError: It cannot be opened.
        """
        self.is_stdout = str(path) == "-"
        self.name = "standard output" if self.is_stdout else str(path)
        self.num_bytes = 0
        self._is_closed = False
        self._descriptor = self._open(path, append)

    def write(self, lines: bytes) -> None:
        """Writes whole lines.

        Raises:
            PartialWriteError: Only the first of them fitted.
        """
        done = 0
        try:
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
            if append and os.path.exists(path):
                self.num_bytes = _whole_bytes(path)
                os.truncate(path, self.num_bytes)
            mode = os.O_APPEND if append else os.O_TRUNC
            return os.open(path, os.O_WRONLY | os.O_CREAT | mode | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise SinkError(f"{self.name}: cannot be opened for writing: {error.strerror or error}") from error

    def _cut_off(self) -> None:
        """Leaves only whole lines of what was written in part."""
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
    """Lines that a file did not take.

    Attributes:
        num_lines: How many it took, from the first.
    """

    def __init__(self, message: str, *, num_lines: int) -> None:
        """Says why, and how many lines were written all the same."""
        super().__init__(message)
        self.num_lines = num_lines


class JsonLinesSink:
    """Writes one line of JSON for each result and event; see `edgerpn.runtime.sinks.record`.

    The file only ever holds whole lines: it is written in blocks that end with a line, and a block that did not
    fit on the disk is cut off again.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_live: bool = False) -> None:
        """Opens the file at once, so that a wrong path shows before the work.

        Args:
            path: File to write, replaced if it is there; or "-" for the standard output.
            is_live: Write every line at once, for somebody who watches.
        """
        self._file = LineFile(path)
        self.target = "" if self._file.is_stdout else str(path)
        self._limit_bytes = 1 if is_live or self._file.is_stdout else _BUFFER_BYTES
        self._pending = bytearray()

    def write(self, result: Result) -> None:
        """Writes one line."""
        self._add(json_line(result))

    def event(self, event: Event) -> None:
        """Writes one line."""
        self._add(json_line(event))

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        try:
            self._flush()
        finally:
            self._file.close()

    def _add(self, line: bytes) -> None:
        self._pending += line
        if len(self._pending) >= self._limit_bytes:
            self._flush()

    def _flush(self) -> None:
        lines = bytes(self._pending)
        self._pending.clear()
        self._file.write(lines)


def _whole_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file up to the end of its last whole line."""
    end = os.path.getsize(path)
    with open(path, "rb") as file:
        while end:
            start = max(0, end - _BUFFER_BYTES)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0

"""Where results go: the contract of a sink, and the JSON lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.record import json_line

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


class JsonLinesSink:
    """Writes one line of JSON for each result and event; see `edgerpn.runtime.record`.

    The file only ever holds whole lines: it is written in blocks that end with a line, and a block that did not
    fit on the disk is cut off again.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_live: bool = False) -> None:
        """Opens the file at once, so that a wrong path shows before the work.

        Args:
            path: File to write, replaced if it is there; or "-" for the standard output.
            is_live: Write every line at once, for somebody who watches.
        """
        self.is_stdout = str(path) == "-"
        self.target = "" if self.is_stdout else str(path)
        self._name = "standard output" if self.is_stdout else str(path)
        self._limit_bytes = 1 if is_live or self.is_stdout else _BUFFER_BYTES
        self._pending = bytearray()
        self._num_written = 0
        self._is_closed = False
        self._descriptor = self._open(path)

    def write(self, result: Result) -> None:
        """Writes one line."""
        self._add(json_line(result))

    def event(self, event: Event) -> None:
        """Writes one line."""
        self._add(json_line(event))

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._flush()
        finally:
            if not self.is_stdout:
                os.close(self._descriptor)

    def _open(self, path: str | os.PathLike[str]) -> int:
        try:
            if self.is_stdout:
                sys.stdout.flush()
                return sys.stdout.fileno()
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise SinkError(f"{self._name}: cannot be opened for writing: {error.strerror or error}") from error

    def _add(self, line: bytes) -> None:
        self._pending += line
        if len(self._pending) >= self._limit_bytes:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError as error:
            self._cut_off(data[:done])
            raise SinkError(f"{self._name}: cannot be written: {error.strerror or error}") from error
        self._num_written += done

    def _cut_off(self, part: bytes) -> None:
        """Leaves only the whole lines of a block that was written in part."""
        self._num_written += part.rfind(b"\n") + 1
        if self.is_stdout:
            # Python flushes this stream once more at exit, and would complain again about a broken pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)
            return
        try:
            os.ftruncate(self._descriptor, self._num_written)
        except OSError:
            # A pipe or device cannot be cut; the error at hand says what is wrong.
            return

"""Samples power, clocks, temperatures and throttling while a model runs.

tegrastats and nvidia-smi run as children, each with a thread that reads its lines; another thread reads the kernel's
files. None of them takes part in the work that is measured.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from edgerpn.machine import die_with_parent_hook, end_child
from edgerpn.runtime.bench import nvidia_smi, tegrastats
from edgerpn.runtime.bench.reading import Reading
from edgerpn.runtime.bench.sysfs import SYS, SysfsProbe
from edgerpn.runtime.threads import NoThreadError, start_thread

_START_S = 10.0
_END_S = 2.0
_LINE_BYTES = 1 << 16

Parse = Callable[[str, float], Reading | None]


class Sampler:
    """Context manager that samples with every tool that this machine has."""

    def __init__(self, interval_ms: int, *, sys_root: Path = SYS, search_path: str | None = None) -> None:
        """Finds the tools.

        Args:
            interval_ms: Time between two readings of a tool, milliseconds.
            sys_root: Folder of the file system sysfs.
            search_path: Folders of the tools, as in PATH; None: PATH.
        """
        self._interval_ms = interval_ms
        self._readings: list[Reading] = []
        self._change = threading.Condition()
        self._num_awaited = 0
        self._is_stopping = threading.Event()
        self._children: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self._tegrastats = shutil.which("tegrastats", path=search_path)
        self._nvidia_smi = shutil.which("nvidia-smi", path=search_path)
        self._probe = SysfsProbe(sys_root, has_tegrastats=self._tegrastats is not None)
        self.tools: list[str] = []
        """Tools that gave at least one reading, in the order in which they did."""

    def __enter__(self) -> Sampler:
        """Starts the tools, and waits for the first reading of each, so that none starts beside the work."""
        try:
            if self._tegrastats is not None:
                words = [self._tegrastats, "--interval", str(self._interval_ms)]
                self._start("tegrastats", words, tegrastats.parse_line)
            if self._nvidia_smi is not None:
                words, fields = nvidia_smi.command(self._nvidia_smi, self._interval_ms)
                self._start("nvidia-smi", words, lambda line, at_s: nvidia_smi.parse_line(line, fields, at_s))
            self._run(self._read_files)
            with self._change:
                self._change.wait_for(lambda: self._num_awaited <= 0, _START_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def between(self, start_s: float, end_s: float) -> list[Reading]:
        """Returns the readings of a span of `time.monotonic()`, in order."""
        with self._change:
            found = [reading for reading in self._readings if start_s <= reading.at_s <= end_s]
        return sorted(found, key=lambda reading: reading.at_s)

    def _start(self, tool: str, words: Sequence[str], parse: Parse) -> None:
        """Starts a child; one that cannot be started only gives no readings."""
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                preexec_fn=die_with_parent_hook(),
            )
        except OSError:
            return
        self._children.append(child)
        self._num_awaited += 1
        assert child.stdout is not None
        try:
            self._run(lambda: self._read_lines(tool, child, parse))
        except NoThreadError:
            child.stdout.close()
            raise

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="edgerpn-bench-sampler", daemon=True)
        start_thread(thread)
        # Not before, because a thread that did not start must not be joined.
        self._threads.append(thread)

    def _read_lines(self, tool: str, child: subprocess.Popen[str], parse: Parse) -> None:
        assert child.stdout is not None
        with child.stdout as lines:
            is_awaited = True
            while line := lines.readline(_LINE_BYTES):
                reading = parse(line, time.monotonic())
                self._add(tool, reading)
                if is_awaited and reading is not None:
                    is_awaited = False
                    self._end_wait()
            if is_awaited:
                self._end_wait()

    def _end_wait(self) -> None:
        with self._change:
            self._num_awaited -= 1
            self._change.notify_all()

    def _read_files(self) -> None:
        while True:
            self._add("sysfs", self._probe.read())
            if self._is_stopping.wait(self._interval_ms / 1e3):
                return

    def _add(self, tool: str, reading: Reading | None) -> None:
        if reading is None:
            return
        with self._change:
            self._readings.append(reading)
            if tool not in self.tools:
                self.tools.append(tool)

    def _stop(self) -> None:
        self._is_stopping.set()
        for child in self._children:
            child.terminate()
        for child in self._children:
            _wait(child)
        for thread in self._threads:
            thread.join(_END_S)


def _wait(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        end_child(child)

"""Steps in processes of their own, each with a time limit, so that no step can end the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerpn import files
from edgerpn.machine import end_child

Status = Literal["done", "skipped", "failed"]
Figures = dict[str, Any]
CHILD = ("-m", "benchmarks.gpu.child")
"""Arguments of Python that start the process of a step."""
_LINES = 15
"""Last lines of a failed process that are kept."""


@dataclass
class Record:
    """The result of a step."""

    name: str
    status: Status
    """failed: it broke off, or its check does not hold."""
    reason: str = ""
    """Why it was skipped or failed."""
    seconds: float = 0.0
    command: str = ""
    """The command, without folders."""
    figures: Figures = field(default_factory=dict)
    """Measurements, also of a step that failed later."""
    output: list[str] = field(default_factory=list)
    """Last lines that a failed process printed."""

    @property
    def is_done(self) -> bool:
        """True if later steps may build on it."""
        return self.status == "done"


class Session:
    """Runs steps, prints a line for each and keeps their records. Threads may share it."""

    def __init__(
        self,
        work: Path,
        *,
        minutes: float,
        names: dict[str, str],
        on_record: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the clock.

        Args:
            work: Folder for everything that the steps write.
            minutes: Time for all steps; when it is over, the rest is skipped.
            names: Paths, and their names in the commands that are shown.
            on_record: Called when a step has ended, so that its result can be written at once.
        """
        self.work = work
        self.records: list[Record] = []
        self.minutes = minutes
        self._end_s = time.monotonic() + 60 * minutes
        self._names = {str(work): "WORK", **names}
        self._on_record = on_record

    def edgerpn(
        self,
        name: str,
        words: Sequence[object],
        *,
        why_not: str | None = None,
        limit_s: float = 120,
        read: Callable[[], Figures] | None = None,
        threads: int | None = None,
    ) -> Record:
        """Runs a step that is an `edgerpn` command; an exit status other than 0 is a failure.

        Args:
            name: Of the step.
            words: The arguments of `edgerpn`.
            why_not: Reason to skip it; None: run it.
            limit_s: Longest time.
            read: Returns the figures from the files that the command wrote, also if it failed.
            threads: Of OpenMP; None: as in the environment.
        """
        return self._run(name, [sys.executable, "-m", "edgerpn", *map(str, words)], why_not, limit_s, read, threads)

    def child(
        self, name: str, step: str, request: Figures, *, why_not: str | None = None, limit_s: float = 90
    ) -> Record:
        """Runs a step in `benchmarks.gpu.child`, which reports whether it is done, skipped or failed.

        The process prints where each of its threads is, twice before its limit; the record of a failure has the end.
        """
        limit_s = min(limit_s, self._end_s - time.monotonic())
        slug = "".join(letter if letter.isalnum() else "-" for letter in name)
        asked, told = self.work / f"{slug}.request.json", self.work / f"{slug}.result.json"
        told.unlink(missing_ok=True)
        asked.write_text(json.dumps({**request, "limit_s": limit_s}), encoding="utf-8")
        words = [sys.executable, *CHILD, step, str(asked), str(told)]
        return self._run(name, words, why_not, limit_s, lambda: _read(told), None)

    def skip(self, name: str, reason: str) -> None:
        """Records a step, or several, that are not done."""
        self._keep(Record(name=name, status="skipped", reason=reason))

    def _run(
        self,
        name: str,
        words: list[str],
        why_not: str | None,
        limit_s: float,
        read: Callable[[], Figures] | None,
        threads: int | None,
    ) -> Record:
        left_s = self._end_s - time.monotonic()
        if why_not is None and left_s < 5:
            why_not = "out of time: raise --minutes"
        if why_not is not None:
            return self._keep(Record(name=name, status="skipped", reason=why_not))
        start = time.monotonic()
        status, lines = run_process(words, min(limit_s, left_s), self._environment(threads))
        record = Record(name=name, status="done", seconds=round(time.monotonic() - start, 2), command=self._show(words))
        record.figures = read() if read is not None else {}
        said = record.figures.pop("status", None), record.figures.pop("reason", "")
        if status is None:
            record.status, record.reason = "failed", f"stopped after {min(limit_s, left_s):.0f} s"
        elif status != 0 and said[0] in (None, "running", "done"):
            end = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            record.status, record.reason = "failed", f"{end}: {_reason(lines)}"
        elif said[0] in ("skipped", "failed"):
            record.status, record.reason = said
        if record.status == "failed":
            record.output = [self._plain(line) for line in lines[-_LINES:]]
        record.reason = self._plain(record.reason)
        return self._keep(record)

    def _environment(self, threads: int | None) -> dict[str, str]:
        changes = {"PYTHONUNBUFFERED": "1"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        return {**os.environ, **changes}

    def _keep(self, record: Record) -> Record:
        self.records.append(record)
        reason = f": {record.reason.splitlines()[0][:200]}" if record.reason else ""
        print(f"{record.status:<8} {record.seconds:6.1f} s  {record.name}{reason}", flush=True)
        self._on_record()
        return record

    def _show(self, words: list[str]) -> str:
        module = words[1:3] == ["-m", "edgerpn"]
        shown = ["edgerpn", *words[3:]] if module else ["python", *words[1 : len(CHILD) + 2]]
        return self._plain(" ".join(shown))

    def _plain(self, text: str) -> str:
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text


class Skip(Exception):  # noqa: N818 - not an error: the step has nothing to do here
    """The step cannot be done here; the message gives the reason."""


class Notes:
    """Figures of a step, written to a file with every change."""

    def __init__(self, file: Path) -> None:
        """Records that the step is running."""
        self._file = file
        self._content: dict[str, Any] = {}
        self._broken: list[str] = []
        self.end("running")

    def __call__(self, **figures: Any) -> None:
        self._content.update(figures)
        self._write()

    def broken(self, text: str) -> None:
        """Reports a check that does not hold; the step continues and ends as failed."""
        self._broken.append(text)

    def end(self, status: str, reason: str = "") -> None:
        """Records the end of the step."""
        if status == "done" and self._broken:
            status, reason = "failed", "; ".join(self._broken)
        self._content |= {"status": status, "reason": reason}
        self._write()

    def _write(self) -> None:
        files.write_text(self._file, json.dumps(self._content))


def run_process(words: Sequence[str], limit_s: float, environment: dict[str, str]) -> tuple[int | None, list[str]]:
    """Runs a process with all its children; returns its exit status (None: stopped at the limit) and its lines."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True,
    )  # fmt: skip
    status: int | None = None
    try:
        output, _ = process.communicate(timeout=limit_s)
        status = process.returncode
    except subprocess.TimeoutExpired as error:
        # Not the rest of it: a process that hangs in a driver keeps its output open even when it is killed.
        output = error.output or b""
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        end_child(process)
        if process.stdout is not None:
            process.stdout.close()
    return status, [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]


def _reason(lines: list[str]) -> str:
    """Returns the message of a command of ours, or the last line of a traceback."""
    said = [line for line in lines if line.startswith("error: ")]
    return said[-1].removeprefix("error: ") if said else (lines[-1] if lines else "it printed nothing")


def _read(file: Path) -> Figures:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        return {}

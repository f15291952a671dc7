"""Progress of a build: the share that is done, from the library's nested phases, and its display on stderr.

A phase has steps, and a step may hold further phases, as TensorRT's IProgressMonitor reports them. TensorRT does not
name the step that a phase belongs to; the display assumes the one after those already complete. The share of the whole
never decreases.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from edgerpn.progress import progress


@dataclass(slots=True)
class _Phase:
    parent: str | None
    num_steps: int
    started_s: float
    done: int = 0


class PhaseTracker:
    """Follows the phases of one build; its methods may be called from any thread."""

    def __init__(self, report: Callable[[str, float], None], *, interval_s: float = 0.2) -> None:
        """Calls `report(phase name, share 0..1)` at most once in `interval_s` seconds."""
        self._report = report
        self._interval_s = interval_s
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._share = 0.0
        self._reported_s = float("-inf")
        self.seconds: dict[str, float] = {}
        """Seconds by name of phases that ended; repeated ones are added up, and outer ones include inner ones."""

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent=parent, num_steps=max(num_steps, 1), started_s=time.monotonic())
            self._update(name)

    def step(self, name: str, step: int) -> None:
        """Completes a step of a phase, counted from 0."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._update(name)

    def finish(self, name: str) -> None:
        """Ends a phase, perhaps before all of its steps."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None:
                seconds = self.seconds.get(name, 0.0) + time.monotonic() - phase.started_s
                self.seconds[name] = round(seconds, 4)

    def _update(self, name: str) -> None:
        self._share = max(self._share, self._share_of_whole(name))
        now = time.monotonic()
        if now - self._reported_s >= self._interval_s:
            self._reported_s = now
            self._report(name, self._share)

    def _share_of_whole(self, name: str) -> float:
        """Returns the share of the outermost phase that is done when the current step is in phase `name`."""
        share, current = 0.0, self._phases.get(name)
        seen = 0
        while current is not None and seen <= len(self._phases):
            share = min((current.done + share) / current.num_steps, 1.0)
            current = self._phases.get(current.parent) if current.parent is not None else None
            seen += 1
        return share


class ProgressDisplay:
    """Context manager that shows phase and share of one build on stderr: a bar on a terminal, else a line at times."""

    def __init__(self, label: str, *, interval_s: float = 10.0) -> None:
        """Names the build `label`; without a bar, a line is written every `interval_s` seconds."""
        self._label = label
        self._interval_s = interval_s
        self._has_bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
        self._bar_context = progress(100, label, unit="%")
        self._started_s = self._written_s = time.monotonic()
        self._phase, self._share, self._shown = "starting", 0.0, 0

    def __enter__(self) -> ProgressDisplay:
        self._bar = self._bar_context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar_context.__exit__(kind, error, traceback)

    def event(self, event: dict[str, Any]) -> None:
        """Takes an event of the child process; those of other kinds than `progress` change nothing."""
        if event["event"] != "progress":
            return
        self._phase, self._share = event["phase"], max(self._share, event["share"])
        percent = int(100 * self._share)
        self._bar.update(percent - self._shown)
        self._shown = percent
        self._bar.set_postfix_str(self._phase)

    def tick(self) -> None:
        """Shows that time passes; called about twice a second."""
        now = time.monotonic()
        if self._has_bar:
            self._bar.set_postfix_str(self._phase)
        elif now - self._written_s >= self._interval_s:
            self._written_s = now
            sys.stderr.write(self.line(now - self._started_s) + "\n")
            sys.stderr.flush()

    def line(self, elapsed_s: float) -> str:
        """Returns the state after `elapsed_s` seconds in one line, with the time left once it can be estimated."""
        text = f"{self._label}: {self._share:.0%}, {self._phase}, {elapsed_s:.0f} s"
        if 0.02 <= self._share < 1:
            text += f", about {elapsed_s * (1 - self._share) / self._share:.0f} s left"
        return text

"""How far a build is: nested phases of known length, as TensorRT's IProgressMonitor tells them.

A phase has steps, and a step may hold further phases. TensorRT does not say which step a phase belongs to; it is taken
to be the one after those already complete. The share of the whole never goes back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


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
        """Seconds by phase name, of phases that ended; repeated ones are added up, and outer ones hold inner ones."""

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent=parent, num_steps=max(num_steps, 1), started_s=time.monotonic())
            self._tell(name)

    def step(self, name: str, step: int) -> None:
        """A step of a phase, counted from 0, is complete."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._tell(name)

    def finish(self, name: str) -> None:
        """A phase ends, perhaps before all of its steps."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None:
                seconds = self.seconds.get(name, 0.0) + time.monotonic() - phase.started_s
                self.seconds[name] = round(seconds, 4)

    def _tell(self, name: str) -> None:
        self._share = max(self._share, self._share_of_whole(name))
        now = time.monotonic()
        if now - self._reported_s >= self._interval_s:
            self._reported_s = now
            self._report(name, self._share)

    def _share_of_whole(self, name: str) -> float:
        """The share of the outermost phase that is done when the current step is in phase `name`."""
        share, current = 0.0, self._phases.get(name)
        seen = 0
        while current is not None and seen <= len(self._phases):
            share = min((current.done + share) / current.num_steps, 1.0)
            current = self._phases.get(current.parent) if current.parent is not None else None
            seen += 1
        return share

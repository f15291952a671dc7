"""How far a build is, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

from edgerpn.progress import progress


class Display:
    """Context manager that shows phases and share of one build on stderr; never silent for long."""

    def __init__(self, label: str, *, interval_s: float = 10.0) -> None:
        """Names the build `label`; without a bar, a line comes every `interval_s` seconds."""
        self._label = label
        self._interval_s = interval_s
        self._has_bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
        self._bar_context = progress(100, label, unit="%")
        self._started_s = self._told_s = time.monotonic()
        self._phase, self._share, self._shown = "starting", 0.0, 0

    def __enter__(self) -> Display:
        """Shows the bar."""
        self._bar = self._bar_context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the bar."""
        self._bar_context.__exit__(kind, error, traceback)

    def event(self, event: dict[str, Any]) -> None:
        """Takes an event of the child; only `progress` moves anything."""
        if event["event"] != "progress":
            return
        self._phase, self._share = event["phase"], max(self._share, event["share"])
        percent = int(100 * self._share)
        self._bar.update(percent - self._shown)
        self._shown = percent
        self._bar.set_postfix_str(self._phase)

    def tick(self) -> None:
        """Shows that time passes; called twice a second or so."""
        now = time.monotonic()
        if self._has_bar:
            self._bar.set_postfix_str(self._phase)
        elif now - self._told_s >= self._interval_s:
            self._told_s = now
            sys.stderr.write(self.line(now - self._started_s) + "\n")
            sys.stderr.flush()

    def line(self, elapsed_s: float) -> str:
        """The state after `elapsed_s` seconds in one line, with an estimate once there is something to go by."""
        text = f"{self._label}: {self._share:.0%}, {self._phase}, {elapsed_s:.0f} s"
        if 0.02 <= self._share < 1:
            text += f", about {elapsed_s * (1 - self._share) / self._share:.0f} s left"
        return text

"""The parent's side of a build's child process: start it, follow its events, and tell how it ended.

A builder can be killed for want of memory, or crash inside the library; in a process of its own that is an answer like
any other. The child has a session of its own, so that Ctrl-C reaches only the parent, which then kills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgerpn.export.engine.build_config import DEFAULT_STALL_S
from edgerpn.export.engine.compile import MEMORY_PATTERN
from edgerpn.export.engine.watchdog import Watchdog, is_memory_short

MAX_LINES = 1000
"""Log lines kept from the start of a build, and as many from its end."""
TAIL_BYTES = 4000
_TICK_S = 0.5
_KILL_WAIT_S = 10.0
"""How long a killed child may take to go: in a call of the driver that never returns, not even SIGKILL ends it."""


@dataclass(slots=True)
class LogLines:
    """The library's log: the first and the last lines, and how many were left out between them."""

    first: list[dict[str, str]] = field(default_factory=list)
    """Severity and text of each of the first lines."""
    last: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    """The same of the last lines."""
    num_lines: int = 0
    """Lines that came."""

    def add(self, severity: str, text: str) -> None:
        """Keeps a line."""
        self.num_lines += 1
        (self.first if len(self.first) < MAX_LINES else self.last).append({"severity": severity, "text": text})

    def lines(self) -> list[dict[str, str]]:
        """What was kept, in order."""
        return [*self.first, *self.last]

    def errors(self, limit: int) -> list[str]:
        """The last `limit` errors."""
        return self._texts(("error", "internal_error"), limit)

    def complaints(self, limit: int) -> list[str]:
        """The last `limit` errors, or the last warnings when there are none, which may say why it failed."""
        return self.errors(limit) or self._texts(("warning",), limit)

    def _texts(self, severities: tuple[str, ...], limit: int) -> list[str]:
        return [line["text"].strip() for line in self.lines() if line["severity"] in severities][-limit:]


@dataclass(slots=True)
class Outcome:
    """How a child process ended."""

    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last event of each kind but `log`, by kind."""
    log: LogLines = field(default_factory=LogLines)
    """What the library logged."""
    status: int = 0
    """Exit status; -N when signal N ended it."""
    printed: str = ""
    """The end of what it printed."""
    was_oom_killed: bool = False
    """Whether the kernel counted a process killed for want of memory meanwhile."""
    stood_still_s: float | None = None
    """Seconds without a word and without CPU time after which it was ended from here; nothing when it was not."""
    was_memory_short: bool = False
    """Whether memory was short when it stood still."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether it failed because memory ran out, as far as can be told.

        Warnings do not count: a kernel that needs more memory than there is gets one, and the build goes on without it.
        Standing still counts only when memory was short or the library complained of it: with less memory asked for,
        the next try may get through, while a library that hangs for another reason would only hang again.
        """
        failed = self.events.get("failed", {})
        if "built" in self.events or failed.get("kind") in ("write", "dependency"):
            return False
        said = "\n".join((*self.log.errors(20), self.printed, failed.get("message", "")))
        if failed.get("kind") == "memory" or MEMORY_PATTERN.search(said) is not None:
            return True
        return self.was_memory_short if self.stood_still_s is not None else self.status == -signal.SIGKILL

    def describe_end(self) -> str:
        """How it ended, for people: the error that it told, or the signal that ended it, and in which phase."""
        if "failed" in self.events:
            return str(self.events["failed"]["message"])
        phase = self.events.get("progress", {}).get("phase", "the start")
        if self.stood_still_s is not None:
            memory = " with memory short" if self.was_memory_short else ""
            return (
                f"the builder stood still{memory}: it said nothing and used no CPU time for {self.stood_still_s:g} s, "
                f"and was ended; phase: {phase}"
            )
        if self.status == -signal.SIGKILL:
            by = (
                "the kernel, because memory ran out"
                if self.was_oom_killed
                else "the system for want of memory, or by hand"
            )
            return f"the builder was killed (SIGKILL) by {by}; phase: {phase}"
        if self.status < 0:
            return f"the library crashed ({signal.Signals(-self.status).name}); phase: {phase}"
        return f"the builder ended with status {self.status} and no result; phase: {phase}"


def run_worker(
    request: dict[str, Any],
    *,
    on_event: Callable[[dict[str, Any]], None],
    tick: Callable[[], None],
    stall_s: float = DEFAULT_STALL_S,
) -> Outcome:
    """Runs one request in a child process; blocks until it ended, or stood still. It does not outlive this call.

    Args:
        request: See `edgerpn.export.engine.worker`.
        on_event: Called with every event but log lines.
        tick: Called at least twice a second.
        stall_s: Seconds without an event and without CPU time after which the child is killed; 0: never.

    Raises:
        OSError: No process can be started.
    """
    outcome = Outcome()
    kills_before = _oom_kills()
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as events, tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgerpn.export.engine.worker", str(writing), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            _send_request(process, request)
            if _follow(events, outcome, on_event, tick, Watchdog(process.pid, stall_s)):
                outcome.status = process.wait()
            else:
                outcome.stood_still_s, outcome.was_memory_short = stall_s, is_memory_short(process.pid)
        finally:
            _end(process)
        outcome.printed = _tail(printed)
    outcome.was_oom_killed = _oom_kills() > kills_before
    return outcome


def _send_request(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write((json.dumps(request) + "\n").encode())
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it is dead already; its exit status says why


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the child if it still is there, and waits until it is gone."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_WAIT_S)
    if process.stdin is not None:
        process.stdin.close()


def _follow(
    events: IO[bytes],
    outcome: Outcome,
    on_event: Callable[[dict[str, Any]], None],
    tick: Callable[[], None],
    watchdog: Watchdog,
) -> bool:
    """Takes events until the child closes its end, which its death does too; False when it stands still instead."""
    rest = b""
    # Not `select`, which takes no descriptor from 1024 on.
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while True:
            tick()
            if not selector.select(_TICK_S):
                if watchdog.has_stopped():
                    return False
                continue
            watchdog.heard()
            data = events.read(1 << 16)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _take(json.loads(line), outcome, on_event)


def _take(event: dict[str, Any], outcome: Outcome, on_event: Callable[[dict[str, Any]], None]) -> None:
    if event["event"] == "log":
        outcome.log.add(event["severity"], event["text"])
    else:
        outcome.events[event["event"]] = event
        on_event(event)


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    return file.read().decode(errors="replace").strip()


def _oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

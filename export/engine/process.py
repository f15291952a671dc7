"""The child process of a build, seen from its parent: starts it, follows its events, and describes how it ended.

A library can run out of memory, crash or hang; in a process of its own each of these becomes an error like any other.
The child has a session of its own, so that Ctrl-C reaches only the parent, which then kills it.

TensorRT-RTX 1.7 can hang when memory runs out: it waits for a task of its thread pool, whose threads could not be
started, and reports no error. So a watchdog kills a child that neither sends an event nor uses CPU time nor waits for a
disk. Timing kernels on a GPU uses CPU time too, because the CPU launches them and waits. The watchdog reads /proc; on
systems without it, it never acts.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgerpn.errors import BuildError
from edgerpn.export.engine.options import DEFAULT_STALL_S
from edgerpn.machine import cgroup_free_bytes, child_environment, end_child, kib_fields, module_command, python_problem

MAX_LINES = 1000
"""Log lines kept from the start of a build, and as many from its end."""
TAIL_BYTES = 4000
MEMORY_PATTERN = re.compile(
    r"out ?of ?memory|bad_alloc|could not be allocated|cannot allocate memory|cudaErrorMemoryAllocation", re.IGNORECASE
)
"""Messages of the libraries when memory, of the host or the GPU, runs out."""
_TICK_S = 0.5
_KILL_WAIT_S = 10.0
"""Longest wait for a child that was killed: a call of the driver may never return."""
_END_WAIT_S = DEFAULT_STALL_S
"""Longest wait for a child that has closed its files: it frees the memory of a build, and the GPU."""
_LEAST_SHARE = 0.002
"""Share of a core that counts as work: more than idle threads take that wake up now and then."""
_LEAST_CPU_S = 0.05
"""CPU time for which a share is computed: the system counts in steps of a hundredth of a second."""
_LONGEST_STEP_S = 1.0
"""Longest time that counts between two looks, so that time in which this process was stopped does not count."""
_SHORT = 1 / 16
"""Memory is short when less than this share of it is left."""


@dataclass(slots=True)
class LogLines:
    """The library's log: its first and last lines, and the number of all lines."""

    first: list[dict[str, str]] = field(default_factory=list)
    """Severity and text of each of the first lines."""
    last: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    """The same of the last lines."""
    num_lines: int = 0
    """Lines received."""

    def add(self, severity: str, text: str) -> None:
        self.num_lines += 1
        (self.first if len(self.first) < MAX_LINES else self.last).append({"severity": severity, "text": text})

    def lines(self) -> list[dict[str, str]]:
        """Returns the kept lines, in order."""
        return [*self.first, *self.last]

    def errors(self, limit: int) -> list[str]:
        """Returns the last `limit` errors."""
        return self._texts(("error", "internal_error"), limit)

    def complaints(self, limit: int) -> list[str]:
        """Returns the last `limit` errors; without errors, the last warnings, which may name the cause."""
        return self.errors(limit) or self._texts(("warning",), limit)

    def _texts(self, severities: tuple[str, ...], limit: int) -> list[str]:
        return [line["text"].strip() for line in self.lines() if line["severity"] in severities][-limit:]


@dataclass(slots=True)
class BuildOutcome:
    """The end of a child process, and its events and lines until then."""

    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last event of each kind but `log`, by kind."""
    log: LogLines = field(default_factory=LogLines)
    """Lines that the library logged."""
    status: int = 0
    """Exit status; -N when signal N ended it."""
    printed: str = ""
    """End of its stdout and stderr."""
    was_oom_killed: bool = False
    """True if the kernel killed a process for lack of memory meanwhile."""
    stalled_s: float | None = None
    """Seconds without an event and without CPU time after which the watchdog killed it; None when it did not."""
    was_memory_short: bool = False
    """True if memory was short when it stalled."""

    @property
    def is_out_of_memory(self) -> bool:
        """True if it probably failed because memory ran out.

        Warnings do not count: a kernel that needs too much memory causes one, and the build continues without it. A
        stall counts only when memory was short or the library reported it: the next try, which asks for less memory,
        may succeed, while a library that hangs for another reason would hang again.
        """
        failed = self.events.get("failed", {})
        if "built" in self.events or failed.get("kind") in ("write", "dependency"):
            return False
        text = "\n".join((*self.log.errors(20), self.printed, failed.get("message", "")))
        if failed.get("kind") == "memory" or MEMORY_PATTERN.search(text) is not None:
            return True
        return self.was_memory_short if self.stalled_s is not None else self.status == -signal.SIGKILL

    def describe_end(self) -> str:
        """Describes how it ended: its error, or the signal that ended it and the phase it was in."""
        if "failed" in self.events:
            return str(self.events["failed"]["message"])
        phase = self.events.get("progress", {}).get("phase", "the start")
        if self.stalled_s is not None:
            memory = " with memory short" if self.was_memory_short else ""
            return (
                f"the builder stalled{memory}: it sent nothing and used no CPU time for {self.stalled_s:g} s, and was "
                f"killed; phase: {phase}"
            )
        if self.status == -signal.SIGKILL:
            by = (
                "the kernel, because memory ran out"
                if self.was_oom_killed
                else "the system for lack of memory, or by hand"
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
) -> BuildOutcome:
    """Runs one request in a child process, which does not outlive this call; blocks until it ends or stalls.

    Args:
        request: See `edgerpn.export.engine.worker`.
        on_event: Called with every event but log lines.
        tick: Called at least twice a second.
        stall_s: Seconds without an event and without CPU time after which the child is killed; 0: never.

    Raises:
        BuildError: `sys.executable` is not a Python.
        OSError: No process can be started.
    """
    problem = python_problem()
    if problem is not None:
        raise BuildError(f"the builder's process cannot be started: {problem}")
    outcome = BuildOutcome()
    kills_before = _oom_kills()
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as events, tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                [*module_command("edgerpn.export.engine.worker"), str(writing), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env=child_environment(),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            _send_request(process, request)
            if _follow(events, outcome, on_event, tick, Watchdog(process.pid, stall_s)):
                outcome.status = process.wait(_END_WAIT_S)
            else:
                outcome.stalled_s, outcome.was_memory_short = stall_s, is_memory_short(process.pid)
        except subprocess.TimeoutExpired:
            outcome.stalled_s = _END_WAIT_S
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
        pass  # the child is dead already; its exit status tells the cause


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the child if it still runs, and waits until it is gone."""
    end_child(process, wait_s=_KILL_WAIT_S)
    if process.stdin is not None:
        process.stdin.close()


def _follow(
    events: IO[bytes],
    outcome: BuildOutcome,
    on_event: Callable[[dict[str, Any]], None],
    tick: Callable[[], None],
    watchdog: Watchdog,
) -> bool:
    """Takes events until the child closes its end, which its death does too; returns False when it stalls instead."""
    rest = b""
    # Not `select`, which takes no descriptor from 1024 on.
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while True:
            tick()
            if not selector.select(_TICK_S):
                if watchdog.has_stalled():
                    return False
                continue
            watchdog.reset()
            data = events.read(1 << 16)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _take(json.loads(line), outcome, on_event)


def _take(event: dict[str, Any], outcome: BuildOutcome, on_event: Callable[[dict[str, Any]], None]) -> None:
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
    """Number of processes that the kernel has killed for lack of memory since it started; 0 where it is unknown."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class Watchdog:
    """Follows the CPU time of one process; asked about twice a second."""

    def __init__(self, pid: int, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Watches process `pid`, which may be idle for `stall_s` seconds of `clock`; 0: without limit."""
        self._pid = pid
        self._stall_s = stall_s
        self._clock = clock
        self._looked_s = clock()
        self._idle_s = 0.0
        self._cpu_s = cpu_s(pid)
        self._counted_s = 0.0

    def reset(self) -> None:
        """Restarts the idle time; called for each event."""
        self._idle_s = 0.0

    def has_stalled(self) -> bool:
        """Returns whether it has been idle for too long."""
        now = self._clock()
        step_s = min(now - self._looked_s, _LONGEST_STEP_S)
        self._looked_s = now
        used_s = cpu_s(self._pid)
        if self._cpu_s is None or used_s is None:
            return False
        self._counted_s += step_s
        if not is_waiting_for_disk(self._pid):
            self._idle_s += step_s
        work_s = used_s - self._cpu_s
        if work_s >= _LEAST_CPU_S:
            if work_s >= _LEAST_SHARE * self._counted_s:
                self._idle_s = 0.0
            self._cpu_s, self._counted_s = used_s, 0.0
        return 0 < self._stall_s <= self._idle_s


def cpu_s(pid: int) -> float | None:
    """CPU time of all threads of a process so far, seconds; None where it is unknown."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    if fields is None:
        return None
    user, kernel = fields[11:13]
    return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def is_waiting_for_disk(pid: int) -> bool:
    """Returns whether a thread of a process waits without reacting to signals, such as for a network disk."""
    threads = [_stat_fields(file) for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(fields is not None and fields[0] == "D" for fields in threads)


def _stat_fields(file: Path) -> list[str] | None:
    """Returns the fields of a `stat` file from the third on, the state; None without such a process."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, field 2, may hold spaces and brackets.
    return text.rpartition(")")[2].split()


def is_memory_short(pid: int) -> bool:
    """Returns whether memory is short in the computer, container, or address space of process `pid` (`ulimit -v`)."""
    meminfo, container = kib_fields(Path("/proc/meminfo")), cgroup_free_bytes()
    if meminfo.get("MemAvailable", 1) < _SHORT * meminfo.get("MemTotal", 0):
        return True
    if container is not None and container[0] < _SHORT * container[1]:
        return True
    limit, peak = _address_limit(pid), kib_fields(Path(f"/proc/{pid}/status")).get("VmPeak")
    return limit is not None and peak is not None and limit - (peak << 10) < _SHORT * limit


def _address_limit(pid: int) -> int | None:
    """Bytes of address space that a process may use; None without a limit."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Max address space")), [])
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None

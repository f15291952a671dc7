"""Whether a builder still works, and whether memory was short when it stopped.

TensorRT-RTX 1.7 can stand still for ever when memory runs out: it waits for a task of its thread pool, whose threads
could not be started. No error comes, so its silence has to be noticed from outside. A builder works as long as it
tells something or uses CPU time; timing kernels on a GPU uses CPU time too, for they are launched and waited for.

All is read from /proc; on systems without it nothing is noticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_LEAST_CPU_S = 0.05
"""CPU time that counts as work: more than what idle threads take that wake up now and then."""
_LONGEST_STEP_S = 1.0
"""What counts at most between two looks, so that the time in which this process itself was stopped does not."""
_SHORT = 1 / 16
"""Memory is short when less than this share of it is left."""


class Watchdog:
    """Follows one child process; looked at about twice a second."""

    def __init__(self, pid: int, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Watches process `pid`, which may be silent and idle for `stall_s` seconds of `clock`; 0: for ever."""
        self._pid = pid
        self._stall_s = stall_s
        self._clock = clock
        self._looked_s = clock()
        self._idle_s = 0.0
        self._cpu_s = cpu_s(pid)

    def heard(self) -> None:
        """It told something."""
        self._idle_s = 0.0

    def has_stopped(self) -> bool:
        """Whether it has told nothing and done nothing for too long."""
        now = self._clock()
        self._idle_s += min(now - self._looked_s, _LONGEST_STEP_S)
        self._looked_s = now
        used_s = cpu_s(self._pid)
        if self._cpu_s is None or used_s is None:
            return False
        if used_s - self._cpu_s >= _LEAST_CPU_S:
            self._cpu_s, self._idle_s = used_s, 0.0
        return 0 < self._stall_s <= self._idle_s


def cpu_s(pid: int) -> float | None:
    """CPU time of all threads of a process so far, seconds; None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # utime and stime, the fields 14 and 15; the name, field 2, may hold spaces and brackets.
    user, kernel = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def is_memory_short(pid: int) -> bool:
    """Whether the computer, or the address space that process `pid` may use (`ulimit -v`), has hardly any left."""
    meminfo = _numbers(Path("/proc/meminfo"))
    if meminfo.get("MemAvailable", 1) < _SHORT * meminfo.get("MemTotal", 0):
        return True
    limit, peak = _address_limit(pid), _numbers(Path(f"/proc/{pid}/status")).get("VmPeak")
    return limit is not None and peak is not None and limit - (peak << 10) < _SHORT * limit


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line `name: number ...`, which is in KiB in these files; empty without the file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    parts = (line.partition(":") for line in lines)
    return {name: int(words[0]) for name, _, rest in parts if (words := rest.split()) and words[0].isdigit()}


def _address_limit(pid: int) -> int | None:
    """Bytes of address space that a process may use; None without a limit."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Max address space")), [])
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None

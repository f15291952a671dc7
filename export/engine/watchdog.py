"""Whether a builder still works, and whether memory was short when it stopped.

TensorRT-RTX 1.7 can stand still for ever when memory runs out: it waits for a task of its thread pool, whose threads
could not be started. No error comes, so its silence has to be noticed from outside. A builder works as long as it
tells something, uses CPU time or waits for a disk; timing kernels on a GPU uses CPU time too, for they are launched and
waited for.

All is read from /proc; on systems without it nothing is noticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from edgerpn.machine import cgroup_free_bytes, kib_fields

_LEAST_SHARE = 0.002
"""Share of a core that counts as work: more than what idle threads take that wake up now and then."""
_LEAST_CPU_S = 0.05
"""CPU time that must have come together for a share to be computed: the system counts in steps of a hundredth."""
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
        self._counted_s = 0.0

    def heard(self) -> None:
        """It told something."""
        self._idle_s = 0.0

    def has_stopped(self) -> bool:
        """Whether it has told nothing and done nothing for too long."""
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
    """CPU time of all threads of a process so far, seconds; None where the system does not say."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    if fields is None:
        return None
    user, kernel = fields[11:13]
    return (int(user) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def is_waiting_for_disk(pid: int) -> bool:
    """Whether a thread of a process is in a wait that no signal ends, such as one for a network disk."""
    threads = [_stat_fields(file) for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(fields is not None and fields[0] == "D" for fields in threads)


def _stat_fields(file: Path) -> list[str] | None:
    """The fields of a `stat` from the third on, the state; None: there is no such process."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, field 2, may hold spaces and brackets.
    return text.rpartition(")")[2].split()


def is_memory_short(pid: int) -> bool:
    """Whether computer, container, or the address space of process `pid` (`ulimit -v`) have hardly any left."""
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

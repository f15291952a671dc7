"""The machine and versions for the records of the benchmarks, and the resources that processes use (by /proc)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgerpn.machine import available_cores, cpu_name

_MIB = float(1 << 20)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def facts(*packages: str, **versions: str) -> dict[str, Any]:
    """Returns the machine, the versions of `packages` (None for one that is not installed) and further `versions`."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in packages} | versions,
    }


def installed_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """A process together with all it has started, at one moment."""

    rss_mib: float
    """Resident memory of all; what they share counts for each."""
    parent_rss_mib: float
    """Resident memory of the process itself."""
    descriptors: int
    """Open file descriptors of all."""
    parent_descriptors: int
    """Those of the process itself."""
    threads: int
    """Threads of all."""
    parent_threads: int
    """Those of the process itself."""
    shared_mib: float
    """Memory without a name (memfd) or in /dev/shm that any of them maps, each once."""
    shared_maps: int
    """Number of such pieces of memory."""
    processes: int
    """The process and those that it has started."""


def usage(pid: int) -> Usage:
    """Measures what a process and its children use now; one that ends meanwhile does not count."""
    found = {member: one for member in tree(pid) if (one := _status(member)) is not None}
    own_rss, own_threads, own_descriptors = found.get(pid, (0.0, 0, 0))
    pieces: dict[str, float] = {}
    for member in found:
        pieces |= _shared(member)
    return Usage(
        rss_mib=sum(rss for rss, _, _ in found.values()),
        parent_rss_mib=own_rss,
        descriptors=sum(number for _, _, number in found.values()),
        parent_descriptors=own_descriptors,
        threads=sum(number for _, number, _ in found.values()),
        parent_threads=own_threads,
        shared_mib=sum(pieces.values()),
        shared_maps=len(pieces),
        processes=len(found),
    )


def tree(pid: int) -> list[int]:
    """Returns the process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used; 0 when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if fields else 0.0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on, behind the name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status(pid: int) -> tuple[float, int, int] | None:
    """Resident MiB, threads and descriptors."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    # A zombie process has no memory.
    return int(fields.get("VmRSS", "0").split()[0]) * 1024 / _MIB, int(fields["Threads"]), descriptors


def _shared(pid: int) -> dict[str, float]:
    """MiB of each piece of shared memory that a process maps, by its inode."""
    pieces: dict[str, float] = {}
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return pieces
    for line in lines:
        span, _, _, device, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith(("/memfd:", "/dev/shm/")):
            start, end = (int(text, 16) for text in span.split("-"))
            key = f"{device} {inode}"
            pieces[key] = pieces.get(key, 0.0) + (end - start) / _MIB
    return pieces

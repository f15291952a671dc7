"""Processes that do not end for their parent even when they are killed, like those that hang in a driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

Output = TypeVar("Output", bound=Sized)

_STICK = """
import ctypes, os, time
# The kernel hides the end of a process from its parent until its tracer has seen it, and this one never looks.
libc = ctypes.CDLL(None)
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
traced = os.getpid()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, b"yes" if libc.ptrace(0x4206, traced, 0, 0) == 0 else b"no")
    os.closerange(0, 1024)
    os.setsid()
    while os.path.exists("/proc/{tester}") and not os.path.exists({release!r}):
        time.sleep(0.05)
    os._exit(0)
if os.read(reading, 3) != b"yes":
    raise SystemExit("the kernel allows no tracer")
"""


@contextmanager
def stuck_lines(release: Path) -> Iterator[str]:
    """Gives lines of Python that make their process stick until the end of the block, by the file `release`.

    Skips the test where the kernel allows no tracer.
    """
    lines = _STICK.format(release=str(release), tester=os.getpid())
    try:
        with subprocess.Popen([sys.executable, "-c", lines], stderr=subprocess.PIPE) as trial:
            release.touch()
            _, errors = trial.communicate()
        if trial.returncode:
            pytest.skip(errors.decode().strip())
        release.unlink()
        yield lines
    finally:
        release.touch()


def run_until_stuck(run: Callable[[float], tuple[int | None, Output]]) -> tuple[int | None, Output]:
    """Calls `run` with longer and longer limits until its process has printed something, which it does once it sticks.

    Args:
        run: Runs the process for at most so many seconds; returns its exit status and output.
    """
    for limit_s in (1, 4, 16, 64):  # a busy machine may need long
        status, output = run(limit_s)
        if output:
            break
    return status, output


def write_tool(path: Path, lines: str) -> None:
    """Writes a program of Python lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{lines}")
    path.chmod(0o755)

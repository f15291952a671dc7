"""Waits in tests, on machines that may be busy.

Tests wait for conditions with `DEADLINE_S`, which only a hang exceeds. `assert_within` asserts a time, stretched by the
present slowness of the machine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

DEADLINE_S = 40.0
"""Seconds to wait for anything."""

_NOMINAL_S = 0.4
"""Seconds, generously, in which Python starts and imports NumPy on an idle CI machine with two cores."""


def assert_within(elapsed_s: float, limit_s: float) -> None:
    """Fails when `elapsed_s` exceeds `limit_s` on a machine of this slowness."""
    if elapsed_s <= limit_s:
        return
    factor = slowness()
    assert elapsed_s <= limit_s * factor, (
        f"took {elapsed_s:.2f} s, at most {limit_s:g} s times {factor:.1f} are allowed"
    )


def slowness() -> float:
    """Returns the present slowness of this machine against an idle one; 1 or more."""
    start_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    measured = (time.monotonic() - start_s) / _NOMINAL_S
    num_cores = len(os.sched_getaffinity(0))
    # The load of the last minute, because the busy time may be over already.
    return max(1.0, measured, 1.5 * os.getloadavg()[0] / num_cores)


def descriptors() -> set[tuple[str, str]]:
    """Returns the open descriptors of this process, with what they are open for.

    Threads that other tests left behind may close theirs at any moment.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def wait_for_captures() -> None:
    """Waits for the end of closed captures; `close` itself waits for two seconds only."""
    wait_until(lambda: not any(thread.name == "edgerpn-capture" for thread in threading.enumerate()))


def wait_until(is_it: Callable[[], object], timeout_s: float = DEADLINE_S) -> object:
    """Returns the result of `is_it` as soon as that is true; fails when it never is."""
    end_s = time.monotonic() + timeout_s
    while not (found := is_it()):
        assert time.monotonic() < end_s, f"the condition did not become true within {timeout_s:g} s"
        time.sleep(0.02)
    return found

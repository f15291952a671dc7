"""Times in tests, on machines that may be busy with other things.

A condition is waited for with `DEADLINE_S`, which only a hang exceeds. How soon it came is a claim of its own: it must
hold as it is on a machine at rest, and is stretched on a busy one by how much slower that is just now.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

DEADLINE_S = 40.0
"""Seconds to wait for anything."""

_NOMINAL_S = 0.4
"""Seconds in which Python starts and imports NumPy on the two cores of an idle CI machine, generously."""


def assert_within(elapsed_s: float, limit_s: float) -> None:
    """Fails when something took longer than it may."""
    if elapsed_s <= limit_s:
        return
    factor = slowness()
    assert elapsed_s <= limit_s * factor, (
        f"took {elapsed_s:.2f} s, at most {limit_s:g} s times {factor:.1f} are allowed"
    )


def slowness() -> float:
    """How much slower than an idle one this machine is just now; 1 or more."""
    start_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    measured = (time.monotonic() - start_s) / _NOMINAL_S
    num_cores = len(os.sched_getaffinity(0))
    # The load of the last minute, because what was slow may be over already.
    return max(1.0, measured, 1.5 * os.getloadavg()[0] / num_cores)


def wait_for_captures() -> None:
    """Waits for the end of closed captures: closing gives up on a process after two seconds, and this does not."""
    wait_until(lambda: not any(thread.name == "edgerpn-capture" for thread in threading.enumerate()))


def wait_until(is_it: Callable[[], object], timeout_s: float = DEADLINE_S) -> object:
    """What `is_it` gives, as soon as that is true; fails when it never is."""
    end_s = time.monotonic() + timeout_s
    while not (found := is_it()):
        assert time.monotonic() < end_s, f"it did not happen within {timeout_s:g} s"
        time.sleep(0.02)
    return found

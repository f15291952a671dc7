"""How the C library hands out the memory of tensors on a CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next tensors that need it.

    By default glibc takes every large tensor from the kernel and gives it back, page by page and filled with zeros: on
    a CPU a tenth of a training step and more. Now the process stays as large as its largest step; other C libraries
    are left alone.

    Returns:
        Whether it was done.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

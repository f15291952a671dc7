"""NVTX ranges around the stages of a frame, for Nsight Systems; nothing happens without the package nvtx.

    decode        a picture is read and decoded; in the capture process of a live source
    preprocess    it is laid into the network's input
    upload        the input is copied into pinned memory
    inference     an engine is started, and its outputs are awaited; or ONNX Runtime runs
    download      the outputs are copied out of pinned memory
    enqueue ...   upload, inference and download of an engine enter the stream one by one: at its first runs, while a
                  CUDA graph is recorded, and always where there is none
    postprocess   boxes are mapped to the picture

A CUDA graph starts as a whole: its copies and kernels lie below `inference`.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

DOMAIN = "edgerpn"
"""NVTX domain of all ranges."""


@functools.cache
def span(name: str) -> AbstractContextManager[None]:
    """Returns the range of this name; threads share it, and ranges nest within a thread."""
    domain = _domain()
    return nullcontext() if domain is None else _Range(domain, name)


@functools.cache
def _domain() -> Any:
    """Returns the NVTX domain; None without the package."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.get_domain(DOMAIN)


class _Range:
    """One named range; it holds no state, because NVTX has a stack for each thread."""

    def __init__(self, domain: Any, name: str) -> None:
        self._domain = domain
        # Made once, because a new one for each frame would cost more than the range.
        self._attributes = domain.get_event_attributes(message=name)

    def __enter__(self) -> None:
        self._domain.push_range(self._attributes)

    def __exit__(self, *_: object) -> None:
        self._domain.pop_range()

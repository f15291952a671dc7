"""Capture that survives its cameras: a process for each source, frames in shared memory, events in between.

from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources import CaptureConfig, CaptureGroup

with CaptureGroup() as group:
    group.add(CaptureConfig(source="rtsp://user:password@camera/stream", name="door"))
    group.add(CaptureConfig(source="/dev/video0"))
    while (item := group.take()) is not None:
        if isinstance(item, Frame):
            print(item.source, item.index, item.image.shape)
        else:
            print(item.kind, item.message)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn.runtime.sources.capture import Capture, CaptureStats, ProcessCapture
    from edgerpn.runtime.sources.capture_config import CaptureConfig
    from edgerpn.runtime.sources.failures import CaptureFailedError
    from edgerpn.runtime.sources.group import CaptureGroup, open_capture
    from edgerpn.runtime.sources.plugins import FrameSource

__all__ = [
    "Capture",
    "CaptureConfig",
    "CaptureFailedError",
    "CaptureGroup",
    "CaptureStats",
    "FrameSource",
    "ProcessCapture",
    "open_capture",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Capture": "edgerpn.runtime.sources.capture",
        "CaptureConfig": "edgerpn.runtime.sources.capture_config",
        "CaptureFailedError": "edgerpn.runtime.sources.failures",
        "CaptureGroup": "edgerpn.runtime.sources.group",
        "CaptureStats": "edgerpn.runtime.sources.capture",
        "FrameSource": "edgerpn.runtime.sources.plugins",
        "ProcessCapture": "edgerpn.runtime.sources.capture",
        "open_capture": "edgerpn.runtime.sources.group",
    },
)

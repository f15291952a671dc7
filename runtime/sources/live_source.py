"""A camera, a stream or a pipeline as one source: its capture process, and what that says on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Frame, Source
from edgerpn.runtime.sources import CaptureConfig, open_capture
from edgerpn.runtime.sources.open_source import open_source
from edgerpn.runtime.sources.spec import parse_source

_POLL_S = 0.1


class LiveSource:
    """A source that is captured by a process of its own, and connected anew whenever it fails; see `Source`."""

    is_live = True
    is_images = False
    fps = None
    num_frames = None

    def __init__(self, config: CaptureConfig) -> None:
        """Starts the process."""
        self.name = config.label
        self._capture = open_capture(config)
        self._is_closed = False

    @property
    def drops(self) -> int:
        """Frames that nobody took in time."""
        return self._capture.stats.num_dropped

    def __iter__(self) -> Iterator[Frame | Event]:
        """Gives the newest frame each time, and events.

        Raises:
            StreamOpenError: It never gave a frame, and trying again is pointless.
        """
        has_frame = False
        try:
            while not self._is_closed and not self._capture.is_exhausted:
                item = self._capture.take(_POLL_S)
                if item is None:
                    continue
                has_frame = has_frame or isinstance(item, Frame)
                if isinstance(item, Frame):
                    yield item
                    continue
                if item.kind == "ended" and item.reason != "end_of_stream" and not has_frame:
                    raise StreamOpenError(f"{item.message}. {item.fix}")
                yield item
        finally:
            self._capture.close()

    def close(self) -> None:
        """Ends the iteration and the process."""
        self._is_closed = True
        self._capture.close()


def open_any_source(spec: str | int | os.PathLike[str]) -> Source:
    """Opens anything that `edgerpn run` takes.

    Args:
        spec: What `open_source` takes; a camera index or /dev/videoN; csi://N; a URL (rtsp, http, ...); or a GStreamer
            pipeline (a text with " ! ") that ends in appsink.

    Raises:
        StreamOpenError: A file cannot be read, or it is a URL of an unknown kind. A live source that is down is none:
            it is tried again for ever.
        MissingDependencyError: OpenCV is not installed.
    """
    text = str(spec) if isinstance(spec, int) else os.fspath(spec)
    if not parse_source(text).is_live:
        return open_source(text)
    return LiveSource(CaptureConfig(source=text))

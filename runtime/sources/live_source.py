"""A camera, a stream or a pipeline as one source: its capture process, and what that says on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Frame, Source
from edgerpn.runtime.sources import CaptureConfig, CapturedFrame, CaptureEvent, open_capture
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
        self._has_clock = config.spec.has_clock
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
                has_frame = has_frame or isinstance(item, CapturedFrame)
                if isinstance(item, CapturedFrame):
                    yield to_frame(item, has_clock=self._has_clock)
                    continue
                if item.kind == "ended" and item.reason != "end_of_stream" and not has_frame:
                    raise StreamOpenError(f"{item.message}. {item.fix}")
                yield to_event(item)
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


def to_frame(captured: CapturedFrame, *, has_clock: bool) -> Frame:
    """The same frame, with the same memory; its lag only if `has_clock`."""
    return Frame(
        image=captured.image,
        index=captured.index,
        media_time_s=captured.media_time_s,
        captured_at=captured.captured_at,
        monotonic_s=captured.monotonic_s,
        source=captured.source,
        decode_ms=captured.decode_ms,
        path=captured.path,
        lag_ms=captured.lag_ms if has_clock else None,
        num_dropped=captured.num_dropped,
        num_skipped=captured.num_skipped,
    )


def to_event(captured: CaptureEvent) -> Event:
    """The same event."""
    return Event(
        kind=captured.kind,
        source=captured.source,
        message=captured.message,
        captured_at=captured.happened_at,
        path=captured.path,
        reason=captured.reason,
        fix=captured.fix,
        attempt=captured.attempt,
        delay_s=captured.delay_s,
        duration_s=captured.duration_s,
        size_wh=captured.size_wh,
        fps=captured.fps,
        num_frames=captured.num_frames,
        decoder=captured.decoder,
    )

"""Sources that wait for us: images and video files. They never drop a frame."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgerpn.errors import StreamOpenError
from edgerpn.machine import available_cores
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.opencv import load_cv2


class ImageSource:
    """Images one after the other; see `Source`. One that cannot be read gives an event, and the rest goes on."""

    is_live = False
    is_images = True
    fps = None
    drops = 0

    def __init__(self, paths: Sequence[Path], *, name: str, is_single: bool = False) -> None:
        """Takes `paths` in order; with `is_single`, failing to read the one image is an error, not an event."""
        self.name = name
        self.num_frames = len(paths)
        self.paths = tuple(paths)
        self._is_single = is_single
        self._cv2 = load_cv2()
        self._is_closed = False

    def __iter__(self) -> Iterator[Frame | Event]:
        """Gives a frame, or an error event, for each image."""
        for index, path in enumerate(self.paths):
            if self._is_closed:
                return
            item = self._read(index, path)
            if self._is_single and isinstance(item, Event):
                raise StreamOpenError(item.message)
            yield item

    def close(self) -> None:
        """Ends the iteration."""
        self._is_closed = True

    def _read(self, index: int, path: Path) -> Frame | Event:
        start = time.perf_counter()
        captured_at, monotonic_s = time.time(), time.monotonic()
        try:
            # Read by NumPy, because cv2.imread cannot say why it fails.
            data = np.fromfile(path, np.uint8)
            # The stored pixel grid, as in training and in COCO's annotations: EXIF rotation is not applied.
            flags = self._cv2.IMREAD_COLOR | self._cv2.IMREAD_IGNORE_ORIENTATION
            image = self._cv2.imdecode(data, flags) if data.size else None
        except (OSError, self._cv2.error) as error:
            message = f"{path}: cannot be read: {error}"
            return Event(kind="error", source=self.name, message=message, path=path)
        if image is None:
            why = "is not an image that OpenCV can read" if data.size else "is empty"
            message = f"{path}: this file {why}"
            return Event(kind="error", source=self.name, message=message, path=path)
        return Frame(
            image=image,
            index=index,
            media_time_s=None,
            captured_at=captured_at,
            monotonic_s=monotonic_s,
            source=self.name,
            decode_ms=(time.perf_counter() - start) * 1e3,
            path=path,
        )


class VideoSource:
    """The frames of a video file in order; see `Source`."""

    is_live = False
    is_images = False
    drops = 0

    def __init__(self, path: Path) -> None:
        """Opens the file and decodes its first frame.

        Raises:
            StreamOpenError: It is not a video that OpenCV can read.
        """
        cv2 = load_cv2()
        self.name = str(path)
        self._capture = _open_video(cv2, str(path), _decoder_threads(cv2))
        self._reader = FrameReader(cv2, self._capture, name=self.name)
        self._first = self._reader.read() if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            raise StreamOpenError(f"{path}: {_why_no_video(path)}")
        self.fps = self._reader.fps
        self.num_frames = self._reader.num_frames
        self._is_closed = False

    def __iter__(self) -> Iterator[Frame | Event]:
        """Gives every frame; an event at the end when there are clearly fewer than the file states."""
        frame, self._first = self._first, None
        num_read = 0
        try:
            while frame is not None and not self._is_closed:
                yield frame
                num_read += 1
                frame = self._reader.read()
        finally:
            # Released here and not in `close`, which another thread may call while this one is reading.
            self._capture.release()
        stated = self.num_frames or 0
        # Containers may miscount by a frame or two without anything being lost.
        if not self._is_closed and stated - num_read > max(2, stated // 100):
            message = f"{self.name}: ended after {num_read} of {stated} frames; the file is damaged or cut short"
            yield Event(kind="ended", source=self.name, message=message, reason="codec")

    def close(self) -> None:
        """Ends the iteration."""
        self._is_closed = True


class FrameReader:
    """Reads an open `cv2.VideoCapture` frame by frame, with times."""

    def __init__(self, cv2: ModuleType, capture: Any, *, name: str, counts_time: bool = True) -> None:
        """Reads from `capture`, which stays the caller's to release.

        With `counts_time`, frames without a time stamp get one by their number and the frame rate, which would be
        wrong for a camera that skips frames.
        """
        self._cv2 = cv2
        self._capture = capture
        self._name = name
        self._counts_time = counts_time
        self._index = 0
        rate = float(capture.get(cv2.CAP_PROP_FPS)) if capture.isOpened() else 0.0
        # Streams without a stated rate report 0, NaN or the 90 kHz clock of RTP.
        self.fps = rate if 0 < rate <= 1000 else None
        count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0.0
        self.num_frames = int(count) if 0 < count < 1e12 else None

    def read(self) -> Frame | None:
        """The next frame, or None when there is no more; blocks as long as OpenCV does."""
        start = time.perf_counter()
        ok, image = self._capture.read()
        if not ok or image is None:
            return None
        if image.ndim == 2:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_GRAY2BGR)
        index = self._index
        self._index += 1
        return Frame(
            image=image,
            index=index,
            media_time_s=self._media_time_s(index),
            captured_at=time.time(),
            monotonic_s=time.monotonic(),
            source=self._name,
            decode_ms=(time.perf_counter() - start) * 1e3,
        )

    def _media_time_s(self, index: int) -> float | None:
        position_ms = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
        if position_ms > 0:
            return position_ms / 1e3
        # The first frame of a file, or a container or backend that keeps no time stamps.
        return index / self.fps if self._counts_time and self.fps else None


def open_capture(cv2: ModuleType, target: str, parameters: Sequence[int] = ()) -> Any:
    """A `cv2.VideoCapture` for a file or URL, through FFmpeg where OpenCV has it; it may have failed to open."""
    if cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(target, cv2.CAP_FFMPEG, list(parameters))
    return cv2.VideoCapture(target)


def _open_video(cv2: ModuleType, path: str, parameters: Sequence[int]) -> Any:
    capture = open_capture(cv2, path, parameters)
    # A build of OpenCV that does not know a parameter refuses to open anything with it.
    return capture if capture.isOpened() or not parameters else open_capture(cv2, path)


def _decoder_threads(cv2: ModuleType) -> list[int]:
    """Parameters that leave half of the cores to the model; FFmpeg would start a thread for each, at a price."""
    if not hasattr(cv2, "CAP_PROP_N_THREADS"):
        return []
    return [cv2.CAP_PROP_N_THREADS, max(1, available_cores() // 2)]


def _why_no_video(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if is_empty:
        return "the file is empty"
    return "not a video that OpenCV can read (no video in it, an unknown codec, or a file that was cut short)"

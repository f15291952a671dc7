"""The row of video files of one source."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Frame, Result
from edgerpn.runtime.painter import Painter
from edgerpn.runtime.sinks.contract import NotDeliveredError
from edgerpn.runtime.sinks.output_config import VideoConfig
from edgerpn.runtime.sinks.picture_sinks import DEFAULT_FPS, VideoFile
from edgerpn.runtime.sinks.rotating import utc_stamp

LIVE_FPS = 10.0
"""Pictures per second in videos of live sources, unless told otherwise."""

_SPACE_CHECK_FRAMES = 10


class VideoRow:
    """Writes one file after the other.

    OpenCV writes videos of a constant rate only. So the pictures of a live source are laid into a grid of time: in
    each file, second s of the video is s seconds of the clock after the file's first picture.
    """

    def __init__(self, path: Path, config: VideoConfig, painter: Painter, *, is_live: bool) -> None:
        """Begins with the first picture.

        Args:
            path: Folder and beginning of the files' names.
            config: When a new file begins, and the rate.
            painter: Draws the boxes.
            is_live: Whether the pictures come by the clock.
        """
        self.path = path
        self._config = config
        self._painter = painter
        self._is_live = is_live
        self._fps = config.fps or (LIVE_FPS if is_live else 0.0)
        self._file: VideoFile | None = None
        self._first: Result | None = None
        self._begun_s = 0.0
        self._last_s = 0.0
        self._last_picture: npt.NDArray[np.uint8] | None = None

    def add(self, result: Result) -> None:
        """Adds one picture, in a new file where that is due.

        Raises:
            NotDeliveredError: There is too little space; the file at hand is finished.
            SinkError: A file could not be written.
        """
        self._check_space()
        if not self._fps:
            # The rate of a file follows from the times of its first two pictures.
            if self._first is None:
                self._first = result
                return
            self._fps = _rate(self._first.frame, result.frame)
            self._add_first()
        self._add(result)

    def finish(self) -> None:
        """Finishes the file at hand, if there is one.

        Raises:
            SinkError: It is not whole, and was removed.
        """
        self._fps = self._fps or DEFAULT_FPS
        self._add_first()
        file, self._file, self._last_picture = self._file, None, None
        if file is not None:
            file.finish()

    def _add_first(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            self._add(first)

    def _add(self, result: Result) -> None:
        if self._file is not None and self._is_over(self._file, result.frame):
            self.finish()
        now_s = result.frame.monotonic_s
        if self._file is None:
            height, width = result.image.shape[:2]
            self._file = VideoFile(self._free_path(result.frame), fps=self._fps, size_wh=(width, height))
            self._begun_s = now_s
        self._last_s = now_s
        if self._is_live:
            place = int((now_s - self._begun_s) * self._fps + 0.5)
            if place < self._file.num_frames:
                return  # its place in time is taken
            while self._last_picture is not None and self._file.num_frames < place:
                self._file.write(self._last_picture)
            self._last_picture = self._painter.paint(result)
            self._file.write(self._last_picture)
        else:
            self._file.write(self._painter.paint(result))

    def _is_over(self, file: VideoFile, frame: Frame) -> bool:
        """Whether `frame` belongs into a new file."""
        if file.size_wh != (frame.image.shape[1], frame.image.shape[0]):
            return True
        if self._is_live and frame.monotonic_s - self._last_s > self._config.gap_s:
            return True
        length_s = frame.monotonic_s - self._begun_s if self._is_live else file.num_frames / self._fps
        is_large = 0 < self._config.max_mb * 1e6 <= file.num_bytes
        return is_large or length_s >= self._config.minutes * 60 - 1e-6

    def _check_space(self) -> None:
        """OpenCV does not say when the disk is full, and a file cannot be finished then: so that is not reached."""
        if self._file is not None and self._file.num_frames % _SPACE_CHECK_FRAMES:
            return
        folder = self.path.parent
        try:
            free_mb = shutil.disk_usage(folder).free / 1e6
        except OSError as error:
            raise NotDeliveredError(f"{folder}: cannot be written: {error.strerror or error}") from error
        if free_mb < self._config.min_free_mb:
            message = f"{folder}: {free_mb:.0f} MB are free, less than min_free_mb = {self._config.min_free_mb:g}"
            try:
                self.finish()
            except SinkError as error:
                raise SinkError(f"{message}; {error}") from error
            raise NotDeliveredError(message)

    def _free_path(self, frame: Frame) -> Path:
        seconds = frame.captured_at
        while True:
            path = self.path.with_name(f"{self.path.name}-{utc_stamp(seconds)}{self._config.suffix}")
            if not path.exists():
                return path
            seconds += 0.001


def _rate(first: Frame, second: Frame) -> float:
    """Frames per second by the times of two frames."""
    if first.media_time_s is None or second.media_time_s is None:
        return DEFAULT_FPS
    interval_s = second.media_time_s - first.media_time_s
    num_frames = second.index - first.index
    # A rate that no video has comes from times that mean something else.
    return num_frames / interval_s if interval_s > 0 and 0.1 <= num_frames / interval_s <= 240 else DEFAULT_FPS

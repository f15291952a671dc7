"""Annotated video: a series of complete files for each source."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.errors import SinkError, check_setting
from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP, Painter
from edgerpn.runtime.frame import BREAKS, Event, Frame, Result
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.sinks.contract import NotDeliveredError
from edgerpn.runtime.sinks.jsonl import STAMP, utc_stamp
from edgerpn.runtime.sinks.picture_sinks import DEFAULT_FPS, VideoFile, free_stem
from edgerpn.runtime.sinks.sink_queue import OutputConfig
from edgerpn.settings import PATH

LIVE_FPS = 10.0
"""Pictures per second in videos of live sources, unless the settings say otherwise."""

_SPACE_CHECK_FRAMES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig(OutputConfig):
    """Annotated video: files SOURCE-20260131T120000.000Z.mp4 for each source, named by UTC of the first picture."""

    folder: str = field(metadata=PATH)
    """Folder of the files; created when missing."""
    suffix: Literal[".mp4", ".avi"] = ".mp4"
    """File type: MPEG-4 (.mp4) or Motion JPEG (.avi)."""
    minutes: float = 10.0
    """Maximum length of a file, minutes."""
    max_mb: float = 0.0
    """Size at which a new file begins, millions of bytes; 0: no limit."""
    fps: float = 0.0
    """Pictures per second. Live sources: the video keeps the speed of the clock, by repeating pictures of a slow source
    and leaving out some of a fast one; 0: 10. Files: every picture once; 0: the rate of the file."""
    gap_s: float = 2.0
    """Seconds without pictures after which a live source gets a new file instead of a still."""
    top: int = DEFAULT_TOP
    """Maximum number of boxes drawn."""
    nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better drawn box, of its class where the model has classes, above which a box is not drawn, above 0,
    to 1; 1: all are drawn."""
    min_free_mb: float = 200.0
    """Disk space to leave free, millions of bytes; below it the sink finishes its file and pictures wait."""

    def __post_init__(self) -> None:
        OutputConfig.__post_init__(self)
        check_setting(bool(self.folder), "folder", "a folder", self.folder)
        check_setting(self.minutes > 0, "minutes", "more than 0", self.minutes)
        check_setting(self.max_mb >= 0, "max_mb", "0 or more", self.max_mb)
        check_setting(0 <= self.fps <= 240, "fps", "0..240", self.fps)
        check_setting(self.gap_s > 0, "gap_s", "more than 0 seconds", self.gap_s)
        check_setting(self.top >= 1, "top", "1 or more", self.top)
        check_setting(0 < self.nms_iou <= 1, "nms_iou", "above 0, to 1", self.nms_iou)
        check_setting(self.min_free_mb >= 0, "min_free_mb", "0 or more", self.min_free_mb)


class VideoSegmentsSink:
    """Writes pictures with their boxes; a file appears under its name when it is complete.

    A new file begins when the current one is long or large enough, when the picture's size changes, after a gap of a
    live source, and after the disk was full. A killed run leaves hidden files, which the next run removes
    if no other run uses the folder.
    """

    config_class = VideoConfig
    needs_is_live = True

    def __init__(self, config: VideoConfig, *, is_live: bool) -> None:
        """Creates the folder.

        Args:
            config: Folder, rate, and limits of a file.
            is_live: Whether pictures keep the clock's time, or follow one after the other.

        Raises:
            SinkError: The folder cannot be created.
            ConfigError: Another process keeps it locked.
        """
        self.target = config.folder
        self._config = config
        self._is_live = is_live
        self._folder = Path(config.folder)
        self._painter = Painter(top=config.top, nms_iou=config.nms_iou)
        self._series: dict[str, VideoSeries] = {}
        self._use = ExitStack()
        load_cv2()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._use.enter_context(files.shared(self._folder, tidy=self._remove_remains))
        except OSError as error:
            raise SinkError(f"{config.folder}: cannot be created: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Adds one picture to the video of its source.

        Raises:
            NotDeliveredError: There is too little disk space; the current file is complete.
            SinkError: A file could not be written.
        """
        source = result.frame.source
        series = self._series.get(source)
        if series is None:
            path = self._folder / free_stem(source, {series.path.name for series in self._series.values()})
            series = self._series[source] = VideoSeries(path, self._config, self._painter, is_live=self._is_live)
        series.add(result)

    def event(self, event: Event) -> None:
        """Finishes the file of a source that stalled or ended; forgets a source that was removed."""
        if event.kind not in BREAKS:
            return
        series = self._series.get(event.source)
        if series is not None:
            if event.reason == "removed":
                del self._series[event.source]
            series.finish()

    def close(self) -> None:
        """Finishes all files.

        Raises:
            SinkError: One could not be finished; all others are.
        """
        first: SinkError | None = None
        for series in self._series.values():
            try:
                series.finish()
            except SinkError as error:  # noqa: PERF203 - one failing must not keep the others open
                first = first or error
        self._series.clear()
        self._use.close()
        if first is not None:
            raise first

    def _remove_remains(self) -> None:
        remains = re.compile(r"\..+-" + STAMP + r"\.[0-9a-f]{8}" + re.escape(self._config.suffix))
        for path in self._folder.iterdir():
            if remains.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()


class VideoSeries:
    """The video files of one source, one after the other.

    OpenCV writes videos of a constant rate only, so pictures of a live source go into a grid of time: second s of a
    file is s seconds of the clock after its first picture.
    """

    def __init__(self, path: Path, config: VideoConfig, painter: Painter, *, is_live: bool) -> None:
        """Opens a file with the first picture.

        Args:
            path: Folder and first part of the files' names.
            config: Rate, and limits of a file.
            painter: Draws the boxes.
            is_live: Whether pictures keep the clock's time.
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
        """Adds one picture, to a new file if the current one is over.

        Raises:
            NotDeliveredError: There is too little disk space; the current file is complete.
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
        """Finishes the current file, if there is one.

        Raises:
            SinkError: It is not complete, and was removed.
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
            height, width = result.frame.image.shape[:2]
            self._file = VideoFile(self._free_path(result.frame), fps=self._fps, size_wh=(width, height))
            self._begun_s = now_s
        self._last_s = now_s
        if self._is_live:
            place = int((now_s - self._begun_s) * self._fps + 0.5)
            if place < self._file.num_frames:
                return  # an earlier picture has this place in time
            while self._last_picture is not None and self._file.num_frames < place:
                self._file.write(self._last_picture)
            self._last_picture = self._painter.paint(result)
            self._file.write(self._last_picture)
        else:
            self._file.write(self._painter.paint(result))

    def _is_over(self, file: VideoFile, frame: Frame) -> bool:
        """Returns whether `frame` belongs to a new file."""
        if file.size_wh != (frame.image.shape[1], frame.image.shape[0]):
            return True
        if self._is_live and frame.monotonic_s - self._last_s > self._config.gap_s:
            return True
        length_s = frame.monotonic_s - self._begun_s if self._is_live else file.num_frames / self._fps
        is_large = 0 < self._config.max_mb * 1e6 <= file.num_bytes
        return is_large or length_s >= self._config.minutes * 60 - 1e-6

    def _check_space(self) -> None:
        """Stops before the disk is full: OpenCV does not report that, and could not finish its file."""
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
    """Frames per second from the times of two frames."""
    if first.media_time_s is None or second.media_time_s is None:
        return DEFAULT_FPS
    interval_s = second.media_time_s - first.media_time_s
    num_frames = second.index - first.index
    # Outside the rates of videos, the times mean something else.
    return num_frames / interval_s if interval_s > 0 and 0.1 <= num_frames / interval_s <= 240 else DEFAULT_FPS

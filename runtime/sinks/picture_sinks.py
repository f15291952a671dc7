"""Sinks of annotated pictures: a video file, a folder of images, a window."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.errors import SinkError
from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.runtime.draw import Painter
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.opencv import has_windows, load_cv2

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""Codec (four characters) of a video file, by suffix."""

DEFAULT_FPS = 25.0
"""Frame rate of the video of a source that does not state its rate, as of images."""


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NUMBER = "-1234"
_ADDED = f".{_NUMBER}-20260131T120000.000Z.0123abcd.mp4"
"""Letters that the name of a temporary file adds to that of its source."""


def free_stem(source: str, taken: Collection[str]) -> str:
    """Returns a file name without suffix for a source, different from the `taken` ones."""
    stem = plain = files.fitting(_UNSAFE.sub("_", source).strip("._") or "source", _ADDED)
    number = 1
    while stem in taken:
        number += 1
        stem = f"{plain}-{number}"
    return stem


def annotated_name(image: Path) -> str:
    """Returns the name of an annotated image: that of the original, but .png where OpenCV may not write the format.

    A name that would be too long is cut.
    """
    name = f"{image.stem}{'.jpg' if image.suffix.lower() in ('.jpg', '.jpeg') else '.png'}"
    return name if files.is_short_enough(f"{name}{_NUMBER}") else files.fitting(name, _NUMBER)


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """Returns a file name, with a number if it `is_taken`: a.jpg, a-2.jpg and so on."""
    stem, suffix = os.path.splitext(name)
    free, number = name, 1
    while is_taken(free):
        number += 1
        free = f"{stem}-{number}{suffix}"
    return free


class VideoFile:
    """A video of one size and rate, under a temporary name until it is whole."""

    def __init__(self, path: Path, *, fps: float, size_wh: tuple[int, int]) -> None:
        """Begins the file.

        Args:
            path: `.mp4` or `.avi` file to write; an existing one is replaced.
            fps: Frames per second.
            size_wh: Width and height of every picture, pixels.

        Raises:
            SinkError: It cannot be written there, or not with this OpenCV.
        """
        self._cv2 = load_cv2()
        self.path = path
        self.size_wh = size_wh
        self.num_frames = 0
        self._files = ExitStack()
        try:
            self._temporary = self._files.enter_context(files.replacing(path))
            native = self._files.enter_context(files.native_path(self._temporary))
        except OSError as error:
            self._files.__exit__(type(error), error, None)
            raise SinkError(f"{path}: cannot be written: {error.strerror or error}") from error
        codec = self._cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
        self._writer = self._cv2.VideoWriter(native, codec, fps, size_wh)
        bind_to_process(self, "_writer")
        if not self._writer.isOpened():
            # Unwound as a failure, so that nothing takes the place of an older file.
            problem = SinkError(f"{path}: OpenCV cannot write this video (folder not writable, or no codec)")
            self._files.__exit__(SinkError, problem, None)
            raise problem

    @property
    def num_bytes(self) -> int:
        """Size on the disk so far; the last pictures may not be in it."""
        try:
            return self._temporary.stat().st_size
        except OSError:
            return 0

    def write(self, picture: npt.NDArray[np.uint8]) -> None:
        """Adds one picture of the file's size; a full disk shows in `finish` only."""
        self._writer.write(picture)
        self.num_frames += 1

    def finish(self) -> None:
        """Finishes the file under its name; call it once.

        Raises:
            SinkError: It does not hold every picture, and is removed.
        """
        if is_foreign(self):
            return
        self._writer.release()
        try:
            with self._files:
                found = self._count_frames(self._temporary)
                if found != self.num_frames:
                    raise SinkError(
                        f"{self.path}: the video holds {found} of {self.num_frames} frames written; is the disk full?"
                    )
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _count_frames(self, path: Path) -> int:
        with files.native_path(path) as native:
            capture = self._cv2.VideoCapture(native)
        try:
            # The writer itself never reports a failed write.
            return max(0, int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)))
        finally:
            capture.release()


class VideoSink:
    """Writes the annotated frames as a video, under a temporary name until it is whole."""

    def __init__(self, path: str | os.PathLike[str], painter: Painter, *, fps: float | None) -> None:
        """Checks the suffix; the file begins with the first frame, and takes its size.

        Args:
            path: `.mp4` or `.avi` file to write; an existing one is replaced.
            painter: Draws the frames.
            fps: Frames per second as the source states them, kept exactly; None: as an event `connected` states them,
                else `DEFAULT_FPS`.
        """
        self.target = str(path)
        self._path = Path(path)
        if self._path.suffix.lower() not in CODECS:
            raise SinkError(f"{path}: cannot write video as {self._path.suffix!r}; known: {', '.join(CODECS)}")
        load_cv2()
        self._painter = painter
        self._fps = fps
        self._file: VideoFile | None = None

    def write(self, result: Result) -> None:
        picture = self._painter.paint(result)
        size_wh = (picture.shape[1], picture.shape[0])
        if self._file is None:
            self._file = VideoFile(self._path, fps=self._fps or DEFAULT_FPS, size_wh=size_wh)
        if size_wh != self._file.size_wh:
            began_wh = self._file.size_wh
            raise SinkError(
                f"{self._path}: frame {result.index} is {size_wh[0]}x{size_wh[1]}, but the video began with "
                f"{began_wh[0]}x{began_wh[1]} (width x height), and a video file has one size. For images of "
                "different sizes use --output DIR."
            )
        self._file.write(picture)

    def event(self, event: Event) -> None:
        """Reads the rate of a live source from its event `connected`."""
        if event.kind == "connected" and event.fps > 0:
            self._fps = self._fps or event.fps

    def close(self) -> None:
        """Finishes the file under its name."""
        file, self._file = self._file, None
        if file is not None:
            file.finish()


class ImageFolderSink:
    """Writes each annotated image into a folder, under the name of the original."""

    def __init__(
        self, folder: str | os.PathLike[str], painter: Painter, names: Mapping[tuple[str, Path], str] | None = None
    ) -> None:
        """Makes the folder.

        Args:
            folder: Folder of the images.
            painter: Draws them.
            names: Name of each known image, by source and path, which replaces an older file; another image gets a name
                that no file has.

        Raises:
            SinkError: The folder cannot be made.
        """
        self.target = str(folder)
        self._folder = Path(folder)
        self._cv2 = load_cv2()
        self._painter = painter
        self._names = names or {}
        self._taken = set(self._names.values())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{folder}: cannot be made: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        target = self._folder / self._name(result)
        ok, data = self._cv2.imencode(target.suffix, self._painter.paint(result))
        if not ok:
            raise SinkError(f"{target}: OpenCV cannot encode this image")
        try:
            files.write_bytes(target, data.tobytes())
        except OSError as error:
            raise SinkError(f"{target}: cannot be written: {error.strerror or error}") from error

    def event(self, event: Event) -> None:
        """Does nothing: an event has no picture."""

    def close(self) -> None:
        """Does nothing: every image is whole when it is written."""

    def _name(self, result: Result) -> str:
        path = result.frame.path or Path(f"frame-{result.index:06d}.jpg")
        known = self._names.get((result.frame.source, path))
        return known or free_name(annotated_name(path), self._is_taken)

    def _is_taken(self, name: str) -> bool:
        return name in self._taken or (self._folder / name).exists()


def check_windows() -> None:
    """Makes sure that windows can open here; asked at the start, because the first one opens with the first result.

    Raises:
        SinkError: There is no display, or this OpenCV cannot open windows.
    """
    # Some builds of OpenCV end the whole process without a display, instead of raising.
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SinkError("--show: there is no display here (DISPLAY is not set); use --video FILE or --output DIR")
    if not has_windows(load_cv2()):
        raise SinkError(
            "--show: this build of OpenCV has no windows (a headless one). Use --video FILE or --output DIR, or "
            "install the full one: pip uninstall opencv-python-headless, then pip install 'edgerpn[opencv]'"
        )


class WindowSink:
    """Shows the annotated frames in a window; `is_closed_by_user` after Q or Escape."""

    target = ""

    def __init__(self, painter: Painter, *, title: str) -> None:
        """Opens the window.

        Raises:
            SinkError: There is no display, or this OpenCV cannot open windows.
        """
        check_windows()
        self._cv2 = load_cv2()
        self._painter = painter
        self._title = title
        self._is_open = False
        self.is_closed_by_user = False
        try:
            self._cv2.namedWindow(title, self._cv2.WINDOW_NORMAL)
        except self._cv2.error as error:
            raise SinkError(f"--show: the window does not open: {error}") from error
        self._is_open = True

    def write(self, result: Result) -> None:
        try:
            self._cv2.imshow(self._title, self._painter.paint(result))
            key = self._cv2.waitKey(1) & 0xFF
        except self._cv2.error as error:
            raise SinkError(f"--show: the window failed: {error}") from error
        if key in (ord("q"), 27):
            self.is_closed_by_user = True

    def event(self, event: Event) -> None:
        """Does nothing."""

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._cv2.destroyWindow(self._title)

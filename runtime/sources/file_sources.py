"""Files as sources: a video, an image, a folder or a glob of images. They wait for the run and never drop a frame.

A thread of the run reads them; see `edgerpn.runtime.sources.capture.FileCapture`.
"""

from __future__ import annotations

import glob
import math
import os
import re
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgerpn.errors import DataError, StreamOpenError
from edgerpn.files import native_path, printable
from edgerpn.images.decoding import damage_note, decode_image, read_bytes
from edgerpn.images.formats import has_image_suffix, is_image_file, list_images, read_format
from edgerpn.images.header import Exif
from edgerpn.machine import available_cores, bind_to_process, is_foreign
from edgerpn.runtime.frame import Event, Frame, Source
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.sources.spec import parse_source
from edgerpn.runtime.tracing import span

_MIN_STEPS = 3
# Steps of a steady rate differ from their median by less than this share, except for a few.
_STEADY, _STEADY_SHARE = 0.25, 0.8


def open_source(
    spec: str | os.PathLike[str], *, name: str = "", decoder_threads: int = 0, exif: Exif | None = None
) -> Source:
    """Opens a file, a folder or a glob, and makes sure that it delivers.

    Args:
        spec: A video file; an image; a folder or a glob of images. A GIF alone is a video, one of several an image.
        name: Name in frames and events; empty: the path.
        decoder_threads: Threads that decode a video; 0: half of the cores.
        exif: Whether images are turned by their EXIF orientation; None: as the images of the model's training.

    Returns:
        The source; close it when done.

    Raises:
        StreamOpenError: It does not exist, it cannot be read, or it is not one of these; the message holds no password.
        MissingDependencyError: OpenCV is not installed.
    """
    text = os.fspath(spec)
    if not isinstance(text, str):
        raise StreamOpenError("source: expected a file, folder, camera, URL or GStreamer pipeline, got bytes")
    parsed = parse_source(text)
    if parsed.is_live:
        raise StreamOpenError(f"{parsed.shown}: expected a file, a folder or a glob, got a live source")
    path, shown = Path(parsed.path), printable(parsed.path)
    name = name or shown
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be a pattern
    except OSError as error:  # a name that is too long, a folder without permission
        raise StreamOpenError(f"{shown}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # characters that no file name has
        raise StreamOpenError(f"{shown}: not the name of a file: {error}") from error
    if path.is_dir():
        return ImageSource(_images_in(path), name=name, exif=exif)
    if path.is_file():
        if is_still(path):
            return ImageSource([path], name=name, is_single=True, exif=exif)
        return VideoSource(path, name=name, num_threads=decoder_threads)
    if path.exists():
        raise StreamOpenError(f"{shown}: neither a file nor a folder, and not a camera (/dev/videoN)")
    if glob.has_magic(parsed.path):
        return ImageSource(_images_matching(parsed.path), name=name, exif=exif)
    raise StreamOpenError(f"{shown}: no such file or folder")


def is_still(path: Path) -> bool:
    """Returns whether a file alone is read as an image; any other file is tried as a video."""
    return is_image_file(path) and read_format(path) != "GIF"


def image_paths(sources: Sequence[str]) -> list[Path]:
    """Several sources as the images of one, in order, if the shell has expanded a glob of images; else nothing."""
    if len(sources) < 2:
        return []
    specs = [parse_source(source) for source in sources]
    if any(spec.is_live or glob.has_magic(spec.path) for spec in specs):
        return []
    paths = [Path(spec.path) for spec in specs]
    return paths if all(has_image_suffix(path.name) or is_image_file(path) for path in paths) else []


class ImageSource:
    """Images in order; see `Source`. One that cannot be read becomes an event, and the rest follows."""

    is_images = True
    fps = None

    def __init__(self, paths: Sequence[Path], *, name: str, is_single: bool = False, exif: Exif | None = None) -> None:
        """Takes the images.

        Args:
            paths: Files in order.
            name: Name in frames and events.
            is_single: Whether there is but one, which is read at once.
            exif: Whether to turn them by their EXIF orientation; None: as the run says, else not.

        Raises:
            StreamOpenError: The one image cannot be read.
        """
        self.name = name
        self.num_frames = len(paths)
        self.paths = tuple(paths)
        self.exif = exif
        self._cv2 = load_cv2()
        self._has_begun = self._is_closed = False
        if is_single:
            *_, last = self._read(0, paths[0])
            if isinstance(last, Event):
                raise StreamOpenError(last.message)

    def __iter__(self) -> Iterator[Frame | Event]:
        """Yields a frame, or an event `error`, for each image; before the frame of a damaged one an event `damaged`.

        Raises:
            ValueError: The source was iterated over before and is closed.
        """
        if self._has_begun and self._is_closed:
            raise ValueError(f"{self.name}: this source was read and closed; open it again")
        self._has_begun = True
        for index, path in enumerate(self.paths):
            if self._is_closed:
                return
            yield from self._read(index, path)

    def close(self) -> None:
        """Ends the iteration."""
        self._is_closed = True

    def _read(self, index: int, path: Path) -> Iterator[Frame | Event]:
        start = time.perf_counter()
        captured_at, monotonic_s = time.time(), time.monotonic()
        try:
            data, header = read_bytes(path)
            with span("decode"):
                image, _ = decode_image(self._cv2, data, header, path, exif=self.exif or "ignore")
        except DataError as error:
            yield Event(kind="error", source=self.name, message=str(error), path=path)
            return
        decode_ms = (time.perf_counter() - start) * 1e3
        if message := damage_note(data, header, path):
            yield Event(kind="damaged", source=self.name, message=message, path=path)
        yield Frame(
            image=image,
            index=index,
            media_time_s=None,
            captured_at=captured_at,
            monotonic_s=monotonic_s,
            source=self.name,
            decode_ms=decode_ms,
            path=path,
        )


class VideoSource:
    """The frames of a video file in order; see `Source`."""

    is_images = False

    def __init__(self, path: Path, *, name: str = "", num_threads: int = 0) -> None:
        """Opens the file and decodes its first frame.

        Args:
            path: The file.
            name: Name in frames and events; empty: the path.
            num_threads: Threads that decode; 0: half of the cores, the others stay with the model.

        Raises:
            StreamOpenError: It is not a video that OpenCV can read.
        """
        self._cv2 = cv2 = load_cv2()
        shown = printable(str(path))
        self.name = name or shown
        try:
            with native_path(path) as native:
                self._capture = _open_video(cv2, native, num_threads or max(1, available_cores() // 2))
        except OSError as error:
            raise StreamOpenError(f"{shown}: cannot be read: {error.strerror}") from error
        bind_to_process(self, "_capture")
        self._index = 0
        self._times_s = array("d")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS)) if self._capture.isOpened() else 0.0
        # Containers without a stated rate report 0 or NaN.
        self.fps = rate if 0 < rate <= 1000 else None
        count = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if self._capture.isOpened() else 0.0
        self.num_frames = int(count) if 0 < count < 1e12 else None
        self._first = self._read() if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            raise StreamOpenError(f"{shown}: {_why_no_video(path)}")
        self._is_closed = False

    def __iter__(self) -> Iterator[Frame | Event]:
        """Yields every frame, and an event at the end when they are clearly fewer than the file states.

        Raises:
            ValueError: The source was iterated over before.
        """
        frame, self._first = self._first, None
        if frame is None:
            raise ValueError(f"{self.name}: this source was read before; open it again")
        try:
            while frame is not None and not self._is_closed:
                yield frame
                frame = self._read()
        finally:
            # Released here and not in `close`, which another thread may call during a read.
            if not is_foreign(self):
                self._capture.release()
        stated = self.num_frames or 0
        if not self._is_closed and is_damaged(stated, self.fps, self._times_s):
            message = f"{self.name}: ended after {self._index} of {stated} frames; the file is damaged or cut short"
            yield Event(kind="ended", source=self.name, message=message, reason="codec")

    def close(self) -> None:
        """Ends the iteration."""
        self._is_closed = True

    def _read(self) -> Frame | None:
        start = time.perf_counter()
        captured_at, monotonic_s = time.time(), time.monotonic()
        with span("decode"):
            ok, image = self._capture.read()
        if not ok or image is None:
            return None
        if image.ndim == 2:
            image = self._cv2.cvtColor(image, self._cv2.COLOR_GRAY2BGR)
        index = self._index
        self._index += 1
        time_s = self._media_time_s(index)
        self._times_s.append(math.nan if time_s is None else time_s)
        return Frame(
            image=image,
            source=self.name,
            index=index,
            media_time_s=time_s,
            captured_at=captured_at,
            monotonic_s=monotonic_s,
            decode_ms=(time.perf_counter() - start) * 1e3,
        )

    def _media_time_s(self, index: int) -> float | None:
        position_ms = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
        if position_ms > 0:
            return position_ms / 1e3
        # The first frame of a file, or a container or backend without time stamps.
        return index / self.fps if self.fps else None


def is_damaged(stated: int, fps: float | None, times_s: Sequence[float]) -> bool:
    """Returns whether a file gave clearly fewer frames than it states.

    A container without a count has one computed from its length and rate. A film of varying rate, such as a screen
    recording, has fewer frames without a loss: then it reaches its end, in steps of different lengths.

    Args:
        stated: Frames that the container states; 0: unknown.
        fps: Their rate; None: unknown.
        times_s: Time of each frame that was read, seconds; NaN: unknown.
    """
    # Containers may miscount by a frame or two although nothing is lost.
    tolerance = max(2, stated // 100)
    if stated - len(times_s) <= tolerance:
        return False
    steps_s = np.diff(times_s)
    if fps is None or len(steps_s) < _MIN_STEPS or not np.isfinite(steps_s).all():
        return True
    period_s = float(np.median(steps_s))
    if times_s[-1] + 2 * period_s < (stated - tolerance) / fps:
        return True
    is_steady = np.mean(np.abs(steps_s - period_s) < _STEADY * period_s) > _STEADY_SHARE
    return bool(is_steady) and float(steps_s.sum()) / period_s > len(steps_s) + tolerance


def _open_video(cv2: ModuleType, path: str, num_threads: int) -> Any:
    """Opens a `cv2.VideoCapture`, through FFmpeg where OpenCV has it; the caller checks that it is open."""
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(path)
    # By default FFmpeg starts a thread for each core, which compete with those of the model.
    threads = [cv2.CAP_PROP_N_THREADS, num_threads] if hasattr(cv2, "CAP_PROP_N_THREADS") else []
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, threads)
    # A build of OpenCV that does not know a parameter refuses to open anything with it.
    return capture if capture.isOpened() or not threads else cv2.VideoCapture(path, cv2.CAP_FFMPEG)


def _why_no_video(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if is_empty:
        return "the file is empty"
    return "not a video that OpenCV can read (no video in it, an unknown codec, or a file that was cut short)"


def natural_key(path: Path) -> tuple[object, ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    # Numbers stand at odd places, so that numbers and texts are never compared; the path itself breaks ties.
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path.as_posix())


def _images_in(folder: Path) -> list[Path]:
    shown = printable(str(folder))
    try:
        paths = list_images(folder)
    except OSError as error:
        raise StreamOpenError(f"{shown}: cannot be read: {error.strerror}") from error
    if not paths:
        raise StreamOpenError(
            f"{shown}: no images in this folder. Folders below it are not searched; a glob does that: "
            f"'{shown}/**/*.jpg'"
        )
    return sorted(paths, key=natural_key)


def _images_matching(pattern: str) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    pattern = printable(pattern)
    if not matches:
        raise StreamOpenError(f"{pattern}: the pattern matches no file")
    paths = [path for path in matches if is_image_file(path)]
    if not paths:
        raise StreamOpenError(f"{pattern}: the pattern matches {len(matches)} paths, but no image among them")
    return sorted(paths, key=natural_key)

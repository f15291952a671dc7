"""The frames of a benchmark: photographs, or made-up pictures, ready in memory before the clock runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn.errors import StreamOpenError
from edgerpn.images.decoding import decode_image, read_bytes
from edgerpn.images.header import Exif
from edgerpn.letterbox import Letterbox, letterbox
from edgerpn.proposals import Proposals
from edgerpn.runtime.backends.preprocess import in_frame
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.opencv import load_cv2

_NUM_MADE_UP = 8
_NUM_SHAPES = 12

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BenchFrame:
    """One picture as the model takes it."""

    image: Image
    """(H, W, 3) uint8 BGR."""
    index: int
    """Number of the picture in its set, from 0."""
    geometry: Letterbox | None = None
    """How a photograph lies in the picture of a model for one camera size; None: as it is."""

    def restore(self, proposals: Proposals) -> Proposals:
        """Returns proposals in pixels of the photograph."""
        return proposals if self.geometry is None else in_frame(proposals, self.geometry)


class FrameSet:
    """The pictures of a benchmark; as many as fit into the allowed memory are decoded beforehand."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        source_hw: tuple[int, int] | None,
        frame_hw: tuple[int, int],
        max_mib: int,
        exif: Exif = "ignore",
    ) -> None:
        """Decodes photographs, or makes pictures up when there are none.

        Args:
            paths: Photographs; empty: made-up pictures.
            source_hw: Height and width of a model for one camera size, to which photographs are letterboxed.
            frame_hw: Height and width of made-up pictures for other models.
            max_mib: Memory for decoded pictures.
            exif: Whether photographs are turned by their EXIF orientation; the model's manifest says so.

        Raises:
            DataError: A photograph cannot be read.
        """
        self.num_images = len(paths) or _NUM_MADE_UP
        self._paths = tuple(paths)
        self._source_hw = source_hw
        self._exif = exif
        self.kept: list[BenchFrame] = []
        frames = self._read(0) if paths else _made_up(source_hw or frame_hw)
        left = max_mib << 20
        for frame in frames:
            left -= frame.image.nbytes
            if self.kept and left < 0:
                break
            self.kept.append(frame)

    def rest(self) -> Iterator[BenchFrame]:
        """Decodes the pictures that are not kept, one by one."""
        return self._read(len(self.kept)) if self._paths else iter(())

    def sizes_hw(self) -> list[tuple[int, int]]:
        """Returns the different heights and widths of the kept pictures, ascending."""
        return sorted({(frame.image.shape[0], frame.image.shape[1]) for frame in self.kept})

    def _read(self, first: int) -> Iterator[BenchFrame]:
        cv2 = load_cv2()
        for number, path in enumerate(self._paths[first:], start=first):
            data, header = read_bytes(path)
            image, _ = decode_image(cv2, data, header, path, exif=self._exif)
            yield self._fit(image, number)

    def _fit(self, image: Image, index: int) -> BenchFrame:
        if self._source_hw is None or image.shape[:2] == self._source_hw:
            return BenchFrame(image=image, index=index)
        geometry = letterbox((image.shape[0], image.shape[1]), self._source_hw)
        return BenchFrame(image=geometry.apply(image, load_cv2().resize), index=index, geometry=geometry)


def _made_up(hw: tuple[int, int]) -> Iterator[BenchFrame]:
    """Soft colours with rectangles, the same at every call."""
    cv2 = load_cv2()
    height, width = hw
    for index in range(_NUM_MADE_UP):
        rng = np.random.default_rng(index)
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height))
        for _ in range(_NUM_SHAPES):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            end = (x + int(rng.integers(4, max(5, width // 3))), y + int(rng.integers(4, max(5, height // 3))))
            cv2.rectangle(image, (x, y), end, [int(value) for value in rng.integers(0, 256, 3)], -1)
        yield BenchFrame(image=image, index=index)


class FrameLoop:
    """A source of ready frames, see `edgerpn.runtime.frame.Source`: they come round until `is_over`, once at least."""

    is_images = True
    fps = None
    num_frames = None

    def __init__(self, frames: Sequence[BenchFrame], *, name: str, is_over: Callable[[], bool]) -> None:
        """Takes frames, which stay the caller's.

        Args:
            frames: At least one.
            name: Name of the source.
            is_over: Asked after each round and within all but the first.

        Raises:
            StreamOpenError: There are no frames.
        """
        if not frames:
            raise StreamOpenError(f"{name}: no frames")
        self.name = name
        self._frames = frames
        self._is_over = is_over
        self._is_closed = False

    def __iter__(self) -> Iterator[Frame | Event]:
        number = 0
        while not self._is_closed and (number < len(self._frames) or not self._is_over()):
            yield as_frame(self._frames[number % len(self._frames)].image, number, self.name)
            number += 1

    def close(self) -> None:
        """Ends the iteration."""
        self._is_closed = True


def as_frame(image: Image, index: int, source: str) -> Frame:
    """Returns a picture as a frame that was captured at this moment."""
    return Frame(
        image=image,
        source=source,
        index=index,
        media_time_s=None,
        captured_at=time.time(),
        monotonic_s=time.monotonic(),
        decode_ms=0.0,
    )

"""A cache of decoded images in shared memory, filled by the first process that decodes an image.

The cache keeps an image once per reduction that its views may need, exactly as decoded. Batches are therefore the same
with and without a cache.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgerpn.images.header import Exif
from edgerpn.machine import available_bytes
from edgerpn.train.data.augment import AugmentConfig, scale_limits
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.data.image_files import read_reduced

_REDUCTIONS = (8, 4, 2, 1)
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def reduction_for(scale: float) -> int:
    """Returns the largest reduction (8, 4, 2 or 1) at which a view of `scale` does not enlarge the image."""
    return next((reduction for reduction in _REDUCTIONS if reduction * scale <= 1), 1)


class ImageCache:
    """Reads images and caches as many as its memory holds; copies in other processes share the memory."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        augment: AugmentConfig,
        out_hw: tuple[int, int],
        *,
        size_bytes: int = 0,
        lock: Any = None,
    ) -> None:
        """Allocates the memory.

        Args:
            records: The images.
            augment: Augmentation of the views, which determines the reductions.
            out_hw: Height and width of the views, pixels.
            size_bytes: Shared memory to use; 0: no cache, every read decodes.
            lock: A multiprocessing lock if other processes get copies; it orders their memory accesses.
        """
        self._slots: dict[tuple[int, int], tuple[int, tuple[int, int, int]]] = {}
        self._lock: AbstractContextManager[Any] = lock if lock is not None else contextlib.nullcontext()
        used = 0
        if size_bytes:
            for index, record in enumerate(records):
                for reduction, shape in _shapes(record, augment, out_hw):
                    end = used + int(np.prod(shape))
                    if end <= size_bytes:
                        self._slots[index, reduction] = (used, shape)
                        used = end
        self._memory = torch.empty(used, dtype=torch.uint8)
        self._is_filled = torch.zeros(len(records) if used else 0, len(_REDUCTIONS), dtype=torch.bool)
        if used:
            try:
                self._memory.share_memory_()
                self._is_filled.share_memory_()
            except RuntimeError:
                # Another program took the memory, or there is a limit: without the cache training is only slower.
                self._slots, self._memory, used = {}, torch.empty(0, dtype=torch.uint8), 0
        self.size_bytes = used
        """Size of the shared memory in use; 0 without a cache."""

    @property
    def num_filled(self) -> int:
        """Number of cached images, each reduction counted."""
        with self._lock:
            return int(self._is_filled.sum())

    def read(self, index: int, file: Path, reduction: int, exif: Exif = "ignore") -> tuple[npt.NDArray[np.uint8], int]:
        """Reads as `read_reduced` does, from memory if image number `index` is cached; the result is read-only.

        All reads of an image have the same `exif`.

        Raises:
            DataError: The file is missing, truncated or not an image.
        """
        kept = reduction if _is_jpeg(file) else 1
        slot = self._slots.get((index, kept))
        if slot is None:
            return read_reduced(file, reduction, exif)
        start, shape = slot
        place = self._memory[start : start + int(np.prod(shape))].numpy().reshape(shape)
        column = _REDUCTIONS.index(kept)
        with self._lock:
            is_filled = bool(self._is_filled[index, column])
        if not is_filled:
            image, used = read_reduced(file, reduction, exif)
            if used != kept or image.shape != shape:
                return image, used
            place[:] = image
            with self._lock:
                self._is_filled[index, column] = True
        place.flags.writeable = False
        return place, kept


def cache_bytes(
    records: Sequence[ImageRecord],
    augment: AugmentConfig,
    out_hw: tuple[int, int],
    *,
    limit_bytes: int,
    is_whole: bool,
    num_processes: int,
) -> int:
    """Returns the size of the shared memory that the cache of each process should use.

    Args:
        records: The images.
        augment: Augmentation of the views.
        out_hw: Height and width of the views, pixels.
        limit_bytes: Limit for all processes of this machine together.
        is_whole: Whether to cache all images or none, which also leaves more memory to other programs.
        num_processes: Training processes on this machine; each has its own cache.
    """
    needed = sum(int(np.prod(shape)) for record in records for _, shape in _shapes(record, augment, out_hw))
    memory, shared = available_bytes() or 0, _free_shared_memory()
    share = 4 if is_whole else 2
    # Batches in transit need shared memory too.
    limit = min(limit_bytes, memory // share, shared // 2) // num_processes
    if is_whole:
        return needed if needed <= limit else 0
    return min(needed, limit)


def _free_shared_memory() -> int:
    with contextlib.suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return 0


def _is_jpeg(file: Path) -> bool:
    """Decides by the file name; reading finds the real format."""
    return file.suffix.lower() in _JPEG_SUFFIXES


def _shapes(
    record: ImageRecord, augment: AugmentConfig, out_hw: tuple[int, int]
) -> list[tuple[int, tuple[int, int, int]]]:
    """Returns the reductions that views may need, with the shapes of the images."""
    least, largest = (reduction_for(scale) for scale in scale_limits(augment, record.hw, out_hw))
    reductions = [r for r in _REDUCTIONS if largest <= r <= least] if _is_jpeg(record.file) else [1]
    return [(r, (-(-record.hw[0] // r), -(-record.hw[1] // r), 3)) for r in reductions]

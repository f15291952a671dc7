"""Training batches: images decoded and augmented by worker processes that live as long as the loader.

Every sample's chance comes from (seed, epoch, index of the image) alone. Batches therefore depend neither on the
number of workers, nor on where an interrupted epoch is taken up again, nor on how they are shared over processes.

As workers are not forked from this process (see `worker_context`), a script that trains must guard its entry with
`if __name__ == "__main__":`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from edgerpn.errors import DataError
from edgerpn.train.data.augment import (
    SMALLEST_PX,
    AugmentConfig,
    RandomView,
    Sample,
    apply_view,
    compose_mosaic,
    draw_tiles,
    draw_view,
)
from edgerpn.train.data.batch import TrainBatch, collate
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.data.image_cache import ImageCache, reduction_for

__all__ = ["BatchShare", "DataConfig", "TrainBatch", "TrainLoader"]

# Tags keep the two uses of (seed, epoch) from sharing a stream.
_ORDER, _SAMPLE = 0, 1
_PREFETCH = 2
_ADVICE = (
    "give the machine or container more memory and /dev/shm (docker run --shm-size=1g), "
    "use a smaller batch or fewer workers, or read the images in the training process (workers = 0)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How training images are read and put into batches."""

    input_hw: tuple[int, int] = (640, 640)
    """Height and width of the network's input, pixels."""
    view_sides_px: tuple[int, ...] = (320, 320, 320, 320, 320, 320, 320, 0)
    """Longest side of the training views, pixels, for the batches in turn: a smaller view shows a part of what the
    network sees otherwise, at the same scale and in less time. 0: as large as `input_hw`, so that large objects are
    seen whole; empty: all of them."""
    batch_size: int = 8
    """Images per step, over all processes and passes; 0: as many as the GPUs hold, and on a CPU
    `optimizer.reference_batch_size`."""
    workers: int = 2
    """Processes that decode and augment, for each process of the training; 0 does it in the training process."""
    cache: Literal["auto", "off", "memory"] = "auto"
    """Whether decoded images are kept in shared memory: `auto` when all of them fit, `memory` as many as fit."""
    cache_mib: int = 2048
    """Largest size of that memory in MiB on each machine; `auto` also stays below a quarter of what is free."""
    holdout_classes: tuple[str, ...] = ()
    """Classes whose boxes training does not see, by their names in the annotations; `edgerpn eval` then reports recall
    on them apart."""
    verify: Literal["decode", "header", "none"] = "decode"
    """Check of the images before training: decode each once, read sizes and file ends only, or none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the images."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.input_hw) < 1:
            raise ValueError(f"input_hw: expected a positive height and width, got {self.input_hw}")
        if min(self.view_sides_px, default=0) < 0:
            raise ValueError(f"view_sides_px: expected 0 or more, got {self.view_sides_px}")
        if self.batch_size < 0:
            raise ValueError(f"batch_size: expected 1 or more, or 0 to choose it automatically, got {self.batch_size}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, got {self.workers}")
        if self.cache_mib < 0:
            raise ValueError(f"cache_mib: expected 0 or more, got {self.cache_mib}")

    @property
    def views_hw(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the training views of the batches in turn, pixels."""
        height, width = self.input_hw
        return tuple((min(side or height, height), min(side or width, width)) for side in self.view_sides_px or (0,))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShare:
    """Which part of every batch a process gets, and in how many passes."""

    rank: int = 0
    """Number of the process, from 0."""
    num_ranks: int = 1
    """Number of processes."""
    passes: int = 1
    """Parts of a step's batch that each process takes one after the other."""

    @property
    def parts(self) -> int:
        """Parts of a batch, over processes and passes."""
        return self.num_ranks * self.passes


WHOLE_BATCH = BatchShare()
"""Every batch at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _BatchKey:
    """Which images of which epoch make up a batch: all that a worker needs to know."""

    epoch: int
    indices: tuple[int, ...]
    view_hw: tuple[int, int]


class _BatchSource:
    """Makes batches by key; a copy lives in every worker."""

    def __init__(self, records: Sequence[ImageRecord], config: DataConfig, seed: int, cache: ImageCache) -> None:
        self._records = records
        self._config = config
        self._seed = seed
        self._cache = cache

    def __getitem__(self, key: _BatchKey) -> TrainBatch | DataError:
        """The batch, in shared memory when in a worker; or the error, so that it arrives as it was raised."""
        try:
            batch = collate(
                [self._sample(key.epoch, index, key.view_hw) for index in key.indices],
                [self._records[index].image_id for index in key.indices],
            )
        except DataError as error:
            return error
        if torch.utils.data.get_worker_info() is None:
            return batch
        try:
            # Here and not in the queue's thread, where a full /dev/shm would lose the batch and hang the training.
            return batch.share_memory()
        except RuntimeError as error:
            return DataError(f"no shared memory for a batch of {len(key.indices)} images: {error}; {_ADVICE}")

    def _sample(self, epoch: int, index: int, view_hw: tuple[int, int]) -> Sample:
        config = self._config.augment
        rng = _rng(self._seed, _SAMPLE, epoch, index)
        view = draw_view(config, rng)
        if rng.random() >= config.mosaic_probability or min(view_hw) < SMALLEST_PX:
            return self._show(index, view, view_hw)
        tiles = draw_tiles(view_hw, rng)
        others = rng.integers(len(self._records), size=len(tiles) - 1).tolist()
        parts = [(index, view), *((other, draw_view(config, rng)) for other in others)]
        return compose_mosaic(view_hw, tiles, lambda number, tile: self._show(*parts[number], tile.hw))

    def _show(self, index: int, view: RandomView, view_hw: tuple[int, int]) -> Sample:
        record = self._records[index]
        config = self._config
        scale = max(view.scale_xy(record.hw, config.input_hw))
        image, reduction = self._cache.read(index, record.file, reduction_for(scale))
        expected = tuple(-(-size // reduction) for size in record.hw)
        if image.shape[:2] != expected:
            raise DataError(
                f"{record.file}: the image changed since it was checked: {image.shape[1]} x {image.shape[0]} pixels "
                f"at 1/{reduction} of its size, expected {expected[1]} x {expected[0]}"
            )
        factor = np.float32(1 / reduction)
        return apply_view(
            view,
            image,
            record.boxes_xyxy * factor,
            record.ignore_xyxy * factor,
            out_hw=view_hw,
            config=config.augment,
            fit_hw=config.input_hw,
        )


@dataclass(kw_only=True, slots=True)
class _BatchPlan:
    """The keys of all epochs from a place on, one after the other, so that workers read on while an epoch ends."""

    seed: int
    count: int
    """Images of the set."""
    batch_size: int
    """Of a step, over all processes and passes."""
    views_hw: tuple[tuple[int, int], ...]
    share: BatchShare
    start: tuple[int, int] = (0, 0)
    """Epoch and batch at which the next iteration begins."""

    def __iter__(self) -> Iterator[_BatchKey]:
        epoch, batch = self.start
        while True:
            yield from self.keys_of(epoch, batch)
            epoch, batch = epoch + 1, 0

    def keys_of(self, epoch: int, start_batch: int) -> Iterator[_BatchKey]:
        """What this process reads of an epoch from batch number `start_batch` on."""
        order = _rng(self.seed, _ORDER, epoch).permutation(self.count).tolist()
        # Pass by pass: the parts that all processes compute at the same time lie side by side.
        size, num_batches = self.batch_size // self.share.parts, self.count // self.batch_size
        starts = range(
            start_batch * self.batch_size + self.share.rank * size,
            num_batches * self.batch_size,
            self.share.num_ranks * size,
        )
        first = epoch * num_batches
        for start in starts:
            yield _BatchKey(
                epoch=epoch,
                indices=tuple(order[start : start + size]),
                view_hw=self.views_hw[(first + start // self.batch_size) % len(self.views_hw)],
            )


class TrainLoader:
    """Endless source of shuffled, augmented training batches; close it (or use `with`) to end its workers."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        config: DataConfig,
        *,
        seed: int,
        pin_memory: bool = False,
        share: BatchShare = WHOLE_BATCH,
        cache_bytes: int = 0,
    ) -> None:
        """Prepares the loader; workers start with the first epoch.

        Args:
            records: The images, at least one.
            config: How to read them.
            seed: Decides the order and all augmentation, 0 or more.
            pin_memory: Whether batches arrive in page-locked memory, for copies to CUDA; needs a CUDA device.
            share: Which part of every batch to load.
            cache_bytes: Shared memory for decoded images, see `image_cache.cache_bytes`; 0: none.

        Raises:
            ValueError: There are no records, the seed is negative, or the batches cannot be shared.
        """
        if not records:
            raise ValueError("records: expected at least one image, got none")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        self._count = len(records)
        self._share = share
        self.batch_size = min(config.batch_size, len(records)) // share.parts * share.parts
        """Images of a step, over all processes and passes: a small set has fewer than were asked for."""
        if self.batch_size < 1:
            raise ValueError(
                f"batch_size: expected at least one image for each of {share.parts} parts (processes x passes), "
                f"got batches of {config.batch_size} out of {len(records)} images"
            )
        self._plan = _BatchPlan(
            seed=seed, count=self._count, batch_size=self.batch_size, views_hw=config.views_hw, share=share
        )
        cache = self._make_cache(records, config, cache_bytes)
        self.cache_bytes = cache.size_bytes
        """Shared memory that keeps decoded images."""
        self._epochs_started = 0
        self._loader: DataLoader[TrainBatch | DataError] | None = _data_loader(
            _BatchSource(tuple(records), config, seed, cache),
            self._plan,
            config.workers,
            pin_memory,
        )
        self._batches: Iterator[TrainBatch | DataError] | None = None
        self._place: tuple[int, int] | None = None
        """Epoch and part of a batch that the workers' stream comes to next; None before it flows."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch; images that do not fill the last one wait for another epoch's order."""
        return self._count // self.batch_size

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Yields this process's parts of the batches of an epoch, from batch number `start_batch` on, pass by pass.

        Starting another epoch ends the one before.

        Args:
            epoch: Number of the epoch, 0 or more; decides order and augmentation together with the seed.
            start_batch: Number of batches to leave out, for resuming.

        Raises:
            DataError: An image cannot be read any more, or a worker died.
            ValueError: A number is out of range.
            RuntimeError: The loader is closed, or another epoch was started meanwhile.
        """
        if epoch < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"epoch and start_batch: expected 0 or more and 0..{self.batches_per_epoch}, "
                f"got {epoch} and {start_batch}"
            )
        if self._loader is None:
            raise RuntimeError("the loader is closed")
        self._epochs_started += 1
        return self._deliver(self._epochs_started, epoch, start_batch)

    def steps(self, epoch: int, *, start_batch: int = 0) -> Iterator[tuple[TrainBatch, ...]]:
        """As `epoch`, with the passes of one step together."""
        parts = self.epoch(epoch, start_batch=start_batch)
        while step := tuple(itertools.islice(parts, self._share.passes)):
            yield step

    def close(self) -> None:
        """Ends the workers; calling it again does nothing."""
        # The DataLoader's iterator ends its workers when its last reference goes; no running epoch may hold one.
        self._loader = self._batches = None

    def __enter__(self) -> TrainLoader:
        """Returns the loader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the loader, whatever happened."""
        self.close()

    @staticmethod
    def _make_cache(records: Sequence[ImageRecord], config: DataConfig, size_bytes: int) -> ImageCache:
        lock = worker_context(__name__).Lock() if config.workers and size_bytes else None
        return ImageCache(records, config.augment, config.input_hw, size_bytes=size_bytes, lock=lock)

    def _deliver(self, epoch_number: int, epoch: int, start_batch: int) -> Iterator[TrainBatch]:
        """Yields what the workers send, as long as `epoch_number` is the last one that was started."""
        passes = self._share.passes
        for part in range(start_batch * passes, self.batches_per_epoch * passes):
            if self._loader is None or epoch_number != self._epochs_started:
                raise RuntimeError("another epoch was started, or the loader closed, while this one was in use")
            if self._place != (epoch, part):
                # Elsewhere than the stream flows to, which for a new epoch after a whole one it does by itself.
                self._plan.start = epoch, start_batch
                self._batches = None
            # Unknown, should this fail.
            self._place = None
            batch = self._receive(self._loader)
            if isinstance(batch, DataError):
                raise batch
            is_last = part + 1 == self.batches_per_epoch * passes
            self._place = (epoch + 1, 0) if is_last else (epoch, part + 1)
            yield batch

    def _receive(self, loader: DataLoader[TrainBatch | DataError]) -> TrainBatch | DataError:
        """The next of what the workers send."""
        try:
            if self._batches is None:
                self._batches = iter(loader)
            return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not is_worker_death(error):
                raise
            raise DataError(
                f"a process that reads training images died ({error!r}); if it was killed for memory: {_ADVICE}"
            ) from error


def _data_loader(
    source: _BatchSource, plan: _BatchPlan, workers: int, pin_memory: bool
) -> DataLoader[TrainBatch | DataError]:
    options: dict[str, Any] = {}
    if workers:
        options = {
            "multiprocessing_context": worker_context(__name__),
            "persistent_workers": True,
            "prefetch_factor": _PREFETCH,
            "worker_init_fn": _start_worker,
        }
    return DataLoader(
        source,  # type: ignore[arg-type]
        sampler=plan,
        # A key stands for a whole batch.
        batch_size=None,
        collate_fn=_unchanged,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        # Its own, because the DataLoader draws a number per epoch that would otherwise come from the model's.
        generator=torch.Generator(),
        **options,
    )


def _unchanged(batch: TrainBatch | DataError) -> TrainBatch | DataError:
    return batch


def _rng(seed: int, tag: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(tag, *numbers)))


def worker_context(preload: str) -> Any:
    """The multiprocessing context for workers: a fork server that imports `preload` once, or else spawning."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([preload])
    # It and its children take over which signals are blocked. Whoever ends a service or a SLURM job sends SIGTERM to
    # every process; the training process alone must answer, for it cannot finish its step without its data.
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


def _start_worker(worker: int) -> None:
    """Makes worker number `worker` use one core, leave signals to the training process, and not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name=f"watch-{worker}", daemon=True).start()


def is_worker_death(error: Exception) -> bool:
    """Whether what a DataLoader raised means that a worker died; what a worker itself raised does not."""
    # The DataLoader has no class of its own for it; what a worker raises comes as "Caught ... in DataLoader worker".
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    # A batch's memory is handed over by the worker; one that is just dying resets that connection.
    return isinstance(error, (OSError, EOFError)) and not str(error).startswith("Caught ")


def _end_with_parent() -> None:
    """Ends this process when the training process is gone, even if it was killed.

    The DataLoader's own watch looks at the fork server instead, which lives as long as the workers do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

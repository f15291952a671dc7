"""Training batches: images decoded and augmented by worker processes that live as long as the loader.

The random numbers of a sample depend on (seed, epoch, index of the image) only. Batches therefore depend neither on
the number of workers, nor on where an interrupted epoch resumes, nor on how processes share them.

Workers start from a fork server. A fork of the training process would copy locks that its threads hold (OpenMP, CUDA,
pinning; Python >= 3.12 warns of it), and spawned processes would import torch once each; the server has one thread and
imports torch once. A script that trains must therefore guard its entry with `if __name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
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

from edgerpn.errors import DataError, check_setting
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
from edgerpn.train.data.choice import DataChoice, DataFormat, ExifChoice, ImageRules, parse_split
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.data.image_cache import ImageCache, reduction_for
from edgerpn.train.data.rules import RULE_NAMES
from edgerpn.train.data.sampling import Balance, Draw, Sampler

_PREFETCH = 2
_ADVICE = (
    "give the machine or container more memory and /dev/shm (docker run --shm-size=1g), "
    "use a smaller batch or fewer workers, or read the images in the training process (workers = 0)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Reading of training images, and their batches."""

    input_hw: tuple[int, int] = (640, 640)
    """Height and width of the network's input, pixels."""
    view_sides_px: tuple[int, ...] = (320, 320, 320, 320, 320, 320, 320, 0)
    """Longest sides of the training views, pixels; consecutive batches cycle through them. A smaller view shows a part
    of the input at the same scale, in less time. 0, or an empty list for all views: as large as `input_hw`, so that
    large objects are complete."""
    batch_size: int = 8
    """Images per step, over all processes and passes; 0: as many as fit on the GPUs, and on a CPU
    `optimizer.reference_batch_size`."""
    balance: Balance = "images"
    """`images`: an epoch shows each image once. `folders`: the folders that hold the images are shown equally often,
    whatever their sizes; for data sets of different sizes in one."""
    workers: int = 2
    """Processes that decode and augment images, per training process; 0: the training process does it."""
    cache: Literal["auto", "off", "memory"] = "auto"
    """Keep decoded images in shared memory: `auto` if all of them fit, `memory` as many as fit."""
    cache_mib: int = 2048
    """Largest size of that memory in MiB on each machine; `auto` also stays below a quarter of the free memory."""
    holdout_classes: tuple[str, ...] = ()
    """Names of classes whose boxes training does not see; `edgerpn eval` then reports recall on them separately."""
    format: DataFormat = "auto"
    """Format of the data set; `auto`: recognised by its files."""
    split: str = ""
    """Validation split: a share of the training images (`"0.2"`, or `"0.2@SEED"`), or names of splits (`"val=test"`);
    empty: the set's own, else 0.2, by source."""
    allow: tuple[str, ...] = ()
    """Checks of the whole set that are accepted although they fail, by the names in their errors (`["clipped"]`)."""
    classes: tuple[str, ...] = ()
    """Names of the classes whose boxes are objects; the others count as background. Empty: all classes."""
    verify: Literal["decode", "header", "none"] = "decode"
    """Check of the images before training: decode each once, read only sizes and file ends, or skip it."""
    exif: ExifChoice = "auto"
    """Images with an EXIF orientation: `apply` turns them as viewers do, `ignore` reads them as stored. It is recorded
    in the exported model, which reads image files alike. `auto`: ignore, but refuse sets in which it matters."""
    follow_links: bool = False
    """Read images and label files that are links to files outside of the data folder, such as those of DVC."""
    damaged: Literal["drop", "use", "refuse"] = "drop"
    """Images with a hole, or cut and closed again, which decode nevertheless; found with `verify` = `decode`."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the images."""

    def __post_init__(self) -> None:
        check_setting(min(self.input_hw) >= 1, "input_hw", "a positive height and width", self.input_hw)
        check_setting(min(self.view_sides_px, default=0) >= 0, "view_sides_px", "0 or more", self.view_sides_px)
        check_setting(self.batch_size >= 0, "batch_size", "1 or more, or 0 to choose it automatically", self.batch_size)
        check_setting(self.workers >= 0, "workers", "0 or more", self.workers)
        check_setting(self.cache_mib >= 0, "cache_mib", "0 or more", self.cache_mib)
        check_setting({*self.allow} <= {*RULE_NAMES}, "allow", f"names out of {', '.join(RULE_NAMES)}", self.allow)
        try:
            parse_split(self.split)
        except ValueError as error:
            raise ValueError(f"split: {error}") from error

    @property
    def choice(self) -> DataChoice:
        """Format, validation split, classes and accepted checks as given."""
        images = ImageRules(exif=self.exif, follow_links=self.follow_links, damaged=self.damaged)
        return DataChoice(format=self.format, split=self.split, classes=self.classes, allow=self.allow, images=images)

    @property
    def views_hw(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths of the training views, pixels; consecutive batches cycle through them."""
        height, width = self.input_hw
        return tuple((min(side or height, height), min(side or width, width)) for side in self.view_sides_px or (0,))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShare:
    """The part of every batch that a process gets, and its number of passes."""

    rank: int = 0
    """Number of the process, from 0."""
    num_ranks: int = 1
    """Number of processes."""
    passes: int = 1
    """Parts of a step's batch that each process takes one after another."""

    @property
    def parts(self) -> int:
        """Number of parts of a batch, over processes and passes."""
        return self.num_ranks * self.passes


WHOLE_BATCH = BatchShare()
"""Whole batches, for a single process and pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _BatchKey:
    """The images of a batch; workers receive this."""

    epoch: int
    draws: tuple[Draw, ...]
    view_hw: tuple[int, int]


class _BatchSource:
    """Makes batches from keys; every worker has a copy."""

    def __init__(self, records: Sequence[ImageRecord], config: DataConfig, sampler: Sampler, cache: ImageCache) -> None:
        self._records = records
        self._config = config
        self._sampler = sampler
        self._cache = cache

    def __getitem__(self, key: _BatchKey) -> TrainBatch | DataError:
        """Returns the batch (in a worker: in shared memory), or the error, so that it arrives unchanged."""
        try:
            batch = collate(
                [self._sample(key.epoch, draw, key.view_hw) for draw in key.draws],
                [self._records[draw.image].image_id for draw in key.draws],
            )
        except DataError as error:
            return error
        if torch.utils.data.get_worker_info() is None:
            return batch
        try:
            # Not in the queue's thread: there a full /dev/shm would lose the batch and hang the training.
            return batch.share_memory()
        except RuntimeError as error:
            return DataError(f"no shared memory for a batch of {len(key.draws)} images: {error}; {_ADVICE}")

    def _sample(self, epoch: int, draw: Draw, view_hw: tuple[int, int]) -> Sample:
        config = self._config.augment
        rng = self._sampler.numbers_of(draw, epoch)
        view = draw_view(config, rng)
        if rng.random() >= config.mosaic_probability or min(view_hw) < SMALLEST_PX:
            return self._show(draw.image, view, view_hw)
        tiles = draw_tiles(view_hw, rng)
        others = self._sampler.draw_others(len(tiles) - 1, rng)
        parts = [(draw.image, view), *((other, draw_view(config, rng)) for other in others)]
        return compose_mosaic(view_hw, tiles, lambda number, tile: self._show(*parts[number], tile.hw))

    def _show(self, index: int, view: RandomView, view_hw: tuple[int, int]) -> Sample:
        record = self._records[index]
        config = self._config
        scale = max(view.scale_xy(record.hw, config.input_hw))
        image, reduction = self._cache.read(index, record.file, reduction_for(scale), record.exif)
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
            np.column_stack([record.boxes_xyxy * factor, record.box_classes.astype(np.float32)]),
            record.ignore_xyxy * factor,
            out_hw=view_hw,
            config=config.augment,
            fit_hw=config.input_hw,
        )


@dataclass(kw_only=True, slots=True)
class _BatchPlan:
    """The keys of all epochs from a position on; workers already read the next epoch while one ends."""

    sampler: Sampler
    batch_size: int
    """Of a step, over all processes and passes."""
    views_hw: tuple[tuple[int, int], ...]
    share: BatchShare
    start: tuple[int, int] = (0, 0)
    """Epoch and batch at which the next iteration starts."""

    def __iter__(self) -> Iterator[_BatchKey]:
        epoch, batch = self.start
        while True:
            yield from self.keys_of(epoch, batch)
            epoch, batch = epoch + 1, 0

    def keys_of(self, epoch: int, start_batch: int) -> Iterator[_BatchKey]:
        """Yields the keys of this process in an epoch, from batch number `start_batch` on."""
        order = self.sampler.order(epoch)
        # Pass by pass: the parts that all processes compute at the same time lie side by side.
        size, num_batches = self.batch_size // self.share.parts, self.sampler.count // self.batch_size
        starts = range(
            start_batch * self.batch_size + self.share.rank * size,
            num_batches * self.batch_size,
            self.share.num_ranks * size,
        )
        first = epoch * num_batches
        for start in starts:
            yield _BatchKey(
                epoch=epoch,
                draws=tuple(order[start : start + size]),
                view_hw=self.views_hw[(first + start // self.batch_size) % len(self.views_hw)],
            )


class TrainLoader:
    """Endless source of shuffled, augmented training batches; `close` (or `with`) ends its workers."""

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
            seed: Seed of the order and of all augmentation, 0 or more.
            pin_memory: Whether batches arrive in page-locked memory, for copies to CUDA; needs a CUDA device.
            share: The part of every batch to load.
            cache_bytes: Shared memory for decoded images, see `image_cache.cache_bytes`; 0: no cache.

        Raises:
            ValueError: There are no records, the seed is negative, or the batches cannot be divided.
        """
        if not records:
            raise ValueError("records: expected at least one image, got none")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        self._count = len(records)
        self._share = share
        self.batch_size = min(config.batch_size, len(records)) // share.parts * share.parts
        """Images per step, over all processes and passes; fewer than the setting in a small data set."""
        if self.batch_size < 1:
            raise ValueError(
                f"batch_size: expected at least one image for each of {share.parts} parts (processes x passes), "
                f"got batches of {config.batch_size} out of {len(records)} images"
            )
        sampler = Sampler([record.file for record in records], balance=config.balance, seed=seed)
        self._plan = _BatchPlan(sampler=sampler, batch_size=self.batch_size, views_hw=config.views_hw, share=share)
        lock = worker_context(__name__).Lock() if config.workers and cache_bytes else None
        cache = ImageCache(records, config.augment, config.input_hw, size_bytes=cache_bytes, lock=lock)
        self.cache_bytes = cache.size_bytes
        """Shared memory for decoded images, bytes."""
        self._epochs_started = 0
        self._loader: DataLoader[TrainBatch | DataError] | None = _data_loader(
            _BatchSource(tuple(records), config, sampler, cache),
            self._plan,
            config.workers,
            pin_memory,
        )
        self._batches: Iterator[TrainBatch | DataError] | None = None
        self._place: tuple[int, int] | None = None
        """Epoch and part that the workers deliver next; None before they start."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches per epoch; an epoch leaves out the images that do not fill a batch."""
        return self._count // self.batch_size

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Yields this process's parts of the batches of an epoch, from batch number `start_batch` on, pass by pass.

        Starting another epoch ends the previous one.

        Args:
            epoch: Number of the epoch, 0 or more; with the seed it determines order and augmentation.
            start_batch: Number of batches to skip, for resuming.

        Raises:
            DataError: An image can no longer be read, or a worker died.
            ValueError: A number is out of range.
            RuntimeError: The loader is closed, or another epoch has started.
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
        """Yields the same as `epoch`, with the passes of one step together."""
        parts = self.epoch(epoch, start_batch=start_batch)
        while step := tuple(itertools.islice(parts, self._share.passes)):
            yield step

    def close(self) -> None:
        """Ends the workers; may be called again."""
        # The DataLoader's iterator ends its workers when its last reference goes; no running epoch may hold one.
        self._loader = self._batches = None

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, epoch_number: int, epoch: int, start_batch: int) -> Iterator[TrainBatch]:
        """Yields the batches from the workers, as long as `epoch_number` is the newest epoch."""
        passes = self._share.passes
        for part in range(start_batch * passes, self.batches_per_epoch * passes):
            if self._loader is None or epoch_number != self._epochs_started:
                raise RuntimeError("another epoch was started, or the loader closed, while this one was in use")
            if self._place != (epoch, part):
                # A jump: after a complete epoch the stream continues with the next one by itself.
                self._plan.start = epoch, start_batch
                self._batches = None
            # Unknown if this fails.
            self._place = None
            batch = self._receive(self._loader)
            if isinstance(batch, DataError):
                raise batch
            is_last = part + 1 == self.batches_per_epoch * passes
            self._place = (epoch + 1, 0) if is_last else (epoch, part + 1)
            yield batch

    def _receive(self, loader: DataLoader[TrainBatch | DataError]) -> TrainBatch | DataError:
        try:
            if self._batches is None:
                self._batches = iter(loader)
            return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not is_worker_death(error):
                raise
            raise DataError(
                f"a worker process for training images died ({error!r}); if the system killed it for memory: {_ADVICE}"
            ) from error


class _SilentDataLoader(DataLoader[Any]):
    """A DataLoader that takes the number of workers from the settings, also where it has fewer cores."""

    def check_worker_number_rationality(self) -> None:
        """Replaces PyTorch's check, which would warn several times, about a default that nobody has chosen."""


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
    return _SilentDataLoader(
        source,  # type: ignore[arg-type]
        sampler=plan,
        # One key is a whole batch.
        batch_size=None,
        collate_fn=_unchanged,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin_memory,
        # Otherwise the DataLoader would draw a number per epoch from the model's generator.
        generator=torch.Generator(),
        **options,
    )


def _unchanged(batch: TrainBatch | DataError) -> TrainBatch | DataError:
    return batch


def worker_context(preload: str) -> Any:
    """Returns the multiprocessing context of the workers: a fork server that imports `preload`, or else spawning."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([preload])
    # The server and its children inherit the set of blocked signals. A service manager or SLURM sends SIGTERM to every
    # process, but only the training process must react: it cannot finish its step without its data.
    # The resource tracker starts first, because its start would unblock the signal.
    with _safe_path():
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Keeps a Python that starts inside the block from importing a random.py of the current folder (Python 3.11)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _start_worker(worker: int) -> None:
    """Makes a worker use one core, ignore SIGINT, and end with the training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name=f"watch-{worker}", daemon=True).start()


def is_worker_death(error: Exception) -> bool:
    """Returns whether an error of a DataLoader means that a worker died, as opposed to an error inside a worker."""
    # The DataLoader has no class for it; errors inside a worker arrive as "Caught ... in DataLoader worker".
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    # A worker hands over the memory of a batch through a connection, which its death resets.
    return isinstance(error, (OSError, EOFError)) and not str(error).startswith("Caught ")


def _end_with_parent() -> None:
    """Ends this process when the training process has ended, even if it was killed.

    The DataLoader's own watch observes the fork server instead, which lives as long as the workers.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

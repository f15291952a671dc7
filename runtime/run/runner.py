"""The one runner: files, images and cameras through a model, in threads.

    capture processes -> mailboxes \
                                    > [worker threads: batch, preprocess, inference] -> slots, in order -> caller's loop
    reader threads    -> mailboxes /

Invariants:
1. Results of a source come in the order of its frames: a worker collects a batch and books its slot in one locked step.
2. Everything is bounded. Files lose no frame and no event: a reader waits for room in its mailbox, and a batch is only
   taken when few results wait for the caller. With a live source there is one batch in the model, and at most one more
   waits for the caller: a batch is collected when the model is free, from the newest frames.
3. The age of a frame is judged at the last moment, when the caller's loop takes its result.
4. A source that fails becomes events and never ends the run. An error of the model does, and so does a fault inside a
   reader; the first error in frame order is the one raised.
5. Nothing waits for ever: every wait has a time limit and checks the stop flag; every join has a time limit.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter, index
from types import TracebackType
from typing import TYPE_CHECKING

from edgerpn.machine import available_cores, is_foreign
from edgerpn.runtime.frame import Event, Frame, Result, Source
from edgerpn.runtime.run.batcher import Batcher
from edgerpn.runtime.run.registry import SourceRegistry
from edgerpn.runtime.run.stats import SourceStats
from edgerpn.runtime.run.streams_config import BatchingConfig, SourceConfig, StreamsConfig
from edgerpn.runtime.run.workers import FrameModel, Workers
from edgerpn.runtime.sources.group import CaptureGroup
from edgerpn.runtime.tracking.config import TrackConfig

if TYPE_CHECKING:
    from edgerpn.runtime.tracking.run_tracker import RunTracker

GPU_BATCH = 8
"""Frames in a batch on a GPU for a model that takes any number."""
_FIXED = ("batching.preprocess_threads", "track", "engine", "server", "http")
_logger = logging.getLogger(__name__)


class StreamRunner:
    """Runs sources through a model; iterate over it once, inside of a `with` block.

    Sources may be added and removed, and their settings changed, from any thread and at any time.
    """

    def __init__(
        self,
        model: FrameModel,
        config: StreamsConfig,
        *,
        opened: Mapping[str, Source] | None = None,
        workers: int | None = None,
        is_strict: bool = False,
        stays: bool = False,
        shows_pictures: bool = True,
        max_results: int | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        """Starts the captures; the model's threads start with the iteration.

        Args:
            model: Stays the caller's to close.
            config: The settings of the run.
            opened: Files that are open already, by the names of their sources; the runner closes them.
            workers: Batches in the model at the same time, unless a source is live; None: as many as make the backend
                faster.
            is_strict: Whether a frame that does not fit the model is an `InputError` instead of an event.
            stays: Whether to continue when all sources have ended, because others may be added.
            shows_pictures: Whether somebody looks at the pictures of results; else hardware may deliver smaller ones.
            max_results: Results after which to stop; None: all.
            on_tick: Called in the thread that iterates, about every 0.1 s while nothing comes, and after every batch
                otherwise.

        Raises:
            ValueError: `max_results` is negative, or `workers` is below 1.
            TypeError: One of them is not a whole number, or `config` is not a `StreamsConfig`.
            NoThreadError: The system gives no more threads.
        """
        if not isinstance(config, StreamsConfig):
            raise TypeError(f"config: expected a StreamsConfig, got a {type(config).__name__}")
        check_count("max_results", max_results, least=0)
        check_count("workers", workers, least=1)
        num_threads = max(1, model.backend.frames_in_flight) if workers is None else workers
        spec = model.manifest.input
        self._model = model
        self._config = config
        self._on_tick = on_tick
        self._results_left = max_results
        self._pool = self._make_pool(config.batching)
        self._has_begun = self._is_closed = False
        self._group = CaptureGroup()
        self._registry = SourceRegistry(
            self._group,
            depth=num_threads + 1,
            exif=spec.exif_reading,
            takes_bgrx=spec.num_channels == 4,
            network_hw=None if shows_pictures or spec.source_hw is not None else spec.network_hw,
            opened=opened,
            tells_ends=config.track is not None,
        )
        self._tracker = self._make_tracker(config.track)
        self._batcher = Batcher(
            self._group, max_batch=1, wait_ms=0.0, stays=lambda: stays or self._registry.is_changing
        )
        self._workers = Workers(
            model, self._batcher, self._registry, self._pool, num_threads=num_threads, is_strict=is_strict
        )
        try:
            self.apply(config)
        except BaseException:
            # Nobody has the runner to close it.
            self.close()
            raise

    def __enter__(self) -> StreamRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Generator[Result | Event, None, None]:
        """Yields results and events until all sources have ended or `stop` is called.

        Raises:
            InferenceError: The backend failed.
            InputError: A frame does not fit the model, and the runner is strict.
            NoThreadError: The system gives no more threads.
            RuntimeError: The runner is closed, or was iterated over before.
        """
        if self._has_begun or self._is_closed:
            state = "closed" if self._is_closed else "iterated over before"
            raise RuntimeError(f"this runner was {state}; make another StreamRunner to run its sources again")
        self._has_begun = True
        self._workers.start()
        while not self._is_done():
            self._group.check_process()
            slot = self._workers.next()
            if slot is not None and slot.error is not None:
                raise slot.error
            if slot is not None and slot.is_end:
                break
            if slot is not None:
                # Taken out one by one, because each holds a picture while the caller is busy.
                while slot.items and not self._is_done():
                    emitted = self._emit(slot.items.popleft())
                    if emitted is not None and self._tracker is not None:
                        emitted, events = _follow(self._tracker, emitted)
                        yield from events
                    if emitted is not None:
                        yield emitted
                    del emitted
                if slot.is_batch:
                    self._workers.release()
            if self._tracker is not None:
                yield from self._tracker.expire(time.monotonic())
            if self._on_tick is not None:
                self._on_tick()
        if self._tracker is not None:
            yield from self._tracker.end_all()

    @property
    def num_stale(self) -> int:
        """Frames of all sources so far that were too old to be a result."""
        return self._registry.num_stale

    @property
    def num_dropped(self) -> int:
        """Frames of all sources so far that the run did not take in time."""
        return self._registry.num_dropped

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model; few in a healthy run."""
        return self._workers.busy_s

    def add(self, config: SourceConfig) -> None:
        """Adds a source; its events show whether it can be opened.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The runner is closed.
        """
        self._registry.add(config)

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; False when no source has this name."""
        if not self._registry.remove(name):
            return False
        self._tell_removed(name)
        return True

    def apply(self, config: StreamsConfig) -> None:
        """Adds, removes and changes sources until they are those of `config`; takes over all other settings.

        A source whose capture settings change is restarted; the others continue undisturbed. May take two seconds for
        each source that ends. A setting that cannot change is a warning in the log.
        """
        self._warn_of_fixed(config)
        self._batcher.wait_ms = config.batching.batch_wait_ms
        self._batcher.max_batch = config.batching.max_batch or natural_batch(self._model)
        self._registry.apply(config, self._tell_removed)

    def stats(self) -> dict[str, SourceStats]:
        """Returns a snapshot of each source, by name."""
        return self._registry.stats()

    def stop(self) -> None:
        """Ends the iteration after the result at hand; safe in a signal handler and from any thread."""
        # A plain flag: a lock could be held by the code that a signal interrupts.
        self._workers.is_stopping = True

    def close(self) -> None:
        """Ends all threads and processes, within seconds; does nothing the second time, or after a fork."""
        if is_foreign(self._group):
            return
        self._is_closed = self._workers.is_stopping = True
        self._group.close()
        self._workers.join()
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _warn_of_fixed(self, config: StreamsConfig) -> None:
        changed = [name for name in _FIXED if attrgetter(name)(config) != attrgetter(name)(self._config)]
        if changed:
            _logger.warning("these settings stay as they were when the run started: %s", ", ".join(changed))

    def _tell_removed(self, name: str) -> None:
        message = f"{name}: removed from the run"
        self._workers.insert(Event(kind="ended", source=name, message=message, reason="removed"))

    def _is_done(self) -> bool:
        return self._workers.is_stopping or self._results_left == 0

    def _make_tracker(self, config: TrackConfig | None) -> RunTracker | None:
        if config is None:
            return None
        # Not imported for a run without tracks.
        from edgerpn.runtime.tracking.run_tracker import RunTracker

        return RunTracker(config, is_live=self._registry.is_live)

    def _make_pool(self, batching: BatchingConfig) -> ThreadPoolExecutor | None:
        num_threads = batching.preprocess_threads or min(4, available_cores() // 2)
        is_useful = num_threads > 1 and (batching.max_batch or natural_batch(self._model)) > 1
        return ThreadPoolExecutor(num_threads, thread_name_prefix="edgerpn-preprocess") if is_useful else None

    def _emit(self, item: Result | Event) -> Result | Event | None:
        """Judges an item at the last moment: a result, the event in its place, or None for a removed source."""
        if isinstance(item, Event):
            self._registry.count(item)
            return item
        limit_ms = self._registry.age_limit_ms_of(item.frame.source)
        if limit_ms is None:
            return None
        age_ms = item.frame.age_ms(time.monotonic())
        if age_ms > limit_ms:
            event = _stale_event(item.frame, age_ms, limit_ms)
            self._registry.count(event)
            return event
        min_score = self._registry.min_score
        proposals = item.proposals.above(min_score) if min_score > 0 else item.proposals
        zone_map = self._registry.zone_map_of(item.frame.source)
        if zone_map is not None:
            proposals = zone_map.unmasked(proposals, item.frame.size_hw)
        result = dataclasses.replace(item, proposals=proposals, zone_map=zone_map, age_ms=age_ms)
        self._registry.count(result)
        if self._results_left is not None:
            self._results_left -= 1
        return result


def check_count(name: str, count: object, *, least: int) -> None:
    """Refuses an argument that is neither None nor a whole number of at least `least`.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is too small.
    """
    if count is None:
        return
    try:
        number = index(count)  # type: ignore[arg-type] # any object; the error is the answer
    except TypeError:
        raise TypeError(f"{name}: expected a whole number or None, got {count!r}") from None
    if number < least:
        raise ValueError(f"{name}: expected {least} or more, got {count}")


def natural_batch(model: FrameModel) -> int:
    """Returns the model's batch size; 1 on a CPU, where single frames take as long."""
    if model.manifest.input.batch is not None:
        return model.manifest.input.batch
    if model.backend.is_cpu:
        return 1
    return model.backend.max_batch or GPU_BATCH


def _follow(tracker: RunTracker, item: Result | Event) -> tuple[Result | Event, list[Event]]:
    """Returns an item with its tracks, and the events of tracks that belong before it."""
    if isinstance(item, Result):
        return tracker.follow(item)
    return item, tracker.end(item.source, item.reason) if item.kind == "ended" else []


def _stale_event(frame: Frame, age_ms: float, limit_ms: float) -> Event:
    """Returns the event in place of the result of a frame that is too old."""
    return Event(
        kind="stale",
        source=frame.source,
        message=f"{frame.source}: frame {frame.index} is {age_ms:.0f} ms old, and max_age_ms is {limit_ms:g}",
        reason="age",
        fix="Use a smaller model, fewer sources or a rate cap (max_fps), or raise max_age_ms.",
        frame=frame.index,
        age_ms=age_ms,
    )

"""Streams through a model: every source captured by a process of its own, batches, results that are never stale.

    capture processes -> group -> [worker threads: batch, preprocess, inference] -> slots, in order -> caller's loop

Invariants:
1. Results of a source come in the order of its frames: a worker collects a batch and books its slot in one locked step.
2. Everything is bounded. With a live source there is one batch in the model, and one more at most waits for the caller:
   a batch is collected when the model is free, from the newest frames.
3. A frame's age is judged at the last moment, when the caller's loop takes it.
4. A source that fails gives events and never ends the run; an error of the model does.
5. Nothing waits for ever: every wait is timed and looks at the stop flag, every join is timed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from edgerpn.machine import available_cores
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.model import Model
from edgerpn.runtime.run.batcher import Batcher
from edgerpn.runtime.run.items import removed_event, stale_event
from edgerpn.runtime.run.roster import Roster
from edgerpn.runtime.run.stats import SourceStats
from edgerpn.runtime.run.streams_config import BatchingConfig, SourceConfig, StreamsConfig
from edgerpn.runtime.run.workers import Workers
from edgerpn.runtime.sources import CaptureGroup

_GPU_BATCH = 8


class StreamRunner:
    """Runs sources through a model; iterate over it once, inside of a `with` block.

    Sources may be added and removed, and their settings changed, from any thread and at any time.
    """

    def __init__(
        self,
        model: Model,
        config: StreamsConfig,
        *,
        stays: bool = False,
        max_results: int | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        """Starts the capture processes; the model's threads start with the iteration.

        Args:
            model: Stays the caller's to close.
            config: The sources, and how they are run.
            stays: Whether to go on when all sources have ended, because others may be added.
            max_results: Results after which to stop; None: all.
            on_tick: Called in the thread that iterates, about every 0.1 s while there is nothing to give, and after
                every batch otherwise.

        Raises:
            ValueError: `max_results` is negative.
        """
        if max_results is not None and max_results < 0:
            raise ValueError(f"max_results: expected 0 or more, got {max_results}")
        self._model = model
        self._on_tick = on_tick
        self._results_left = max_results
        self._pool = self._make_pool(config.batching)
        self._group = CaptureGroup()
        self._roster = Roster(self._group)
        self._batcher = Batcher(self._group, max_batch=1, wait_ms=0.0, stays=lambda: stays or self._roster.is_changing)
        self._workers = Workers(model, self._batcher, self._roster, self._pool)
        self.apply(config)

    def __enter__(self) -> StreamRunner:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def __iter__(self) -> Iterator[Result | Event]:
        """Gives results and events until all sources have ended, or somebody calls `stop`.

        Raises:
            InferenceError: The backend failed.
        """
        self._workers.start()
        while not self._is_done():
            slot = self._workers.next()
            if slot is not None and slot.error is not None:
                raise slot.error
            if slot is not None and slot.is_end:
                return
            if slot is not None:
                for item in slot.items:
                    emitted = self._emit(item)
                    if emitted is not None:
                        yield emitted
                    if self._is_done():
                        return
                if slot.is_batch:
                    self._workers.release()
            if self._on_tick is not None:
                self._on_tick()

    @property
    def num_stale(self) -> int:
        """Frames that were too old to be a result, of all sources so far."""
        return self._roster.num_stale

    @property
    def num_dropped(self) -> int:
        """Frames that nobody took in time, of all sources so far."""
        return self._roster.num_dropped

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model; those of a healthy one are few."""
        return self._workers.busy_s

    def add(self, config: SourceConfig) -> None:
        """Adds a source; whether it can be opened shows in its events.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The runner is closed.
        """
        self._roster.add(config)

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; False when there is none of this name."""
        if not self._roster.remove(name):
            return False
        self._workers.tell(removed_event(name))
        return True

    def apply(self, config: StreamsConfig) -> None:
        """Adds, removes and changes sources until they are those of `config`; takes over all other settings.

        A source whose capture changes is started anew; the others go on undisturbed. May take two seconds for each
        source that ends.
        """
        self._batcher.wait_ms = config.batching.batch_wait_ms
        self._batcher.max_batch = config.batching.max_batch or self._natural_batch()
        for name in self._roster.apply(config):
            self._workers.tell(removed_event(name))

    def stats(self) -> dict[str, SourceStats]:
        """A snapshot of each source, by name."""
        return self._roster.stats()

    def stop(self) -> None:
        """Ends the iteration after the result at hand; safe in a signal handler and from any thread."""
        self._workers.is_stopping.set()

    def close(self) -> None:
        """Ends all threads and processes, within two seconds; does nothing the second time."""
        self._workers.is_stopping.set()
        self._group.close()
        self._workers.join()
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _is_done(self) -> bool:
        return self._workers.is_stopping.is_set() or self._results_left == 0

    def _natural_batch(self) -> int:
        """What the model is made for; one on a CPU, where a batch takes as long as its frames one by one."""
        manifest = self._model.manifest
        if manifest.input.batch is not None:
            return manifest.input.batch
        if self._model.backend.is_cpu:
            return 1
        return manifest.engine.profile.max_batch if manifest.engine is not None else _GPU_BATCH

    def _make_pool(self, batching: BatchingConfig) -> ThreadPoolExecutor | None:
        num_threads = batching.preprocess_threads or min(4, available_cores() // 2)
        is_useful = num_threads > 1 and (batching.max_batch or self._natural_batch()) > 1
        return ThreadPoolExecutor(num_threads, thread_name_prefix="edgerpn-preprocess") if is_useful else None

    def _emit(self, item: Result | Event) -> Result | Event | None:
        """Judges an item at the last moment: a result, the event in its place, or nothing."""
        if isinstance(item, Event):
            self._roster.count(item)
            return item
        settings = self._roster.settings_of(item.frame.source)
        if settings is None:
            # It was removed while the frame was in the model.
            return None
        age_ms = item.frame.age_ms(time.monotonic())
        if age_ms > settings.age_limit_ms:
            event = stale_event(item.frame, age_ms, settings.age_limit_ms)
            self._roster.count(event)
            return event
        min_score = self._roster.min_score
        proposals = item.proposals.above(min_score) if min_score > 0 else item.proposals
        result = dataclasses.replace(item, proposals=proposals, age_ms=age_ms)
        self._roster.count(result)
        if self._results_left is not None:
            self._results_left -= 1
        return result

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
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from edgerpn.runtime.backend import available_cores
from edgerpn.runtime.capture import CaptureGroup
from edgerpn.runtime.frame import Event, Frame, Result
from edgerpn.runtime.model import Model
from edgerpn.runtime.streams.batcher import Batch, Batcher
from edgerpn.runtime.streams.config import BatchingConfig, SourceConfig, StreamsConfig
from edgerpn.runtime.streams.items import refused_event, stale_event, to_event, to_frame
from edgerpn.runtime.streams.roster import Roster
from edgerpn.runtime.streams.stats import SourceStats

_POLL_S = 0.1
_JOIN_S = 1.0
_SPARE_BATCHES = 3
_logger = logging.getLogger(__name__)


class _Slot:
    """Place of one batch, or of events alone, in the order of results."""

    def __init__(self, *, is_batch: bool) -> None:
        self.is_batch = is_batch
        self.is_done = threading.Event()
        self.items: Sequence[Result | Event] = ()
        self.error: BaseException | None = None
        self.is_end = False

    def fill(
        self, items: Sequence[Result | Event] = (), *, error: BaseException | None = None, is_end: bool = False
    ) -> None:
        """Sets the outcome."""
        self.items, self.error, self.is_end = items, error, is_end
        self.is_done.set()


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
            on_tick: Called in the thread that iterates, at least every 0.1 s while that thread waits, and between
                results otherwise.

        Raises:
            ValueError: `max_results` is negative.
        """
        if max_results is not None and max_results < 0:
            raise ValueError(f"max_results: expected 0 or more, got {max_results}")
        self._model = model
        self._on_tick = on_tick
        self._results_left = max_results
        self._stop = threading.Event()
        self._take_lock = threading.Lock()
        self._room = threading.Condition()
        self._num_in_flight = 0
        self._has_ended = False
        self._busy: dict[int, float] = {}
        self._refused: dict[str, tuple[int, ...]] = {}
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._group = CaptureGroup()
        self._roster = Roster(self._group, self._tell)
        self._batcher = Batcher(self._group, max_batch=1, wait_ms=0.0, stays=stays)
        self._pool = self._make_pool(config.batching)
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"edgerpn-infer-{i}", daemon=True)
            for i in range(max(1, model.backend.frames_in_flight))
        ]
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
        for thread in self._threads:
            thread.start()
        while self._results_left != 0 and (slot := self._next_slot()) is not None:
            if slot.error is not None:
                raise slot.error
            if slot.is_end:
                return
            items, is_batch = slot.items, slot.is_batch
            # Not kept while the caller is busy: a slot holds whole frames.
            del slot
            for item in items:
                emitted = self._emit(item)
                if emitted is not None:
                    yield emitted
                if self._stop.is_set() or self._results_left == 0:
                    return
            del items
            self._release(is_batch=is_batch)
            self._tick()

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
        """Seconds for which the slowest batch has been in the model; a healthy model stays below a few."""
        now_s = time.monotonic()
        return max((now_s - since_s for since_s in list(self._busy.values())), default=0.0)

    def add(self, config: SourceConfig) -> None:
        """Adds a source; whether it can be opened shows in its events.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The runner is closed.
        """
        self._roster.add(config)

    def remove(self, name: str) -> bool:
        """Ends a source within two seconds; False when there is none of this name."""
        return self._roster.remove(name)

    def apply(self, config: StreamsConfig) -> None:
        """Adds, removes and changes sources until they are those of `config`; takes over all other settings.

        A source whose capture changes is started anew; the others go on undisturbed. May take two seconds for each
        source that ends.
        """
        self._batcher.wait_ms = config.batching.batch_wait_ms
        self._batcher.max_batch = config.batching.max_batch or self._natural_batch()
        self._roster.apply(config)

    def stats(self) -> dict[str, SourceStats]:
        """A snapshot of each source, by name."""
        return self._roster.stats()

    def stop(self) -> None:
        """Ends the iteration after the result at hand; safe in a signal handler and from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Ends all threads and processes, within two seconds; does nothing the second time."""
        self._stop.set()
        self._group.close()
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout=_JOIN_S)
            if thread.is_alive():
                _logger.warning("%s is still inside the model; left to end on its own", thread.name)
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _natural_batch(self) -> int:
        manifest = self._model.manifest
        if manifest.input.batch is not None:
            return manifest.input.batch
        if self._model.backend.is_cpu:
            return 1
        return manifest.engine.profile.max_batch if manifest.engine is not None else 8

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

    def _next_slot(self) -> _Slot | None:
        """The next slot once it is filled; None when stopped."""
        slot = None
        while not self._stop.is_set():
            if slot is None:
                try:
                    slot = self._slots.get(timeout=_POLL_S)
                except queue.Empty:
                    self._tick()
                    continue
            if slot.is_done.wait(_POLL_S):
                return slot
            self._tick()
        return None

    def _tick(self) -> None:
        if self._on_tick is not None:
            self._on_tick()

    def _tell(self, event: Event) -> None:
        """Puts an event of our own among the others."""
        slot = _Slot(is_batch=False)
        slot.fill([event])
        self._slots.put(slot)

    def _release(self, *, is_batch: bool) -> None:
        if is_batch:
            with self._room:
                self._num_in_flight -= 1
                self._room.notify_all()

    def _may_take(self, worker: int) -> bool:
        """Whether there is room for a batch; of live sources a second one in the model would only grow old."""
        if self._roster.has_live:
            return worker == 0 and self._num_in_flight < 2
        return self._num_in_flight < len(self._threads) + _SPARE_BATCHES

    def _work(self, worker: int) -> None:
        while not self._stop.is_set() and not self._has_ended:
            with self._room:
                if not self._room.wait_for(lambda: self._may_take(worker), _POLL_S):
                    continue
            taken = self._take()
            if taken is None:
                continue
            slot, batch = taken
            self._busy[worker] = time.monotonic()
            try:
                slot.fill(self._infer(batch))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                slot.fill(error=error)
                return
            finally:
                self._busy.pop(worker, None)
                del batch, slot, taken

    def _take(self) -> tuple[_Slot, Batch] | None:
        """Books the slot of the next batch; events alone are passed on here."""
        with self._take_lock:
            if self._has_ended or self._stop.is_set():
                return None
            slot = _Slot(is_batch=False)
            try:
                batch = self._batcher.collect(_POLL_S)
            except RuntimeError as error:
                slot.fill(error=error)
                self._has_ended = True
                self._slots.put(slot)
                return None
            if batch is None:
                slot.fill(is_end=True)
                self._has_ended = True
                self._slots.put(slot)
                return None
            if batch.events:
                events = _Slot(is_batch=False)
                events.fill([to_event(event) for event in batch.events])
                self._slots.put(events)
            if not batch.frames:
                return None
            slot.is_batch = True
            with self._room:
                self._num_in_flight += 1
            self._slots.put(slot)
            return slot, batch

    def _infer(self, batch: Batch) -> list[Result | Event]:
        frames = [to_frame(captured) for captured in batch.frames]
        items: list[Result | Event] = []
        for frame, outcome in zip(frames, self._model.run_frames(frames, pool=self._pool), strict=True):
            if isinstance(outcome, Result):
                items.append(outcome)
            elif self._is_new_refusal(frame):
                items.append(refused_event(frame, str(outcome)))
        return items

    def _is_new_refusal(self, frame: Frame) -> bool:
        """Counts a frame that does not fit the model; whether it is the first of its size."""
        self._roster.count_refused(frame.source)
        before = self._refused.get(frame.source)
        self._refused[frame.source] = frame.image.shape
        return before != frame.image.shape

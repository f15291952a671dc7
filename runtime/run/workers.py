"""The threads that take batches from the sources through the model, and the order of their results."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from edgerpn.errors import InputError
from edgerpn.machine import skip_destructors
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.contract import Backend
from edgerpn.runtime.frame import Event, Frame, Result
from edgerpn.runtime.run.batcher import Batch, Batcher
from edgerpn.runtime.run.registry import SourceRegistry
from edgerpn.runtime.threads import start_thread

_POLL_S = 0.1
_JOIN_LIVE_S = 1.0
_JOIN_S = 5.0
_SPARE_BATCHES = 3
_MAX_SLOTS = 64
"""Slots that wait for the caller at most, which bounds those of events alone."""
_logger = logging.getLogger(__name__)


class FrameModel(Protocol):
    """The part of `edgerpn.runtime.model.Model` that a run uses."""

    @property
    def manifest(self) -> Manifest:
        """Describes the model."""
        ...

    @property
    def backend(self) -> Backend:
        """Runs the model."""
        ...

    def run_frames(self, frames: Sequence[Frame], *, pool: Executor | None = None) -> list[Result | InputError]:
        """The results of frames of several sources, run together."""
        ...


class BatchSlot:
    """Place of one batch, or of events alone, in the order of results."""

    def __init__(self, items: Sequence[Result | Event] | None = None) -> None:
        """With `items` it is filled; without, it belongs to a batch in the model."""
        self.is_batch = items is None
        self.is_done = threading.Event()
        self.items = deque[Result | Event](items or ())
        self.error: BaseException | None = None
        self.is_end = False
        if items is not None:
            self.is_done.set()

    def fill(self, items: Sequence[Result | Event] = (), *, error: BaseException | None = None) -> None:
        """Sets the outcome of the batch."""
        self.items.extend(items)
        self.error = error
        self.is_done.set()


class Workers:
    """Threads between a batcher and the caller's loop; only that loop takes slots."""

    def __init__(
        self,
        model: FrameModel,
        batcher: Batcher,
        registry: SourceRegistry,
        pool: Executor | None,
        *,
        num_threads: int,
        is_strict: bool,
    ) -> None:
        """Prepares the threads.

        Args:
            model: Stays the caller's to close.
            batcher: Used by one thread at a time.
            registry: Counts frames that do not fit the model, and knows whether a source is live.
            pool: Lays the frames of a batch into the network's input.
            num_threads: Batches in the model at the same time, unless a source is live.
            is_strict: Whether a frame that does not fit the model ends the run instead of becoming an event.
        """
        self.is_stopping = False
        self._model = model
        self._batcher = batcher
        self._registry = registry
        self._pool = pool
        self._is_strict = is_strict
        self._take_lock = threading.Lock()
        self._room = threading.Condition()
        self._num_in_flight = 0
        self._has_ended = False
        self._busy: dict[int, float] = {}
        self._slots: queue.SimpleQueue[BatchSlot] = queue.SimpleQueue()
        self._next: BatchSlot | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"edgerpn-infer-{i}", daemon=True)
            for i in range(num_threads)
        ]

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model."""
        now_s = time.monotonic()
        return max((now_s - since_s for since_s in list(self._busy.values())), default=0.0)

    def start(self) -> None:
        for thread in self._threads:
            start_thread(thread)

    def insert(self, event: Event) -> None:
        """Puts an event of the run itself among the others."""
        self._slots.put(BatchSlot([event]))

    def next(self) -> BatchSlot | None:
        """Returns the next slot; None if there is none after 0.1 s."""
        if self._next is None:
            try:
                self._next = self._slots.get(timeout=_POLL_S)
            except queue.Empty:
                return None
            with self._room:
                self._room.notify_all()
        if not self._next.is_done.wait(_POLL_S):
            return None
        slot, self._next = self._next, None
        return slot

    def release(self) -> None:
        """Makes room for another batch, when the caller is done with all results of one."""
        with self._room:
            self._num_in_flight -= 1
            self._room.notify_all()

    def join(self) -> None:
        """Waits for the threads a few seconds at most; `is_stopping` has been set."""
        deadline_s = time.monotonic() + (_JOIN_LIVE_S if self._registry.has_live else _JOIN_S)
        for thread in self._threads:
            if thread is threading.current_thread():
                # The garbage collector ends a lost run, wherever it runs.
                continue
            if thread.ident:
                thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                _logger.warning("%s is still inside the model and is left behind", thread.name)
                skip_destructors()

    def _may_take(self, worker: int) -> bool:
        """Returns whether there is room for a batch; with a live source, a second one in the model would only age."""
        if self._slots.qsize() >= _MAX_SLOTS:
            return False
        if self._registry.has_live:
            return worker == 0 and self._num_in_flight < 2
        return self._num_in_flight < len(self._threads) + _SPARE_BATCHES

    def _work(self, worker: int) -> None:
        while not self.is_stopping and not self._has_ended:
            with self._room:
                if not self._room.wait_for(lambda: self._may_take(worker), _POLL_S):
                    continue
            if not self._run_one(worker):
                return

    def _run_one(self, worker: int) -> bool:
        """Takes a batch through the model, if there is one; False after an error."""
        taken = self._take()
        if taken is None:
            return True
        slot, batch = taken
        self._busy[worker] = time.monotonic()
        try:
            slot.fill(self._infer(batch))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            slot.fill(error=error)
            return False
        finally:
            self._busy.pop(worker, None)
        return True

    def _take(self) -> tuple[BatchSlot, Batch] | None:
        """Books the slot of the next batch; events are passed on here."""
        with self._take_lock:
            if self._has_ended or self.is_stopping:
                return None
            try:
                batch = self._batcher.collect(_POLL_S)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._end(error)
                return None
            if batch is None:
                self._end(None)
                return None
            if batch.events:
                self._slots.put(BatchSlot(batch.events))
            if not batch.frames:
                return None
            with self._room:
                self._num_in_flight += 1
            slot = BatchSlot()
            self._slots.put(slot)
            return slot, batch

    def _end(self, error: BaseException | None) -> None:
        self._has_ended = True
        slot = BatchSlot([])
        slot.is_end, slot.error = True, error
        self._slots.put(slot)

    def _infer(self, batch: Batch) -> list[Result | Event]:
        items: list[Result | Event] = []
        for frame, outcome in zip(batch.frames, self._model.run_frames(batch.frames, pool=self._pool), strict=True):
            if isinstance(outcome, Result):
                items.append(outcome)
            elif self._is_strict:
                raise outcome
            elif self._registry.count_refused(frame):
                items.append(_refused_event(frame, str(outcome)))
        return items


def _refused_event(frame: Frame, problem: str) -> Event:
    """Returns the event for frames of a source that do not fit the model."""
    return Event(
        kind="error",
        source=frame.source,
        message=f"{frame.source}: {problem}",
        reason="unsupported",
        path=frame.path,
    )

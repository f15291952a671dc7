"""The threads that take batches from the sources through the model, and the order of what they give."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from edgerpn.runtime.frame import Event, Frame, Result
from edgerpn.runtime.model import Model
from edgerpn.runtime.run.batcher import Batch, Batcher
from edgerpn.runtime.run.items import refused_event
from edgerpn.runtime.run.roster import Roster

_POLL_S = 0.1
_JOIN_S = 1.0
_SPARE_BATCHES = 3
_logger = logging.getLogger(__name__)


class Slot:
    """Place of one batch, or of events alone, in the order of results."""

    def __init__(self, items: Sequence[Result | Event] | None = None) -> None:
        """Is filled already when there are `items`, and else is of a batch in the model."""
        self.is_batch = items is None
        self.is_done = threading.Event()
        self.items: Sequence[Result | Event] = items or ()
        self.error: BaseException | None = None
        self.is_end = False
        if items is not None:
            self.is_done.set()

    def fill(self, items: Sequence[Result | Event] = (), *, error: BaseException | None = None) -> None:
        """Sets the outcome."""
        self.items, self.error = items, error
        self.is_done.set()


class Workers:
    """Threads between a batcher and the caller's loop; only that loop takes slots."""

    def __init__(self, model: Model, batcher: Batcher, roster: Roster, pool: Executor | None) -> None:
        """Prepares as many threads as the model has use for.

        Args:
            model: Stays the caller's to close.
            batcher: Asked by one thread at a time.
            roster: Told of frames that do not fit, asked whether a source is live.
            pool: Lays the frames of a batch into the network's input.
        """
        self.is_stopping = threading.Event()
        self._model = model
        self._batcher = batcher
        self._roster = roster
        self._pool = pool
        self._take_lock = threading.Lock()
        self._room = threading.Condition()
        self._num_in_flight = 0
        self._has_ended = False
        self._busy: dict[int, float] = {}
        self._refused: dict[str, tuple[int, ...]] = {}
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._next: Slot | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"edgerpn-infer-{i}", daemon=True)
            for i in range(max(1, model.backend.frames_in_flight))
        ]

    @property
    def busy_s(self) -> float:
        """Seconds for which the slowest batch has been in the model."""
        now_s = time.monotonic()
        return max((now_s - since_s for since_s in list(self._busy.values())), default=0.0)

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def tell(self, event: Event) -> None:
        """Puts an event of our own among the others."""
        self._slots.put(Slot([event]))

    def next(self) -> Slot | None:
        """The next slot; None: there is none yet, after waiting for 0.1 s."""
        if self._next is None:
            try:
                self._next = self._slots.get(timeout=_POLL_S)
            except queue.Empty:
                return None
        if not self._next.is_done.wait(_POLL_S):
            return None
        slot, self._next = self._next, None
        return slot

    def release(self) -> None:
        """Makes room for another batch, when the caller has done with all results of one."""
        with self._room:
            self._num_in_flight -= 1
            self._room.notify_all()

    def join(self) -> None:
        """Waits for the threads, though not for ever; `is_stopping` has been set."""
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout=_JOIN_S)
            if thread.is_alive():
                _logger.warning("%s is still inside the model; left to end on its own", thread.name)

    def _may_take(self, worker: int) -> bool:
        """Whether there is room for a batch; of live sources a second one in the model would only grow old."""
        if self._roster.has_live:
            return worker == 0 and self._num_in_flight < 2
        return self._num_in_flight < len(self._threads) + _SPARE_BATCHES

    def _work(self, worker: int) -> None:
        while not self.is_stopping.is_set() and not self._has_ended:
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

    def _take(self) -> tuple[Slot, Batch] | None:
        """Books the slot of the next batch; events are passed on here."""
        with self._take_lock:
            if self._has_ended or self.is_stopping.is_set():
                return None
            try:
                batch = self._batcher.collect(_POLL_S)
            except RuntimeError as error:
                self._end(error)
                return None
            if batch is None:
                self._end(None)
                return None
            if batch.events:
                self._slots.put(Slot(batch.events))
            if not batch.frames:
                return None
            with self._room:
                self._num_in_flight += 1
            slot = Slot()
            self._slots.put(slot)
            return slot, batch

    def _end(self, error: RuntimeError | None) -> None:
        self._has_ended = True
        slot = Slot([])
        slot.is_end, slot.error = True, error
        self._slots.put(slot)

    def _infer(self, batch: Batch) -> list[Result | Event]:
        items: list[Result | Event] = []
        for frame, outcome in zip(batch.frames, self._model.run_frames(batch.frames, pool=self._pool), strict=True):
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

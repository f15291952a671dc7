"""Frames through the model: decoding, inference and whatever the caller does with results overlap.

    source -> [decode thread] -> worker threads -> slots, in frame order -> the caller's loop

Invariants:
1. Results come in frame order, whichever worker finishes first: a worker takes a frame and books its slot in one
   locked step.
2. Everything is bounded: a frame is only taken when fewer than `in_flight` results wait for the caller. A live
   source thus always gives its newest frame to the next free worker.
3. The first error in frame order ends the stream and is the one raised; later ones are dropped with their slots.
4. Nothing waits for ever: every wait is timed and looks at the stop event, every join is timed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator

from edgerpn.runtime.frame import Event, Frame, Result, Source
from edgerpn.runtime.prefetch import Prefetch

_POLL_S = 0.1
_JOIN_S = 5.0
_logger = logging.getLogger(__name__)


class _Slot:
    """Place of one item in the order of results."""

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.is_done = threading.Event()
        self.item: Result | Event | None = None
        self.error: BaseException | None = None

    def fill(self, item: Result | Event | None = None, error: BaseException | None = None) -> None:
        """Sets the outcome; an empty one marks the end of the stream."""
        self.item, self.error = item, error
        self.is_done.set()


class Pipeline:
    """Runs `infer` on the frames of `source` in `workers` threads; iterate over it once."""

    def __init__(
        self, source: Source, infer: Callable[[Frame], Result], *, workers: int = 1, max_frames: int | None = None
    ) -> None:
        """Prepares the threads; they start with the iteration.

        Args:
            source: Closed when the iteration ends.
            infer: Called from several threads at once when `workers` > 1.
            workers: Frames that are in the model at the same time.
            max_frames: Frames after which to stop; None: all.
        """
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        if max_frames is not None and max_frames < 0:
            raise ValueError(f"max_frames: expected 0 or more, got {max_frames}")
        self._source = source
        self._infer = infer
        self._prefetch = None if source.is_live else Prefetch(source, depth=workers + 1)
        self._frames: Iterator[Frame | Event] = iter(source) if self._prefetch is None else iter(self._prefetch)
        self._frames_left = max_frames
        self._take_lock = threading.Lock()
        self._has_ended = False
        self._stop = threading.Event()
        # One result beside those in work: the next is ready while the caller writes one, and stays fresh.
        self._room = threading.Semaphore(workers + (1 if source.is_live else 3))
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"edgerpn-infer-{i}", daemon=True) for i in range(workers)
        ]

    def __iter__(self) -> Generator[Result | Event, None, None]:
        """Gives results and events in order; ends the threads when it ends, by whatever way."""
        for thread in self._threads:
            thread.start()
        try:
            while (slot := self._next_slot()) is not None:
                if slot.error is not None:
                    raise slot.error
                if slot.item is None:
                    return
                item = slot.item
                # Not kept while the caller is busy: a slot holds a whole frame.
                del slot
                yield item
                # Only now, because the caller has been busy with this one until here.
                self._room.release()
        finally:
            self.close()

    def stop(self) -> None:
        """Ends the iteration after the result at hand; safe in a signal handler and from any thread."""
        self._stop.set()

    def close(self) -> None:
        """Ends all threads and closes the source; does nothing the second time."""
        self._stop.set()
        if self._prefetch is not None:
            self._prefetch.close()
        else:
            self._source.close()
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout=_JOIN_S)
            if thread.is_alive():
                _logger.warning("%s is still inside the model; left to end on its own", thread.name)

    def _next_slot(self) -> _Slot | None:
        """The next slot once it is filled; None when stopped."""
        slot = None
        while not self._stop.is_set():
            if slot is None:
                try:
                    slot = self._slots.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
            if slot.is_done.wait(_POLL_S):
                return slot
        return None

    def _work(self) -> None:
        while not self._stop.is_set():
            if not self._room.acquire(timeout=_POLL_S):
                continue
            slot = self._take()
            if slot is None:
                return
            if slot.frame is None:
                continue
            try:
                slot.fill(self._infer(slot.frame))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                slot.fill(error=error)
                return

    def _take(self) -> _Slot | None:
        """Books the slot of the next item, with its frame if it is one; None at the end."""
        with self._take_lock:
            if self._has_ended or self._stop.is_set():
                return None
            slot = _Slot()
            item: Frame | Event | None = None
            try:
                if self._frames_left != 0:
                    item = next(self._frames, None)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                slot.fill(error=error)
            if isinstance(item, Frame):
                slot.frame = item
                if self._frames_left is not None:
                    self._frames_left -= 1
            elif slot.error is None:
                slot.fill(item)
            self._has_ended = item is None
            self._slots.put(slot)
            return None if self._has_ended else slot

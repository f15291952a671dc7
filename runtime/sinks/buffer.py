"""The bounded queue between a run and one of its sinks, and what it counts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

_SLICE_S = 0.1

Item = TypeVar("Item")


class Buffer(Generic[Item]):
    """In order and bounded; every method may be called from any thread.

    What is taken is "in hand" until `finish` or `put_back` says what became of it. Everything that was put is in the
    end either written or dropped, and counted so.
    """

    def __init__(self, capacity: int) -> None:
        """Holds `capacity` items at most, beside those in hand."""
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._num_in_hand = 0
        self._is_closing = False
        self._is_abandoned = False
        self._is_hurried = False
        self._changed = threading.Condition()
        self.num_written = 0
        self.num_dropped = 0
        self.progress_s = 0.0

    @property
    def num_queued(self) -> int:
        """Items that wait or are in hand."""
        return len(self._items) + self._num_in_hand

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._is_closing

    def put(self, item: Item, *, block_s: float) -> None:
        """Appends an item; when full, waits `block_s` at most for room, and then drops the oldest.

        After `close` the item itself is dropped.
        """
        deadline = time.monotonic() + block_s
        with self._changed:
            while len(self._items) >= self._capacity and not (self._is_closing or self._is_hurried):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                # In slices, because `hurry` must not take the lock.
                self._changed.wait(min(left_s, _SLICE_S))
            if self._is_closing:
                self.num_dropped += 1
                return
            self._items.append(item)
            self._drop_excess()
            self._changed.notify_all()

    def take(self, max_items: int, wait_s: float) -> list[Item]:
        """Takes the oldest items; blocks until there is one, and then `wait_s` at most for `max_items`.

        Returns:
            1 to `max_items` items; none once the buffer is closed and empty.
        """
        with self._changed:
            while not self._items and not self._is_closing:
                self._changed.wait()
            deadline = time.monotonic() + wait_s
            while len(self._items) < min(max_items, self._capacity) and not self._is_closing:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            taken = [self._items.popleft() for _ in range(min(max_items, len(self._items)))]
            self._num_in_hand += len(taken)
            self._changed.notify_all()
            return taken

    def finish(self, *, num_written: int, num_dropped: int = 0) -> None:
        """Counts items in hand as written or lost."""
        with self._changed:
            self._num_in_hand -= num_written + num_dropped
            if num_written:
                self.progress_s = time.monotonic()
            self.num_written += num_written
            self.num_dropped += num_dropped

    def put_back(self, items: Sequence[Item]) -> None:
        """Puts items in hand back to the front, in their order; the oldest beyond the capacity are dropped."""
        with self._changed:
            self._num_in_hand -= len(items)
            if self._is_abandoned:
                self.num_dropped += len(items)
                return
            self._items.extendleft(reversed(items))
            self._drop_excess()

    def pause(self, seconds: float) -> None:
        """Waits; `close` ends it early."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, timeout=seconds)

    def hurry(self) -> None:
        """From now on `put` never waits. Takes no lock: a signal handler may call it."""
        self._is_hurried = True

    def close(self) -> None:
        """Takes nothing more; what is queued can still be taken."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def abandon(self) -> int:
        """Closes and drops what is queued.

        Returns:
            How many that were.
        """
        with self._changed:
            self._is_closing = self._is_abandoned = True
            num_lost = len(self._items)
            self._items.clear()
            self.num_dropped += num_lost
            self._changed.notify_all()
            return num_lost

    def _drop_excess(self) -> None:
        while len(self._items) > self._capacity:
            self._items.popleft()
            self.num_dropped += 1

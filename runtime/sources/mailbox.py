"""Frames and events of one source on their way to whoever takes them, and what is dropped when nobody does."""

from __future__ import annotations

import dataclasses
from collections import deque

from edgerpn.runtime.frame import Event, Frame

_MAX_EVENTS = 256


class Mailbox:
    """Bounded, in order; the caller holds the lock."""

    def __init__(self) -> None:
        """Starts empty."""
        self._items: deque[Frame | Event] = deque()
        self._num_frames = 0
        self.num_dropped = 0
        self.num_dropped_events = 0

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def has_frame(self) -> bool:
        """Whether a frame waits."""
        return self._num_frames > 0

    def put_frame(self, frame: Frame, max_frames: int) -> None:
        """Appends a frame, and drops the oldest ones beyond `max_frames` (0: none is dropped)."""
        self._items.append(frame)
        self._num_frames += 1
        self.num_dropped += frame.num_dropped
        while max_frames and self._num_frames > max_frames:
            self._drop_oldest_frame()

    def put_event(self, event: Event) -> None:
        """Appends an event; when nobody takes any, the oldest are dropped."""
        self._items.append(event)
        if len(self._items) - self._num_frames > _MAX_EVENTS:
            oldest = next(i for i, item in enumerate(self._items) if isinstance(item, Event))
            del self._items[oldest]
            self.num_dropped_events += 1

    def get(self) -> Frame | Event | None:
        """Takes the oldest item; None: there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._num_frames -= isinstance(item, Frame)
        return item

    def drop_frames(self) -> None:
        """Lets go of all frames; the events stay."""
        self._items = deque(item for item in self._items if isinstance(item, Event))
        self._num_frames = 0

    def _drop_oldest_frame(self) -> None:
        places = (i for i, item in enumerate(self._items) if isinstance(item, Frame))
        first, second = next(places), next(places)
        dropped, heir = self._items[first], self._items[second]
        if isinstance(dropped, Frame) and isinstance(heir, Frame):
            # The next frame tells of all that are missing before it.
            self._items[second] = dataclasses.replace(
                heir,
                num_dropped=heir.num_dropped + dropped.num_dropped + 1,
                num_skipped=heir.num_skipped + dropped.num_skipped,
            )
        del self._items[first]
        self._num_frames -= 1
        self.num_dropped += 1

"""Batches of frames of several sources: fair turns, the newest frames, and a deadline for slow sources."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources.capture import Capture
from edgerpn.runtime.sources.group import CaptureGroup


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """The items of one turn."""

    events: list[Event]
    """Events, each of them before the frame of its source."""
    frames: list[Frame]
    """At most one frame of each source."""


class Batcher:
    """Collects batches from a group; one thread at a time."""

    def __init__(
        self, group: CaptureGroup, *, max_batch: int, wait_ms: float, stays: Callable[[], bool] = lambda: False
    ) -> None:
        """Takes from all sources of `group`, whatever is added and removed meanwhile.

        Args:
            group: Stays the caller's to close.
            max_batch: Frames in a batch at most.
            wait_ms: Time that the first frame of a batch waits for others at most.
            stays: Whether more sources may be added at this moment, so that the end of all sources is not the end.
        """
        self.max_batch = max_batch
        self.wait_ms = wait_ms
        self._group = group
        self._stays = stays
        self._turn = 0
        self._last_turns: dict[Capture, int] = {}

    def collect(self, timeout_s: float) -> Batch | None:
        """Returns the next batch.

        The frames are taken when the batch is complete, not as they come, so that each is the newest of its source.
        Raises the error of a source that failed, once the frames before it are taken.

        Args:
            timeout_s: Seconds to wait for anything at all; the batch is empty after that.

        Returns:
            A batch, possibly of events only or empty; None when nothing more will come.
        """
        group = self._group
        with group.changed:
            group.changed.wait_for(lambda: self._has_any() or self._is_over() or group.has_failed, timeout_s)
            group.check()
            if not self._has_any():
                return None if self._is_over() else Batch(events=[], frames=[])
            if self.max_batch > 1 and self.wait_ms > 0 and self._with_frames():
                self._wait_for_stragglers()
            batch = self._take()
            # Readers of files may wait for room.
            group.changed.notify_all()
            return batch

    def _wait_for_stragglers(self) -> None:
        deadline_s = time.monotonic() + self.wait_ms / 1e3

        def is_complete() -> bool:
            ready = len(self._with_frames())
            return ready >= self.max_batch or ready >= self._num_expected() or self._group.is_over

        while not is_complete() and (left_s := deadline_s - time.monotonic()) > 0:
            self._group.changed.wait(left_s)

    def _take(self) -> Batch:
        """Takes one frame of each of the sources that have waited longest, and all events before them."""
        batch = Batch(events=[], frames=[])
        self._turn += 1
        captures = self._group.captures
        self._last_turns = {capture: self._last_turns.get(capture, 0) for capture in captures}
        for capture in sorted(captures, key=self._last_turns.__getitem__):
            may_take = len(batch.frames) < self.max_batch
            while len(capture.mailbox) and (may_take or not capture.mailbox.has_frame):
                item = capture.mailbox.get()
                if isinstance(item, Frame):
                    batch.frames.append(item)
                    self._last_turns[capture] = self._turn
                    break
                if item is not None:
                    batch.events.append(item)
        return batch

    def _has_any(self) -> bool:
        return any(len(capture.mailbox) for capture in self._group.captures)

    def _with_frames(self) -> list[Capture]:
        return [capture for capture in self._group.captures if capture.mailbox.has_frame]

    def _num_expected(self) -> int:
        """Sources that deliver frames at the moment."""
        return sum(capture.mailbox.has_frame or capture.is_delivering for capture in self._group.captures)

    def _is_over(self) -> bool:
        group = self._group
        return group.is_over or (not self._stays() and all(capture.is_exhausted for capture in group.captures))

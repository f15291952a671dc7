"""Annotated pictures for whoever watches: drawn and encoded once, in a thread of their own.

The thread that emits results only copies a frame, and only when somebody watches its source, no more often than the
rate allows, and never while an earlier copy waits; without viewers, one frame in `KEEP_S` is kept, made small, so that
a source that fails has a last picture to show. Viewers take the newest picture whenever they are ready for one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.web.http_config import HttpConfig
from edgerpn.runtime.web.paint import Picture, Shot, View, annotate, blank, encode, mark, shrink

KEEP_S = 2.0
"""Seconds between the frames that are kept of a source that nobody watches."""
OLD_S = 2.0
"""Age of a frame from which its picture is marked as not live, seconds."""

_MARK_S = 1.0
_POLL_S = 0.5
_JOIN_S = 1.0
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, eq=False)
class _Slot:
    """One source."""

    num_viewers: int = 0
    pending: Shot | None = None
    last: Shot | None = None
    annotated: npt.NDArray[np.uint8] | None = None
    annotated_of: Shot | None = None
    num_boxes: int = 0
    view: View | None = None
    picture: Picture | None = None
    is_down: bool = False
    is_gone: bool = False
    due_s: float = 0.0
    marked_s: float = 0.0

    def forget_drawn(self) -> None:
        """Leaves nothing but the last frame, which is small."""
        self.pending = self.annotated = self.annotated_of = self.picture = None


class Pictures:
    """The newest annotated picture of each source; any thread may use it."""

    def __init__(self, config: HttpConfig, on_picture: Callable[[str], None]) -> None:
        """Starts the thread.

        Args:
            config: Rate, size and quality.
            on_picture: Called in that thread with the name of a source that has a new picture.
        """
        self.num_encoded = 0
        self._config = config
        self._on_picture = on_picture
        self._view = View(top=config.top)
        self._slots: dict[str, _Slot] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgerpn-web-paint", daemon=True)
        self._thread.start()

    @property
    def view(self) -> View:
        """What is drawn at present."""
        return self._view

    def set_view(self, view: View) -> None:
        """Changes what is drawn; also of the pictures of sources that stand still."""
        with self._changed:
            self._view = view
            self._changed.notify_all()

    def offer(self, result: Result) -> None:
        """Takes over a result if somebody watches; for the thread that emits results."""
        now_s = time.monotonic()
        slot = self._slots.get(result.frame.source)
        if slot is None:
            with self._changed:
                slot = self._slots.setdefault(result.frame.source, _Slot())
        slot.is_down = slot.is_gone = False
        if now_s < slot.due_s or slot.pending is not None:
            return
        is_watched = slot.num_viewers > 0
        interval_s = 1 / self._config.max_fps if is_watched else KEEP_S
        # From when it was due, not from now: the rate of a camera that is no multiple of ours is met on average.
        slot.due_s = max(slot.due_s, now_s - interval_s) + interval_s
        # A whole picture is copied faster than it is made smaller, but is too much memory to keep for each source.
        shot = _shot(result) if is_watched else _shot(result, max_width_px=self._config.max_width_px)
        with self._changed:
            if is_watched:
                slot.pending = shot
                self._changed.notify_all()
            else:
                slot.last = shot

    def note(self, event: Event) -> None:
        """Learns that a source is down, or gone; for the thread that emits events."""
        if event.kind == "ended" and event.reason == "removed":
            with self._changed:
                slot = self._slots.pop(event.source, None)
                if slot is not None and slot.num_viewers:
                    # Who watches goes on doing so if a source of this name comes again.
                    self._slots[event.source] = _Slot(num_viewers=slot.num_viewers, is_gone=True)
                    self._changed.notify_all()
        elif event.kind in ("stalled", "reconnecting", "ended"):
            with self._changed:
                slot = self._slots.setdefault(event.source, _Slot())
                slot.is_down = True
                slot.marked_s = 0.0
                self._changed.notify_all()

    def watch(self, sources: Iterable[str]) -> None:
        """Counts a viewer of some sources; `unwatch` takes it back."""
        with self._changed:
            for source in sources:
                slot = self._slots.setdefault(source, _Slot())
                slot.num_viewers += 1
                if slot.num_viewers == 1:
                    # The frame that comes next is due at once, and what an earlier viewer saw is too old to be sent.
                    slot.due_s = slot.marked_s = 0.0
                    slot.picture = None
            self._changed.notify_all()

    def unwatch(self, sources: Iterable[str]) -> None:
        """Counts a viewer less."""
        with self._changed:
            for source in sources:
                slot = self._slots.get(source)
                if slot is not None and slot.num_viewers:
                    slot.num_viewers -= 1
                    if slot.is_gone and not slot.num_viewers:
                        del self._slots[source]
                    elif not slot.num_viewers:
                        slot.forget_drawn()

    def newest(self, source: str) -> Picture | None:
        """The newest picture of a watched source; None: there is none yet."""
        slot = self._slots.get(source)
        return slot.picture if slot is not None else None

    @property
    def num_viewers(self) -> int:
        """Viewers of all sources together."""
        with self._changed:
            return sum(slot.num_viewers for slot in self._slots.values())

    def begin_close(self) -> None:
        """Has the thread end soon; does not wait for it."""
        self._closing.set()

    def close(self) -> None:
        """Ends the thread; does nothing the second time."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._closing.is_set() or self._due(), _POLL_S)
                due = self._due()
            for source, slot in due:
                if self._closing.is_set():
                    return
                try:
                    self._paint(slot)
                except Exception:
                    # One picture less; the next one may go well.
                    _logger.exception("the picture of %s cannot be drawn", source)
                    time.sleep(_POLL_S)
                    continue
                self._on_picture(source)

    def _due(self) -> list[tuple[str, _Slot]]:
        """The watched sources whose picture must be made anew; the caller holds the lock."""
        now_s = time.monotonic()
        return [
            (source, slot)
            for source, slot in self._slots.items()
            if slot.num_viewers
            and (
                slot.pending is not None
                or slot.view is not self._view
                or slot.picture is None
                or (self._must_mark(slot, now_s) and now_s - slot.marked_s >= _MARK_S)
            )
        ]

    def _must_mark(self, slot: _Slot, now_s: float) -> bool:
        return slot.last is not None and (slot.is_down or now_s - slot.last.monotonic_s > OLD_S)

    def _paint(self, slot: _Slot) -> None:
        """Makes the next picture of a source."""
        view = self._view
        with self._changed:
            pending, slot.pending = slot.pending, None
        small = shrink(pending, max_width_px=self._config.max_width_px) if pending is not None else None
        with self._changed:
            # Without viewers since a moment, a newer one may have been kept meanwhile.
            if small is not None and (slot.last is None or small.monotonic_s >= slot.last.monotonic_s):
                slot.last = small
            shot = slot.last
        if shot is not None and (slot.annotated_of is not shot or slot.view is not view):
            slot.annotated, slot.num_boxes = annotate(shot, view, max_width_px=self._config.max_width_px)
            slot.annotated_of = shot
        slot.view = view
        now_s = time.monotonic()
        must_mark = self._must_mark(slot, now_s)
        if shot is None or slot.annotated is None:
            image = blank()
        elif must_mark:
            image = mark(slot.annotated, age_s=now_s - shot.monotonic_s, is_down=slot.is_down)
        else:
            image = slot.annotated
        slot.marked_s = now_s
        jpeg = encode(image, quality=self._config.jpeg_quality)
        self.num_encoded += 1
        picture = Picture(
            number=self.num_encoded,
            jpeg=jpeg,
            frame=shot.frame if shot else None,
            captured_at=shot.captured_at if shot else None,
            is_live=shot is not None and not must_mark,
            num_boxes=slot.num_boxes if shot else 0,
            marked_from_s=math.inf if shot is None or must_mark else shot.monotonic_s + OLD_S,
        )
        with self._changed:
            if slot.num_viewers:
                slot.picture = picture
            else:
                slot.forget_drawn()


def _shot(result: Result, *, max_width_px: int | None = None) -> Shot:
    """A copy of a result, no wider than that."""
    frame = result.frame
    shot = Shot(
        image=frame.image,
        proposals=result.proposals,
        frame=frame.index,
        captured_at=frame.captured_at,
        monotonic_s=frame.monotonic_s,
    )
    small = shrink(shot, max_width_px=max_width_px) if max_width_px is not None else shot
    return small if small is not shot else dataclasses.replace(shot, image=frame.image.copy())

"""Annotated pictures for viewers: drawn and encoded once for all of them, in a separate thread.

The thread that emits results only copies a frame: when its source has viewers, at most at the configured rate, and
never while an earlier copy waits. Without viewers it keeps one small frame every `KEEP_S`, so that a source that fails
has a last picture to show. Viewers take the newest picture whenever they are ready.
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

from edgerpn.runtime.frame import BREAKS, Event, Result
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.threads import start_thread
from edgerpn.runtime.web.paint import EncodedPicture, FrameCopy, ViewSettings, annotate, blank, encode, mark, shrink

KEEP_S = 2.0
"""Seconds between the frames kept of a source without viewers."""
OLD_S = 2.0
"""Age of a frame from which its picture is marked as not live, seconds."""

_MARK_S = 1.0
_POLL_S = 0.5
_JOIN_S = 1.0
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, eq=False)
class _SourcePicture:
    """Frame, picture and viewers of one source."""

    num_viewers: int = 0
    pending: FrameCopy | None = None
    last: FrameCopy | None = None
    annotated: npt.NDArray[np.uint8] | None = None
    annotated_of: FrameCopy | None = None
    num_boxes: int = 0
    view: ViewSettings | None = None
    picture: EncodedPicture | None = None
    is_down: bool = False
    is_gone: bool = True
    """No result has come: the source is not there yet, or was removed."""
    due_s: float = 0.0
    marked_s: float = 0.0

    def forget_drawn(self) -> None:
        """Keeps only the last frame, which is small."""
        self.pending = self.annotated = self.annotated_of = self.picture = None


class PictureFeed:
    """The newest annotated picture of each source; any thread may call it."""

    def __init__(self, config: HttpConfig, on_picture: Callable[[str], None]) -> None:
        """Starts the thread.

        Args:
            config: Rate, size and quality of pictures.
            on_picture: Called in that thread with the name of a source that has a new picture.
        """
        self.num_encoded = 0
        self._config = config
        self._on_picture = on_picture
        self._view = ViewSettings(top=config.top, nms_iou=config.nms_iou)
        self._sources: dict[str, _SourcePicture] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgerpn-web-paint", daemon=True)
        start_thread(self._thread)

    @property
    def view(self) -> ViewSettings:
        """The current choice of drawn boxes."""
        return self._view

    def set_view(self, view: ViewSettings) -> None:
        """Changes the drawn boxes, also in pictures of sources without new frames."""
        with self._changed:
            self._view = view
            self._changed.notify_all()

    def offer(self, result: Result) -> None:
        """Copies a result if its source has viewers; for the thread that emits results."""
        now_s = time.monotonic()
        shown = self._sources.get(result.frame.source)
        if shown is None:
            with self._changed:
                shown = self._sources.setdefault(result.frame.source, _SourcePicture())
        shown.is_down = shown.is_gone = False
        if now_s < shown.due_s or shown.pending is not None:
            return
        is_watched = shown.num_viewers > 0
        interval_s = 1 / self._config.max_fps if is_watched else KEEP_S
        # Counted from the due time, not from now, so that the average rate is right for any rate of the camera.
        shown.due_s = max(shown.due_s, now_s - interval_s) + interval_s
        # Copying is faster than scaling down, but a kept frame must be small.
        shot = _shot(result) if is_watched else _shot(result, max_width_px=self._config.max_width_px)
        with self._changed:
            if is_watched:
                shown.pending = shot
                self._changed.notify_all()
            else:
                shown.last = shot

    def note(self, event: Event) -> None:
        """Notes that a source is down or removed; for the thread that emits events."""
        if event.kind == "ended" and event.reason == "removed":
            with self._changed:
                shown = self._sources.pop(event.source, None)
                if shown is not None and shown.num_viewers:
                    # Its viewers see a source of the same name if one is added again.
                    self._sources[event.source] = _SourcePicture(num_viewers=shown.num_viewers)
                    self._changed.notify_all()
        elif event.kind in BREAKS:
            with self._changed:
                shown = self._sources.get(event.source)
                if shown is not None:
                    shown.is_down = True
                    shown.marked_s = 0.0
                    self._changed.notify_all()

    def watch(self, sources: Iterable[str]) -> None:
        """Counts one more viewer of some sources, until `unwatch`."""
        with self._changed:
            for source in sources:
                shown = self._sources.setdefault(source, _SourcePicture())
                shown.num_viewers += 1
                if shown.num_viewers == 1:
                    # The next frame is due at once, and the picture of an earlier viewer is too old.
                    shown.due_s = shown.marked_s = 0.0
                    shown.picture = None
            self._changed.notify_all()

    def unwatch(self, sources: Iterable[str]) -> None:
        """Counts one viewer less of some sources."""
        with self._changed:
            for source in sources:
                shown = self._sources.get(source)
                if shown is not None and shown.num_viewers:
                    shown.num_viewers -= 1
                    if shown.is_gone and not shown.num_viewers:
                        del self._sources[source]
                    elif not shown.num_viewers:
                        shown.forget_drawn()

    def newest(self, source: str) -> EncodedPicture | None:
        """Returns the newest picture of a watched source; None: no picture yet."""
        shown = self._sources.get(source)
        return shown.picture if shown is not None else None

    @property
    def num_viewers(self) -> int:
        """Number of viewers of all sources together."""
        with self._changed:
            return sum(shown.num_viewers for shown in self._sources.values())

    def begin_close(self) -> None:
        """Makes the thread end soon; does not wait for it."""
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
            for source, shown in due:
                if self._closing.is_set():
                    return
                try:
                    self._paint(shown)
                except Exception:
                    # The next picture may succeed.
                    _logger.exception("the picture of %s cannot be drawn", source)
                    time.sleep(_POLL_S)
                    continue
                self._on_picture(source)

    def _due(self) -> list[tuple[str, _SourcePicture]]:
        """Lists the watched sources that need a new picture; the caller holds the lock."""
        now_s = time.monotonic()
        return [
            (source, shown)
            for source, shown in self._sources.items()
            if shown.num_viewers
            and (
                shown.pending is not None
                or shown.view is not self._view
                or shown.picture is None
                or (self._must_mark(shown, now_s) and now_s - shown.marked_s >= _MARK_S)
            )
        ]

    def _must_mark(self, shown: _SourcePicture, now_s: float) -> bool:
        return shown.last is not None and (shown.is_down or now_s - shown.last.monotonic_s > OLD_S)

    def _paint(self, shown: _SourcePicture) -> None:
        """Makes the next picture of a source."""
        view = self._view
        with self._changed:
            pending, shown.pending = shown.pending, None
        small = shrink(pending, max_width_px=self._config.max_width_px) if pending is not None else None
        with self._changed:
            # If the last viewer has just left, a newer frame may have been kept meanwhile.
            if small is not None and (shown.last is None or small.monotonic_s >= shown.last.monotonic_s):
                shown.last = small
            shot = shown.last
        if shot is not None and (shown.annotated_of is not shot or shown.view is not view):
            shown.annotated, shown.num_boxes = annotate(shot, view, max_width_px=self._config.max_width_px)
            shown.annotated_of = shot
        shown.view = view
        now_s = time.monotonic()
        must_mark = self._must_mark(shown, now_s)
        if shot is None or shown.annotated is None:
            image = blank()
        elif must_mark:
            image = mark(shown.annotated, age_s=now_s - shot.monotonic_s, is_down=shown.is_down)
        else:
            image = shown.annotated
        shown.marked_s = now_s
        jpeg = encode(image, quality=self._config.jpeg_quality)
        self.num_encoded += 1
        picture = EncodedPicture(
            number=self.num_encoded,
            jpeg=jpeg,
            frame=shot.frame if shot else None,
            captured_at=shot.captured_at if shot else None,
            is_live=shot is not None and not must_mark,
            num_boxes=shown.num_boxes if shot else 0,
            marked_from_s=math.inf if shot is None or must_mark else shot.monotonic_s + OLD_S,
        )
        with self._changed:
            if shown.num_viewers:
                shown.picture = picture
            else:
                shown.forget_drawn()


def _shot(result: Result, *, max_width_px: int | None = None) -> FrameCopy:
    """Copies a result, scaled down to at most `max_width_px`."""
    frame = result.frame
    picture = frame.bgr
    shot = FrameCopy(
        image=picture,
        proposals=result.proposals,
        frame=frame.index,
        captured_at=frame.captured_at,
        monotonic_s=frame.monotonic_s,
        zone_map=result.zone_map,
        tracks=result.tracks,
    )
    small = shrink(shot, max_width_px=max_width_px) if max_width_px is not None else shot
    return small if small is not shot or picture is not frame.image else dataclasses.replace(shot, image=picture.copy())

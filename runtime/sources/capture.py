"""One source of a run: its mailbox, and the capture process or the reader thread that fills it."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Frame, Source, SourceState
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.supervisor import SourceSupervisor
from edgerpn.runtime.threads import start_thread

if TYPE_CHECKING:
    from edgerpn.runtime.sources.pump import RateCap

CaptureType = TypeVar("CaptureType", bound="Capture")

_MAX_EVENTS = 256
_SLOTS_OF_CAPTURE = 3
_POLL_S = 0.1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureStats:
    """A snapshot of the counters of one source."""

    state: SourceState
    """starting, connected, quiet (connected, but no frame for `gap_s`), reconnecting or ended."""
    num_frames: int
    """Frames that the source delivered."""
    num_dropped: int
    """Frames that the run did not take in time; those skipped by `max_fps` are not among them."""
    num_connections: int
    """Connections that delivered frames."""
    num_dropped_events: int = 0
    """Events that the run did not take in time."""
    num_messages: int = 0
    """Lines that decoders wrote, of all connections; damaged video shows so."""
    frame_age_s: float | None = None
    """Seconds since the last frame came; None: none has."""
    pid: int | None = None
    """Number of the process that captures now; None: there is none."""


class Mailbox:
    """Frames and events of one source that wait for the run, bounded and in order; the caller holds the lock."""

    def __init__(self, lend: Callable[[Frame], Frame] = lambda frame: frame) -> None:
        """Starts empty; `lend` prepares each frame for the run that takes it."""
        self._lend = lend
        self._items: deque[Frame | Event] = deque()
        self.num_frames = 0
        self.num_dropped = 0
        self.num_dropped_events = 0

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def is_full_of_events(self) -> bool:
        """Whether the next event would drop one."""
        return len(self._items) - self.num_frames >= _MAX_EVENTS

    @property
    def has_frame(self) -> bool:
        """Whether a frame waits."""
        return self.num_frames > 0

    def put_frame(self, frame: Frame, max_frames: int) -> None:
        """Appends a frame, and drops the oldest ones beyond `max_frames` (0: drops none)."""
        self._items.append(frame)
        self.num_frames += 1
        self.num_dropped += frame.num_dropped
        while max_frames and self.num_frames > max_frames:
            self._drop_oldest_frame()

    def put_event(self, event: Event) -> None:
        """Appends an event, and drops the oldest ones beyond a few hundred."""
        self._items.append(event)
        if len(self._items) - self.num_frames > _MAX_EVENTS:
            oldest = next(i for i, item in enumerate(self._items) if isinstance(item, Event))
            del self._items[oldest]
            self.num_dropped_events += 1

    def get(self) -> Frame | Event | None:
        """Takes the oldest item; None: the mailbox is empty."""
        if not self._items:
            return None
        item = self._items.popleft()
        if not isinstance(item, Frame):
            return item
        self.num_frames -= 1
        return self._lend(item)

    def drop_frames(self) -> None:
        """Removes all frames; the events stay."""
        self._items = deque(item for item in self._items if isinstance(item, Event))
        self.num_frames = 0

    def _drop_oldest_frame(self) -> None:
        places = (i for i, item in enumerate(self._items) if isinstance(item, Frame))
        first, second = next(places), next(places)
        dropped, heir = self._items[first], self._items[second]
        if isinstance(dropped, Frame) and isinstance(heir, Frame):
            # The next frame counts all that are missing before it.
            self._items[second] = dataclasses.replace(
                heir,
                num_dropped=heir.num_dropped + dropped.num_dropped + 1,
                num_skipped=heir.num_skipped + dropped.num_skipped,
            )
        del self._items[first]
        self.num_frames -= 1
        self.num_dropped += 1


class Group(Protocol):
    """The part of `CaptureGroup` that its captures use."""

    changed: threading.Condition
    """Lock of all mailboxes; notified of every change."""

    @property
    def is_over(self) -> bool:
        """Whether the group is closed."""
        ...

    def check_process(self) -> None:
        """Raises RuntimeError in a child of the process that made the group."""
        ...

    def check(self) -> None:
        """Raises the error that ended a thread of the group, if one did."""
        ...

    def command(self, command: Callable[[], None]) -> None:
        """Calls `command` in the supervising thread."""
        ...

    def remove(self, capture: Capture) -> None:
        """Ends a source."""
        ...

    def close(self) -> None:
        """Ends all sources."""
        ...


class Capture:
    """One source of a group; any thread may use it."""

    failure: BaseException | None = None
    """Error that ended the source; it is raised after the items that came before it."""

    def __init__(self, name: str, group: Group, *, owns_group: bool = False) -> None:
        self.name = name
        self.mailbox = Mailbox()
        self._group = group
        self._owns_group = owns_group
        self._changed = group.changed

    def __enter__(self: CaptureType) -> CaptureType:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_done(self) -> bool:
        """Whether no more items will come."""
        raise NotImplementedError

    @property
    def is_delivering(self) -> bool:
        """Whether frames come at the moment, so that a batch may wait for one."""
        raise NotImplementedError

    @property
    def stats(self) -> CaptureStats:
        """A snapshot of the counters."""
        raise NotImplementedError

    def start(self) -> None:
        """Begins to capture; called once, with the lock held."""
        raise NotImplementedError

    def stop(self) -> None:
        """Asks the source to end soon; called with the lock held."""
        raise NotImplementedError

    def join(self, timeout_s: float) -> None:
        """Waits for what `stop` does not end at once."""

    @property
    def is_exhausted(self) -> bool:
        """Whether no more items will come and everything has been taken."""
        return self.is_done and not len(self.mailbox)

    def take(self, timeout_s: float | None = None) -> Frame | Event | None:
        """Returns the next frame or event, in order.

        Args:
            timeout_s: Seconds to wait at most; None: until something comes, or until nothing more will come.

        Returns:
            The item; None after the time, or when the source is exhausted or closed.
        """
        self._group.check_process()
        with self._changed:
            self._changed.wait_for(lambda: len(self.mailbox) or self._group.is_over or self.is_done, timeout_s)
            self._group.check()
            item = self.mailbox.get()
            # A reader may wait for room.
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Ends the source within two seconds; does nothing the second time."""
        if self._owns_group:
            self._group.close()
        else:
            self._group.remove(self)


class ProcessCapture(Capture):
    """A source that a capture process reads; the group's thread supervises it."""

    def __init__(self, config: CaptureConfig, group: Group, *, owns_group: bool) -> None:
        """Made by `CaptureGroup.add` and `open_capture`."""
        super().__init__(config.label, group, owns_group=owns_group)
        self.mailbox = Mailbox(self._lend)
        self.config = config
        # The other slots hold a frame in writing, one that waits, and one on its way.
        self._max_lent = max(1, config.slots - _SLOTS_OF_CAPTURE)
        self._has_copied = False
        self.supervisor = SourceSupervisor(config, self._deliver)

    @property
    def is_done(self) -> bool:
        return self.supervisor.is_done

    @property
    def is_delivering(self) -> bool:
        return self._state() == "connected"

    @property
    def messages(self) -> tuple[str, ...]:
        """The last lines that the present or last process wrote, without passwords."""
        return self.supervisor.lines

    @property
    def stats(self) -> CaptureStats:
        supervisor, process = self.supervisor, self.supervisor.process
        age_s = time.monotonic() - supervisor.last_frame_s
        with self._changed:
            return CaptureStats(
                state=self._state(),
                num_frames=supervisor.num_frames,
                num_dropped=self.mailbox.num_dropped,
                num_dropped_events=self.mailbox.num_dropped_events,
                num_connections=supervisor.num_connections,
                num_messages=supervisor.num_lines,
                frame_age_s=age_s if supervisor.num_frames else None,
                pid=process.pid if process is not None else None,
            )

    def start(self) -> None:
        """Does nothing: the group's thread starts the process, because the kernel ends it with that thread."""

    def stop(self) -> None:
        self._group.command(lambda: self.supervisor.stop(time.monotonic()))

    def _state(self) -> SourceState:
        state = self.supervisor.state
        is_quiet = time.monotonic() - self.supervisor.last_frame_s >= self.supervisor.pace.gap_s
        return "quiet" if state == "connected" and is_quiet else state

    def _lend(self, frame: Frame) -> Frame:
        """Returns the frame, or a copy when the run keeps so many that the camera would find no slot."""
        ring = self.supervisor.ring
        image = ring.lend(frame.image, self._max_lent) if ring is not None else frame.image
        if image is frame.image:
            return frame
        if not self._has_copied:
            self._has_copied = True
            _logger.info(
                "%s: %d pictures are in use at the same time, so further ones are copied; slots = %d is the limit "
                "(more slots save the copies)",
                self.name,
                self._max_lent,
                self.config.slots,
                extra={"source": self.name},
            )
        return dataclasses.replace(frame, image=image)

    def _deliver(self, item: Frame | Event, max_frames: int) -> None:
        with self._changed:
            if isinstance(item, Frame):
                self.mailbox.put_frame(item, max_frames)
            else:
                self.mailbox.put_event(item)
            self._changed.notify_all()


class FileCapture(Capture):
    """Files and images that a thread of this process reads ahead; it waits for the run and never drops a frame."""

    def __init__(
        self,
        name: str,
        open_it: Callable[[], Source],
        group: Group,
        *,
        depth: int,
        max_fps: float = 0.0,
        tells_end: bool = False,
    ) -> None:
        """Prepares the thread.

        Args:
            name: Name of the source.
            open_it: Opens the source, in the thread; the source is closed at the end.
            group: Holds the lock.
            depth: Frames that wait at most.
            max_fps: Frames per second of the video at most; 0: all.
            tells_end: Whether an event `ended` follows the last frame, unless the source has one.
        """
        super().__init__(name, group)
        self._open = open_it
        self._depth = depth
        self._cap = _rate_cap(max_fps) if max_fps else None
        self._tells_end = tells_end
        self._source: Source | None = None
        self._state: SourceState = "starting"
        self._is_stopping = False
        self._num_skipped = 0
        self._num_frames = 0
        self._last_frame_s = 0.0
        self._thread = threading.Thread(target=self._run, name="edgerpn-read", daemon=True)

    @property
    def is_done(self) -> bool:
        return self._state == "ended"

    @property
    def is_delivering(self) -> bool:
        return self._state == "connected"

    @property
    def stats(self) -> CaptureStats:
        return CaptureStats(
            state=self._state,
            num_frames=self._num_frames,
            num_dropped=0,
            num_connections=1,
            frame_age_s=time.monotonic() - self._last_frame_s if self._num_frames else None,
        )

    def start(self) -> None:
        start_thread(self._thread)

    def stop(self) -> None:
        self._is_stopping = True
        if self._source is not None:
            self._source.close()
        self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._read()
        except StreamOpenError as error:
            self._put(Event(kind="error", source=self.name, message=str(error), reason="not_found"))
            self._put(Event(kind="ended", source=self.name, message=str(error), reason="not_found"))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that takes the frames
            self.failure = error
        finally:
            if self._source is not None:
                self._source.close()
            with self._changed:
                self._state = "ended"
                self._changed.notify_all()

    def _read(self) -> None:
        source = self._open()
        self._source = source
        # `stop` may have missed the source.
        items = iter(source) if not self._is_stopping else iter(())
        has_ended = False
        for item in items:
            if item.source != self.name:
                # The run knows the source, opened under another name, by this one only.
                item = dataclasses.replace(item, source=self.name)
            has_ended = isinstance(item, Event) and item.kind == "ended"
            if isinstance(item, Frame) and not self._lets_through(item):
                continue
            if isinstance(item, Frame) and self._num_skipped:
                item = dataclasses.replace(item, num_skipped=self._num_skipped)
                self._num_skipped = 0
            if not self._put(item):
                return
        if self._tells_end and not has_ended:
            message = f"{self.name}: all frames are read"
            self._put(Event(kind="ended", source=self.name, message=message, reason="end_of_stream"))

    def _lets_through(self, frame: Frame) -> bool:
        time_s = frame.monotonic_s if frame.media_time_s is None else frame.media_time_s
        if self._cap is None or self._cap.lets_through(time_s):
            return True
        self._num_skipped += 1
        return False

    def _put(self, item: Frame | Event) -> bool:
        """Waits for room, also for events: they count unreadable images; False when the source is stopped meanwhile."""
        with self._changed:
            mailbox = self.mailbox
            while (mailbox.num_frames >= self._depth or mailbox.is_full_of_events) and not self._is_stopping:
                self._changed.wait(_POLL_S)
            if self._is_stopping:
                return False
            if isinstance(item, Frame):
                self._state = "connected"
                self._num_frames += 1
                self._last_frame_s = time.monotonic()
                self.mailbox.put_frame(item, 0)
            else:
                self.mailbox.put_event(item)
            self._changed.notify_all()
            return True


def _rate_cap(max_fps: float) -> RateCap:
    # Imported late: it brings the readers of capture processes along.
    from edgerpn.runtime.sources.pump import RateCap

    return RateCap(max_fps)

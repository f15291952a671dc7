"""Several sources at once: one thread watches all their processes, one condition wakes whoever waits for frames."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from edgerpn.runtime.frame import Event, Frame, SourceState
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.mailbox import Mailbox
from edgerpn.runtime.sources.supervisor import SourceSupervisor
from edgerpn.runtime.sources.watch import Watch

_JOIN_S = 1.8
_IDLE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureStats:
    """What a source has done so far."""

    state: SourceState
    """starting, connected, quiet (connected, but no frame for `gap_s`), reconnecting or ended."""
    num_frames: int
    """Frames that came from its processes."""
    num_dropped: int
    """Frames that nobody took in time; those skipped by `max_fps` are not among them."""
    num_dropped_events: int
    """Events that nobody took in time."""
    num_connections: int
    """Connections that gave frames."""
    num_messages: int
    """Lines that decoders wrote, of all connections; damaged video shows so."""
    frame_age_s: float | None
    """Seconds since the last frame came; None: none has."""
    pid: int | None
    """Number of the process that captures now."""


class Capture:
    """One source of a group; any thread may use it."""

    def __init__(self, config: CaptureConfig, group: CaptureGroup, *, owns_group: bool) -> None:
        """Made by `CaptureGroup.add` and `open_capture`."""
        self.config = config
        self._group = group
        self._owns_group = owns_group
        self._changed = group.changed
        self.mailbox = Mailbox()
        self.supervisor = SourceSupervisor(config, self._deliver)

    def __enter__(self) -> Capture:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    @property
    def name(self) -> str:
        """Name of the source, without passwords."""
        return self.config.label

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing will come any more and everything has been taken."""
        return self.supervisor.is_done and not len(self.mailbox)

    @property
    def messages(self) -> tuple[str, ...]:
        """The last lines that the present or last process wrote, without passwords."""
        return self.supervisor.lines

    @property
    def stats(self) -> CaptureStats:
        """A snapshot of the counters."""
        supervisor, process, state = self.supervisor, self.supervisor.process, self.supervisor.state
        age_s = time.monotonic() - supervisor.last_frame_s
        with self._changed:
            return CaptureStats(
                state="quiet" if state == "connected" and age_s >= self.config.gap_s else state,
                num_frames=supervisor.num_frames,
                num_dropped=self.mailbox.num_dropped,
                num_dropped_events=self.mailbox.num_dropped_events,
                num_connections=supervisor.num_connections,
                num_messages=supervisor.num_lines,
                frame_age_s=age_s if supervisor.num_frames else None,
                pid=process.pid if process is not None else None,
            )

    def take(self, timeout_s: float | None = None) -> Frame | Event | None:
        """The next frame or event, in order.

        Args:
            timeout_s: Seconds to wait at most; None: until something comes, or nothing will any more.

        Returns:
            The item; None after the time, or when the source is exhausted or closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: len(self.mailbox) or self._group.is_over or self.supervisor.is_done, timeout_s
            )
            self._group.check()
            return self.mailbox.get()

    def close(self) -> None:
        """Ends the source and its process, within two seconds; does nothing the second time."""
        if self._owns_group:
            self._group.close()
        else:
            self._group.remove(self)

    def _deliver(self, item: Frame | Event, max_frames: int) -> None:
        with self._changed:
            if isinstance(item, Frame):
                self.mailbox.put_frame(item, max_frames)
            else:
                self.mailbox.put_event(item)
            self._changed.notify_all()


class CaptureGroup:
    """Sources that are watched together; sources come and go while it runs. Any thread may use it."""

    def __init__(self) -> None:
        """Starts the thread that watches, without any source."""
        self.changed = threading.Condition()
        self._captures: list[Capture] = []
        self._turn = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)
        self._watched: list[Watch] = []
        # All processes are started by this thread, because the kernel ends them when the starting thread ends.
        self._thread = threading.Thread(target=self._supervise, name="edgerpn-capture", daemon=True)
        self._thread.start()

    def __enter__(self) -> CaptureGroup:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    @property
    def captures(self) -> tuple[Capture, ...]:
        """The sources, in the order in which they were added."""
        with self.changed:
            return tuple(self._captures)

    @property
    def is_over(self) -> bool:
        """Whether the group is closed."""
        return self._is_closing

    def check(self) -> None:
        """Raises the error that ended the watching thread, if one did."""
        if self._failure is not None:
            raise RuntimeError("the thread that watches the sources has failed") from self._failure

    def add(self, config: CaptureConfig) -> Capture:
        """Adds a source and starts it; whether it can be opened shows in its events.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The group is closed.
        """
        return self._add(config, owns_group=False)

    def remove(self, capture: Capture) -> None:
        """Ends a source within two seconds; its frames are let go. Does nothing for one that is not there."""
        with self.changed:
            if capture not in self._captures:
                return
            self._captures.remove(capture)
            self._command(lambda: capture.supervisor.stop(time.monotonic()))
            capture.mailbox.drop_frames()
            self.changed.notify_all()
            self.changed.wait_for(lambda: capture.supervisor.is_done or not self._thread.is_alive(), _JOIN_S)
            capture.mailbox.drop_frames()

    def wait(self, timeout_s: float | None = None) -> tuple[Capture, ...]:
        """The sources for which something waits.

        Args:
            timeout_s: Seconds to wait at most; None: until there is something, or nothing will come any more.

        Returns:
            At least one, in fair turns, but for the end of the time or of all sources.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._ready() or self._is_exhausted(), timeout_s)
            self.check()
            return self._ready()

    def take(self, timeout_s: float | None = None) -> Frame | Event | None:
        """The next frame or event of any source, in fair turns; None as in `Capture.take`."""
        with self.changed:
            self.changed.wait_for(lambda: self._ready() or self._is_exhausted(), timeout_s)
            self.check()
            ready = self._ready()
            if not ready:
                return None
            self._turn = (self._captures.index(ready[0]) + 1) % len(self._captures)
            return ready[0].mailbox.get()

    def close(self) -> None:
        """Ends all sources and their processes, within two seconds; does nothing the second time."""
        with self.changed:
            self._is_closing = True
            self._command(self._stop_all)
            for capture in self._captures:
                capture.mailbox.drop_frames()
            self.changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_JOIN_S)

    def _add(self, config: CaptureConfig, *, owns_group: bool) -> Capture:
        with self.changed:
            if self._is_closing:
                raise RuntimeError("the group of sources is closed")
            capture = Capture(config, self, owns_group=owns_group)
            if any(other.name == capture.name for other in self._captures):
                raise ValueError(f"name: two sources named {capture.name!r}; give one of them another name")
            self._captures.append(capture)
            watch = Watch(capture.supervisor)
            self._command(lambda: self._watched.append(watch))
            return capture

    def _ready(self) -> tuple[Capture, ...]:
        order = self._captures[self._turn :] + self._captures[: self._turn]
        return tuple(capture for capture in order if len(capture.mailbox))

    def _is_exhausted(self) -> bool:
        return self._is_closing or all(capture.is_exhausted for capture in self._captures)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, now_s: float) -> None:
        os.eventfd_read(self._wake_fd)

    def _stop_all(self) -> None:
        for watch in self._watched:
            watch.supervisor.stop(time.monotonic())

    def _supervise(self) -> None:
        try:
            while not (self._is_closing and not self._watched and not self._commands):
                self._step()
        except BaseException as error:  # noqa: BLE001 - raised again in the threads that take frames
            self._failure = error
        finally:
            with self.changed:
                self._is_closing = True
                wake_fd, self._wake_fd = self._wake_fd, -1
                self.changed.notify_all()
            # None is left but after a failure.
            for watch in self._watched:
                watch.supervisor.abandon()
            self._selector.close()
            os.close(wake_fd)

    def _step(self) -> None:
        """One round: what was asked, what is due, and then what comes in."""
        while self._commands:
            self._commands.popleft()()
        next_s = time.monotonic() + _IDLE_S
        for watch in list(self._watched):
            if self._is_closing:
                watch.supervisor.stop(time.monotonic())
            next_s = min(next_s, watch.tick(self._selector))
            if watch.supervisor.is_done:
                self._watched.remove(watch)
                with self.changed:
                    self.changed.notify_all()
        if self._commands or (self._is_closing and not self._watched):
            return
        for key, _ in self._selector.select(max(0.0, next_s - time.monotonic())):
            key.data(time.monotonic())


def open_capture(config: CaptureConfig) -> Capture:
    """Starts one source on its own; closing it ends everything."""
    return CaptureGroup()._add(config, owns_group=True)

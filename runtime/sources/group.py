"""Several sources at once: one thread supervises all capture processes, one condition wakes those who wait."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.runtime.frame import Event, Frame, Source
from edgerpn.runtime.sources.capture import Capture, FileCapture, ProcessCapture
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.process import CaptureProcess
from edgerpn.runtime.sources.supervisor import SourceSupervisor
from edgerpn.runtime.threads import start_thread

_JOIN_S = 1.8
_IDLE_S = 60.0


class CaptureGroup:
    """A set of sources that a run reads together and may change at any time; any thread may use it."""

    def __init__(self) -> None:
        """Starts the supervising thread, without any source."""
        self.changed = threading.Condition()
        self._captures: list[Capture] = []
        self._turn = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)
        self._watched: list[_Watch] = []
        bind_to_process(self)
        # This thread starts all processes, because the kernel ends them when the thread that started them ends.
        self._thread = threading.Thread(target=self._supervise, name="edgerpn-capture", daemon=True)
        try:
            start_thread(self._thread)
        except BaseException:
            self._selector.close()
            os.close(self._wake_fd)
            raise

    def __enter__(self) -> CaptureGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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

    @property
    def has_failed(self) -> bool:
        """Whether `check` raises."""
        return self._failure is not None or any(
            capture.failure is not None and not len(capture.mailbox) for capture in self._captures
        )

    def check_process(self) -> None:
        """Raises RuntimeError in a child of the process that made the group, where nothing would ever come."""
        if is_foreign(self):
            raise RuntimeError("the sources were opened before a fork; their threads are not in this process")

    def check(self) -> None:
        """Raises the error that ended the supervising thread or a reader, once the frames before it are taken."""
        if self._failure is not None:
            raise RuntimeError("the thread that supervises the sources has failed") from self._failure
        for capture in self._captures:
            if capture.failure is not None and not len(capture.mailbox):
                raise capture.failure

    def add(self, config: CaptureConfig) -> ProcessCapture:
        """Adds a source with a process of its own; its events show whether it can be opened.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The group is closed.
        """
        return self._add_process(config, owns_group=False)

    def add_file(
        self, name: str, open_it: Callable[[], Source], *, depth: int, max_fps: float = 0.0, tells_end: bool = False
    ) -> FileCapture:
        """Adds a file or images that a thread of this process reads ahead; arguments as those of `FileCapture`.

        Raises:
            ValueError: Another source has this name.
            RuntimeError: The group is closed.
        """
        with self.changed:
            capture = FileCapture(name, open_it, self, depth=depth, max_fps=max_fps, tells_end=tells_end)
            self._add(capture)
            return capture

    def remove(self, capture: Capture) -> None:
        """Ends a source within two seconds and drops its frames; does nothing for one that is not in the group."""
        if is_foreign(self):
            return
        with self.changed:
            if capture not in self._captures:
                return
            self._captures.remove(capture)
            capture.stop()
            capture.mailbox.drop_frames()
            self.changed.notify_all()
            self.changed.wait_for(lambda: capture.is_done or not self._thread.is_alive(), _JOIN_S)
            capture.mailbox.drop_frames()

    def wait(self, timeout_s: float | None = None) -> tuple[Capture, ...]:
        """Returns the sources for which something waits.

        Args:
            timeout_s: Seconds to wait at most; None: until something comes, or until nothing more will come.

        Returns:
            At least one, in fair turns, but for the end of the time or of all sources.
        """
        self.check_process()
        with self.changed:
            self.changed.wait_for(lambda: self._ready() or self._is_exhausted(), timeout_s)
            self.check()
            return self._ready()

    def take(self, timeout_s: float | None = None) -> Frame | Event | None:
        """Returns the next frame or event of any source, in fair turns; None as in `Capture.take`."""
        self.check_process()
        with self.changed:
            self.changed.wait_for(lambda: self._ready() or self._is_exhausted(), timeout_s)
            self.check()
            ready = self._ready()
            if not ready:
                return None
            self._turn = (self._captures.index(ready[0]) + 1) % len(self._captures)
            item = ready[0].mailbox.get()
            # A reader may wait for room.
            self.changed.notify_all()
            return item

    def close(self) -> None:
        """Ends all sources and their processes, within two seconds; does nothing the second time, or after a fork."""
        if is_foreign(self):
            return
        with self.changed:
            self._is_closing = True
            self.command(self._stop_all)
            captures = tuple(self._captures)
            for capture in captures:
                capture.stop()
                capture.mailbox.drop_frames()
            self.changed.notify_all()
        deadline_s = time.monotonic() + _JOIN_S
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)
        for capture in captures:
            capture.join(max(0.0, deadline_s - time.monotonic()))

    def command(self, command: Callable[[], None]) -> None:
        """Calls `command` in the supervising thread."""
        self._commands.append(command)
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _add_process(self, config: CaptureConfig, *, owns_group: bool) -> ProcessCapture:
        with self.changed:
            capture = ProcessCapture(config, self, owns_group=owns_group)
            self._add(capture)
            watch = _Watch(capture.supervisor)
            self.command(lambda: self._watched.append(watch))
            return capture

    def _add(self, capture: Capture) -> None:
        if self._is_closing:
            raise RuntimeError("the group of sources is closed")
        if any(other.name == capture.name for other in self._captures):
            raise ValueError(f"name: two sources named {capture.name!r}; give one of them another name")
        # Started first: a source whose thread does not start must not wait in the list for ever.
        capture.start()
        self._captures.append(capture)

    def _ready(self) -> tuple[Capture, ...]:
        order = self._captures[self._turn :] + self._captures[: self._turn]
        return tuple(capture for capture in order if len(capture.mailbox))

    def _is_exhausted(self) -> bool:
        return self._is_closing or all(capture.is_exhausted for capture in self._captures)

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
            # Only a failure leaves any.
            for watch in self._watched:
                watch.supervisor.abandon()
            self._selector.close()
            os.close(wake_fd)

    def _step(self) -> None:
        """One round: commands, then what is due, then what comes in."""
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


class _Watch:
    """A source's place in the selector of the supervising thread."""

    def __init__(self, supervisor: SourceSupervisor) -> None:
        """Watches nothing until the first `tick`."""
        self.supervisor = supervisor
        self._process: CaptureProcess | None = None
        self._fds: list[int] = []

    def tick(self, selector: selectors.BaseSelector) -> float:
        """Does what is due for the source, and lets the selector follow its process."""
        supervisor = self.supervisor
        self._leave(selector, is_all=supervisor.process is not self._process)
        next_s = supervisor.tick(time.monotonic())
        process = supervisor.process
        if process is not self._process:
            self._leave(selector, is_all=True)
            self._process = process
            if process is not None:
                self._enter(selector, process.control.fileno(), supervisor.on_control)
                self._enter(selector, process.output_fd, lambda now_s: self._on_output(selector))
        return next_s

    def _on_output(self, selector: selectors.BaseSelector) -> None:
        if not self.supervisor.on_output() and len(self._fds) == 2:
            selector.unregister(self._fds.pop())

    def _enter(self, selector: selectors.BaseSelector, fd: int, callback: Callable[[float], None]) -> None:
        selector.register(fd, selectors.EVENT_READ, callback)
        self._fds.append(fd)

    def _leave(self, selector: selectors.BaseSelector, *, is_all: bool) -> None:
        """Unregisters a process that has ended, or whose closed socket would wake the thread for ever."""
        if is_all or (self._process is not None and self._process.is_over):
            while self._fds:
                selector.unregister(self._fds.pop())


def open_capture(config: CaptureConfig) -> ProcessCapture:
    """Starts one source on its own; closing it ends everything."""
    return CaptureGroup()._add_process(config, owns_group=True)

"""A source among others in the one thread that supervises them."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from edgerpn.runtime.sources.process import CaptureProcess
from edgerpn.runtime.sources.supervisor import SourceSupervisor


class Watch:
    """A source's place in the selector."""

    def __init__(self, supervisor: SourceSupervisor) -> None:
        """Watches nothing until the first `tick`."""
        self.supervisor = supervisor
        self._process: CaptureProcess | None = None
        self._fds: list[int] = []

    def tick(self, selector: selectors.BaseSelector) -> float:
        """What is due for the source, with the selector following its process."""
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
        """Takes a process out that is gone, or whose socket is closed and would wake us for ever."""
        if is_all or (self._process is not None and self._process.is_over):
            while self._fds:
                selector.unregister(self._fds.pop())

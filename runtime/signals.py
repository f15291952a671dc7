"""Ctrl-C and SIGTERM as a request to finish, for the command line only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopOnSignal:
    """Context manager: the first SIGINT or SIGTERM calls `stop`; a second SIGINT interrupts at once.

    SIGHUP calls `on_hangup`, where there is one. Handlers are restored at the end. Outside of the main thread, where
    Python allows no handlers, it does nothing.
    """

    def __init__(self, stop: Callable[[], None], *, on_hangup: Callable[[], None] | None = None) -> None:
        """Calls `stop` and `on_hangup` from inside the signal handler, so they must only set flags."""
        self._stop = stop
        self._on_hangup = on_hangup
        self._previous: dict[int, Any] = {}
        self.received: int | None = None

    def __enter__(self) -> StopOnSignal:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
            if self._on_hangup is not None and hasattr(signal, "SIGHUP"):
                self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._handle_hangup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restores what was there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        self._stop()

    def _handle_hangup(self, number: int, frame: FrameType | None) -> None:
        if self._on_hangup is not None:
            self._on_hangup()

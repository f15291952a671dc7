"""What a sink says in the log: its first failure, then now and then how many more, and that it works again."""

from __future__ import annotations

import logging
import time

_logger = logging.getLogger(__name__)

REPEAT_S = 60.0
"""Seconds between two lines about the failures of one sink."""


class FailureLog:
    """Counts the failures of one sink and rations what is said about them."""

    def __init__(self, name: str, *, repeat_s: float = REPEAT_S) -> None:
        """Takes the name that its lines begin with, and the seconds between two of them."""
        self._name = name
        self._repeat_s = repeat_s
        self._said_at: float | None = None
        self._num_unsaid = 0
        self.num_errors = 0
        self.last_error = ""
        self.is_failing = False

    def failed(self, error: BaseException) -> None:
        """Counts a failure."""
        self.num_errors += 1
        self.last_error = str(error) or type(error).__name__
        self.is_failing = True
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < self._repeat_s:
            self._num_unsaid += 1
            return
        more = f" (and {self._num_unsaid} failures before that)" if self._num_unsaid else ""
        _logger.warning("%s: %s%s", self._name, self.last_error, more)
        self._said_at, self._num_unsaid = now, 0

    def worked(self, num_dropped: int) -> None:
        """Notes a success, and says so when it is the first after a failure."""
        if self.is_failing:
            self.is_failing = False
            _logger.info("%s: works again; %d records or pictures lost since the start", self._name, num_dropped)

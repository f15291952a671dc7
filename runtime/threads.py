"""The start of threads: a system that gives no more of them is one clear error."""

from __future__ import annotations

import threading

from edgerpn.errors import StreamError


class NoThreadError(StreamError, RuntimeError):
    """The system gives no more threads."""


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread that was not started before; one that does not start must not be joined.

    Raises:
        NoThreadError: The system gives no more threads.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThreadError(
            f"the thread {thread.name!r} cannot be started: {error}. Raise the limit of threads (ulimit -u, TasksMax "
            "of systemd, --pids-limit of a container), free memory, or use fewer sources and outputs."
        ) from error

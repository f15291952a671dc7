"""Reads a source ahead in a thread, so that decoding overlaps with whatever is done with the frames."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from edgerpn.runtime.frame import Event, Frame, Source

_POLL_S = 0.1


class _End:
    """Last item in the queue: the source has ended, or failed with `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch:
    """Iterates over `source` from a thread of its own, `depth` frames ahead at most."""

    def __init__(self, source: Source, *, depth: int = 3) -> None:
        """Starts reading at the first `__next__`."""
        self._source = source
        self._queue: queue.Queue[Frame | Event | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgerpn-decode", daemon=True)
        self._has_ended = False

    def __iter__(self) -> Iterator[Frame | Event]:
        """Returns itself."""
        return self

    def __next__(self) -> Frame | Event:
        """The next frame or event; raises the source's error, and StopIteration after `close`."""
        if not self._thread.ident:
            self._thread.start()
        while not self._has_ended and not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                return item
            self._has_ended = True
            if item.error is not None:
                raise item.error
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; waits for it, though not for ever."""
        self._stop.set()
        self._source.close()
        if self._thread.ident:
            self._thread.join(timeout=2.0)

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as caught:  # noqa: BLE001 - raised again in the thread that asks for the next frame
            error = caught
        self._put(_End(error))

    def _put(self, item: Frame | Event | _End) -> bool:
        """Waits for room in the queue; False when closed meanwhile."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

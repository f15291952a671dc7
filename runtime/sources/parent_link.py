"""Connection of a capture process to its parent: it sends frames, receives free slots, and ends with the parent."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from typing import Any

from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources.reconnect import ExitReport
from edgerpn.runtime.sources.shared_memory import RingWriter
from edgerpn.runtime.sources.wire import (
    MAX_PACKET_BYTES,
    STOP,
    pack_alive,
    pack_frame,
    pack_json,
    unpack_release,
)
from edgerpn.runtime.threads import start_thread

_ALIVE_PERIOD_S = 0.25


class ParentLink:
    """Sends packets and keeps the free slots of the ring; its thread receives the returned slots."""

    def __init__(self, control: socket.socket, num_slots: int) -> None:
        """Starts the receiving thread; the caller has read the request."""
        self._control = control
        self._num_slots = num_slots
        self._changed = threading.Condition()
        self._free: list[int] = []
        self._ring: RingWriter | None = None
        self._generation = 0
        self._alive_s = 0.0
        self._num_dropped = 0
        self.is_stopping = False
        start_thread(threading.Thread(target=self._listen, name="edgerpn-control", daemon=True))

    def take_slot(self, *, waits: bool) -> int | None:
        """Takes a free slot; returns None when none is free, or with `waits` when the parent stops the capture."""
        with self._changed:
            while not self._free:
                if self.is_stopping or not waits:
                    return None
                self._changed.wait()
            # The last one returned: its memory is still in the cache, and unused slots never take memory.
            return self._free.pop()

    def return_slot(self, slot: int) -> None:
        """Returns an unused slot."""
        with self._changed:
            self._free.append(slot)

    def ring_for(self, num_bytes: int) -> RingWriter:
        """Returns the ring, or a new one when a frame does not fit."""
        if self._ring is not None and num_bytes <= self._ring.slot_bytes:
            return self._ring
        self._generation += 1
        ring = RingWriter(self._generation, self._num_slots, num_bytes)
        about = {"generation": ring.generation, "num_slots": ring.num_slots, "slot_bytes": ring.slot_bytes}
        socket.send_fds(self._control, [pack_json(b"R", about)], [ring.fd])
        ring.close()
        with self._changed:
            self._ring = ring
            self._free = list(range(self._num_slots))
        return ring

    def send_frame(self, frame: Frame, *, generation: int, slot: int) -> None:
        """Passes a filled slot to the parent."""
        self._alive_s = frame.monotonic_s
        self._control.send(pack_frame(frame, generation=generation, slot=slot))

    def send_event(self, event: dict[str, Any]) -> None:
        self._control.send(pack_json(b"E", event))

    def send_report(self, report: ExitReport) -> None:
        """Sends the exit report, the last packet."""
        self._control.send(pack_json(b"X", dataclasses.asdict(report)))

    def count_drop(self) -> None:
        """Counts a frame that found no free slot; the next frame reports it."""
        self._num_dropped += 1

    def pop_drops(self) -> int:
        """Returns the frames dropped since the last call."""
        count, self._num_dropped = self._num_dropped, 0
        return count

    def send_alive(self) -> None:
        """Reports that frames arrive although none is sent, at most every `_ALIVE_PERIOD_S`."""
        now_s = time.monotonic()
        if now_s - self._alive_s >= _ALIVE_PERIOD_S:
            self._alive_s = now_s
            self._control.send(pack_alive(self._num_dropped))

    def _listen(self) -> None:
        while True:
            try:
                packet = self._control.recv(MAX_PACKET_BYTES)
            except OSError:
                packet = b""
            if not packet:
                # The parent is gone; the other thread may hang in a read.
                os._exit(0)
            with self._changed:
                if packet == STOP:
                    self.is_stopping = True
                else:
                    generation, slot = unpack_release(packet)
                    if generation == self._generation:
                        self._free.append(slot)
                self._changed.notify()

"""A capture process's line to its parent: frames out, free slots in. It ends the process when the parent is gone."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources.ring import RingWriter
from edgerpn.runtime.sources.wire import (
    MAX_PACKET_BYTES,
    STOP,
    pack_alive,
    pack_frame,
    pack_json,
    unpack_release,
)

_ALIVE_PERIOD_S = 0.25


class ParentLink:
    """Sends packets, and keeps the free slots of the ring, which a thread of its own collects."""

    def __init__(self, control: socket.socket, num_slots: int) -> None:
        """Starts to listen; the request must have been read."""
        self._control = control
        self._num_slots = num_slots
        self._changed = threading.Condition()
        self._free: list[int] = []
        self._ring: RingWriter | None = None
        self._generation = 0
        self._alive_s = 0.0
        self._num_dropped = 0
        self.is_stopping = False
        threading.Thread(target=self._listen, name="edgerpn-control", daemon=True).start()

    def take_slot(self, *, waits: bool) -> int | None:
        """A free slot; None when there is none, or with `waits` when the parent says stop."""
        with self._changed:
            while not self._free:
                if self.is_stopping or not waits:
                    return None
                self._changed.wait()
            # The last that came back: its memory is still in the cache, and the others stay untouched.
            return self._free.pop()

    def return_slot(self, slot: int) -> None:
        """Gives back a slot that was not used."""
        with self._changed:
            self._free.append(slot)

    def ring_for(self, num_bytes: int) -> RingWriter:
        """The ring, or a new one when a frame does not fit."""
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
        """Hands over a slot."""
        self._alive_s = frame.monotonic_s
        self._control.send(pack_frame(frame, generation=generation, slot=slot))

    def send_event(self, event: dict[str, Any]) -> None:
        """Tells something about the source."""
        self._control.send(pack_json(b"E", event))

    def send_report(self, message: dict[str, Any]) -> None:
        """Tells why the process ends."""
        self._control.send(pack_json(b"X", message))

    def count_drop(self) -> None:
        """Counts a frame that found no free slot; the next frame tells of it."""
        self._num_dropped += 1

    def pop_drops(self) -> int:
        """Frames dropped since the last call."""
        count, self._num_dropped = self._num_dropped, 0
        return count

    def send_alive(self) -> None:
        """Tells that frames come although none is sent; seldom enough to cost nothing."""
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
                # The parent is gone; the other thread may be inside of a read that never returns.
                os._exit(0)
            with self._changed:
                if packet == STOP:
                    self.is_stopping = True
                else:
                    generation, slot = unpack_release(packet)
                    if generation == self._generation:
                        self._free.append(slot)
                self._changed.notify()

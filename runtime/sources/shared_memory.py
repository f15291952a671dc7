"""Slots for frames in memory shared by a capture process, which writes, and its parent, which reads.

The memory has no name (memfd_create), so it vanishes with the last of both processes, even after kill -9. A slot
belongs to the child until it announces a frame in it, then to the parent until nothing there refers to the frame.
Reference counting finds that moment, so the process cannot overwrite a frame in use. A consumer that keeps its frames
gets copies in time, or it would take every slot and wait for ever.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import socket
import time
import weakref

import numpy as np
import numpy.typing as npt

from edgerpn.machine import bind_to_process, is_foreign
from edgerpn.runtime.sources.wire import pack_release


class RingWriter:
    """The child's side: creates the memory and fills slots."""

    def __init__(self, generation: int, num_slots: int, slot_bytes: int) -> None:
        """Reserves address space; a slot takes memory when it is first written."""
        self.generation = generation
        self.num_slots = num_slots
        # Whole pages, so that every frame is aligned and slightly larger pictures fit too.
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("edgerpn-frames")
        os.ftruncate(self.fd, self.num_slots * self.slot_bytes)
        self._memory = mmap.mmap(self.fd, self.num_slots * self.slot_bytes)

    def image(self, slot: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Returns uint8 of a shape (H, W, C) over a slot."""
        return np.ndarray(shape, np.uint8, self._memory, slot * self.slot_bytes)

    def close(self) -> None:
        """Closes the descriptor; the memory remains until its views are gone."""
        os.close(self.fd)


class RingReader:
    """The parent's side: returns frames as arrays, and their slots when the arrays are gone."""

    def __init__(self, fd: int, control: socket.socket, generation: int, num_slots: int, slot_bytes: int) -> None:
        """Maps the memory; the caller closes `fd`, and `control` carries the returned slots."""
        self.generation = generation
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes
        self.released_s = time.monotonic()
        self._memory = mmap.mmap(fd, num_slots * slot_bytes)
        self._start = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._memory))
        self._control = control
        self._held: set[int] = set()
        self._lent: set[int] = set()
        bind_to_process(self)

    @property
    def is_full(self) -> bool:
        """Whether every slot is lent or waits here, so that the child can only wait."""
        return len(self._held) >= self.num_slots

    def image(self, generation: int, slot: int, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """(H, W, C) uint8, read-only, without a copy; its slot returns when the last reference to it is gone.

        Raises:
            ValueError: This ring cannot hold such a frame, or the slot is taken.
        """
        num_bytes = math.prod(shape)
        is_free = generation == self.generation and slot < self.num_slots and slot not in self._held
        if not is_free or not 0 < num_bytes <= self.slot_bytes:
            raise ValueError(f"a frame of {shape[1]}x{shape[0]} in slot {slot} of ring {generation} does not fit")
        # Not a NumPy array, because views of a view refer to the first owner only, which must be this object.
        owner = (ctypes.c_ubyte * num_bytes).from_buffer(self._memory, slot * self.slot_bytes)
        self._held.add(slot)
        weakref.finalize(owner, self._give_back, slot).atexit = False
        image = np.frombuffer(memoryview(owner), np.uint8).reshape(shape)
        image.flags.writeable = False
        return image

    def lend(self, image: npt.NDArray[np.uint8], max_lent: int) -> npt.NDArray[np.uint8]:
        """Passes `image` to the consumer: itself, or a copy while the consumer holds `max_lent` others."""
        slot, rest = divmod(image.ctypes.data - self._start, self.slot_bytes)
        if rest or slot not in self._held:
            # It is of an earlier ring, whose slots no process waits for.
            return image
        if len(self._lent) < max_lent:
            self._lent.add(slot)
            return image
        copied = image.copy()
        copied.flags.writeable = False
        return copied

    def _give_back(self, slot: int) -> None:
        """Runs wherever the last reference goes, even inside a lock: it must neither block nor raise."""
        if is_foreign(self):
            # A copy of the frame in a child of this process is gone; the frame itself is not.
            return
        self._held.discard(slot)
        self._lent.discard(slot)
        self.released_s = time.monotonic()
        try:
            self._control.send(pack_release(self.generation, slot))
        except OSError:
            # The process is gone, and its ring with it.
            return

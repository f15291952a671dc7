"""The ring of slots: pinned memory that frames are written into, and the work on them.

    slot = ring.acquire()        waits for a free slot
    slot.frames[:n] = ...        pinned host memory; a capture may write straight into it
    slot.submit(n)               upload, inference and download start; returns at once
    slot.result()                waits; views of pinned memory, valid until `release`
    slot.release()

Why this is correct:
1. A slot has a stream, buffers and execution contexts of its own; slots share nothing but the engine, which is
   read-only. So as many frames are in flight as there are slots.
2. Upload, inference and download of a slot run on its one stream, so they need no events between them.
3. A slot belongs to one thread at a time, from `acquire` to `release`. Contexts are made, and run for the first time,
   under one lock of the ring, because the engine and the library's set-up are shared.
4. Capture is thread-local: what other threads do meanwhile neither joins nor breaks it.

A batch runs at the smallest of the profile's three sizes (min, opt, max) that holds it, the other rows being whatever
the buffer held before; so a slot has at most three contexts, and a batch of a new size never makes one more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError, InferenceError
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.contract import Outputs
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device
from edgerpn.runtime.backends.tensorrt.device_input import DeviceFrames
from edgerpn.runtime.backends.tensorrt.engine import TensorRtEngine
from edgerpn.runtime.backends.tensorrt.plan import Buffers, Plan, free_quietly

_MOST_DIRECT_PLANS = 4
"""Batch sizes of direct input that keep a context: sizes come and go with the embedder, and each costs memory."""
_logger = logging.getLogger(__name__)


class Slot:
    """One frame, or batch, in flight; belongs to the thread that acquired it. See the module for its life."""

    def __init__(self, ring: SlotRing, engine: TensorRtEngine, device: Device, manifest: Manifest) -> None:
        """Allocates stream and memory; called inside `Device.active()`."""
        self._ring = ring
        self._engine = engine
        self._device = device
        self.stream = device.create_stream()
        try:
            self._buffers = Buffers(device, manifest, ring.sizes[-1])
        except BaseException:
            free_quietly(lambda: device.destroy_stream(self.stream))
            raise
        self._plans: dict[int, Plan] = {}
        self._direct: dict[int, Plan] = {}
        self._running: tuple[int, int] | None = None
        self._is_pending = False
        self._keep: DeviceFrames | None = None
        self.is_free = True

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """(max batch, H, W, 3) uint8 BGR, pinned; write into it between `acquire` and `submit`."""
        return self._buffers.frames

    def prepare(self, size: int) -> None:
        """Makes execution context and CUDA graph of a batch size ready; says why when there is no graph."""
        with self._ring.preparing:
            plan = self._new_plan(size)
            try:
                plan.warm_up()
                self._ring.say_no_graph(plan.capture())
                self._engine.save_compiled()
            except BaseException:
                plan.close()
                raise
            self._plans[size] = plan

    def submit(self, num_frames: int | None = None) -> None:
        """Starts the work on the first `num_frames` of `frames` (None: all of them).

        Raises:
            ValueError: More frames than the slot holds, or none.
            InferenceError: CUDA or the library refused.
        """
        num_frames = len(self.frames) if num_frames is None else num_frames
        if not 1 <= num_frames <= len(self.frames):
            raise ValueError(f"num_frames: expected 1 to {len(self.frames)}, got {num_frames}")
        size = next(size for size in self._ring.sizes if size >= num_frames)
        self._start(lambda: self._plan(size).start(), size, num_frames)

    def submit_device(self, frames: DeviceFrames) -> None:
        """Starts the work on frames in device memory; their number must lie within the profile.

        They are read in place, unless they start where TensorRT's tensors must not: then they are copied, on the GPU,
        into the slot's own memory.

        Raises:
            InferenceError: CUDA or the library refused.
        """
        size = frames.num_frames

        def start() -> None:
            self._keep = frames
            if frames.producer is not None:
                self._device.wait_for(self.stream, frames.producer)
            source = frames.address
            if not frames.is_aligned:
                source = self._buffers.copy_in(source, size, self.stream)
            plan = self._direct_plan(size)
            if plan.wants_graph(source):
                with self._ring.preparing:
                    self._ring.say_no_graph(plan.capture(source))
            if plan.has_run:
                plan.start(source)
                return
            with self._ring.preparing:
                plan.start(source)

        self._start(start, size, size)

    def result(self) -> Outputs:
        """Waits for the outputs: views of pinned memory, valid until `release`.

        Raises:
            RuntimeError: Nothing was submitted.
            InferenceError: CUDA failed.
        """
        if self._running is None:
            raise RuntimeError("the slot has no work: call submit before result")
        try:
            with self._device.active():
                self._device.synchronize(self.stream)
        except CudaError as error:
            self._running = None  # what lies in the outputs is that of an older batch
            raise InferenceError(f"inference failed: {error}") from error
        finally:
            self._is_pending, self._keep = False, None
        return self._buffers.outputs(*self._running)

    def release(self) -> None:
        """Gives the slot back, after waiting for work that nobody waited for; does nothing the second time."""
        if self.is_free:
            return
        try:
            if self._is_pending:
                with self._device.active():
                    self._device.synchronize(self.stream)
        except CudaError as error:
            _logger.warning("a slot was given back with its work failed: %s", error)
        finally:
            self._running, self._is_pending, self._keep = None, False, None
            self._ring.give_back(self)

    def free(self) -> None:
        """Frees everything; called by the ring inside `Device.active()`."""
        plans = (*self._plans.values(), *self._direct.values())
        self._plans, self._direct = {}, {}
        for plan in plans:
            plan.close()
        self._buffers.free()
        free_quietly(lambda: self._device.destroy_stream(self.stream))

    def __enter__(self) -> Slot:
        """Returns the slot."""
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the slot back."""
        self.release()

    def _start(self, start: Callable[[], None], size: int, num_frames: int) -> None:
        if self.is_free:
            raise RuntimeError("the slot was given back; acquire one")
        if self._is_pending:
            raise RuntimeError("the slot is at work: call result before the next submit")
        self._running, self._is_pending = None, True
        try:
            with self._device.active():
                start()
            self._running = (size, num_frames)
        except CudaError as error:
            raise InferenceError(f"a batch of {num_frames} cannot be started: {error}") from error
        except InferenceError as error:
            raise InferenceError(f"{error}: {self._engine.reason()}") from error
        except EngineLoadError as error:
            raise InferenceError(str(error)) from error
        finally:
            if self._running is None:
                self._abandon()

    def _abandon(self) -> None:
        """Waits for what was started of a batch that failed, so that the slot can be used again."""
        try:
            with self._device.active():
                self._device.synchronize(self.stream)
        except CudaError as error:
            _logger.debug("a batch that could not be started was dropped: %s", error)
        finally:
            self._is_pending, self._keep = False, None

    def _plan(self, size: int) -> Plan:
        if size not in self._plans:
            self.prepare(size)
        return self._plans[size]

    def _direct_plan(self, size: int) -> Plan:
        """The context of a batch size for direct input; the one that was not used for longest makes room."""
        plan = self._direct.pop(size, None)
        if plan is None:
            while len(self._direct) >= _MOST_DIRECT_PLANS:
                self._direct.pop(next(iter(self._direct))).close()
            plan = self._new_plan(size)
        self._direct[size] = plan
        return plan

    def _new_plan(self, size: int) -> Plan:
        with self._ring.preparing:
            context = self._engine.new_context(self.stream)
        return Plan(context, self._device, self.stream, size, self._buffers)


class SlotRing:
    """Hands slots out and takes them back; threads share it."""

    def __init__(
        self, engine: TensorRtEngine, device: Device, manifest: Manifest, sizes: tuple[int, ...], num_slots: int
    ) -> None:
        """Makes the slots, and readies each for one frame; called inside `Device.active()`.

        Args:
            engine: Kept as long as the ring.
            device: The GPU.
            manifest: What the engine eats and gives.
            sizes: Batch sizes that are run, ascending.
            num_slots: Batches in flight.
        """
        self.sizes = sizes
        self.preparing = threading.RLock()
        self._device = device
        self._has_said_no_graph = False
        self._is_closed = False
        self._change = threading.Condition()
        self._free: list[Slot] = []
        try:
            for _ in range(num_slots):
                slot = Slot(self, engine, device, manifest)
                self._free.append(slot)
                slot.prepare(sizes[0])
        except BaseException:
            self.close()
            raise

    def acquire(self) -> Slot:
        """A free slot, of which the last used comes first; waits for one when all are in use.

        Raises:
            RuntimeError: The ring is closed.
        """
        with self._change:
            while not self._free and not self._is_closed:
                self._change.wait()
            if self._is_closed:
                raise RuntimeError("the model is closed")
            slot = self._free.pop()
            slot.is_free = False
            return slot

    def give_back(self, slot: Slot) -> None:
        """Takes a slot back; called by the slot."""
        with self._change:
            slot.is_free = True
            if not self._is_closed:
                self._free.append(slot)
                self._change.notify()
                return
        self._free_slots([slot])

    def say_no_graph(self, reason: str | None) -> None:
        """Logs, once, that work is started piece by piece, and why."""
        if reason is not None and not self._has_said_no_graph:
            self._has_said_no_graph = True
            _logger.warning("runs without CUDA graphs, which costs launch time: %s", reason)

    def close(self) -> None:
        """Frees the slots; those in use are freed when they come back. Does nothing the second time."""
        with self._change:
            self._is_closed = True
            slots, self._free = self._free, []
            self._change.notify_all()
        self._free_slots(slots)

    def _free_slots(self, slots: list[Slot]) -> None:
        def free() -> None:
            with self._device.active():
                for slot in slots:
                    slot.free()

        free_quietly(free)

"""The ring of slots: pinned memory that frames are written into, and the work on them.

    slot = ring.acquire()        waits for a free slot
    slot.frames[:n] = ...        pinned host memory; a capture may write straight into it
    slot.submit(n)               upload, inference and download start; returns at once
    slot.result()                waits; views of pinned memory, valid until `release`
    slot.release()

Why this is correct:
1. A slot has a stream, buffers and execution contexts of its own; slots share only the engine, which is read-only. So
   as many frames are in flight as there are slots. The contexts of a slot run one after another, and so share their
   scratch memory.
2. Upload, inference and download of a slot run on its one stream, so they need no events between them.
3. A slot belongs to one thread at a time, from `acquire` to `release`. Contexts are made, and run for the first time,
   under one lock of the ring, because the engine and the library's set-up are shared.
4. Capture is thread-local: the work of other threads neither joins nor breaks it. A wait for the whole GPU in another
   thread (`torch.cuda.synchronize`) does, in every mode (NVIDIA/TensorRT#2888): it fails itself, and the batch size
   stays without a graph.

A batch runs at the smallest of the profile's three sizes (min, opt, max) that holds it; its other rows are those that
the buffer held before. So a slot has at most three contexts, and a batch of a new size makes no further one.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError, InferenceError
from edgerpn.machine import bind_to_process, is_foreign, resident_bytes
from edgerpn.manifest import Manifest
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import EngineConfig
from edgerpn.runtime.backends.tensorrt.context import ScratchArena
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device, free_quietly
from edgerpn.runtime.backends.tensorrt.device_input import DeviceFrames
from edgerpn.runtime.backends.tensorrt.engine import TensorRtEngine
from edgerpn.runtime.backends.tensorrt.plan import BatchPlan, SlotBuffers

_MOST_DIRECT_PLANS = 4
"""Batch sizes of direct input that keep a context: the caller chooses the sizes, and each costs memory."""
_MUCH_HOST_MEMORY = 1 << 30
_TIMED_RUNS = 5
"""Runs of which the median counts when mapped and copied memory are compared."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextReport:
    """Time and memory of one execution context; other work of the process and of the GPU is in the differences."""

    batch: int
    """Frames in a batch."""
    seconds: float
    """Seconds until it was made."""
    scratch_bytes: int
    """GPU memory for intermediate results, which the contexts of a slot share."""
    host_bytes: int
    """Growth of this process, bytes."""
    gpu_bytes: int
    """Decrease of the GPU's free memory, bytes."""

    def text(self) -> str:
        """One line for people."""
        return (
            f"execution context for batches of {self.batch} in {self.seconds:.2f} s: scratch memory "
            f"{_mib(self.scratch_bytes)}, host memory {_mib(self.host_bytes)}, GPU memory {_mib(self.gpu_bytes)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameMemoryReport:
    """The memory in which the GPU reads frames and writes outputs, and the reason."""

    kept: Literal["mapped", "copied"]
    """mapped: the host's memory; copied: the GPU's own."""
    mapped_ms: float | None = None
    """Milliseconds of the smallest batch in the host's memory; None: not measured, because there was no choice."""
    copied_ms: float | None = None
    """The same with copies."""

    def text(self) -> str:
        """One line for people."""
        if self.mapped_ms is None or self.copied_ms is None:
            return f"frame memory: {self.kept}"
        return (
            f"frame memory: {self.kept}, the faster one here: mapped {self.mapped_ms:.3f} ms, copied "
            f"{self.copied_ms:.3f} ms; engine.frame_memory chooses without measuring"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


class EngineSlot:
    """One frame, or batch, in flight; belongs to the thread that acquired it. See the module for its life."""

    def __init__(self, ring: SlotRing, engine: TensorRtEngine, device: Device, manifest: Manifest) -> None:
        """Allocates stream and memory; called inside `Device.active()`."""
        self._ring = ring
        self._engine = engine
        self._device = device
        self.stream = device.create_stream()
        try:
            self._buffers = SlotBuffers(device, manifest, ring.sizes[-1], is_shared=ring.shares_memory)
        except BaseException:
            free_quietly(lambda: device.destroy_stream(self.stream))
            raise
        self._arena = ScratchArena(device, self.stream)
        self._plans: dict[int, BatchPlan] = {}
        self._direct: dict[int, BatchPlan] = {}
        self._running: tuple[int, int] | None = None
        self._is_pending = False
        self._keep: DeviceFrames | None = None
        self.is_free = True
        self.thread: int | None = None
        """Number of the thread that acquired it."""

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """(max batch, H, W, C) uint8 BGR, pinned; write into it between `acquire` and `submit`."""
        return self._buffers.frames

    def prepare(self, size: int) -> None:
        """Makes execution context and CUDA graph of a batch size; logs the reason for a missing graph."""
        with self._ring.preparing:
            plan = self._new_plan(size)
            try:
                plan.warm_up()
                self._ring.log_missing_graph(plan.capture())
                self._engine.save_compiled()
            except BaseException:
                plan.close()
                raise
            self._plans[size] = plan

    def compare_memory(self) -> FrameMemoryReport:
        """Times the prepared batch in the host's memory and with copies, and keeps the faster way.

        Each way comes first once and last once, so that a GPU that speeds up meanwhile favours neither.
        """
        times: dict[bool, list[float]] = {True: [], False: []}
        for is_shared in (True, False, False, True):
            self._move(is_shared)
            times[is_shared].append(self._median_ms())
        mapped_ms, copied_ms = (round(sum(times[is_shared]) / 2, 4) for is_shared in (True, False))
        if copied_ms < mapped_ms:
            self._move(is_shared=False)
        kept: Literal["mapped", "copied"] = "mapped" if self._buffers.is_shared else "copied"
        return FrameMemoryReport(kept=kept, mapped_ms=mapped_ms, copied_ms=copied_ms)

    def _move(self, is_shared: bool) -> None:
        if is_shared == self._buffers.is_shared:
            return
        self._buffers.share(is_shared)
        for plan in self._plans.values():
            plan.rebind()

    def _median_ms(self) -> float:
        (plan,) = self._plans.values()
        plan.time_ms()  # the first launch of a graph uploads it
        return statistics.median(plan.time_ms() for _ in range(_TIMED_RUNS))

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
        """Starts the work on frames in device memory; their number must be within the profile.

        They are read in place. Frames whose address is not aligned for TensorRT are copied, on the GPU, into the slot's
        own memory.

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
                    self._ring.log_missing_graph(plan.capture(source))
            if plan.has_run:
                plan.start(source)
                return
            with self._ring.preparing:
                plan.start(source)
                self._engine.save_compiled()  # TensorRT-RTX compiles for a shape when it first sees it

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
                self._device.synchronize(self.stream, is_blocking=self._ring.waits_blocking)
        except CudaError as error:
            self._running = None  # the outputs hold those of an older batch
            raise InferenceError(f"inference failed: {error}") from error
        finally:
            self._is_pending, self._keep = False, None
        return self._buffers.outputs(*self._running)

    def time_parts(self) -> dict[str, float]:
        """Milliseconds of upload, inference and download of the smallest batch; see `BatchPlan.time_parts`.

        Raises:
            InferenceError: CUDA or the library refused.
        """
        size, taken_ms = self._ring.sizes[0], {}
        self._start(lambda: taken_ms.update(self._plan(size).time_parts()), size, size)
        self.result()
        return taken_ms

    def release(self) -> None:
        """Returns the slot to the ring, after waiting for unfinished work; does nothing the second time."""
        if self.is_free or is_foreign(self._ring):
            return
        try:
            if self._is_pending:
                with self._device.active():
                    self._device.synchronize(self.stream)
        except CudaError as error:
            _logger.warning("the work of a released slot failed: %s", error)
        finally:
            self._running, self._is_pending, self._keep = None, False, None
            self._ring.take_back(self)

    def free(self) -> None:
        """Frees everything; called by the ring inside `Device.active()`."""
        # A first run that failed leaves its upload on the stream.
        free_quietly(lambda: self._device.synchronize(self.stream))
        plans = (*self._plans.values(), *self._direct.values())
        self._plans, self._direct = {}, {}
        for plan in plans:
            plan.close()
        self._arena.free()
        self._buffers.free()
        free_quietly(lambda: self._device.destroy_stream(self.stream))
        del self._engine  # the ring, and whoever holds it, must not keep the weights

    def __enter__(self) -> EngineSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _start(self, start: Callable[[], None], size: int, num_frames: int) -> None:
        if self.is_free:
            raise RuntimeError("the slot was released; acquire one")
        if self._is_pending:
            raise RuntimeError("the slot is busy: call result before the next submit")
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
        """Waits for the started part of a batch that failed, so that the slot can be used again."""
        try:
            with self._device.active():
                self._device.synchronize(self.stream)
        except CudaError as error:
            _logger.debug("dropped a batch that failed to start: %s", error)
        finally:
            self._is_pending, self._keep = False, None

    def _plan(self, size: int) -> BatchPlan:
        if size not in self._plans:
            self.prepare(size)
        return self._plans[size]

    def _direct_plan(self, size: int) -> BatchPlan:
        """Returns the plan of a batch size for direct input; the least recently used one makes room."""
        plan = self._direct.pop(size, None)
        if plan is None:
            while len(self._direct) >= _MOST_DIRECT_PLANS:
                self._direct.pop(next(iter(self._direct))).close()
            plan = self._new_plan(size)
        self._direct[size] = plan
        return plan

    def _new_plan(self, size: int) -> BatchPlan:
        with self._ring.preparing:
            started, host, gpu = time.perf_counter(), resident_bytes(), self._device.free_bytes()
            plan = BatchPlan(self._engine, self._device, self.stream, size, self._buffers, self._arena)
            self._ring.report(
                ContextReport(
                    batch=size,
                    seconds=round(time.perf_counter() - started, 3),
                    scratch_bytes=plan.scratch_bytes,
                    host_bytes=resident_bytes() - host,
                    gpu_bytes=gpu - self._device.free_bytes(),
                )
            )
            for other in self._plans.values():
                if not other.has_graph:  # the arena has moved, or no graph was possible
                    other.capture()
        return plan


class SlotRing:
    """Lends slots to threads, which share it."""

    def __init__(
        self, engine: TensorRtEngine, device: Device, manifest: Manifest, sizes: tuple[int, ...], config: EngineConfig
    ) -> None:
        """Makes the slots, and prepares the first for the smallest batch; called inside `Device.active()`.

        The others make their contexts at their first frame, because each takes memory: TensorRT-RTX up to 1.4 GiB on
        the host (NVIDIA/TensorRT-RTX#39).

        Args:
            engine: The engine, kept as long as the ring.
            device: The GPU.
            manifest: Describes the engine's inputs and outputs.
            sizes: Batch sizes at which the engine runs, ascending.
            config: Batches in flight, memory of the frames, and how threads wait for the GPU.
        """
        self.sizes = sizes
        self.preparing = threading.RLock()
        has_choice = config.frame_memory == "auto" and device.info.can_share_memory
        self.shares_memory = has_choice or config.frame_memory == "mapped"
        self.waits_blocking = config.gpu_wait == "block" or (config.gpu_wait == "auto" and device.info.can_share_memory)
        self._device = device
        self.contexts: list[ContextReport] = []
        self._has_logged_missing_graph = False
        self._is_closed = False
        self._change = threading.Condition()
        self._all: tuple[EngineSlot, ...] = ()
        self._free: list[EngineSlot] = []
        try:
            self._free.append(EngineSlot(self, engine, device, manifest))
            first = self._free[0]
            first.prepare(sizes[0])
            self.frame_memory = self._choose_memory(first, has_choice)
            for _ in range(1, config.num_slots):
                self._free.insert(0, EngineSlot(self, engine, device, manifest))  # `acquire` returns the last one
            self._all = tuple(self._free)
            bind_to_process(self, "_all", "_free", "_device")
        except BaseException:
            self.close()
            raise

    def _choose_memory(self, first: EngineSlot, has_choice: bool) -> FrameMemoryReport:
        """Chooses the memory of all slots by timing the first one, unless settings or GPU leave no choice."""
        if has_choice:
            report = first.compare_memory()
            self.shares_memory = report.kept == "mapped"
        else:
            report = FrameMemoryReport(kept="mapped" if self.shares_memory else "copied")
        _logger.info("%s", report.text())
        return report

    def acquire(self) -> EngineSlot:
        """Returns a free slot, the last used one first; waits for one while all are in use.

        Raises:
            RuntimeError: The ring is closed, or the calling thread holds every slot and would wait for itself.
        """
        if is_foreign(self):
            raise RuntimeError("the engine was loaded before a fork, and no GPU survives that: load it in the child")
        thread = threading.get_ident()
        with self._change:
            while not self._free and not self._is_closed:
                if all(slot.thread == thread for slot in self._all):
                    raise RuntimeError(
                        f"this thread holds all {len(self._all)} slots of the engine: release one, or load the engine "
                        "with more num_slots"
                    )
                self._change.wait()
            if self._is_closed:
                raise RuntimeError("the model is closed")
            slot = self._free.pop()
            slot.is_free, slot.thread = False, thread
            return slot

    def take_back(self, slot: EngineSlot) -> None:
        with self._change:
            slot.is_free, slot.thread = True, None
            if not self._is_closed:
                self._free.append(slot)
                self._change.notify()
                return
        self._free_slots([slot])

    def report(self, context: ContextReport) -> None:
        """Keeps and logs time and memory of a new context."""
        self.contexts.append(context)
        level = logging.WARNING if context.host_bytes > _MUCH_HOST_MEMORY else logging.INFO
        advice = "; with memory short, use fewer slots" if level == logging.WARNING else ""
        _logger.log(level, "%s%s", context.text(), advice)

    def log_missing_graph(self, reason: str | None) -> None:
        """Logs the reason for running without CUDA graphs, once."""
        if reason is not None and not self._has_logged_missing_graph:
            self._has_logged_missing_graph = True
            _logger.warning("runs without CUDA graphs, which costs launch time: %s", reason)

    def close(self) -> None:
        """Frees the slots; those in use are freed when released. Does nothing the second time, or after a fork."""
        if is_foreign(self):
            return
        with self._change:
            self._is_closed = True
            slots, self._free = self._free, []
            self._change.notify_all()
        self._free_slots(slots)

    def _free_slots(self, slots: list[EngineSlot]) -> None:
        def free() -> None:
            with self._device.active():
                for slot in slots:
                    slot.free()

        free_quietly(free)

"""CUDA through PyCUDA, for devices without cuda-bindings; see `edgerpn.runtime.backends.tensorrt.cuda.Device`.

Written against the source of PyCUDA 2026.1 (src/wrapper/wrap_cudadrv.cpp, src/cpp/cuda.hpp) and not run on a GPU.
PyCUDA has no CUDA graphs. It ends the process when a thread ends with a context pushed: hence push and pop.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pycuda
import pycuda.driver as cuda

from edgerpn.runtime.backends.tensorrt.cuda import CudaError, DeviceInfo, HostBuffer, format_cuda_version


class PyCudaDevice:
    """One GPU through PyCUDA."""

    def __init__(self, index: int) -> None:
        """Retains the primary context of GPU `index`."""
        with _translated_errors():
            cuda.init()
            gpu = cuda.Device(index)
            self._context = gpu.retain_primary_context()
            names = cuda.device_attribute
            shares = [gpu.get_attribute(name) for name in (names.INTEGRATED, names.CAN_MAP_HOST_MEMORY)]
            self.info = DeviceInfo(
                provider=f"PyCUDA {pycuda.VERSION_TEXT}", index=index, name=gpu.name(), memory_bytes=gpu.total_memory(),
                driver_cuda=format_cuda_version(cuda.get_driver_version()), can_share_memory=all(shares),
                compute_capability="{}.{}".format(*gpu.compute_capability()), why_no_graphs="PyCUDA has none",
                multiprocessors=gpu.get_attribute(names.MULTIPROCESSOR_COUNT),
            )  # fmt: skip
        # By the numbers that we hand out, because PyCUDA frees memory and streams with their objects.
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes the primary context current for a block; PyCUDA's errors become CudaError."""
        with _translated_errors():
            self._context.push()
            try:
                yield
            finally:
                cuda.Context.pop()

    def allocate(self, num_bytes: int) -> int:
        memory = cuda.mem_alloc(num_bytes)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def free_bytes(self) -> int:
        return int(cuda.mem_get_info()[0])

    def allocate_host(self, num_bytes: int, *, is_mapped: bool) -> HostBuffer:
        flags = cuda.host_alloc_flags.PORTABLE | (cuda.host_alloc_flags.DEVICEMAP if is_mapped else 0)
        array = cuda.pagelocked_empty(num_bytes, np.uint8, mem_flags=flags)
        allocation = array.base
        memory = (ctypes.c_ubyte * num_bytes).from_address(array.ctypes.data)
        # By itself PyCUDA frees it only where the context is pushed, or on the thread that retained it; elsewhere the
        # memory stays, without a word (CUDAPP_CATCH_CLEANUP_ON_DEAD_CONTEXT). Views of the array keep `memory` alive.
        weakref.finalize(memory, self._free_host, allocation).atexit = False
        device_address = int(allocation.get_device_pointer()) if is_mapped else None
        return HostBuffer(np.frombuffer(memoryview(memory), np.uint8), device_address)

    def _free_host(self, allocation: Any) -> None:
        with self.active():
            allocation.free()

    def create_stream(self) -> int:
        stream = cuda.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def synchronize(self, stream: int, *, is_blocking: bool = False) -> None:
        if not is_blocking:
            self._streams[stream].synchronize()
            return
        flags = cuda.event_flags
        event = cuda.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)
        event.record(self._streams[stream])
        event.synchronize()

    def wait_for(self, stream: int, producer: int) -> None:
        """Waits here for all of the GPU's work: PyCUDA cannot refer to a stream of another package."""
        cuda.Context.synchronize()

    def upload(self, address: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        cuda.memcpy_htod_async(address, source, self._streams[stream])

    def download(self, target: npt.NDArray[np.uint8], address: int, stream: int) -> None:
        cuda.memcpy_dtoh_async(target, address, self._streams[stream])

    def copy_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        cuda.memcpy_dtod_async(target, source, num_bytes, self._streams[stream])

    def time_ms(self, work: Callable[[], object], stream: int) -> float:
        start, end = cuda.Event(), cuda.Event()
        start.record(self._streams[stream])
        work()
        end.record(self._streams[stream])
        end.synchronize()
        return float(end.time_since(start))

    def begin_capture(self, stream: int) -> None:
        raise CudaError("stream capture", "not supported", "PyCUDA has no CUDA graphs")

    # The runner does not call these three, because `begin_capture` fails.
    def end_capture(self, stream: int) -> int:
        raise NotImplementedError

    def launch_graph(self, graph: int, stream: int) -> None:
        raise NotImplementedError

    def destroy_graph(self, graph: int) -> None:
        raise NotImplementedError

    def index_of(self, address: int) -> int | None:
        return None


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        call, _, text = str(error).partition(" failed: ")
        raise CudaError(call, text or type(error).__name__) from error

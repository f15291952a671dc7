"""CUDA through NVIDIA's cuda-python (`cuda.bindings.driver`), from 12.9.1 on.

Every function of the package returns a tuple that starts with a CUresult, and takes plain numbers as handles. The names
used here are the same in 12.9 and 13.5, which differ in cuCtxCreate; the primary context does not need it. Versions
before 12.9.1 hold Python's global lock while they wait, and lack `get_cuda_native_handle` (its release notes).
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver
from cuda.bindings.utils import get_cuda_native_handle

from edgerpn.runtime.backends.tensorrt.cuda import CudaError, DeviceInfo, HostBuffer, format_cuda_version

_NON_BLOCKING = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
_TIMING = int(driver.CUevent_flags.CU_EVENT_DEFAULT)
_NO_TIMING = int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
_BLOCKING = int(driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC)
_THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_ORDINAL = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
# Values of cuda.h: any context may use the memory; the GPU may work in it.
_PORTABLE, _DEVICEMAP = 1, 2


class CudaBindingsDevice:
    """One GPU through cuda.bindings; see `edgerpn.runtime.backends.tensorrt.cuda.Device`."""

    def __init__(self, index: int) -> None:
        """Retains the primary context of GPU `index`.

        Raises:
            CudaError: There is no driver, no such GPU, or the driver refuses.
        """
        _call("cuInit", 0)
        handle = _call("cuDeviceGet", index)
        self._context = _call("cuDevicePrimaryCtxRetain", handle)
        self._info = _info(index, handle)
        self._local = threading.local()
        # For each stream an event to wait for without spinning, and one of the streams that it waits for.
        self._events: dict[int, list[Any]] = {}
        self._late: list[int] = []

    @property
    def info(self) -> DeviceInfo:
        return self._info

    @contextmanager
    def active(self) -> Iterator[None]:
        _call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent")

    def allocate(self, num_bytes: int) -> int:
        return int(_call("cuMemAlloc", num_bytes))

    def free(self, address: int) -> None:
        _call("cuMemFree", address)

    def free_bytes(self) -> int:
        return int(_call("cuMemGetInfo"))

    def allocate_host(self, num_bytes: int, *, is_mapped: bool) -> HostBuffer:
        address = int(_call("cuMemHostAlloc", num_bytes, _PORTABLE | (_DEVICEMAP if is_mapped else 0)))
        memory = (ctypes.c_ubyte * num_bytes).from_address(address)
        # Views of the array keep `memory`, and so the pages, alive.
        weakref.finalize(memory, self._free_host, address).atexit = False
        device_address = int(_call("cuMemHostGetDevicePointer", address, 0)) if is_mapped else None
        return HostBuffer(np.frombuffer(memoryview(memory), np.uint8), device_address)

    def _free_host(self, address: int) -> None:
        """Frees pinned memory; Python's garbage collector calls it at any moment, also inside other methods."""
        if getattr(self._local, "is_capturing", False):
            # Freeing would wait for the GPU, and so break the open capture of this thread.
            self._late.append(address)
            return
        with self.active():
            _call("cuMemFreeHost", address)

    def _free_late(self) -> None:
        # An error here would hide that of the capture; a broken driver fails in its next call too.
        with suppress(IndexError, CudaError):
            while True:
                self._free_host(self._late.pop())

    def create_stream(self) -> int:
        stream = int(get_cuda_native_handle(_call("cuStreamCreate", _NON_BLOCKING)))
        self._events[stream] = []
        try:
            for flags in (_NO_TIMING | _BLOCKING, _NO_TIMING):
                self._events[stream].append(_call("cuEventCreate", flags))
        except CudaError:
            self.destroy_stream(stream)
            raise
        return stream

    def destroy_stream(self, stream: int) -> None:
        try:
            for event in self._events.pop(stream):
                _call("cuEventDestroy", event)
        finally:
            _call("cuStreamDestroy", stream)

    def synchronize(self, stream: int, *, is_blocking: bool = False) -> None:
        if not is_blocking:
            _call("cuStreamSynchronize", stream)
            return
        # An event of our own, because the flag of the primary context would change the waits of other packages too.
        event, _ = self._events[stream]
        _call("cuEventRecord", event, stream)
        _call("cuEventSynchronize", event)

    def wait_for(self, stream: int, producer: int) -> None:
        _, event = self._events[stream]
        _call("cuEventRecord", event, producer)
        _call("cuStreamWaitEvent", stream, event, 0)

    def upload(self, address: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        _call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: npt.NDArray[np.uint8], address: int, stream: int) -> None:
        _call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def copy_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        _call("cuMemcpyDtoDAsync", target, source, num_bytes, stream)

    def time_ms(self, work: Callable[[], object], stream: int) -> float:
        with ExitStack() as resources:
            start = _call("cuEventCreate", _TIMING)
            resources.callback(_call, "cuEventDestroy", start)
            end = _call("cuEventCreate", _TIMING)
            resources.callback(_call, "cuEventDestroy", end)
            _call("cuEventRecord", start, stream)
            work()
            _call("cuEventRecord", end, stream)
            self.synchronize(stream)
            return float(_call("cuEventElapsedTime", start, end))

    def begin_capture(self, stream: int) -> None:
        # Set before the call, because Python may collect garbage, and so free memory, at any moment.
        self._local.is_capturing = True
        try:
            _call("cuStreamBeginCapture", stream, _THREAD_LOCAL)
        except CudaError:
            self._local.is_capturing = False
            raise

    def end_capture(self, stream: int) -> int:
        try:
            graph = _call("cuStreamEndCapture", stream)
        finally:
            self._local.is_capturing = False
            self._free_late()
        try:
            return int(get_cuda_native_handle(_call("cuGraphInstantiate", graph, 0)))
        finally:
            _call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        _call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        _call("cuGraphExecDestroy", graph)

    def index_of(self, address: int) -> int | None:
        return int(_call("cuPointerGetAttribute", _ORDINAL, address))


def _call(name: str, *arguments: Any) -> Any:
    """Calls a function of the driver; returns its result, or None."""
    try:
        result = getattr(driver, name)(*arguments)
    except RuntimeError as error:
        # The package raises a RuntimeError of its own for a function that the driver is too old for, or without one.
        missing = "no driver library" if name == "cuInit" else "CUDA_ERROR_NOT_FOUND"
        raise CudaError(name, missing, str(error)) from error
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(name, getattr(result[0], "name", str(result[0])))
    return result[1] if len(result) > 1 else None


def _info(index: int, handle: Any) -> DeviceInfo:
    names = driver.CUdevice_attribute

    def attribute(name: str) -> int:
        return int(_call("cuDeviceGetAttribute", getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))

    try:
        package = f"cuda-bindings {version('cuda-bindings')}"
    except PackageNotFoundError:
        package = "cuda-bindings"
    return DeviceInfo(
        provider=package,
        index=index,
        # Bytes after the closing zero are those of the buffer before the call.
        name=_call("cuDeviceGetName", 256, handle).split(b"\0")[0].decode(errors="replace"),
        compute_capability=f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}",
        memory_bytes=int(_call("cuDeviceTotalMem", handle)),
        driver_cuda=format_cuda_version(int(_call("cuDriverGetVersion"))),
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        can_share_memory=bool(attribute("INTEGRATED") and attribute("CAN_MAP_HOST_MEMORY")),
    )

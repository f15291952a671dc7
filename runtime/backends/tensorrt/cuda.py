"""The interface between the TensorRT runner and CUDA.

Two packages implement it: NVIDIA's cuda-python (`cuda.bindings`, wheels for every platform) and PyCUDA (built on the
device). Both use the CUDA driver API and the device's primary context. PyTorch, CuPy and ONNX Runtime use the same
context, so memory and streams of all of them can be shared. The context is current only inside `Device.active()`, on
the calling thread; the context that was current before returns after it.

A primary context, once retained, stays for the life of the process, as in PyTorch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

_logger = logging.getLogger(__name__)

LEGACY_STREAM = 1
"""Handle of the legacy default stream: an event on it waits for all streams but the non-blocking ones."""

_ADVICE = {
    "no driver library": "Install the NVIDIA driver; start a container with --gpus all or --runtime nvidia.",
    "CUDA_ERROR_OUT_OF_MEMORY": "The GPU's memory is full: end other programs that use it, use fewer slots, or build "
    "the engine with a smaller largest batch.",
    "CUDA_ERROR_NO_DEVICE": "No NVIDIA GPU is visible: check nvidia-smi (tegrastats on a Jetson) and "
    "CUDA_VISIBLE_DEVICES, and start a container with --gpus all or --runtime nvidia.",
    "CUDA_ERROR_INVALID_DEVICE": "There is no GPU of this number; check CUDA_VISIBLE_DEVICES.",
    "CUDA_ERROR_STUB_LIBRARY": "The toolkit's stub of libcuda was loaded instead of the driver's library; remove the "
    "stubs folder from LD_LIBRARY_PATH.",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "The driver and its libraries are of different versions: restart the machine.",
    "CUDA_ERROR_NOT_FOUND": "The driver is older than the CUDA package: update the driver, or install a cuda-bindings "
    "of the driver's CUDA version.",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "Another program uses the GPU exclusively, or it is being reset: try again.",
}
"""Advice by the driver's error."""
_LOST = (
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_ASSERT", "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK", "CUDA_ERROR_MPS_CLIENT_TERMINATED", "CUDA_ERROR_EXTERNAL_DEVICE",
)  # fmt: skip
"""Errors after which every call fails: cuda.h says so of all but the ECC error, which its hardware does not survive."""


def format_cuda_version(number: int) -> str:
    """Formats a version as the driver encodes it: "13.0" for 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaError(Exception):
    """A call of the driver failed; the runner turns it into an EngineLoadError or an InferenceError."""

    def __init__(self, call: str, name: str, text: str = "") -> None:
        """Keeps `call` and the error's `name`; the message adds advice."""
        self.call = call
        self.name = name
        advice = _ADVICE.get(name, "")
        if name in _LOST:
            advice = "The GPU cannot continue in this process: start it again; if the error returns, check the model "
            advice += "with `edgerpn run --self-test`, and read the GPU's log."
        super().__init__(f"{call} failed with {name}{f' ({text})' if text else ''}. {advice}".rstrip())


def free_quietly(free: Callable[[], None]) -> None:
    """Calls `free`; logs an error of CUDA, so that the caller can free further things."""
    try:
        free()
    except CudaError as error:
        _logger.warning("GPU memory could not be freed: %s", error)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceInfo:
    """Facts about a GPU."""

    provider: str
    """Package that uses it, with its version."""
    index: int
    """Number among the visible GPUs, from 0."""
    name: str
    """Name, such as Orin."""
    compute_capability: str
    """Such as 8.7."""
    memory_bytes: int
    """Its memory; on an integrated GPU that of the computer."""
    driver_cuda: str
    """Newest CUDA version that the driver supports, such as 13.0."""
    can_share_memory: bool
    """True if it is an integrated GPU that works in the host's memory, so that frames need no copy."""
    multiprocessors: int | None = None
    """Number of multiprocessors: modules of one name and compute capability differ in it."""
    why_no_graphs: str | None = None
    """The reason for which this provider has no CUDA graphs; None when it has them."""


@dataclass(eq=False, slots=True)
class HostBuffer:
    """Pinned host memory, between which and the device copies run without the CPU."""

    array: npt.NDArray[np.uint8]
    """(num_bytes,) uint8 view; the memory lives as long as any view of it."""
    device_address: int | None
    """Address at which the GPU sees the same memory; None when it is not mapped."""


class Device(Protocol):
    """One GPU. Every method but `active` and `info` is called inside `active()`; streams and graphs are handles.

    Raises:
        CudaError: From every method, when the driver refuses.
    """

    @property
    def info(self) -> DeviceInfo: ...

    def active(self) -> AbstractContextManager[None]:
        """Makes the primary context current on this thread for a block."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Allocates device memory; returns its address."""
        ...

    def free(self, address: int) -> None:
        """Frees device memory."""
        ...

    def free_bytes(self) -> int:
        """Free memory of the GPU, bytes; on an integrated GPU that of the computer."""
        ...

    def allocate_host(self, num_bytes: int, *, is_mapped: bool) -> HostBuffer:
        """Allocates pinned host memory, in which the GPU can work itself when `is_mapped`."""
        ...

    def create_stream(self) -> int:
        """Creates a stream that does not wait for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Frees a stream once its work is done."""
        ...

    def synchronize(self, stream: int, *, is_blocking: bool = False) -> None:
        """Waits until a stream's work is done, without Python's global lock.

        Args:
            stream: The stream.
            is_blocking: True: the thread sleeps, which costs some microseconds more; False: it may spin on a core.
        """
        ...

    def wait_for(self, stream: int, producer: int) -> None:
        """Lets `stream` wait, on the GPU, for the present work of the stream `producer`."""
        ...

    def upload(self, address: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        """Starts a copy of pinned host memory, contiguous, to `address`."""
        ...

    def download(self, target: npt.NDArray[np.uint8], address: int, stream: int) -> None:
        """Starts a copy of device memory to pinned host memory."""
        ...

    def copy_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Starts a copy within device memory, from the address `source` to the address `target`."""
        ...

    def time_ms(self, work: Callable[[], object], stream: int) -> float:
        """Milliseconds of the GPU's clock from before `work` is started on `stream` until it is done; waits for it."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Records later work of this thread on `stream` instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """Ends the recording on the same thread; returns a graph ready to launch."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None:
        """Starts a graph on a stream."""
        ...

    def destroy_graph(self, graph: int) -> None:
        """Frees a graph once its work is done."""
        ...

    def index_of(self, address: int) -> int | None:
        """Number of the GPU whose memory this is; None when the provider does not know."""
        ...

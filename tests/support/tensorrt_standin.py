"""A stand-in for TensorRT and for a GPU: host memory under CUDA's names, ONNX Runtime under TensorRT's.

It is not a GPU and proves nothing about one. It runs the runner's own logic: slots, threads, batches, capture, errors.
It is stricter than a real GPU where that finds mistakes: work on a stream runs at `synchronize` and not before, every
call outside `active()` fails, copies must be inside allocated memory, and tensors start at multiples of 256 bytes.

It refuses what the libraries refuse, in the words of TensorRT-RTX 1.7.1: a context without memory of the caller for an
engine that requires it, memory set too early, too small or unaligned, work before it is set, code for the CPU that is
not allowed, and a GPU that the library does not support.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgerpn.runtime.backends.contract import EngineConfig
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, DeviceInfo, HostBuffer
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary

Work = Callable[[], None]


class HostDevice:
    """A device whose memory is the host's; see `edgerpn.runtime.backends.tensorrt.cuda.Device`."""

    def __init__(
        self, *, can_share_memory: bool = False, capability: str = "8.7", why_no_graphs: str | None = None,
        multiprocessors: int | None = 8,
    ):  # fmt: skip
        self.info = DeviceInfo(
            provider="stand-in", index=0, name="Stand-in", compute_capability=capability, memory_bytes=1 << 30,
            driver_cuda="13.0", can_share_memory=can_share_memory, why_no_graphs=why_no_graphs,
            multiprocessors=multiprocessors,
        )  # fmt: skip
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.queues: dict[int, list[Work]] = {}
        self.captures: dict[int, list[Work]] = {}
        self.capture_thread: dict[int, int] = {}
        self.broken_captures: set[int] = set()
        self.graphs: dict[int, list[Work]] = {}
        self.calls: list[str] = []
        self.blocking_waits = 0
        self.mapped: set[int] = set()
        self.clock_ms = 0.0
        self.copy_ms, self.run_ms, self.mapped_run_ms = 1.0, 1.0, 1.0
        self.speeding_up = 0.0
        self.failing: dict[str, str] = {}
        self.failing_at: dict[tuple[str, int], str] = {}
        self.lock = threading.RLock()
        self._handles = itertools.count(100)
        self._local = threading.local()

    @contextmanager
    def active(self) -> Iterator[None]:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def _called(self, name: str) -> None:
        if not getattr(self._local, "depth", 0):
            raise CudaError(name, "CUDA_ERROR_INVALID_CONTEXT")
        self.calls.append(name)
        error = self.failing.get(name) or self.failing_at.get((name, self.calls.count(name)))
        if error is not None:
            raise CudaError(name, error)

    def view(self, address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Memory at an address; it must lie inside what is allocated."""
        for start, array in list(self.memory.items()):
            if start <= address and address + num_bytes <= start + array.nbytes:
                return array[address - start : address - start + num_bytes]
        raise CudaError("access", "CUDA_ERROR_ILLEGAL_ADDRESS", f"{address:#x}")

    def adopt(self, array: npt.NDArray[Any]) -> int:
        """Declares an array of a test to be device memory; returns its address."""
        self.memory[array.ctypes.data] = array.reshape(-1).view(np.uint8)
        return int(array.ctypes.data)

    def allocate(self, num_bytes: int) -> int:
        self._called("allocate")
        return self.adopt(aligned(np.full(num_bytes, 0xAB, np.uint8)))

    def free(self, address: int) -> None:
        self._called("free")
        del self.memory[address]

    def free_bytes(self) -> int:
        self._called("free_bytes")
        return self.info.memory_bytes - sum(array.nbytes for array in self.memory.values())

    def allocate_host(self, num_bytes: int, *, is_mapped: bool) -> HostBuffer:
        self._called("allocate_host")
        array = aligned(np.full(num_bytes, 0xCD, np.uint8))
        if is_mapped:
            self.mapped.add(self.adopt(array))
        return HostBuffer(array, int(array.ctypes.data) if is_mapped else None)

    def create_stream(self) -> int:
        self._called("create_stream")
        stream = next(self._handles)
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._called("destroy_stream")
        assert not self.queues.pop(stream), "a stream was destroyed with work on it"

    def synchronize(self, stream: int, *, is_blocking: bool = False) -> None:
        self._called("synchronize")
        self.blocking_waits += is_blocking
        self.drain(stream)

    def drain(self, stream: int) -> None:
        queue = self.queues[stream]
        while queue:
            queue.pop(0)()

    def enqueue(self, stream: int, work: Work) -> None:
        with self.lock:
            (self.captures[stream] if stream in self.captures else self.queues[stream]).append(work)

    def wait_for(self, stream: int, producer: int) -> None:
        self._called("wait_for")
        self.enqueue(stream, lambda: self.drain(producer))

    def upload(self, address: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        self._called("upload")
        assert source.flags.c_contiguous
        target = self.view(address, source.nbytes)
        self.enqueue(stream, lambda: self._copy(target, source))

    def _copy(self, target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
        np.copyto(target, source)
        self.clock_ms += self.copy_ms

    def download(self, target: npt.NDArray[np.uint8], address: int, stream: int) -> None:
        self._called("download")
        source = self.view(address, target.nbytes)
        self.enqueue(stream, lambda: self._copy(target, source))

    def copy_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self._called("copy_device")
        to, origin = self.view(target, num_bytes), self.view(source, num_bytes)
        self.enqueue(stream, lambda: np.copyto(to, origin))

    def time_ms(self, work: Callable[[], object], stream: int) -> float:
        """The time of a clock that only the work on the stream moves, less `speeding_up` at each call."""
        self._called("time_ms")
        start = self.clock_ms
        work()
        self.drain(stream)
        elapsed = self.clock_ms - start
        return elapsed + 100 - self.speeding_up * self.calls.count("time_ms") if self.speeding_up else elapsed

    def begin_capture(self, stream: int) -> None:
        self._called("begin_capture")
        assert not self.queues[stream], "capture began with work on the stream"
        self.captures[stream] = []
        self.capture_thread[stream] = threading.get_ident()

    def end_capture(self, stream: int) -> int:
        self._called("end_capture")
        assert self.capture_thread.pop(stream) == threading.get_ident()
        recorded = self.captures.pop(stream)
        if stream in self.broken_captures:
            self.broken_captures.remove(stream)
            raise CudaError("cuStreamEndCapture", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        graph = next(self._handles)
        self.graphs[graph] = recorded
        return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        self._called("launch_graph")
        self.queues[stream].extend(self.graphs[graph])

    def destroy_graph(self, graph: int) -> None:
        self._called("destroy_graph")
        del self.graphs[graph]

    def index_of(self, address: int) -> int | None:
        self._called("index_of")
        self.view(address, 1)
        return 0


class DataType(enum.Enum):
    UINT8 = "uint8"
    FLOAT = "float32"
    INT32 = "int32"


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


SCRATCH_BYTES = 1000
"""Scratch memory of a context for each frame of its batch; not a multiple of the alignment."""


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class Context:
    """An execution context; addresses and shape are read when work is enqueued, as CUDA graphs fix them."""

    active_optimization_profile = 0
    nvtx_verbosity = ProfilingVerbosity.DETAILED
    """As the engines are built; with it, every start of the work costs time."""

    def __init__(self, engine: Engine, strategy: ExecutionContextAllocationStrategy) -> None:
        self._engine = engine
        self._is_user_managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._memory: tuple[int, int] | None = None
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._is_running = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.profile
        if self._engine.library.refuses_shape or not smallest <= shape[0] <= largest:
            self._engine.log.log(ILogger.ERROR, f"the stand-in refuses the shape {shape}")
            return False
        self._shape = shape
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        if not self._is_user_managed or not self._shape:
            return self._fail("The context needs to be created with kUSER_MANAGED, and its input shapes set") or 0
        self._engine.library.events.append("size asked")
        return SCRATCH_BYTES * self._shape[0]

    def set_device_memory(self, memory: int, size: int) -> None:
        wants_all = self._engine.library.wants_largest_memory or not self._shape
        needed = SCRATCH_BYTES * (self._engine.profile[2] if wants_all else self._shape[0])
        if not self._is_user_managed:
            self._fail("setDeviceMemory: Context not created with user managed device memory, cannot set buffer")
        elif not memory or memory % 256:
            self._fail("setDeviceMemory: memory must be aligned on 256 bytes")
        elif size < needed:
            self._fail(f"setDeviceMemoryV2: The provided memory size is too small. Provided {size}, needed {needed}")
        else:
            self._engine.library.device.view(memory, size)
            self._memory = memory, size

    def _fail(self, message: str) -> bool:
        self._engine.log.log(ILogger.ERROR, message)
        return False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (
            self._shape
            if name == self._engine.input_name
            else (self._shape[0], *self._engine.get_tensor_shape(name)[1:])
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256 or name in self._engine.library.refused_addresses:
            self._engine.log.log(ILogger.ERROR, f"the stand-in refuses the address {address:#x}")
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        device, rules = self._engine.library.device, self._engine.library
        is_captured = stream in device.captures
        rules.events.append("recorded" if is_captured else "enqueued")
        if self.nvtx_verbosity is ProfilingVerbosity.DETAILED:
            rules.events.append("slow start")
        if is_captured and rules.interrupts_capture is not None:
            raise rules.interrupts_capture
        if rules.refuses or (is_captured and rules.refuses_capture):
            self._engine.log.log(ILogger.ERROR, "the stand-in refuses to run")
            if is_captured:
                device.broken_captures.add(stream)
            return False
        memory = self._memory
        if self._is_user_managed and (memory is None or memory[1] < SCRATCH_BYTES * self._shape[0]):
            if is_captured:
                device.broken_captures.add(stream)
            return self._fail("IExecutionContext::setDeviceMemoryV2 should be called before enqueue/execute.")
        self._engine.compile_for(self._shape[0])
        addresses, shape = dict(self._addresses), self._shape
        device.enqueue(stream, lambda: self._run(addresses, shape, memory))
        return True

    def _run(self, addresses: dict[str, int], shape: tuple[int, ...], memory: tuple[int, int] | None) -> None:
        assert self._is_running.acquire(blocking=False), "two threads run one context"
        try:
            device = self._engine.library.device
            if memory is not None:
                device.view(*memory)[:] = 0xEE  # fails where the memory was freed
            source = addresses[self._engine.input_name]
            frames = device.view(source, int(np.prod(shape))).reshape(shape)
            device.clock_ms += device.mapped_run_ms if source in device.mapped else device.run_ms
            outputs = self._engine.session.run(self._engine.output_names, {self._engine.input_name: frames})
            for name, array in zip(self._engine.output_names, outputs, strict=True):
                np.copyto(
                    device.view(addresses[name], array.nbytes), np.ascontiguousarray(array).reshape(-1).view("u1")
                )
        finally:
            self._is_running.release()


class Engine:
    """An engine whose file is an ONNX file."""

    def __init__(self, library: Library, data: bytes, log: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.library = library
        self.log = log
        self.nodes = {node.name: node for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.input_name, *self.output_names = self.nodes
        first = self.nodes[self.input_name].shape[0]
        self.profile = (first,) * 3 if isinstance(first, int) else library.profile
        self.num_io_tensors = self.num_layers = len(self.nodes)
        self.device_memory_size_v2 = SCRATCH_BYTES * self.profile[2]

    def __del__(self) -> None:
        if hasattr(self, "library"):
            self.library.events.append("engine freed")

    def compile_for(self, batch: int) -> None:
        """Compiles for a batch that is new, as TensorRT-RTX does with EAGER where the size is open."""
        kernel = f"kernel for {batch}"
        if self.library.is_rtx and self.profile[0] < self.profile[2] and kernel not in self.library.cache.compiled:
            self.library.cache.compiled.append(kernel)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        types = {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT, "tensor(int32)": DataType.INT32}
        return types[self.nodes[name].type]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == self.input_name else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        smallest, _, largest = self.profile
        open_size = -1 if smallest < largest else largest  # as TensorRT calls a size without a range
        return tuple(size if isinstance(size, int) else open_size for size in self.nodes[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, *self.get_tensor_shape(name)[1:]) for size in self.profile]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: "{}")

    def create_runtime_config(self) -> Any:
        return RuntimeConfig(self.library)

    def create_execution_context(
        self, chosen: ExecutionContextAllocationStrategy | RuntimeConfig = ExecutionContextAllocationStrategy.STATIC
    ) -> Context | None:
        strategy = chosen.strategy if isinstance(chosen, RuntimeConfig) else chosen
        if self.library.requires_user_memory and strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self.log.log(
                ILogger.ERROR,
                "Engine was built with BuilderFlag::kREQUIRE_USER_ALLOCATION. Execution context creation requires "
                "ExecutionContextAllocationStrategy::kUSER_MANAGED allocation strategy.",
            )
            return None
        if self.library.refuses_context:
            self.log.log(ILogger.ERROR, "the stand-in is out of memory")
            return None
        self.library.events.append("context")
        self.library.config = SimpleNamespace(**vars(chosen)) if isinstance(chosen, RuntimeConfig) else chosen
        self.library.cache.compiled.append("kernel")
        context = Context(self, strategy)
        if self.library.is_rtx:
            context.is_stream_capturable = lambda stream: self.library.is_capturable  # type: ignore[attr-defined]
        return context


class RuntimeConfig:
    """TensorRT-RTX's runtime configuration."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = ""

    def __del__(self) -> None:
        self.library.events.append("configuration freed")

    def create_runtime_cache(self) -> Cache:
        return self.library.cache

    def set_runtime_cache(self, cache: Cache) -> None:
        self.library.events.append("cache set")

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class Cache:
    """TensorRT-RTX's runtime cache."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.loaded: bytes | None = None

    def serialize(self) -> bytes:
        return ",".join(self.compiled).encode()

    def deserialize(self, data: bytes) -> bool:
        self.loaded = data
        return True


class Library:
    """The stand-in library, whose fields tests change; `module` has TensorRT's names."""

    def __init__(self, device: HostDevice, *, is_rtx: bool = False, version: str = "10.3.0.26") -> None:
        self.device = device
        self.is_rtx = is_rtx
        self.profile = (1, 2, 4)
        self.refuses = self.refuses_capture = self.refuses_context = self.refuses_shape = False
        self.refused_addresses: set[str] = set()
        self.interrupts_capture: BaseException | None = None
        self.requires_user_memory = is_rtx
        self.wants_largest_memory = False
        self.unsupported_capabilities: tuple[str, ...] = ()
        self.validity: tuple[EngineValidity, int] = (EngineValidity.VALID, 0)
        self.cannot_start = self.is_null = False
        self.has_host_code = False
        self.host_code_allowed: list[bool] = []
        self.is_capturable = True
        self.events: list[str] = []
        self.cache = Cache()
        self.config: Any = None
        self.log: Any = None
        library = self

        class Runtime:
            def __init__(self, log: Any) -> None:
                # TensorRT keeps one logger while any of its objects lives; here the first stays.
                self.log = library.log = library.log or log
                if log is not self.log:
                    self.log.log(ILogger.WARNING, "The logger passed into createInferRuntime differs from one already")
                self.engine_host_code_allowed = False
                if library.cannot_start:
                    self.log.log(ILogger.ERROR, "createInferRuntime: CUDA initialization failure with error: 35")
                if library.is_null:
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def __del__(self) -> None:
                library.events.append("runtime destroyed")  # where it cannot start, TensorRT ends the process here

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                assert not library.cannot_start, "TensorRT ends the process here"
                library.host_code_allowed.append(self.engine_host_code_allowed)
                if library.has_host_code and not self.engine_host_code_allowed:
                    self.log.log(
                        ILogger.ERROR,
                        "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is "
                        "false.",
                    )
                    return None
                capability = library.device.info.compute_capability
                if capability in library.unsupported_capabilities:
                    self.log.log(
                        ILogger.ERROR,
                        f"The engine cannot run on this GPU, which has compute capability {capability}.",
                    )
                    return None
                try:
                    return Engine(library, data, self.log)
                except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf:
                    self.log.log(ILogger.ERROR, "the magic tag is wrong")
                    return None

        self.module: Any = ModuleType("tensorrt_rtx" if is_rtx else "tensorrt")
        vars(self.module).update(
            __version__=version,
            ILogger=ILogger,
            DataType=DataType,
            TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
            Runtime=Runtime,
            ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
            ProfilingVerbosity=ProfilingVerbosity,
        )
        if is_rtx:
            self._add_rtx(Runtime)

    def _add_rtx(self, runtime: Any) -> None:
        """Adds the names that only TensorRT-RTX has."""
        self.module.CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
        self.module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.module.EngineValidity = EngineValidity
        self.module.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
        runtime.engine_header_size = 64
        runtime.get_engine_validity = lambda _, header: self.validity

    def opened(self) -> TensorRtLibrary:
        """As the runner takes it."""
        return TensorRtLibrary(name="tensorrt-rtx" if self.is_rtx else "tensorrt", module=self.module)


def aligned(array: npt.NDArray[np.uint8], offset: int = 0) -> npt.NDArray[np.uint8]:
    """A copy that starts `offset` bytes after a multiple of 256, as memory of CUDA does at 0."""
    room = np.empty(array.nbytes + 512, np.uint8)
    start = -room.ctypes.data % 256 + offset
    copy = room[start : start + array.nbytes].reshape(array.shape)
    copy[...] = array
    return copy


class OnGpu:
    """An array of a test that claims GPU memory by the CUDA array interface."""

    def __init__(self, device: HostDevice, array: npt.NDArray[Any], **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "strides": None if array.flags.c_contiguous
            else array.strides, "data": (device.adopt(array) if array.flags.c_contiguous else array.ctypes.data, False),
            "version": 3, "stream": None, **changes,
        }  # fmt: skip


class OnGpuDlpack:
    """The same by DLPack; `streams` holds the streams of the requests."""

    def __init__(self, device: HostDevice, array: npt.NDArray[Any], kind: tuple[int, int] = (2, 0)) -> None:
        self.array = array
        self.kind = kind
        self.streams: list[int] = []
        self.capsules: list[Any] = []
        device.adopt(array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams.append(stream)
        self.capsules.append(self.array.__dlpack__())
        return self.capsules[-1]


def capsule_name(capsule: Any) -> bytes:
    """Name of a DLPack capsule: it changes when a consumer takes it."""
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    return bytes(get_name(capsule))


class Bench:
    """A stand-in device and library, and backends on them."""

    def __init__(self, **device: Any) -> None:
        self.device = HostDevice(**device)
        self.library = Library(self.device)

    def load(self, path: Path, *, allow_host_code: bool = False, **config: Any) -> TensorRtBackend:
        return TensorRtBackend(
            path,
            library=self.library.opened(),
            device=self.device,
            allow_host_code=allow_host_code,
            config=EngineConfig(**config),
        )

    def count(self, call: str) -> int:
        return int(self.device.calls.count(call))

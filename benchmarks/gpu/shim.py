"""A library object for the runner, without TensorRT: its `execute_async_v3` enqueues a program of ours on the stream.

So a GPU without TensorRT can run everything of the runner but TensorRT itself: pinned memory, slots, scratch memory,
thread-local capture, replay of CUDA graphs, threads, arrays of other packages. The names are those of TensorRT that
`edgerpn.runtime.backends.tensorrt` uses.

Two programs: `hashes` turns every byte of a frame into the outputs, so that a single wrong or stale byte shows, and
`DetectorProgram` is our network with the portable NMS in PyTorch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerpn import manifest as manifests
from edgerpn.manifest import AnchorSpec, EngineSpec, InputSpec, Manifest, ProposalSpec, Provenance
from edgerpn.manifest.parts import ProfileSpec
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import tensors_of
from edgerpn.runtime.backends.tensorrt.compatibility import this_platform
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary

VERSION = "10.3.0.26"
"""The version that the shim gives, the oldest that the runner takes."""
KERNELS = r"""
// Every byte of a frame goes into one of `rows` sums: a hash that depends on the order of the bytes.
extern "C" __global__ void sum_bytes(unsigned long long frames, unsigned long long sums, int frame_bytes, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (row >= rows) return;
    const unsigned char *bytes = (const unsigned char *)frames + (unsigned long long)image * frame_bytes;
    unsigned int sum = 0;
    for (int i = row; i < frame_bytes; i += rows) sum = sum * 31u + bytes[i] + 1u;
    ((unsigned int *)sums)[image * rows + row] = sum;
}
// Boxes, scores and counts are bits of the sums, which float32 holds exactly.
extern "C" __global__ void spread_sums(unsigned long long sums, unsigned long long boxes, unsigned long long scores,
                                       unsigned long long count, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (row >= rows) return;
    unsigned int sum = ((const unsigned int *)sums)[image * rows + row];
    float *box = (float *)boxes + 4 * (image * rows + row);
    for (int side = 0; side < 4; side++) box[side] = (float)((sum >> 8 * side) & 255u);
    ((float *)scores)[image * rows + row] = (float)(sum & 65535u) / 65536.0f;
    if (row == 0) ((int *)count)[image] = (int)(sum % (unsigned int)(rows + 1));
}
"""
"""CUDA C; addresses come as numbers. The functions are plain C too, so that a test can compile them for the CPU."""
_BLOCK = 128


class Program(Protocol):
    """Work that stands in for an engine."""

    def scratch_bytes(self, batch: int) -> int:
        """Scratch memory for a batch."""
        ...

    def enqueue(self, stream: int, addresses: dict[str, int], batch: int, scratch: int) -> None:
        """Starts the work on a batch; addresses by the name of the tensor, and that of the scratch memory."""
        ...


def hashes(frames: npt.NDArray[np.uint8], rows: int) -> Outputs:
    """Boxes, scores and counts that the kernels make of frames (N, H, W, 3), bit by bit."""
    flat = frames.reshape(len(frames), -1).astype(np.uint32) + 1
    turns, rest = divmod(flat.shape[1], rows)
    powers = np.cumprod(np.r_[1, np.full(max(turns - 1, 0), 31)].astype(np.uint32), dtype=np.uint32)[::-1]
    whole = flat[:, : turns * rows].reshape(len(frames), turns, rows)
    sums = (whole * powers[None, :turns, None]).sum(axis=1, dtype=np.uint32)
    sums[:, :rest] = sums[:, :rest] * np.uint32(31) + flat[:, turns * rows :]
    boxes = np.stack([(sums >> np.uint32(8 * side)) & np.uint32(255) for side in range(4)], axis=-1)
    scores = (sums & np.uint32(65535)).astype(np.float32) / np.float32(65536)
    return Outputs(boxes.astype(np.float32), scores, (sums[:, 0] % np.uint32(rows + 1)).astype(np.int32))


class HashProgram:
    """The kernels, launched by CuPy."""

    def __init__(self, manifest: Manifest) -> None:
        """Compiles them.

        Raises:
            ModuleNotFoundError: CuPy is not installed.
        """
        import cupy

        self._cupy = cupy
        self._rows = manifest.proposals.num_proposals
        self._frame_bytes = 3 * manifest.input.frame_hw[0] * manifest.input.frame_hw[1]
        module = cupy.RawModule(code=KERNELS)
        self._sum, self._spread = module.get_function("sum_bytes"), module.get_function("spread_sums")

    def scratch_bytes(self, batch: int) -> int:
        return 4 * batch * self._rows

    def enqueue(self, stream: int, addresses: dict[str, int], batch: int, scratch: int) -> None:
        grid, block = ((self._rows + _BLOCK - 1) // _BLOCK, batch), (_BLOCK,)
        rows, sums = np.int32(self._rows), np.uint64(scratch)
        outputs = [np.uint64(addresses[name]) for name in ("boxes", "scores", "count")]
        with self._cupy.cuda.ExternalStream(stream):
            self._sum(grid, block, (np.uint64(addresses["frames"]), sums, np.int32(self._frame_bytes), rows))
            self._spread(grid, block, (sums, *outputs, rows))


class DetectorProgram:
    """Our detector in PyTorch. One thread must do all its work: PyTorch makes a handle of cuBLAS for each thread."""

    def __init__(self, manifest: Manifest, detector: Any, view: Callable[[int, tuple[int, ...], str], Any]) -> None:
        """Takes a detector.

        Args:
            manifest: Its input and outputs.
            detector: Module from frames to proposals, on the device.
            view: Returns the tensor of a type and shape at an address.
        """
        self._tensors = tensors_of(manifest)
        self._detector = detector
        self._view = view
        self._views: dict[tuple[str, int, int], Any] = {}
        self._warm: set[tuple[int, int]] = set()

    def scratch_bytes(self, batch: int) -> int:
        return 0

    def enqueue(self, stream: int, addresses: dict[str, int], batch: int, scratch: int) -> None:
        import torch

        # A capture must find all memory in PyTorch's pool of the stream: one run fills it, another shows it is enough.
        is_first = (stream, batch) not in self._warm
        self._warm.add((stream, batch))
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for _ in range(3 if is_first else 1):
                self._run(addresses, batch)

    def _run(self, addresses: dict[str, int], batch: int) -> None:
        found = self._detector(self._at("frames", addresses, batch))
        for name, part in zip(("boxes", "scores", "count"), found[:3], strict=True):
            self._at(name, addresses, batch).copy_(part)

    def _at(self, name: str, addresses: dict[str, int], batch: int) -> Any:
        # Kept, because making a tensor asks the driver about its memory, which a capture need not allow.
        key = name, addresses[name], batch
        if key not in self._views:
            dtype, shape = self._tensors[name]
            self._views[key] = self._view(addresses[name], (batch, *(size or 1 for size in shape[1:])), dtype)
        return self._views[key]


def cuda_view(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor of PyTorch on memory of the GPU that others own."""
    import torch

    typestr = {"uint8": "|u1", "float32": "<f4", "int32": "<i4"}[dtype]
    interface = {"shape": shape, "typestr": typestr, "data": (address, False), "strides": None, "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")


class _DataType(enum.Enum):
    UINT8 = "uint8"
    FLOAT = "float32"
    INT32 = "int32"


class _Strategy(enum.Enum):
    USER_MANAGED = 2


class _Verbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Context:
    active_optimization_profile = 0
    nvtx_verbosity = _Verbosity.LAYER_NAMES_ONLY

    def __init__(self, program: Program) -> None:
        self._program = program
        self._batch = self._scratch = 0
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._batch = shape[0]
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return self._program.scratch_bytes(self._batch)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = memory

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._program.enqueue(stream, self._addresses, self._batch, self._scratch)
        return True


class _Engine:
    def __init__(self, program: Program, manifest: Manifest) -> None:
        self._program, self._manifest = program, manifest
        self._tensors = tensors_of(manifest)
        self.num_io_tensors = len(self._tensors)
        self._profile = self._sizes()
        self.device_memory_size_v2 = program.scratch_bytes(self._profile[-1])

    def _sizes(self) -> tuple[int, int, int]:
        spec = self._manifest.engine
        assert spec is not None, "the shim wrote an engine's manifest"
        return spec.profile.min_batch, spec.profile.opt_batch, spec.profile.max_batch

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> _DataType:
        return _DataType(self._tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        smallest, _, largest = self._profile
        open_size = -1 if smallest < largest else largest  # as TensorRT calls a size without a range
        return tuple(open_size if size is None else size for size in self._tensors[name][1])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, *self.get_tensor_shape(name)[1:]) for size in self._profile]

    def create_execution_context(self, strategy: _Strategy) -> _Context:
        return _Context(self._program)


def shim_library(program: Program, manifest: Manifest) -> TensorRtLibrary:
    """The library whose engines are `program`, as the runner takes it."""

    class Runtime:
        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> _Engine:
            return _Engine(program, manifest)

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=VERSION, ILogger=_Logger, DataType=_DataType, Runtime=Runtime,
        ExecutionContextAllocationStrategy=_Strategy, ProfilingVerbosity=_Verbosity,
    )  # fmt: skip
    return TensorRtLibrary(name="tensorrt", module=module)


def write_engine(
    path: Path, *, frame_hw: tuple[int, int], num_proposals: int, profile: tuple[int, int, int], capability: str
) -> Manifest:
    """Writes an engine file for the shim, with its manifest; the batch is open unless all three sizes are the same."""
    path.write_bytes(b"a program of benchmarks.gpu.shim")
    sizes = ProfileSpec(min_batch=profile[0], opt_batch=profile[1], max_batch=profile[2])
    manifest = Manifest(
        name=path.stem, kind="engine", target="tensorrt", opset=18, backbone="none",
        input=InputSpec(
            batch=profile[0] if profile[0] == profile[2] else None, network_hw=frame_hw, source_hw=None,
            mean_bgr=(0.0, 0.0, 0.0), std_bgr=(1.0, 1.0, 1.0),
        ),
        outputs=manifests.standard_outputs(num_proposals),
        anchors=AnchorSpec(strides_px=(8,), sizes_px=((32.0,),), ratios_hw=(1.0,)),
        proposals=ProposalSpec(
            num_proposals=num_proposals, pre_nms=num_proposals, nms="portable", nms_iou=0.7, nms_scope="all",
            score_threshold=0.0, min_size_px=0.0,
        ),
        provenance=Provenance(created="2026-01-01T00:00:00Z", checkpoint_sha256="0" * 64),
        engine=EngineSpec(
            library="tensorrt", library_version=VERSION, compute_capabilities=(capability,), platform=this_platform(),
            build_s=0.0, profile=sizes,
        ),
    )  # fmt: skip
    manifests.write(manifest, path)
    return manifests.read(path)

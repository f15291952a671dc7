"""Where stages run: a GPU, or for a rehearsal the tests' stand-in for one, which runs the same code on the CPU.

A rehearsal shows that the stages are whole before a GPU is at hand. Its times mean nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.session import Skip
from benchmarks.gpu.shim import DetectorProgram, HashProgram, Program, cuda_view, hashes
from edgerpn.errors import EdgeRpnError
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.tensorrt.cuda import Device
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary, import_library

Frames = npt.NDArray[np.uint8]
Late = Callable[[], contextlib.AbstractContextManager[Any]]
"""Opens a block in which an array is being filled on a side stream, and yields the array."""

_WAIT_CYCLES = 50_000_000
"""GPU cycles, some 30 ms, by which a side stream is late."""
_SPIN = r"""
extern "C" __global__ void spin(long long cycles) { long long start = clock64(); while (clock64() - start < cycles) ; }
"""


class Place(Protocol):
    """A GPU, and the packages that use it."""

    device: Device
    torch_device: str

    def hash_program(self, manifest: Manifest) -> Program: ...

    def detector_program(self, manifest: Manifest, detector: Any) -> Program: ...

    def arrays(self, frames: Frames) -> dict[str, Any]:
        """Copies of the frames in GPU memory, by the name of the package and the protocol."""
        ...

    def late_arrays(self, frames: Frames) -> dict[str, Late]:
        """The same, filled on a side stream while the runner is called."""
        ...

    def rtx(self) -> TensorRtLibrary:
        """TensorRT-RTX."""
        ...

    def rtx_engine(self, models: Path, work: Path) -> Path:
        """The engine of the bundle."""
        ...


def open_place(request: dict[str, Any]) -> Place:
    """Returns the place that a stage's request asks for.

    Raises:
        Skip: There is no GPU, or no package for it.
    """
    try:
        return StandIn() if request["rehearse"] else Gpu()
    except EdgeRpnError as error:
        raise Skip(str(error)) from error


class Gpu:
    """The first visible GPU."""

    torch_device = "cuda"

    def __init__(self) -> None:
        self.device = open_device()

    def hash_program(self, manifest: Manifest) -> Program:
        return HashProgram(manifest)

    def detector_program(self, manifest: Manifest, detector: Any) -> Program:
        return DetectorProgram(manifest, detector, cuda_view)

    def arrays(self, frames: Frames) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with contextlib.suppress(ModuleNotFoundError):
            import torch

            found["PyTorch, DLPack"] = tensor = torch.from_numpy(frames).cuda()
            found["PyTorch, CUDA array interface"] = _only_interface(tensor)
        with contextlib.suppress(ModuleNotFoundError):
            import cupy

            found["CuPy, DLPack"] = array = cupy.asarray(frames)
            found["CuPy, CUDA array interface"] = _only_interface(array)
        return found

    def late_arrays(self, frames: Frames) -> dict[str, Late]:
        found: dict[str, Late] = {}
        with contextlib.suppress(ModuleNotFoundError):
            import torch

            @contextlib.contextmanager
            def late_tensor() -> Iterator[Any]:
                ready = torch.from_numpy(frames).cuda()
                late = torch.zeros_like(ready)
                torch.cuda.synchronize()
                with torch.cuda.stream(torch.cuda.Stream()):
                    torch.cuda._sleep(_WAIT_CYCLES)
                    late.copy_(ready, non_blocking=True)
                    yield late

            found["PyTorch, DLPack"] = late_tensor
        with contextlib.suppress(ModuleNotFoundError):
            import cupy

            spin = cupy.RawKernel(_SPIN, "spin")

            @contextlib.contextmanager
            def late_array(wrap: Callable[[Any], Any]) -> Iterator[Any]:
                ready = cupy.asarray(frames)
                late = cupy.zeros_like(ready)
                cupy.cuda.Device().synchronize()
                with cupy.cuda.Stream(non_blocking=True):
                    spin((1,), (1,), (np.int64(_WAIT_CYCLES),))
                    late[...] = ready
                    yield wrap(late)

            found["CuPy, DLPack"] = lambda: late_array(lambda array: array)
            found["CuPy, CUDA array interface"] = lambda: late_array(_only_interface)
        return found

    def rtx(self) -> TensorRtLibrary:
        try:
            return import_library("tensorrt-rtx")
        except EdgeRpnError as error:
            raise Skip(str(error)) from error

    def rtx_engine(self, models: Path, work: Path) -> Path:
        return models / "model.engine"


def _only_interface(array: Any) -> Any:
    """The array as an object without DLPack, which the runner prefers."""
    return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__, array=array)


class StandIn:
    """The tests' stand-in for a GPU and for TensorRT-RTX; its engines are ONNX files."""

    torch_device = "cpu"

    def __init__(self) -> None:
        from tests.support import tensorrt_standin

        self._standin = tensorrt_standin
        self.device: Any = tensorrt_standin.HostDevice()

    def hash_program(self, manifest: Manifest) -> Program:
        return _HostProgram(self.device, manifest, hashes)

    def detector_program(self, manifest: Manifest, detector: Any) -> Program:
        import torch

        def run(frames: Frames, rows: int) -> tuple[Any, ...]:
            with torch.inference_mode():
                return tuple(part.numpy() for part in detector(torch.from_numpy(frames))[:3])

        return _HostProgram(self.device, manifest, run)

    def arrays(self, frames: Frames) -> dict[str, Any]:
        array = self._standin.aligned(frames)
        return {
            "stand-in, DLPack": self._standin.OnGpuDlpack(self.device, array),
            "stand-in, CUDA array interface": self._standin.OnGpu(self.device, array),
        }

    def late_arrays(self, frames: Frames) -> dict[str, Late]:
        @contextlib.contextmanager
        def late() -> Iterator[Any]:
            array = self._standin.aligned(np.zeros_like(frames))
            with self.device.active():
                side = self.device.create_stream()
            self.device.enqueue(side, lambda: np.copyto(array, frames))
            yield self._standin.OnGpu(self.device, array, stream=side)

        return {"stand-in, CUDA array interface": late}

    def rtx(self) -> TensorRtLibrary:
        library: TensorRtLibrary = self._standin.Library(self.device, is_rtx=True, version="1.7.1.116").opened()
        return library

    def rtx_engine(self, models: Path, work: Path) -> Path:
        """The ONNX file under the engine's manifest."""
        import dataclasses

        from edgerpn import golden, manifest

        engine, onnx = work / "stand-in.engine", models / "model.onnx"
        described, source = manifest.read(models / "model.engine"), manifest.read(onnx)
        engine.write_bytes(onnx.read_bytes())
        kept = golden.write(golden.read(onnx, source), engine) if source.golden is not None else None
        assert described.engine is not None, "the bundle holds an engine"
        spec = dataclasses.replace(
            described.engine, compute_capabilities=(self.device.info.compute_capability,), library_version="1.7.1.116"
        )
        manifest.write(described.replace(golden=kept, engine=spec), engine)
        return engine


class _HostProgram:
    """A function on host memory, enqueued on a stream of the stand-in."""

    def __init__(self, device: Any, manifest: Manifest, run: Callable[[Frames, int], tuple[Any, ...]]) -> None:
        self._device, self._run = device, run
        self._rows, self._frame_hw = manifest.proposals.num_proposals, manifest.input.frame_hw

    def scratch_bytes(self, batch: int) -> int:
        return 4 * batch * self._rows

    def enqueue(self, stream: int, addresses: dict[str, int], batch: int, scratch: int) -> None:
        addresses, shape = dict(addresses), (batch, *self._frame_hw, 3)

        def work() -> None:
            self._device.view(scratch, self.scratch_bytes(batch))[:] = 0xEE  # fails where the memory was freed
            frames = self._device.view(addresses["frames"], int(np.prod(shape))).reshape(shape)
            for name, part in zip(("boxes", "scores", "count"), self._run(frames, self._rows)[:3], strict=True):
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                np.copyto(self._device.view(addresses[name], data.nbytes), data)

        self._device.enqueue(stream, work)

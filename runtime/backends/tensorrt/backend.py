"""The TensorRT backend: runs engines of TensorRT 10.3 to 11 and TensorRT-RTX on CUDA graphs.

The tests run its logic without a GPU on a stand-in of library and device; it has not run on real hardware yet.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn import manifest as manifests
from edgerpn.errors import EngineLoadError, InferenceError, InputError
from edgerpn.manifest import Manifest
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import EngineConfig, check_frames, check_outputs, output_shapes
from edgerpn.runtime.backends.tensorrt import compatibility, device_input
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device
from edgerpn.runtime.backends.tensorrt.engine import TensorRtEngine
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary
from edgerpn.runtime.backends.tensorrt.slots import ContextReport, EngineSlot, FrameMemoryReport, SlotRing
from edgerpn.runtime.tracing import span

_logger = logging.getLogger(__name__)


class TensorRtBackend:
    """Runs an engine; see `edgerpn.runtime.backends.contract.Backend` for the contract.

    Beside `infer` there are two ways without a copy on the CPU: `acquire` returns a slot whose pinned memory a capture
    writes into, and `infer_device` takes frames that are in GPU memory already.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        library: TensorRtLibrary | None = None,
        device: Device | None = None,
        config: EngineConfig | None = None,
        allow_host_code: bool = False,
    ) -> None:
        """Loads an engine, and refuses one that was not built for this machine.

        Args:
            path: `model.engine`, with its manifest beside it.
            library: The library that runs it; None: imported.
            device: The GPU; None: the first visible one.
            config: Slots, memory of the frames, and how threads wait for the GPU; None: the defaults.
            allow_host_code: Whether a version-compatible engine may contain code for the CPU; see `open_backend`.

        Raises:
            MissingDependencyError: The library, or a package that talks to the GPU, is not installed.
            ManifestError: File or manifest is missing or malformed.
            ArtifactMismatchError: The engine was built for another machine, see `compatibility`.
            EngineLoadError: Library, driver or GPU is missing or does not work, or refuses the engine.
        """
        path, config = Path(path), config or EngineConfig()
        self._manifest = manifests.read(path)
        self._shapes = output_shapes(self._manifest)
        spec = compatibility.engine_spec(path, self._manifest)
        host = compatibility.query_machine(spec, library=library, device=device)
        if isinstance(host.library, compatibility.Problem):
            raise type(host.library)(f"{path}: {host.library}") from host.library
        if isinstance(host.device, compatibility.Problem):
            raise type(host.device)(f"{path}: {host.device}") from host.device
        checks = compatibility.compare(path, self._manifest, host)
        compatibility.refuse(path, checks)
        doubts = compatibility.doubts(checks)
        for line in doubts:
            _logger.warning("%s: %s", path, line)
        self._library, self._device = host.library, host.device
        profile = spec.profile
        sizes = tuple(sorted({profile.min_batch, profile.opt_batch, profile.max_batch}))
        self._smallest, self._largest = sizes[0], sizes[-1]
        engine: TensorRtEngine | None = None
        try:
            with self._device.active():
                engine = TensorRtEngine(
                    path, self._manifest, self._library, self._device, allow_host_code=allow_host_code
                )
                self._ring = SlotRing(engine, self._device, self._manifest, sizes, config)
        except (CudaError, InferenceError) as error:
            said = f": {engine.reason()}" if engine is not None and isinstance(error, InferenceError) else ""
            raise EngineLoadError(f"{path}: the engine cannot be prepared: {error}{said}") from error
        except EngineLoadError as error:
            raise EngineLoadError("\n  ".join((str(error), *doubts))) from error
        self._num_slots = config.num_slots
        weakref.finalize(self, self._ring.close).atexit = False

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def name(self) -> str:
        """Library, version and GPU."""
        return f"{self._library.title} ({self._device.info.name}, {self._device.info.provider})"

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def frames_in_flight(self) -> int:
        """The number of slots, with which copies and inference overlap."""
        return self._num_slots

    @property
    def max_batch(self) -> int | None:
        return self._largest

    @property
    def contexts(self) -> tuple[ContextReport, ...]:
        """Time and memory of each execution context made so far, in order."""
        return tuple(self._ring.contexts)

    @property
    def frame_memory(self) -> FrameMemoryReport:
        """Whether the GPU works in the host's memory, and the times that decided it."""
        return self._ring.frame_memory

    def acquire(self) -> EngineSlot:
        """Returns a slot to write frames into; waits while all are in use. Release it, or use it in a `with` block.

        Raises:
            RuntimeError: The backend is closed.
        """
        return self._ring.acquire()

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph; see `Backend.infer`. Batches beyond the profile are split, smaller ones padded."""
        frames = check_frames(frames, self._manifest)
        parts = []
        with self._ring.acquire() as slot:
            for start in range(0, len(frames), self._largest):
                part = frames[start : start + self._largest]
                with span("upload"):
                    slot.frames[: len(part)] = part
                parts.append(self._run(slot, partial(slot.submit, len(part)), len(part)))
        return Outputs.join(parts)

    def infer_device(self, frames: object) -> Outputs:
        """Runs the graph in place on frames in GPU memory.

        Args:
            frames: Has `__dlpack__` or `__cuda_array_interface__` (PyTorch, CuPy, PyCUDA, ...): (N, H, W, C) uint8
                BGR, C-contiguous, on the engine's GPU. The GPU waits for earlier work on the stream that the protocol
                names. The frames are not changed, and may be reused when this returns.

        Returns:
            As of `infer`, in host memory; owned by the caller.

        Raises:
            InputError: It is not such an array, or N does not fit the engine's profile.
            InferenceError: CUDA or the library failed.
        """
        frame_bytes = math.prod(self._manifest.input.frame_shape)
        parts = []
        with self._ring.acquire() as slot:
            try:
                with self._device.active():
                    taken = device_input.take(frames, self._manifest, self._device, slot.stream)
            except CudaError as error:
                raise InputError(f"frames: not memory of the engine's GPU: {error}") from error
            for start, stop in self._split(taken.num_frames):
                part = taken.part(start, stop, frame_bytes)
                parts.append(self._run(slot, partial(slot.submit_device, part), stop - start))
        return Outputs.join(parts)

    def time_parts(self) -> dict[str, float]:
        """Milliseconds of upload, inference and download; see `PartsTimer`."""
        with self._ring.acquire() as slot:
            return slot.time_parts()

    def close(self) -> None:
        """Frees the slots; calls in progress finish first. Does nothing the second time."""
        self._ring.close()

    def _split(self, num_frames: int) -> list[tuple[int, int]]:
        starts = range(0, num_frames, self._largest)
        parts = [(start, min(num_frames, start + self._largest)) for start in starts]
        if parts[-1][1] - parts[-1][0] < self._smallest:
            raise InputError(
                f"frames: {num_frames} frames cannot be run in place: the engine takes batches of {self._smallest} to "
                f"{self._largest}, and filling one up needs a copy; use `infer`, or pass another number"
            )
        return parts

    def _run(self, slot: EngineSlot, submit: Callable[[], None], num_frames: int) -> Outputs:
        """Returns the outputs of a slot as copies that the caller owns."""
        with span("inference"):
            submit()
            outputs = slot.result()
        check_outputs(outputs, num_frames, self._shapes, num_classes=len(self._manifest.class_names))
        with span("download"):
            return outputs.each(np.copy)

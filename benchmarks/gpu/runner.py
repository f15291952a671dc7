"""The runtime as an application uses it, and others on the same GPU with the same network and frames.

Self-test, graphs, latency with copies and end to end, memory, two streams; then ONNX Runtime.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.engine import opened
from benchmarks.gpu.models import load_frames
from benchmarks.gpu.session import Notes, Skip
from benchmarks.gpu.timing import in_turns, wall_ms
from benchmarks.machine import usage
from edgerpn import manifest
from edgerpn.errors import MissingDependencyError
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
from edgerpn.runtime.backends.tensorrt.cuda import Device
from edgerpn.runtime.model import Model, run_self_test

_NO_GRAPH = "runs without CUDA graphs"


class Listener(logging.Handler):
    """Keeps the runtime's warnings, the only place where it reports that it runs without CUDA graphs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("edgerpn").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def graph(self) -> str:
        """Returns "works", or the reason why CUDA graphs do not."""
        return next((line for line in self.lines if line.startswith(_NO_GRAPH)), "works")


def runner(request: dict[str, Any], notes: Notes) -> None:
    """Everything about one engine in the runtime."""
    path = Path(request["engine"])
    spec = manifest.read(path).engine
    if spec is None:
        raise Skip(f"{path.name}: its manifest does not describe an engine")
    _, device = opened(spec.library)
    listener, memory = Listener(), Memory(device)
    start = time.perf_counter()
    backend = TensorRtBackend(path)
    notes(ran_by=backend.name, load_s=round(time.perf_counter() - start, 2), cuda_graph=listener.graph())
    memory.note("after load")
    frames, camera = np.load(request["frames"]), np.load(request["camera"])
    source_hw = backend.manifest.input.source_hw
    if source_hw is not None:
        frames = np.stack([camera] * len(frames))
    if backend.manifest.golden is not None:
        run_self_test(path, backend)  # raises SelfTestError, which is this step's failure
    notes(self_test="passed" if backend.manifest.golden is not None else "there are no golden frames")
    latency = latencies(backend, device, frames, camera, request["seconds"])
    memory.note("after warm-up")
    notes(latency_ms=latency, memory_mib=memory.figures, warnings=listener.lines)
    try:
        figures = from_torch(backend, frames, request["seconds"], notes)
        notes(latency_ms=latency | figures)
    except (ModuleNotFoundError, Skip) as error:
        notes(zero_copy=f"skipped: {error}")
    backend.close()


class Memory:
    """Memory of GPU and process from one moment to the next."""

    def __init__(self, device: Device) -> None:
        """Records the state before the engine is loaded, with the driver's context already made."""
        self._device = device
        self.figures: dict[str, float] = {}
        with device.active():
            self._free = device.free_bytes()
        self.figures["process before load"] = _resident_mib()

    def note(self, moment: str) -> None:
        """Records the GPU memory that was taken since the beginning, and the size of the process."""
        with self._device.active():
            self.figures[f"GPU {moment}"] = round((self._free - self._device.free_bytes()) / 2**20, 1)
        self.figures[f"process {moment}"] = _resident_mib()


def _resident_mib() -> float:
    return round(usage(os.getpid()).parent_rss_mib, 1)


def latencies(
    backend: TensorRtBackend,
    device: Device,
    frames: npt.NDArray[np.uint8],
    camera: npt.NDArray[np.uint8],
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Milliseconds of the ways through the runtime, alternately, for one frame and for the largest batch."""
    runs: dict[str, Callable[[], float]] = {}
    with suppress(MissingDependencyError):  # of OpenCV, which scales the camera's frames
        model = Model(backend)  # not closed: the backend is the caller's
        runs[f"end to end, {camera.shape[1]}x{camera.shape[0]} frame"] = partial(wall_ms, partial(model, camera))
    smallest, largest = _batches(backend)
    for batch in sorted({smallest, largest}):
        ready = np.ascontiguousarray(np.resize(frames, (batch, *frames.shape[1:])))
        runs[f"with copies, batch {batch}"] = partial(wall_ms, partial(backend.infer, ready))
        runs[f"pinned slot, batch {batch}"] = partial(wall_ms, partial(_slot, backend, batch))
        runs[f"upload, engine and download on the GPU, batch {batch}"] = partial(_on_gpu, backend, device, batch)
    return in_turns(runs, seconds)


def _batches(backend: TensorRtBackend) -> tuple[int, int]:
    """Smallest and largest batch of the engine."""
    spec = backend.manifest.engine
    return (spec.profile.min_batch, spec.profile.max_batch) if spec is not None else (1, 1)


def _slot(backend: TensorRtBackend, batch: int) -> None:
    """Runs inference alone, as after a capture that wrote the frames into pinned memory."""
    with backend.acquire() as slot:
        slot.submit(batch)
        slot.result()


def _on_gpu(backend: TensorRtBackend, device: Device, batch: int) -> float:
    with backend.acquire() as slot, device.active():
        elapsed = device.time_ms(lambda: slot.submit(batch), slot.stream)
        slot.result()
        return elapsed


def from_torch(
    backend: TensorRtBackend, frames: npt.NDArray[np.uint8], seconds: float, notes: Notes
) -> dict[str, dict[str, float]]:
    """Frames in PyTorch's memory: the same proposals as with copies, and the time.

    Raises:
        Skip: PyTorch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise Skip("PyTorch sees no GPU")
    batch, _ = _batches(backend)
    host = np.ascontiguousarray(frames[:batch])
    tensor = torch.from_numpy(host).cuda()
    wanted = backend.infer(host)
    notes(zero_copy="equals `infer`")
    # Often enough that the second call captures a graph, and later ones use it.
    for _ in range(4):
        found = backend.infer_device(tensor)
        apart = [float(np.abs(one - other).max()) for one, other in zip(found[:3], wanted[:3], strict=True)]
        if max(apart) > 0:
            notes(zero_copy="differs from `infer`")
            notes.broken(f"infer_device and infer differ on the same frames by {apart} (boxes px, scores, count)")
            break
    label = f"PyTorch tensor in place, batch {batch}"
    return in_turns({label: partial(wall_ms, partial(backend.infer_device, tensor))}, seconds)


def streams(request: dict[str, Any], notes: Notes) -> None:
    """Frames a second of one thread, two threads on one model, and two models with a thread each."""
    path = Path(request["engine"])
    spec = manifest.read(path).engine
    if spec is None:
        raise Skip(f"{path.name}: its manifest does not describe an engine")
    opened(spec.library)
    camera = np.load(request["camera"])
    first, second = Model(TensorRtBackend(path)), Model(TensorRtBackend(path))
    rates = {}
    for name, models in (("one", [first]), ("two threads, one model", [first, first]), ("two models", [first, second])):
        rates[name] = rate([model for model in models], camera, request["seconds"])
        notes(frames_per_s=rates)
    notes(gain={name: round(value / rates["one"], 2) for name, value in rates.items() if name != "one"})
    first.close()
    second.close()


def rate(models: list[Model], camera: npt.NDArray[np.uint8], seconds: float) -> float:
    """Frames a second of threads, one for each of `models`, together.

    Raises:
        RuntimeError: A thread failed.
    """
    stop, counts, errors = threading.Event(), [0] * len(models), []
    ready = threading.Barrier(len(models) + 1)

    def work(index: int) -> None:
        try:
            for _ in range(5):
                models[index](camera)
            ready.wait()
            while not stop.is_set():
                models[index](camera)
                counts[index] += 1
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    try:
        ready.wait(timeout=60)
        start = time.perf_counter()
        stop.wait(seconds)
    except threading.BrokenBarrierError:
        start = time.perf_counter()
    finally:
        stop.set()
        elapsed_s = time.perf_counter() - start
        for thread in threads:
            thread.join()
    if errors:
        raise RuntimeError(f"a thread failed: {errors[0]}") from errors[0]
    return round(sum(counts) / elapsed_s, 1)


def onnxruntime(request: dict[str, Any], notes: Notes) -> None:
    """ONNX Runtime with one of its providers, from host frames to host proposals."""
    from edgerpn.errors import EngineLoadError
    from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    start = time.perf_counter()
    try:
        backend = OnnxRuntimeBackend(Path(request["onnx"]), providers=[request["provider"]])
    except EngineLoadError as error:
        raise Skip(str(error)) from error
    frames = load_frames(request["frames"])[:1]
    backend.infer(frames)
    notes(ran_by=backend.name, ready_s=round(time.perf_counter() - start, 2))
    label = f"ONNX Runtime {request['provider']}, {request['label']}, batch 1"
    notes(latency_ms=in_turns({label: lambda: wall_ms(lambda: backend.infer(frames))}, request["seconds"]))
    backend.close()

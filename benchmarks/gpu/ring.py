"""Stages without a library: the runner on a program of ours (shim.py), bit by bit."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.places import Frames, Place, open_place
from benchmarks.gpu.runner import Listener
from benchmarks.gpu.session import Notes, Skip
from benchmarks.gpu.shim import hashes, shim_library, write_engine
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import EngineConfig, FrameMemory
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend

ROWS = 100
SMALL_HW, LARGE_HW = (90, 150), (384, 640)
"""A frame of the small size is no multiple of 256 bytes, so that the second of a batch is not aligned."""
_LEAK_MIB = 16
_TURNS = 20
"""Batches of each of the four threads."""


class _Runner:
    """The runner on the kernels, for frames of one size."""

    def __init__(self, place: Place, work: Path, hw: tuple[int, int], profile: tuple[int, int, int]) -> None:
        self._place = place
        self._path = work / f"hashes-{hw[0]}x{hw[1]}.engine"
        capability = place.device.info.compute_capability
        self.manifest = write_engine(
            self._path, frame_hw=hw, num_proposals=ROWS, profile=profile, capability=capability
        )
        self._library = shim_library(place.hash_program(self.manifest), self.manifest)

    def load(self, *, num_slots: int = 2, frame_memory: FrameMemory = "auto") -> TensorRtBackend:
        config = EngineConfig(num_slots=num_slots, frame_memory=frame_memory)
        return TensorRtBackend(self._path, library=self._library, device=self._place.device, config=config)


def _frames(count: int, hw: tuple[int, int], seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, *hw, 3), dtype=np.uint8)


def _differences(found: Outputs, frames: Frames) -> int:
    """Number of values that are not the bits of the reference."""
    pairs = zip(found[:3], hashes(frames, ROWS)[:3], strict=True)
    return int(sum(np.count_nonzero(one.view(np.uint32) != other.view(np.uint32)) for one, other in pairs))


def ring(request: dict[str, Any], notes: Notes) -> None:
    """Frames through pinned memory, scratch memory and CUDA graphs, copied and mapped: every bit is the reference's."""
    place, work = open_place(request), Path(request["work"])
    listener, figures = Listener(), {}
    memories: tuple[FrameMemory, ...] = ("copied", "mapped")
    for hw, profile, turns in ((SMALL_HW, (1, 2, 4), 20), (LARGE_HW, (1, 1, 2), 10)):
        runner = _Runner(place, work, hw, profile)
        for memory in memories:
            backend = runner.load(frame_memory=memory)
            wrong = checked = 0
            for turn in range(turns):
                frames = _frames(1 + turn % (2 * profile[2] + 1), hw, turn)
                wrong += _differences(backend.infer(frames), frames)
                checked += len(frames)
            two = _frames(2, hw, 99)
            with backend.acquire() as first, backend.acquire() as second:
                for slot, frame in ((first, two[0]), (second, two[1])):
                    slot.frames[0] = frame
                    slot.submit(1)
                for slot, frame in ((second, two[1]), (first, two[0])):
                    wrong += _differences(slot.result(), frame[None])
            figures[f"{hw[0]}x{hw[1]}, {memory}"] = f"{checked + 2} frames, {wrong} wrong values"
            notes(bits=figures, cuda_graph=listener.graph(), contexts=[report.text() for report in backend.contexts])
            backend.close()
            if wrong:
                notes.broken(f"{hw[0]}x{hw[1]}, {memory}: {wrong} values differ from the reference")
    has_graphs = place.device.info.why_no_graphs is None
    if has_graphs and listener.graph() != "works":
        notes.broken(listener.graph())
    notes(frame_memory=runner.load().frame_memory.text())


def threads(request: dict[str, Any], notes: Notes) -> None:
    """Four threads on two slots; batch sizes that push each other's plans out; memory that comes back."""
    place, work = open_place(request), Path(request["work"])
    runner = _Runner(place, work, SMALL_HW, (1, 4, 8))
    notes(threads=_four_threads(runner, notes))
    notes(evicted_plans=_evicted_plans(place, runner, notes))
    notes(memory=_memory_returned(place, runner, notes))


def _four_threads(runner: _Runner, notes: Notes) -> str:
    backend, errors, wrong = runner.load(), [], []

    def work(number: int) -> None:
        try:
            for turn in range(_TURNS):
                frames = _frames(1 + (number + turn) % 8, SMALL_HW, 100 * number + turn)
                wrong.append(_differences(backend.infer(frames), frames))
        except Exception as error:  # noqa: BLE001 - reported below
            errors.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    backend.close()
    if errors or sum(wrong):
        notes.broken(f"four threads: {sum(wrong)} wrong values, errors: {errors}")
    return f"{len(wrong)} batches of four threads on two slots, {sum(wrong)} wrong values"


def _evicted_plans(place: Place, runner: _Runner, notes: Notes) -> str:
    """More batch sizes of direct input than a slot keeps plans for, several times each."""
    backend, wrong, calls = runner.load(num_slots=1), 0, 0
    kept = []  # addresses must differ, so that the graphs are not reused
    for _ in range(2):
        for size in range(1, 9):
            frames = _frames(size, SMALL_HW, size)
            for array in place.arrays(frames).values():
                kept.append(array)
                for _ in range(3):
                    wrong += _differences(backend.infer_device(array), frames)
                    calls += 1
    backend.close()
    if wrong:
        notes.broken(f"direct input in changing batch sizes: {wrong} wrong values")
    return f"{calls} calls, {wrong} wrong values"


def _memory_returned(place: Place, runner: _Runner, notes: Notes) -> dict[str, float]:
    free: list[int] = []
    for _ in range(7):
        backend = runner.load()
        for size in (1, 4, 8):
            frames = _frames(size, SMALL_HW, size)
            backend.infer(frames)
        backend.close()
        del backend
        gc.collect()
        with place.device.active():
            free.append(place.device.free_bytes())
    lost_mib = (free[1] - free[-1]) / 2**20  # the first two allocate memory that CUDA keeps
    if lost_mib > _LEAK_MIB:
        notes.broken(f"five loads left {lost_mib:.1f} MiB of the GPU's memory taken, expected at most {_LEAK_MIB}")
    return {"MiB taken after 5 loads": round(lost_mib, 1)}


def arrays(request: dict[str, Any], notes: Notes) -> None:
    """Arrays of PyTorch and CuPy in place: aligned and not, again from the same address, and late on a side stream."""
    place, work = open_place(request), Path(request["work"])
    runner = _Runner(place, work, SMALL_HW, (1, 2, 4))
    backend, frames = runner.load(num_slots=1), _frames(4, SMALL_HW, 5)
    results: dict[str, str] = {}

    def check(name: str, wrong: int) -> None:
        results[name] = "equal" if not wrong else f"{wrong} wrong values"
        if wrong:
            notes.broken(f"{name}: {wrong} wrong values")
        notes(arrays=results)

    for name, array in place.arrays(frames).items():
        check(name, sum(_differences(backend.infer_device(array), frames) for _ in range(4)))
    for name, array in place.arrays(frames[:2]).items():
        # A batch beyond the profile is split, and its later parts are not aligned.
        check(f"{name}, two frames", sum(_differences(backend.infer_device(array), frames[:2]) for _ in range(2)))
    many = _frames(9, SMALL_HW, 6)
    for name, array in place.arrays(many).items():
        check(f"{name}, 9 frames in parts", _differences(backend.infer_device(array), many))
    for name, late in place.late_arrays(frames).items():
        wrong = 0
        for _ in range(3):
            with late() as array:
                wrong += _differences(backend.infer_device(array), frames)
        check(f"{name}, late on a side stream", wrong)
    backend.close()
    if not results:
        raise Skip("neither PyTorch nor CuPy is installed here")

"""Scratch memory of execution contexts, on a stand-in that refuses what the libraries refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import EngineLoadError, InferenceError
from edgerpn.runtime.backends.tensorrt.context import ScratchArena, create_context, make_runtime_config
from edgerpn.runtime.backends.tensorrt.library import logger_of

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]
RTX = {"library": "tensorrt-rtx", "library_version": "1.7.1.116"}


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def opened(
    request: pytest.FixtureRequest, standin: ModuleType, make_engine: MakeModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, Path]:  # fmt: skip
    """A stand-in of each library that requires memory of the caller, and an engine for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench, is_rtx = standin.Bench(), request.param == "tensorrt-rtx"
    if is_rtx:
        bench.library = standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.library.requires_user_memory = True
    return bench, make_engine(tmp_path, **(RTX if is_rtx else {}))


def test_an_engine_that_requires_memory_of_the_caller_runs(opened: tuple[Any, Path], painted: Image) -> None:
    bench, path = opened
    backend = bench.load(path)
    for num_frames in (1, 2, 4, 1):
        assert backend.infer(painted[:num_frames])[2].tolist() == [i % 5 for i in range(num_frames)]
    assert bench.count("launch_graph") == 4
    assert "slow start" not in bench.library.events  # of engines that are built with DETAILED
    backend.close()
    assert bench.device.memory == bench.device.graphs == {}


def test_the_contexts_of_a_slot_share_memory_that_grows_with_the_batch(
    opened: tuple[Any, Path], standin: ModuleType, painted: Image
) -> None:
    bench, path = opened
    backend = bench.load(path, num_slots=1)

    def sizes() -> set[int]:
        return {array.nbytes for array in bench.device.memory.values()}

    assert 1024 in sizes()  # 1000 bytes for one frame, in units of 256
    backend.infer(painted[:2])
    assert 4096 in sizes()  # 4000 bytes for the largest batch, at once
    assert 1024 not in sizes()
    num_blocks = len(bench.device.memory)
    backend.infer(painted[:4])
    frames = standin.aligned(painted[:3])
    for _ in range(3):
        assert backend.infer_device(standin.OnGpu(bench.device, frames))[2].tolist() == [0, 1, 2]
        del bench.device.memory[frames.ctypes.data]
    assert len(bench.device.memory) == num_blocks
    backend.close()


def test_graphs_are_recorded_again_when_the_memory_moves(opened: tuple[Any, Path], painted: Image) -> None:
    bench, path = opened
    backend = bench.load(path, num_slots=1)
    backend.infer(painted[:1])
    backend.infer(painted[:2])  # moves
    launches = bench.count("launch_graph")
    assert backend.infer(painted[3:4])[2].tolist() == [3]
    assert bench.count("launch_graph") == launches + 1
    assert len(bench.device.graphs) == 2
    backend.close()


def test_a_slot_runs_on_where_more_memory_is_missing(opened: tuple[Any, Path], painted: Image) -> None:
    bench, path = opened
    backend = bench.load(path, num_slots=1)
    bench.device.failing["allocate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(InferenceError, match="memory is full"):
        backend.infer(painted[:2])
    assert backend.infer(painted[1:2])[2].tolist() == [1]
    bench.device.failing.clear()
    assert backend.infer(painted[1:3])[2].tolist() == [1, 2]
    backend.close()
    assert bench.device.memory == bench.device.graphs == {}


def test_a_library_that_asks_for_the_largest_size_gets_it(opened: tuple[Any, Path], painted: Image) -> None:
    bench, path = opened
    bench.library.wants_largest_memory = True
    backend = bench.load(path, num_slots=1)
    for num_frames in (1, 2, 4):
        assert backend.infer(painted[:num_frames])[2].tolist() == [i % 5 for i in range(num_frames)]
    assert {report.scratch_bytes for report in backend.contexts} <= {4000, 2000}
    backend.close()
    assert bench.device.memory == {}


def test_a_refusal_of_memory_is_seen_behind_any_number_of_errors(standin: ModuleType) -> None:
    device, log, given = standin.HostDevice(), logger_of(standin.Bench().library.module), []
    for number in range(30):
        log.log(standin.ILogger.ERROR, f"an old error {number}")

    class Context:
        def update_device_memory_size_for_shapes(self) -> int:
            return 1000

        def set_device_memory(self, memory: int, size: int) -> None:
            given.append(size)
            if size < 4000:
                log.log(standin.ILogger.ERROR, "the provided memory is too small")

    with device.active():
        arena = ScratchArena(device, device.create_stream())
        assert arena.add(Context(), SimpleNamespace(device_memory_size_v2=4000), log) == 4000
        arena.free()
    assert given == [1024, 4096]


def test_an_engine_that_cannot_run_at_load_is_an_error_with_the_words_of_the_library(
    opened: tuple[Any, Path],
) -> None:
    bench, path = opened
    bench.library.refuses = True
    with pytest.raises(EngineLoadError, match=r"cannot be prepared: .* batch of 1: the stand-in refuses to run"):
        bench.load(path)
    assert bench.device.memory == bench.device.queues == {}


def test_the_stand_in_refuses_what_the_library_refuses(opened: tuple[Any, Path], standin: ModuleType) -> None:
    bench, path = opened
    lines: list[str] = []

    class Log(standin.ILogger):  # type: ignore[name-defined]
        def log(self, severity: int, message: str) -> None:
            lines.append(message)

    module, device = bench.library.module, bench.device
    engine = module.Runtime(Log()).deserialize_cuda_engine(path.read_bytes())
    assert engine.create_execution_context() is None
    assert "requires ExecutionContextAllocationStrategy::kUSER_MANAGED" in lines.pop()
    context = create_context(module, engine, make_runtime_config(module, engine))
    with device.active():
        stream, memory = device.create_stream(), device.allocate(8192)
        assert context.update_device_memory_size_for_shapes() == 0  # no shape yet
        assert context.set_input_shape("frames", (2, 96, 160, 3))
        assert not context.execute_async_v3(stream)
        assert "should be called before enqueue" in lines.pop()
        for address, size, words in ((memory, 1999, "too small"), (memory + 1, 4000, "aligned"), (0, 4000, "aligned")):
            context.set_device_memory(address, size)
            assert words in lines.pop()
            assert not context.execute_async_v3(stream)
        context.set_device_memory(memory, 2000)
        assert context.execute_async_v3(stream)
        device.queues[stream].clear()
        assert context.set_input_shape("frames", (3, 96, 160, 3))
        assert not context.execute_async_v3(stream)  # the memory was for two frames


def test_contexts_are_made_when_they_are_needed_and_their_memory_is_reported(
    opened: tuple[Any, Path], painted: Image, caplog: pytest.LogCaptureFixture
) -> None:
    bench, path = opened
    with caplog.at_level("INFO"):
        backend = bench.load(path, num_slots=3)
    assert bench.library.events.count("context") == 1
    assert "execution context for batches of 1 in " in caplog.text
    backend.infer(painted[:1])
    assert bench.library.events.count("context") == 1
    with backend.acquire() as first, backend.acquire() as second:
        for slot, frame in ((first, painted[1]), (second, painted[2])):
            slot.frames[0] = frame
            slot.submit(1)
        assert [int(slot.result()[2][0]) for slot in (first, second)] == [1, 2]
    assert bench.library.events.count("context") == 2
    backend.infer(painted[:2])
    assert [(report.batch, report.scratch_bytes) for report in backend.contexts] == [(1, 1000), (1, 1000), (2, 2000)]
    assert [report.gpu_bytes for report in backend.contexts] == [1024, 1024, 4096 - 1024]
    backend.close()


@pytest.mark.parametrize(
    ("is_integrated", "gpu_wait", "blocks"),
    [(True, "auto", True), (False, "auto", False), (False, "block", True), (True, "spin", False)],
)
def test_threads_sleep_while_they_wait_for_an_integrated_gpu(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image, is_integrated: bool, gpu_wait: str,
    blocks: bool,
) -> None:  # fmt: skip
    bench = standin.Bench(can_share_memory=is_integrated)
    backend = bench.load(make_engine(tmp_path), gpu_wait=gpu_wait)
    for _ in range(3):
        backend.infer(painted[:1])
    assert bench.device.blocking_waits == (3 if blocks else 0)
    backend.close()


def test_an_engine_without_scratch_memory_gets_some(standin: ModuleType) -> None:
    device, given = standin.HostDevice(), []

    class Context:
        def update_device_memory_size_for_shapes(self) -> int:
            return 0

        def set_device_memory(self, memory: int, size: int) -> None:
            given.append((memory % 256, size))

    class Engine:
        device_memory_size_v2 = 0

    with device.active():
        arena = ScratchArena(device, device.create_stream())
        assert arena.add(Context(), Engine(), SimpleNamespace(num_errors=0)) == 0
        arena.free()
    assert given == [(0, 256)]
    assert device.memory == {}

"""The TensorRT runner's logic, on a stand-in of library and GPU (see tensorrt_standin.py)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import (
    ArtifactMismatchError,
    EngineLoadError,
    InferenceError,
    InputError,
    MissingDependencyError,
)
from edgerpn.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edgerpn.runtime.tensorrt_backend import TensorRtBackend

pytestmark = pytest.mark.timeout(60)

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


class Bench:
    """A stand-in device and library, and backends on them."""

    def __init__(self, standin: ModuleType, **device: Any) -> None:
        self.standin = standin
        self.device = standin.HostDevice(**device)
        self.library = standin.Library(self.device)

    def load(self, path: Path, **options: Any) -> TensorRtBackend:
        return TensorRtBackend(path, library=self.library.opened(), device=self.device, **options)

    def count(self, call: str) -> int:
        return int(self.device.calls.count(call))


@pytest.fixture
def bench(standin: ModuleType) -> Bench:
    return Bench(standin)


@pytest.fixture
def painted(paint: Callable[..., Image]) -> Image:
    """Nine frames (9, 96, 160, 3), each with another box and count."""
    return np.stack([paint(96, 160, box=(5 + i, 10, 60 + i, 70), count=i % 5) for i in range(9)])


def expected(folder: Path, make_model: MakeModel, frames: Image) -> tuple[Any, ...]:
    """What ONNX Runtime says of the same graph."""
    (folder / "reference").mkdir(exist_ok=True)
    backend = OnnxRuntimeBackend(make_model(folder / "reference", batch=None), threads=1)
    return backend.infer(frames)


def assert_same(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("can_share_memory", [False, True])
def test_any_number_of_frames_gives_what_onnx_runtime_gives(
    standin: ModuleType, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image,
    num_frames: int, can_share_memory: bool,
) -> None:  # fmt: skip
    bench = Bench(standin, can_share_memory=can_share_memory)
    wanted = expected(tmp_path, make_model, painted[:num_frames])
    backend = bench.load(make_engine(tmp_path))
    for _ in range(2):
        assert_same(backend.infer(painted[:num_frames]), wanted)
    backend.close()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_padded_and_split(
    bench: Bench, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image, batch: int
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=batch))
    assert_same(backend.infer(painted[:4]), expected(tmp_path, make_model, painted[:4]))
    backend.close()


def test_a_batch_below_the_smallest_of_the_profile_is_padded(
    bench: Bench, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    bench.library.profile = (2, 3, 4)
    backend = bench.load(make_engine(tmp_path, profile=(2, 3, 4)))
    assert_same(backend.infer(painted[:1]), expected(tmp_path, make_model, painted[:1]))
    backend.close()


def test_integrated_gpus_copy_nothing_and_others_once_each_way(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    shared, discrete = Bench(standin, can_share_memory=True), Bench(standin)
    path = make_engine(tmp_path, batch=1)
    shared.load(path).close()
    discrete.load(path, num_slots=1).close()
    assert shared.count("upload") == shared.count("download") == shared.count("allocate") == 0
    # Once for the first run and once for the capture.
    assert discrete.count("upload") == discrete.count("download") == 2


def test_each_batch_size_is_captured_once_and_then_launched(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path), num_slots=1)
    assert bench.count("begin_capture") == 1  # one frame, at load
    for num_frames in (1, 2, 1, 2, 3, 4, 1):
        backend.infer(painted[:num_frames])
    assert bench.count("begin_capture") == 3
    assert bench.count("launch_graph") == 7
    assert bench.library.events.count("context") == 3
    backend.close()


def test_two_slots_are_two_batches_in_flight(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    assert backend.frames_in_flight == 2
    first, second = backend.acquire(), backend.acquire()
    first.frames[0], second.frames[0] = painted[1], painted[2]
    first.submit(1)
    second.submit(1)
    assert [int(slot.result()[2][0]) for slot in (second, first)] == [2, 1]
    first.release()
    second.release()
    backend.close()


def test_nothing_is_ready_before_result_and_views_change_with_the_next_frame(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1), num_slots=1)
    with backend.acquire() as slot:
        slot.frames[0] = painted[3]
        slot.submit()
        count = slot.result()[2]
        assert count.tolist() == [3]
        slot.frames[0] = painted[4]
        slot.submit()
        assert count.tolist() == [3]  # not yet
        slot.result()
        assert count.tolist() == [4]  # a view
    owned = backend.infer(painted[1:2])
    backend.infer(painted[2:3])
    assert owned[2].tolist() == [1]
    backend.close()


def test_a_slot_says_what_it_is_used_wrongly_for(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path))
    slot = backend.acquire()
    with pytest.raises(RuntimeError, match="call submit before result"):
        slot.result()
    with pytest.raises(ValueError, match="num_frames: expected 1 to 4, got 5"):
        slot.submit(5)
    slot.submit(1)
    with pytest.raises(RuntimeError, match="call result before the next submit"):
        slot.submit(1)
    slot.release()
    slot.release()
    with pytest.raises(RuntimeError, match="given back"):
        slot.submit(1)
    backend.close()


def test_many_threads_share_a_backend(
    bench: Bench, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    wanted = expected(tmp_path, make_model, painted)
    backend = bench.load(make_engine(tmp_path))
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(20):
                first = (start + i) % 6
                stop = first + 1 + i % 3
                assert_same(backend.infer(painted[first:stop]), tuple(array[first:stop] for array in wanted))
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    backend.close()


def test_a_third_caller_waits_for_a_slot(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    slots = [backend.acquire(), backend.acquire()]
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(backend.acquire()))
    thread.start()
    thread.join(timeout=0.2)
    assert got == []
    slots[0].release()
    thread.join(timeout=5)
    assert got == [slots[0]]
    got[0].release()
    slots[1].release()
    backend.close()


def test_closing_frees_everything_and_waits_for_what_is_in_use(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path))
    slot = backend.acquire()
    slot.frames[0] = painted[2]
    slot.submit(1)
    backend.close()
    backend.close()
    assert slot.result()[2].tolist() == [2]
    assert len(bench.device.queues) == 1
    slot.release()
    assert bench.device.queues == bench.device.memory == bench.device.graphs == {}
    with pytest.raises(RuntimeError, match="the model is closed"):
        backend.infer(painted[:1])


def test_closing_wakes_who_waits(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1), num_slots=1)
    slot = backend.acquire()
    caught: list[str] = []

    def wait() -> None:
        try:
            backend.acquire()
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    backend.close()
    thread.join(timeout=5)
    assert caught == ["the model is closed"]
    slot.release()


def test_a_backend_that_is_forgotten_frees_its_memory(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    del backend
    gc.collect()
    assert bench.device.memory == bench.device.queues == {}


@pytest.mark.parametrize(
    ("reason", "text"),
    [("refuses", "refused to start a batch"), ("provider", "PyCUDA has none"), ("driver", "CUDA_ERROR_NOT_SUPPORTED")],
)
def test_without_graphs_it_runs_all_the_same_and_says_why_once(
    standin: ModuleType, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image,
    caplog: pytest.LogCaptureFixture, reason: str, text: str,
) -> None:  # fmt: skip
    bench = Bench(standin, why_no_graphs="PyCUDA has none" if reason == "provider" else None)
    bench.library.refuses_capture = reason == "refuses"
    if reason == "driver":
        bench.device.failing["begin_capture"] = "CUDA_ERROR_NOT_SUPPORTED"
    backend = bench.load(make_engine(tmp_path))
    assert_same(backend.infer(painted[:3]), expected(tmp_path, make_model, painted[:3]))
    lines = [record.message for record in caplog.records if "without CUDA graphs" in record.message]
    assert len(lines) == 1
    assert text in lines[0]
    assert bench.count("launch_graph") == 0
    backend.close()
    assert bench.device.graphs == bench.device.captures == {}


def test_a_library_that_cannot_be_captured_is_asked_first(
    bench: Bench,
    make_engine: MakeModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.library = bench.standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.library.is_capturable = False
    path = make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version="1.7.1.116")
    bench.load(path).close()
    assert "cannot be captured" in caplog.text
    assert bench.count("begin_capture") == 0


def test_tensorrt_rtx_says_that_it_compiles_and_keeps_what_it_compiled(
    bench: Bench,
    make_engine: MakeModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version="1.7.1.116")
    bench.library = bench.standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.load(path).close()
    assert bench.library.config.cuda_graph_strategy == "disabled"
    assert "compiles the engine for this GPU" in caplog.text
    (file,) = (tmp_path / "cache" / "edgerpn" / "tensorrt-rtx").iterdir()
    assert file.name.endswith("-1.7.1.116-Stand-in-8-7.bin")
    caplog.clear()
    bench.library = bench.standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.load(path).close()
    assert bench.library.cache.loaded == b"kernel,kernel"
    assert "compiles" not in caplog.text


def test_a_cache_folder_that_cannot_be_written_costs_a_warning_only(
    bench: Bench,
    make_engine: MakeModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.library = bench.standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.load(make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version="1.7.1.116")).close()
    assert "the next start compiles again" in caplog.text


def test_errors_of_cuda_name_the_call_and_what_to_do(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    path = make_engine(tmp_path, batch=1)
    bench.device.failing["allocate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(EngineLoadError, match=r"allocate failed with CUDA_ERROR_OUT_OF_MEMORY.*memory is full"):
        bench.load(path)
    bench.device.failing.clear()
    backend = bench.load(path)
    bench.device.failing["synchronize"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(InferenceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start it again"):
        backend.infer(painted[:1])
    bench.device.failing.clear()
    bench.device.failing["launch_graph"] = "CUDA_ERROR_UNKNOWN"
    with pytest.raises(InferenceError, match=r"cannot be started.*CUDA_ERROR_UNKNOWN"):
        backend.infer(painted[:1])
    bench.device.failing.clear()
    assert backend.infer(painted[:1])[2].tolist() == [0]
    backend.close()


def test_what_the_library_said_is_in_the_error(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    path = make_engine(tmp_path, batch=1)
    bench.library.refuses_context = True
    with pytest.raises(EngineLoadError, match=r"cannot make an execution context: the stand-in is out of memory"):
        bench.load(path)
    assert bench.device.memory == bench.device.queues == {}
    bench.library.refuses_context = False
    bench.library.refuses_capture = True
    backend = bench.load(path)
    bench.library.refuses = True
    with pytest.raises(InferenceError, match=r"refused to start a batch of 1: the stand-in refuses to run"):
        backend.infer(painted[:1])
    backend.close()


def test_a_file_that_the_library_refuses_is_a_load_error(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    from edgerpn import manifest as manifests

    path = make_engine(tmp_path, batch=1)
    manifest = manifests.read(path)
    path.write_bytes(b"not an engine")
    manifests.write(manifest, path)
    with pytest.raises(EngineLoadError, match=r"TensorRT 10.3.0.26 refuses the engine: the magic tag is wrong.*why"):
        bench.load(path)


def test_an_engine_with_other_tensors_than_its_manifest_is_refused(
    bench: Bench, make_engine: MakeModel, tmp_path: Path
) -> None:
    bench.library.profile = (1, 2, 8)
    with pytest.raises(ArtifactMismatchError, match=r"batches of 1 to 4, but it takes 1 to 8"):
        bench.load(make_engine(tmp_path))


def test_wrong_frames_are_refused(bench: Bench, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path))
    with pytest.raises(InputError, match=r"expected shape \(N, 96, 160, 3\)"):
        backend.infer(np.zeros((1, 96, 161, 3), np.uint8))
    with pytest.raises(ValueError, match="num_slots"):
        bench.load(make_engine(tmp_path), num_slots=0)
    backend.close()


@pytest.mark.parametrize("what", ["shape", "address"])
def test_what_the_library_refuses_of_a_context_is_an_error(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image, what: str
) -> None:
    backend = bench.load(make_engine(tmp_path), num_slots=1)
    bench.library.refuses_shape = what == "shape"
    bench.library.refused_addresses = {"scores"} if what == "address" else set()
    with pytest.raises(InferenceError, match=rf"the library refused .*: the stand-in refuses the {what}"):
        backend.infer(painted[:2])
    bench.library.refuses_shape, bench.library.refused_addresses = False, set()
    assert backend.infer(painted[1:3])[2].tolist() == [1, 2]
    backend.close()


def test_a_batch_that_failed_has_no_result(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1), num_slots=1)
    with backend.acquire() as slot:
        slot.frames[0] = painted[3]
        slot.submit()
        assert slot.result()[2].tolist() == [3]
        for call, failing in (("launch_graph", slot.submit), ("synchronize", slot.result)):
            if call == "synchronize":
                slot.submit()
            bench.device.failing[call] = "CUDA_ERROR_UNKNOWN"
            with pytest.raises(InferenceError):
                failing()
            bench.device.failing.clear()
            with pytest.raises(RuntimeError, match="call submit before result"):
                slot.result()
        bench.device.drain(slot.stream)
        slot.frames[0] = painted[4]
        slot.submit()
        assert slot.result()[2].tolist() == [4]
    backend.close()


@pytest.mark.parametrize(
    "call", [("allocate", 1), ("allocate", 2), ("allocate", 4), ("allocate_host", 2), ("create_stream", 2)]
)
def test_a_load_that_fails_leaves_nothing_behind(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, call: tuple[str, int]
) -> None:
    bench.device.failing_at[call] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(EngineLoadError, match="memory is full"):
        bench.load(make_engine(tmp_path))
    assert bench.device.memory == bench.device.queues == bench.device.graphs == {}


def test_what_cannot_be_freed_does_not_keep_the_rest(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    bench.device.failing_at["free", 1] = "CUDA_ERROR_UNKNOWN"
    bench.device.failing_at["destroy_graph", 1] = "CUDA_ERROR_UNKNOWN"
    backend.close()
    assert bench.device.queues == {}
    assert len(bench.device.memory) == len(bench.device.graphs) == 1
    assert caplog.text.count("could not be freed") == 2


def test_code_that_an_engine_brings_runs_only_when_allowed(
    bench: Bench, make_engine: MakeModel, tmp_path: Path
) -> None:
    path = make_engine(tmp_path, version_compatible=True)
    bench.library.has_host_code = True
    with pytest.raises(EngineLoadError, match=r"host code that is not allowed.*allow_host_code=True"):
        bench.load(path)
    bench.load(path, allow_host_code=True).close()
    # An engine that needs no such code gets no such right, whatever was allowed.
    (tmp_path / "plain").mkdir()
    plain = make_engine(tmp_path / "plain")
    with pytest.raises(EngineLoadError, match="not allowed"):
        bench.load(plain, allow_host_code=True)
    assert bench.library.host_code_allowed == [False, True, False]


def test_a_given_gpu_is_used_whatever_else_is_missing(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(tmp_path)
    library = bench.library.opened()
    monkeypatch.setattr("edgerpn.runtime.compatibility.import_library", lambda *_, **__: library)
    backend = TensorRtBackend(path, device=bench.device)
    assert bench.device.info.name in backend.name
    backend.close()


def test_a_missing_package_keeps_its_own_error(
    bench: Bench, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(*_: object) -> None:
        raise MissingDependencyError("neither cuda-bindings nor PyCUDA")

    monkeypatch.setattr("edgerpn.runtime.compatibility.open_device", none_here)
    with pytest.raises(MissingDependencyError, match="neither cuda-bindings nor PyCUDA"):
        TensorRtBackend(make_engine(tmp_path), library=bench.library.opened())

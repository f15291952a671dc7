"""The TensorRT runner's logic, on a stand-in of library and GPU (see tensorrt_standin.py)."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn import manifest as manifests
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.support.models import rename_in_manifest, rename_tensors

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


def expected(folder: Path, make_model: MakeModel, frames: Image, **options: Any) -> Outputs:
    """Outputs of ONNX Runtime for the same graph."""
    (folder / "reference").mkdir(exist_ok=True)
    backend = OnnxRuntimeBackend(make_model(folder / "reference", batch=None, **options), threads=1)
    return backend.infer(frames)


def assert_same(found: Outputs, wanted: Outputs) -> None:
    assert found.present.keys() == wanted.present.keys()
    for one, other in zip(found.present.values(), wanted.present.values(), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("can_share_memory", [False, True])
def test_any_number_of_frames_gives_the_outputs_of_onnx_runtime(
    standin: ModuleType, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image,
    num_frames: int, can_share_memory: bool,
) -> None:  # fmt: skip
    bench = standin.Bench(can_share_memory=can_share_memory)
    wanted = expected(tmp_path, make_model, painted[:num_frames])
    backend = bench.load(make_engine(tmp_path))
    for _ in range(2):
        assert_same(backend.infer(painted[:num_frames]), wanted)
    backend.close()


def test_an_engine_of_a_graph_with_renamed_tensors_runs_by_the_names_of_its_manifest(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    path = make_engine(tmp_path)
    manifest = manifests.read(path)
    rename_tensors(path, path)
    manifests.write(rename_in_manifest(manifest), path)
    backend = bench.load(path)
    assert_same(backend.infer(painted[:3]), expected(tmp_path, make_model, painted[:3]))
    backend.close()


def test_an_engine_with_classes_embeddings_and_features_returns_them_too(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    options: dict[str, Any] = {"is_described": True, "class_names": ("fish", "crab")}
    backend = bench.load(make_engine(tmp_path, **options))
    wanted = expected(tmp_path, make_model, painted[:5], **options)
    assert list(wanted.present) == ["boxes", "scores", "count", "labels", "class_scores", "embeddings", "features"]
    assert_same(backend.infer(painted[:5]), wanted)
    backend.close()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_padded_and_split(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image, batch: int
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=batch))
    assert_same(backend.infer(painted[:4]), expected(tmp_path, make_model, painted[:4]))
    backend.close()


def test_a_profile_with_one_batch_size_runs_as_a_fixed_batch(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    bench.library.profile = (2, 2, 2)
    backend = bench.load(make_engine(tmp_path, profile=(2, 2, 2)))
    assert_same(backend.infer(painted[:3]), expected(tmp_path, make_model, painted[:3]))
    backend.close()


def test_closing_lets_go_of_the_engine_while_the_object_is_still_held(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    older = {id(found) for found in gc.get_objects() if type(found).__name__ == "Engine"}
    backend = bench.load(make_engine(tmp_path))
    backend.infer(painted[:1])
    engines = [found for found in gc.get_objects() if type(found).__name__ == "Engine" and id(found) not in older]
    held = [weakref.ref(engine) for engine in engines]
    assert len(held) == 1
    del engines
    backend.close()
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


def test_a_batch_below_the_smallest_of_the_profile_is_padded(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    bench.library.profile = (2, 3, 4)
    backend = bench.load(make_engine(tmp_path, profile=(2, 3, 4)))
    assert_same(backend.infer(painted[:1]), expected(tmp_path, make_model, painted[:1]))
    backend.close()


def test_integrated_gpus_copy_nothing_and_others_once_each_way(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    shared, discrete = standin.Bench(can_share_memory=True), standin.Bench()
    path = make_engine(tmp_path, batch=1)
    shared.load(path, frame_memory="mapped").close()
    discrete.load(path, num_slots=1).close()
    assert shared.count("upload") == shared.count("download") == 0
    assert shared.count("allocate") == 1  # the scratch memory of the first slot's context
    # Once for the first run and once for the capture.
    assert discrete.count("upload") == discrete.count("download") == 2
    copying = standin.Bench(can_share_memory=True)
    copying.load(path, frame_memory="copied").close()
    assert copying.count("upload") == copying.count("download") == 2


def test_each_batch_size_is_captured_once_and_then_launched(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path), num_slots=1)
    assert bench.count("begin_capture") == 1  # one frame, at load
    for num_frames in (1, 2, 1, 2, 3, 4, 1):
        backend.infer(painted[:num_frames])
    # The scratch memory moves when the second size needs more, so the first graph is recorded again.
    assert bench.count("begin_capture") == 4
    assert bench.count("launch_graph") == 7
    assert bench.library.events.count("context") == 3
    backend.close()


def test_two_slots_are_two_batches_in_flight(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
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
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
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


def test_wrong_uses_of_a_slot_are_errors(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
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
    with pytest.raises(RuntimeError, match="was released"):
        slot.submit(1)
    backend.close()


def test_many_threads_share_a_backend(
    bench: Any, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image
) -> None:
    wanted = expected(tmp_path, make_model, painted)
    backend = bench.load(make_engine(tmp_path))
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(20):
                first = (start + i) % 6
                stop = first + 1 + i % 3
                assert_same(backend.infer(painted[first:stop]), wanted.each(itemgetter(slice(first, stop))))
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []
    backend.close()


def test_a_third_caller_waits_for_a_slot(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    slots = [backend.acquire(), backend.acquire()]
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(backend.acquire()))
    thread.start()
    thread.join(timeout=0.2)
    assert got == []
    slots[0].release()
    thread.join(timeout=60)
    assert got == [slots[0]]
    got[0].release()
    slots[1].release()
    backend.close()


def test_a_thread_that_holds_every_slot_does_not_wait_for_itself(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    slots = [backend.acquire(), backend.acquire()]
    for call in (backend.acquire, lambda: backend.infer(painted[:1])):
        with pytest.raises(RuntimeError, match="this thread holds all 2 slots of the engine: release one"):
            call()
    slots[0].release()
    assert backend.infer(painted[2:3])[2].tolist() == [2]
    slots[1].release()
    backend.close()


def test_closing_frees_everything_and_waits_for_used_slots(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
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


def test_closing_wakes_waiting_threads(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
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
    thread.join(timeout=60)
    assert caught == ["the model is closed"]
    slot.release()


def test_a_backend_that_is_forgotten_frees_its_memory(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    del backend
    gc.collect()
    assert bench.device.memory == bench.device.queues == {}


@pytest.mark.parametrize(
    ("reason", "text"),
    [("refuses", "refused to start a batch"), ("provider", "PyCUDA has none"), ("driver", "CUDA_ERROR_NOT_SUPPORTED")],
)
def test_without_graphs_it_still_runs_and_logs_the_reason_once(
    standin: ModuleType, make_engine: MakeModel, make_model: MakeModel, tmp_path: Path, painted: Image,
    caplog: pytest.LogCaptureFixture, reason: str, text: str,
) -> None:  # fmt: skip
    bench = standin.Bench(why_no_graphs="PyCUDA has none" if reason == "provider" else None)
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

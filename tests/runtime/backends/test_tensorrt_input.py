"""Frames in GPU memory on the stand-in of library and GPU: read in place, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import InputError
from edgerpn.runtime.backends.contract import EngineConfig
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


@pytest.fixture
def device(standin: ModuleType) -> Any:
    return standin.HostDevice()


@pytest.fixture
def backend(standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path) -> Iterator[TensorRtBackend]:
    library = standin.Library(device).opened()
    backend = TensorRtBackend(make_engine(tmp_path), library=library, device=device, config=EngineConfig(num_slots=1))
    device.calls.clear()
    yield backend
    backend.close()


@pytest.fixture
def painted(paint: Callable[..., Image]) -> Image:
    return np.stack([paint(96, 160, box=(5 + i, 10, 60 + i, 70), count=1 + i % 5) for i in range(6)])


@pytest.mark.parametrize("num_frames", [1, 3, 4, 6])
@pytest.mark.parametrize("protocol", ["OnGpu", "OnGpuDlpack"])
def test_device_memory_is_read_in_place(
    backend: TensorRtBackend, standin: ModuleType, device: Any, painted: Image, protocol: str, num_frames: int
) -> None:
    frames = standin.aligned(painted[:num_frames])
    wanted = backend.infer(frames)
    device.calls.clear()
    for _ in range(3):
        found = backend.infer_device(getattr(standin, protocol)(device, frames))
        for one, other in zip(found[:3], wanted[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    assert "upload" not in device.calls
    assert "copy_device" not in device.calls


def test_the_same_memory_is_captured_at_the_second_call_and_launched_later(
    backend: TensorRtBackend, standin: ModuleType, device: Any, painted: Image
) -> None:
    frames = standin.aligned(painted[:1])
    counts = []
    for index in range(4):
        frames[:] = painted[index]
        counts.append(int(backend.infer_device(standin.OnGpu(device, frames))[2][0]))
    assert counts == [1, 2, 3, 4]
    assert device.calls.count("begin_capture") == 1
    assert device.calls.count("launch_graph") == 3


def test_memory_that_changes_every_time_is_never_captured(
    backend: TensorRtBackend, standin: ModuleType, device: Any, painted: Image
) -> None:
    first, second = standin.aligned(painted[:1]), standin.aligned(painted[1:2])
    for _ in range(3):
        assert backend.infer_device(standin.OnGpu(device, first))[2].tolist() == [1]
        assert backend.infer_device(standin.OnGpu(device, second))[2].tolist() == [2]
    assert "begin_capture" not in device.calls


@pytest.mark.parametrize("reason", ["driver", "library", "interrupt"])
def test_a_capture_that_fails_is_not_tried_again_and_runs_nothing_twice(
    standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path, painted: Image, reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    library = standin.Library(device)
    backend = TensorRtBackend(
        make_engine(tmp_path), library=library.opened(), device=device, config=EngineConfig(num_slots=1)
    )
    array = standin.OnGpu(device, standin.aligned(painted[:1]))
    backend.infer_device(array)
    if reason == "driver":
        device.failing["begin_capture"] = "CUDA_ERROR_NOT_SUPPORTED"
    library.refuses_capture = reason == "library"
    if reason == "interrupt":
        library.interrupts_capture = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            backend.infer_device(array)
        assert device.captures == {}
        library.interrupts_capture = None
    library.events.clear()
    device.calls.clear()
    for _ in range(6):
        assert backend.infer_device(array)[2].tolist() == [1]
    if reason == "interrupt":
        assert library.events == ["recorded"]
    else:
        assert library.events.count("enqueued") == 6
        assert device.calls.count("begin_capture") == 1
        assert "runs without CUDA graphs" in caplog.text
    backend.close()


def test_a_provider_without_graphs_is_never_asked_to_capture(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    device = standin.HostDevice(why_no_graphs="PyCUDA has none")
    library = standin.Library(device)
    backend = TensorRtBackend(
        make_engine(tmp_path), library=library.opened(), device=device, config=EngineConfig(num_slots=1)
    )
    array = standin.OnGpu(device, standin.aligned(painted[:1]))
    library.events.clear()
    for _ in range(4):
        backend.infer_device(array)
    assert library.events.count("enqueued") == 4
    assert "begin_capture" not in device.calls
    backend.close()


@pytest.mark.parametrize("can_share_memory", [False, True])
def test_unaligned_frames_are_copied_on_the_gpu(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image, can_share_memory: bool
) -> None:
    device = standin.HostDevice(can_share_memory=can_share_memory)
    library = standin.Library(device).opened()
    backend = TensorRtBackend(make_engine(tmp_path), library=library, device=device, config=EngineConfig(num_slots=1))
    wanted = backend.infer(painted)
    array = standin.OnGpu(device, standin.aligned(painted, offset=16))
    for _ in range(3):
        for one, other in zip(backend.infer_device(array)[:3], wanted[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    assert device.calls.count("copy_device") == 6  # two parts of six frames
    backend.close()


def test_parts_of_other_sizes_keep_their_contexts(
    standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    library = standin.Library(device)
    library.profile = (1, 2, 5)
    backend = TensorRtBackend(
        make_engine(tmp_path, profile=(1, 2, 5)),
        library=library.opened(),
        device=device,
        config=EngineConfig(num_slots=1),
    )
    arrays = [standin.OnGpu(device, standin.aligned(painted[:size])) for size in (1, 2, 3, 4, 5)]
    before = library.events.count("context")
    for _ in range(3):
        for array in arrays[:4]:
            backend.infer_device(array)
    assert library.events.count("context") - before == 4
    backend.infer_device(arrays[4])
    backend.infer_device(arrays[1])
    assert library.events.count("context") - before == 5
    backend.infer_device(arrays[0])  # the one that made room
    assert library.events.count("context") - before == 6
    backend.close()


def test_kernels_that_are_compiled_for_a_size_of_direct_input_are_kept(
    standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path, painted: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_engine(tmp_path, library="tensorrt-rtx", library_version="1.7.1.116")
    library = standin.Library(device, is_rtx=True, version="1.7.1.116").opened()
    backend = TensorRtBackend(path, library=library, device=device, config=EngineConfig(num_slots=1))
    backend.infer_device(standin.OnGpu(device, standin.aligned(painted[:3])))
    (file,) = (tmp_path / "cache" / "edgerpn" / "tensorrt-rtx").iterdir()
    assert "kernel for 3" in file.read_text().split(",")
    backend.close()


@pytest.mark.parametrize(
    ("changes", "waits"),
    [({"stream": 900}, [900]), ({"stream": None}, []), ({"version": 2}, [1]), ({"stream": 2}, [2])],
)
def test_the_slot_waits_for_the_stream_that_the_interface_names(
    backend: TensorRtBackend, standin: ModuleType, device: Any, painted: Image, changes: dict[str, Any],
    waits: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    waited: list[int] = []
    frames = np.zeros_like(painted[:1])
    array = standin.OnGpu(device, frames, **changes)
    for producer in (1, 2, 900):
        # The stand-in paints the frame only when a caller waits for this work.
        device.queues[producer] = [lambda: np.copyto(frames, painted[2:3])]
    original = device.wait_for

    def wait_for(stream: int, producer: int) -> None:
        waited.append(producer)
        original(stream, producer)

    monkeypatch.setattr(device, "wait_for", wait_for)
    count = int(backend.infer_device(array)[2][0])
    assert waited == waits
    assert count == (3 if waits else 0)


def test_dlpack_is_asked_for_the_slots_stream_and_its_capsule_is_not_consumed(
    standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    backend = TensorRtBackend(
        make_engine(tmp_path), library=standin.Library(device).opened(), device=device, config=EngineConfig(num_slots=1)
    )

    array = standin.OnGpuDlpack(device, painted[:1].copy())
    backend.infer_device(array)
    assert array.streams == list(device.queues)
    assert standin.capsule_name(array.capsules[0]) == b"dltensor"
    backend.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, d, a: a, "DLPack device type 1.*`infer`"),
        (lambda s, d, a: s.OnGpuDlpack(d, a, (3, 0)), "DLPack device type 3"),
        (lambda s, d, a: "frames", "got str, which has neither"),
        (lambda s, d, a: s.OnGpu(d, a.astype(np.float32)), "expected dtype uint8.*<f4"),
        (lambda s, d, a: s.OnGpu(d, a[:, :, :, ::-1]), "C-contiguous array, got strides"),
        (lambda s, d, a: s.OnGpu(d, a[:, :90].copy()), r"expected shape \(N, 96, 160, 3\) .* got \(1, 90, 160, 3\)"),
        (lambda s, d, a: s.OnGpu(d, a[0].copy()), r"got \(96, 160, 3\)"),
        (lambda s, d, a: s.OnGpu(d, a, mask=object()), "without a mask"),
        (lambda s, d, a: s.OnGpu(d, a, data=(12345, False)), "not memory of the engine's GPU.*ILLEGAL_ADDRESS"),
        (lambda s, d, a: s.OnGpuDlpack(d, a, (2, 1)), "expected an array on GPU 0, .* got GPU 1"),
        (lambda s, d, a: s.OnGpuDlpack(d, a.astype(np.float32)), "expected dtype uint8, got DLPack type code 2 of 32"),
        (lambda s, d, a: s.OnGpuDlpack(d, np.asfortranarray(a)), "C-contiguous"),
    ],
)
def test_unsuitable_arrays_are_refused_by_name(
    backend: TensorRtBackend, standin: ModuleType, device: Any, painted: Image, make: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        backend.infer_device(make(standin, device, painted[:1].copy()))
    # The slot came back.
    assert backend.infer(painted[:1])[2].tolist() == [1]


def test_too_few_frames_for_the_profile_are_refused(
    standin: ModuleType, device: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    library = standin.Library(device)
    library.profile = (2, 2, 4)
    backend = TensorRtBackend(make_engine(tmp_path, profile=(2, 2, 4)), library=library.opened(), device=device)
    with pytest.raises(InputError, match="1 frames cannot be run in place: the engine takes batches of 2 to 4"):
        backend.infer_device(standin.OnGpu(device, painted[:1].copy()))
    backend.close()

"""Failures of library, GPU, engine and caller in the TensorRT runner, on the stand-in (see tensorrt_standin.py)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
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
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


@pytest.fixture
def rtx_path(bench: Any, make_engine: MakeModel, tmp_path: Path) -> Path:
    """An engine of TensorRT-RTX, which is the library of the bench."""
    bench.library = type(bench.library)(bench.device, is_rtx=True, version="1.7.1.116")
    return make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version="1.7.1.116")


def test_a_library_that_cannot_be_captured_is_asked_first(
    bench: Any,
    rtx_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.library.is_capturable = False
    bench.load(rtx_path).close()
    assert "cannot be captured" in caplog.text
    assert bench.count("begin_capture") == 0


def test_tensorrt_rtx_logs_that_it_compiles_and_keeps_the_kernels(
    bench: Any,
    rtx_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.load(rtx_path).close()
    assert bench.library.config.cuda_graph_strategy == "disabled"
    assert "compiles the engine for this GPU" in caplog.text
    (file,) = (tmp_path / "cache" / "edgerpn" / "tensorrt-rtx").iterdir()
    assert file.name.endswith("-1.7.1.116-Stand-in-8-7.bin")
    caplog.clear()
    bench.library = type(bench.library)(bench.device, is_rtx=True, version="1.7.1.116")
    bench.load(rtx_path).close()
    assert bench.library.cache.loaded == b"kernel"
    assert "compiles" not in caplog.text


def test_an_engine_outlives_the_configuration_that_it_made(
    bench: Any, rtx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.load(rtx_path).close()
    gc.collect()
    freed = [event for event in bench.library.events if event.endswith(("freed", "destroyed"))]
    assert freed[-3:] == ["configuration freed", "engine freed", "runtime destroyed"]


def test_a_cache_folder_that_cannot_be_written_costs_a_warning_only(
    bench: Any,
    rtx_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench.load(rtx_path).close()
    assert "the next start compiles again" in caplog.text


def test_a_user_without_a_home_folder_runs_engines_too(
    bench: Any,
    rtx_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    bench.load(rtx_path).close()
    assert "there is no home folder to keep compiled kernels in" in caplog.text


def test_errors_of_cuda_name_the_call_and_contain_advice(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
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


def test_messages_of_the_library_are_in_the_error(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image
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


def test_a_file_that_the_library_refuses_is_a_load_error(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    from edgerpn import manifest as manifests

    path = make_engine(tmp_path, batch=1)
    manifest = manifests.read(path)
    path.write_bytes(b"not an engine")
    manifests.write(manifest, path)
    with pytest.raises(
        EngineLoadError, match=r"TensorRT 10.3.0.26 refuses the engine: the magic tag is wrong.*edgerpn inspect"
    ):
        bench.load(path)


def test_a_second_engine_has_the_logger_of_the_first_and_reasons_of_its_own(
    bench: Any, make_engine: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from edgerpn import manifest as manifests

    first = bench.load(make_engine(tmp_path, batch=1))
    bench.library.log.log(1, "an error of the first engine")
    (tmp_path / "second").mkdir()
    path = make_engine(tmp_path / "second", batch=1)
    manifest = manifests.read(path)
    path.write_bytes(b"not an engine")
    manifests.write(manifest, path)
    with pytest.raises(EngineLoadError, match=r"refuses the engine: the magic tag is wrong\. See"):
        bench.load(path)
    assert "differs" not in caplog.text
    first.close()


def test_an_engine_with_other_tensors_than_its_manifest_is_refused(
    bench: Any, make_engine: MakeModel, tmp_path: Path
) -> None:
    bench.library.profile = (1, 2, 8)
    with pytest.raises(ArtifactMismatchError, match=r"batches of 1 to 4, but it takes 1 to 8"):
        bench.load(make_engine(tmp_path))


def test_wrong_frames_are_refused(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    backend = bench.load(make_engine(tmp_path))
    with pytest.raises(InputError, match=r"expected shape \(N, 96, 160, 3\)"):
        backend.infer(np.zeros((1, 96, 161, 3), np.uint8))
    with pytest.raises(ValueError, match="num_slots"):
        bench.load(make_engine(tmp_path), num_slots=0)
    backend.close()


@pytest.mark.parametrize("what", ["shape", "address"])
def test_a_refusal_in_a_context_is_an_error(
    bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image, what: str
) -> None:
    backend = bench.load(make_engine(tmp_path), num_slots=1)
    bench.library.refuses_shape = what == "shape"
    bench.library.refused_addresses = {"scores"} if what == "address" else set()
    with pytest.raises(InferenceError, match=rf"the library refused .*: the stand-in refuses the {what}"):
        backend.infer(painted[:2])
    bench.library.refuses_shape, bench.library.refused_addresses = False, set()
    assert backend.infer(painted[1:3])[2].tolist() == [1, 2]
    backend.close()


def test_a_batch_that_failed_has_no_result(bench: Any, make_engine: MakeModel, tmp_path: Path, painted: Image) -> None:
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
    bench: Any, make_engine: MakeModel, tmp_path: Path, call: tuple[str, int]
) -> None:
    bench.device.failing_at[call] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(EngineLoadError, match="memory is full"):
        bench.load(make_engine(tmp_path))
    assert bench.device.memory == bench.device.queues == bench.device.graphs == {}


def test_memory_that_cannot_be_freed_does_not_keep_the_rest(
    bench: Any, make_engine: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = bench.load(make_engine(tmp_path, batch=1))
    bench.device.failing_at["free", 1] = "CUDA_ERROR_UNKNOWN"
    bench.device.failing_at["destroy_graph", 1] = "CUDA_ERROR_UNKNOWN"
    backend.close()
    assert bench.device.queues == {}
    assert len(bench.device.memory) == len(bench.device.graphs) == 1
    assert caplog.text.count("could not be freed") == 2


def test_host_code_of_an_engine_runs_only_when_allowed(bench: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(tmp_path, version_compatible=True)
    bench.library.has_host_code = True
    with pytest.raises(EngineLoadError, match=r"getEngineHostCodeAllowed\(\) is false.*allow_host_code=True"):
        bench.load(path)
    bench.load(path, allow_host_code=True).close()
    # An engine without such code never gets the permission.
    (tmp_path / "plain").mkdir()
    plain = make_engine(tmp_path / "plain")
    with pytest.raises(EngineLoadError, match="HostCodeAllowed"):
        bench.load(plain, allow_host_code=True)
    assert bench.library.host_code_allowed == [False, True, False]


def test_a_given_gpu_is_used_whatever_else_is_missing(
    bench: Any, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(tmp_path)
    library = bench.library.opened()
    monkeypatch.setattr("edgerpn.runtime.backends.tensorrt.compatibility.import_library", lambda *_, **__: library)
    backend = TensorRtBackend(path, device=bench.device)
    assert bench.device.info.name in backend.name
    backend.close()


@pytest.mark.parametrize("is_null", [False, True])
def test_a_library_that_cannot_start_is_an_error_before_it_ends_the_process(
    bench: Any, make_engine: MakeModel, tmp_path: Path, is_null: bool
) -> None:
    bench.library.cannot_start, bench.library.is_null = True, is_null
    with pytest.raises(
        EngineLoadError, match=r"tensorrt 10\.3\.0\.26 cannot start: .*error: 35\. Update the NVIDIA driver"
    ):
        bench.load(make_engine(tmp_path))
    gc.collect()
    assert is_null or "runtime destroyed" not in bench.library.events


def test_a_missing_package_keeps_its_own_error(
    bench: Any, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(*_: object) -> None:
        raise MissingDependencyError("neither cuda-bindings nor PyCUDA")

    monkeypatch.setattr("edgerpn.runtime.backends.tensorrt.compatibility.open_device", none_here)
    with pytest.raises(MissingDependencyError, match="neither cuda-bindings nor PyCUDA"):
        TensorRtBackend(make_engine(tmp_path), library=bench.library.opened())

"""Compatibility of engines with a machine: every check, and the same words from a loader that refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, ManifestError, MissingDependencyError
from edgerpn.runtime.backends.tensorrt import compatibility
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
from edgerpn.runtime.backends.tensorrt.library import import_library, logger_of
from edgerpn.targets import RTX_CAPABILITIES, RTX_DEFAULT_CAPABILITIES

MakeModel = Callable[..., Path]


@pytest.fixture
def here(standin: ModuleType) -> Callable[..., compatibility.EngineHost]:
    """A machine with TensorRT 10.3.0.26 and a GPU of compute capability 8.7, or as a test changes it."""

    def make(*, version: str = "10.3.0.26", capability: str = "8.7", is_rtx: bool = False, **changes: Any) -> Any:
        device = standin.HostDevice(capability=capability)
        library = standin.Library(device, is_rtx=is_rtx, version=version).opened()
        values = {"platform": compatibility.this_platform(), "library": library, "device": device, **changes}
        return compatibility.EngineHost(**values)

    return make


def verdicts(path: Path, machine: compatibility.EngineHost) -> dict[str, str]:
    return {check.key: check.verdict for check in compatibility.compare(path, manifests.read(path), machine)}


RTX = {"library": "tensorrt-rtx", "library_version": "1.7.1.116", "compute_capabilities": ("8.6", "12.0")}
RTX_DEFAULT = {**RTX, "compute_capabilities": RTX_DEFAULT_CAPABILITIES}


def test_an_engine_of_this_machine_passes_every_check(here: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    found = verdicts(make_engine(tmp_path, cuda="12.6"), here())
    assert found == {"file (sha256)": "ok", "library": "ok", "GPU": "ok", "platform": "ok", "driver": "ok"}


@pytest.mark.parametrize(
    ("spec", "machine", "key", "verdict"),
    [
        ({}, {"version": "10.3.1.5"}, "library", "no"),
        ({}, {"version": "10.3.0"}, "library", "ok"),
        ({"version_compatible": True}, {"version": "10.16.1.2"}, "library", "ok"),
        ({"version_compatible": True}, {"version": "11.1.0.9"}, "library", "ok"),
        ({"version_compatible": True}, {"version": "10.2.0.1"}, "library", "no"),
        ({"version_compatible": True}, {"version": "12.0.0.1"}, "library", "no"),
        ({}, {"capability": "8.9"}, "GPU", "no"),
        ({"hardware_compatible": True}, {"capability": "8.9"}, "GPU", "ok"),
        ({"hardware_compatible": True}, {"capability": "7.5"}, "GPU", "no"),
        ({"multiprocessors": 8}, {}, "multiprocessors", "ok"),
        ({"multiprocessors": 16}, {}, "multiprocessors", "unknown"),
        ({"board": "Orin NX"}, {"board": "Orin NX"}, "board", "ok"),
        ({"board": "AGX Orin"}, {"board": "Orin NX"}, "board", "unknown"),
        ({"board": "AGX Orin"}, {}, "board", "unknown"),
        ({"platform": "windows-amd64"}, {}, "platform", "no"),
        ({"cuda": "14"}, {}, "driver", "no"),
        ({"cuda": "13.2"}, {}, "driver", "ok"),
        (RTX, {"is_rtx": True, "version": "1.7.0.9", "capability": "8.6"}, "library", "no"),
        (RTX, {"is_rtx": True, "version": "1.7.1.116", "capability": "8.6"}, "GPU", "ok"),
        (RTX, {"is_rtx": True, "version": "1.7.1.116", "capability": "9.0"}, "GPU", "no"),
        (RTX, {"is_rtx": True, "version": "1.7.1.116", "capability": "12.1"}, "GPU", "unknown"),
        (RTX_DEFAULT, {"is_rtx": True, "version": "1.7.1.116", "capability": "8.7"}, "GPU", "unknown"),
        (RTX_DEFAULT, {"is_rtx": True, "version": "1.7.1.116", "capability": "9.0"}, "GPU", "unknown"),
        (RTX_DEFAULT, {"is_rtx": True, "version": "1.7.1.116", "capability": "7.5"}, "GPU", "no"),
        (RTX_DEFAULT, {"is_rtx": True, "version": "1.7.1.116", "capability": "8.9"}, "library's verdict", "ok"),
        ({**RTX, "platform": "windows-amd64"}, {"is_rtx": True, "version": "1.7.1.116"}, "platform", "unknown"),
    ],
)
def test_each_key_is_compared(
    here: Any, make_engine: MakeModel, tmp_path: Path, spec: dict[str, Any], machine: dict[str, Any], key: str,
    verdict: str,
) -> None:  # fmt: skip
    assert verdicts(make_engine(tmp_path, **spec), here(**machine))[key] == verdict


@pytest.mark.parametrize(("board", "advice"), [("Orin NX", "Build it again on"), (None, "-v /proc/device-tree/model:")])
def test_a_board_without_a_name_is_not_called_another_one(
    here: Any, make_engine: MakeModel, tmp_path: Path, board: str | None, advice: str
) -> None:
    path = make_engine(tmp_path, board="AGX Orin")
    checks = compatibility.compare(path, manifests.read(path), here(board=board))
    (check,) = [check for check in checks if check.key == "board"]
    assert advice in check.advice


def test_the_lean_runtime_runs_version_compatible_engines(here: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    lean = here()
    lean.library.module.__name__ = "tensorrt_lean"
    assert verdicts(make_engine(tmp_path, version_compatible=True), lean)["library"] == "ok"


def test_an_engine_of_another_module_of_the_same_name_is_loaded_with_a_warning(
    bench: Any, make_engine: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.load(make_engine(tmp_path, multiprocessors=16)).close()
    assert "multiprocessors: expected 16, found 8. It may run slowly here, or fail" in caplog.text
    caplog.clear()
    hardware = make_engine(tmp_path, multiprocessors=16, hardware_compatible=True)
    bench.load(hardware).close()
    assert "multiprocessors" not in caplog.text


def test_warnings_of_the_library_are_shown_once(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    log = logger_of(bench.library.module)
    with caplog.at_level("DEBUG"):
        for _ in range(2):
            log.log(1, "an error")
            log.log(2, "Using an engine plan file across different models of devices is not supported")
            log.log(3, "information")
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["tensorrt: Using an engine plan file across different models of devices is not supported"]
    assert log.take_lines() == "an error"


def _read(path: Path) -> tuple[Path, manifests.Manifest]:
    return path, manifests.read(path)


def test_a_loader_refuses_with_the_words_of_the_table(
    standin: ModuleType, here: Any, make_engine: MakeModel, tmp_path: Path
) -> None:
    path = make_engine(tmp_path, compute_capabilities=("8.9",), library_version="10.9.0.34")
    machine = here()
    with pytest.raises(ArtifactMismatchError) as caught:
        TensorRtBackend(path, library=machine.library, device=machine.device)
    message = str(caught.value)
    failed = [check for check in compatibility.compare(*_read(path), machine) if check.verdict == "no"]
    assert len(failed) == 2
    for check in failed:
        for words in (check.key, check.expected, check.found, check.advice):
            assert words in message
    assert "edgerpn build" in message


def test_a_changed_engine_is_a_row_of_the_table(here: Any, make_engine: MakeModel, tmp_path: Path) -> None:
    path = make_engine(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    (file, *rest) = compatibility.compare(path, compatibility.read_manifest(path), here())
    assert (file.key, file.verdict) == ("file (sha256)", "no")
    num_bytes = path.stat().st_size
    assert file.expected.endswith(f"..., {num_bytes - 1} bytes")
    assert file.found.endswith(f"..., {num_bytes} bytes")
    assert {check.verdict for check in rest} == {"ok"}


def test_a_manifest_of_something_else_and_missing_files_are_named(
    make_engine: MakeModel, make_model: MakeModel, tmp_path: Path
) -> None:
    onnx = make_model(tmp_path)
    engine = onnx.rename(tmp_path / "bright.engine")
    manifests.manifest_path(onnx).rename(manifests.manifest_path(engine))
    with pytest.raises(EngineLoadError, match="its manifest describes onnx, not an engine"):
        compatibility.engine_spec(engine, compatibility.read_manifest(engine))
    with pytest.raises(ManifestError, match=r"absent\.engine: the engine is missing"):
        compatibility.read_manifest(tmp_path / "absent.engine")
    path = make_engine(tmp_path)
    manifests.manifest_path(path).unlink()
    with pytest.raises(ManifestError, match=r"json: the manifest of bright\.engine is missing"):
        compatibility.read_manifest(path)


def test_a_library_that_does_not_import_is_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "raise OSError('libnvdla_compiler.so: cannot open shared object file: No such file or directory')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineLoadError, match=r"tensorrt is installed, but does not work here: libnvdla_compiler.*DLA"):
        import_library("tensorrt")
    (tmp_path / "tensorrt.py").write_text("import missing_part_of_tensorrt")
    with pytest.raises(EngineLoadError, match="No module named 'missing_part_of_tensorrt'"):
        import_library("tensorrt")


def test_the_lean_runtime_is_used_where_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "tensorrt_lean.py").write_text("__version__ = '10.16.1.11'")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_lean", raising=False)
    library = import_library("tensorrt", allow_lean=True)
    assert library.title == "TensorRT 10.16.1.11 (lean runtime)"
    with pytest.raises(MissingDependencyError, match="Python package tensorrt, which is not installed"):
        import_library("tensorrt")


@pytest.fixture
def hopper(standin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that NVIDIA's list does not name, with TensorRT-RTX that calls engines invalid on it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench = standin.Bench(capability="9.0")
    bench.library = standin.Library(bench.device, is_rtx=True, version="1.7.1.116")
    bench.library.validity = standin.EngineValidity.INVALID, 2 | 4
    return bench


def test_a_gpu_that_is_not_named_is_tried_and_the_doubts_are_logged(
    hopper: Any, make_engine: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hopper.load(make_engine(tmp_path, **RTX_DEFAULT)).close()
    assert "GPU: expected compute capability 8.0, 8.6, 8.9, 12.0, found Stand-in, compute capability 9.0" in caplog.text
    assert "library's verdict: expected VALID, found INVALID (UNSUPPORTED_CC, OLD_CUDA_DRIVER)" in caplog.text


def test_a_gpu_that_the_library_refuses_is_an_error_with_its_words_and_the_doubts(
    hopper: Any, make_engine: MakeModel, tmp_path: Path
) -> None:
    hopper.library.unsupported_capabilities = ("9.0",)
    with pytest.raises(EngineLoadError, match=r"cannot run on this GPU, which has compute capability 9\.0") as caught:
        hopper.load(make_engine(tmp_path, **RTX_DEFAULT))
    assert "INVALID (UNSUPPORTED_CC, OLD_CUDA_DRIVER)" in str(caught.value)


@pytest.mark.rtx
def test_the_real_library_has_the_capabilities_and_the_verdicts_of_the_table() -> None:
    module = import_library("tensorrt-rtx").module
    named = {name for name in module.ComputeCapability.__members__ if name.startswith("SM")}
    assert named == {f"SM{capability.replace('.', '')}" for capability in (*RTX_CAPABILITIES, "7.5")}
    assert {"VALID", "SUBOPTIMAL", "INVALID"} == set(module.EngineValidity.__members__)
    assert {"UNSUPPORTED_CC", "VERSION_MISMATCH"} < set(module.EngineInvalidityDiagnostics.__members__)
    assert {"USER_MANAGED", "STATIC"} < set(module.ExecutionContextAllocationStrategy.__members__)
    assert hasattr(module.Runtime, "get_engine_validity")
    assert hasattr(module.IExecutionContext, "set_device_memory")
    assert hasattr(module.IExecutionContext, "update_device_memory_size_for_shapes")
    assert hasattr(module.IRuntimeConfig, "set_execution_context_allocation_strategy")


@pytest.mark.rtx
def test_the_real_library_names_the_reason_for_refusing_a_header(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    library, device = import_library("tensorrt-rtx"), standin.HostDevice(capability="8.9")
    path = make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version=library.version)
    host = compatibility.EngineHost(platform=compatibility.this_platform(), library=library, device=device)
    *_, check = compatibility.compare(*_read(path), host)
    assert (check.key, check.verdict) == ("library's verdict", "unknown")
    assert check.found.startswith("INVALID (")


@pytest.mark.rtx
def test_the_real_library_names_the_reason_for_refusing_a_file(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = import_library("tensorrt-rtx")
    path = make_engine(tmp_path, batch=1, library="tensorrt-rtx", library_version=library.version)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EngineLoadError, match=r"TensorRT-RTX [\d.]+ refuses the engine: .*[Ss]erializ"):
        TensorRtBackend(path, library=library, device=standin.HostDevice())

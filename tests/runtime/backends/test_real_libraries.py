"""Parts of the real libraries that load without a driver: names that the runner uses, and words of refusal.

TensorRT's lean runtime and TensorRT-RTX are tried where they are installed; processes of their own, because they can
end one.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgerpn import manifest

pytestmark = pytest.mark.timeout(120)

HAS_DRIVER = Path("/dev/nvidiactl").exists() or Path("/etc/nv_tegra_release").exists()
RTX_ONLY = {"get_engine_validity", "engine_header_size", "is_stream_capturable"}
RUNTIME = (
    "deserialize_cuda_engine",
    "engine_host_code_allowed",
    "DLA_core",
    "get_engine_validity",
    "engine_header_size",
)
ENGINE = (
    "num_io_tensors", "get_tensor_name", "get_tensor_dtype", "get_tensor_shape", "get_tensor_profile_shape",
    "device_memory_size_v2", "create_execution_context", "create_engine_inspector", "create_runtime_config",
)  # fmt: skip
CONTEXT = (
    "active_optimization_profile", "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
    "update_device_memory_size_for_shapes", "set_device_memory", "execute_async_v3", "is_stream_capturable",
    "nvtx_verbosity",
)  # fmt: skip
ENUMS = ("ExecutionContextAllocationStrategy.USER_MANAGED", "ProfilingVerbosity.LAYER_NAMES_ONLY")
NAMES = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
for word in sys.argv[2:]:
    owner, _, name = word.rpartition(".")
    print(word, hasattr(getattr(module, owner), name))
"""
START = """
import gc, importlib, sys
from edgerpn.errors import EngineLoadError
from edgerpn.runtime.backends.tensorrt.library import make_runtime
module = importlib.import_module(sys.argv[1])
try:
    make_runtime(module)
except EngineLoadError as error:
    print(error)
gc.collect()
print("still here")
"""
VERDICT = """
import dataclasses, sys
from pathlib import Path
from edgerpn import manifest
from edgerpn.runtime.backends.tensorrt import compatibility
from edgerpn.runtime.backends.tensorrt.library import import_library
from tests.support.tensorrt_standin import HostDevice
path = Path(sys.argv[1])
host = compatibility.EngineHost(
    platform=compatibility.this_platform(), library=import_library("tensorrt-rtx"), device=HostDevice(capability="8.6")
)
for check in compatibility.compare(path, manifest.read(path), host):
    print(f"{check.key}|{check.verdict}|{check.found}")
"""
SMALL = """
import sys
from pathlib import Path
from benchmarks.gpu.hardware import _small_plan
import tensorrt_rtx
plan, said = _small_plan(tensorrt_rtx, None)
Path(sys.argv[1]).write_bytes(plan)
"""
needs_no_driver = pytest.mark.skipif(HAS_DRIVER, reason="there is a driver here, with which the library starts")
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
LEAN = "tensorrt_lean" if importlib.util.find_spec("tensorrt_lean") else "tensorrt_lean_bindings"
needs_lean = pytest.mark.skipif(importlib.util.find_spec(LEAN) is None, reason="the lean runtime is not installed")


def python(code: str, *words: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-u", "-c", code, *map(str, words)], capture_output=True, text=True, timeout=100, check=False,
        cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def missing(module: str) -> set[str]:
    words = [f"Runtime.{name}" for name in RUNTIME] + [f"ICudaEngine.{name}" for name in ENGINE]
    words += [*(f"IExecutionContext.{name}" for name in CONTEXT), *ENUMS]
    lines = python(NAMES, module, *words).splitlines()
    assert len(lines) == len(words)
    return {line.split()[0].rpartition(".")[2] for line in lines if line.endswith("False")}


@pytest.mark.rtx
@needs_rtx
def test_tensorrt_rtx_has_every_name_that_the_runner_uses() -> None:
    assert missing("tensorrt_rtx") == set()


@needs_lean
def test_the_lean_runtime_has_every_name_but_those_of_tensorrt_rtx() -> None:
    assert missing(LEAN) == RTX_ONLY


@needs_lean
@needs_no_driver
def test_a_lean_runtime_that_cannot_start_is_an_error_and_does_not_end_the_process() -> None:
    printed = python(START, LEAN)
    assert "cannot start: createInferRuntime: " in printed
    assert "CUDA initialization failure with error: 35" in printed
    assert "Update the NVIDIA driver" in printed
    assert printed.endswith("still here\n")


@pytest.mark.rtx
@needs_rtx
@needs_no_driver
def test_the_verdict_of_tensorrt_rtx_without_a_driver_is_a_doubt(
    tmp_path: Path, root: Path, make_engine: object
) -> None:

    path = make_engine(  # type: ignore[operator]
        tmp_path, batch=1, library="tensorrt-rtx", library_version="1.7.1.116", compute_capabilities=("8.6",)
    )
    python(SMALL, path, cwd=root)
    manifest.write(manifest.parse(manifest.manifest_path(path).read_text(), source="here"), path)
    lines = dict(line.split("|", 1) for line in python(VERDICT, path, cwd=root).splitlines())
    assert lines["library's verdict"] == "unknown|INVALID"
    assert lines["GPU"].startswith("ok|Stand-in")


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_cuda_bindings_have_every_function_that_the_runner_calls() -> None:
    from cuda.bindings import driver

    from edgerpn.runtime.backends.tensorrt import cuda_bindings

    source = inspect.getsource(cuda_bindings)
    called = set(re.findall(r'_call\(\s*"(cu\w+)"', source))
    assert len(called) > 20
    assert {name for name in called if not hasattr(driver, name)} == set()

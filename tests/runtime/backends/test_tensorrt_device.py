"""The CUDA layer without a GPU: errors for missing parts, and the arguments that reach a driver."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.runtime.backends.tensorrt.cuda import CudaError

needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="cuda-bindings is not installed",
)

OPEN = """
from edgerpn.errors import EdgeRpnError
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
try:
    print(open_device().info)
except EdgeRpnError as error:
    print(type(error).__name__, error)
"""

USE = """
import gc, threading
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
device = open_device()
assert device is open_device()
print(device.info)

def work():
    with device.active():
        source, target = device.allocate_host(100, is_mapped=True), device.allocate_host(100, is_mapped=False)
        address, stream = device.allocate(100), device.create_stream()
        source.array[:], target.array[:] = 7, 0
        print("same memory", source.device_address == source.array.ctypes.data, target.device_address)
        device.begin_capture(stream)
        device.upload(address, source.array[:60], stream)
        device.download(target.array[:60], address, stream)
        graph = device.end_capture(stream)
        print("recorded", target.array.sum())
        device.launch_graph(graph, stream)
        device.synchronize(stream)
        device.synchronize(stream, is_blocking=True)
        print("free", device.free_bytes())
        print("elapsed", device.time_ms(lambda: device.upload(address, source.array[:60], stream), stream))
        print("launched", target.array.sum())
        device.wait_for(stream, 1)
        print("gpu", device.index_of(address))
        device.destroy_graph(graph)
        device.free(address)
        device.destroy_stream(stream)
    view = target.array[:2]
    del source, target
    gc.collect()
    print("view", view.tolist())

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
try:
    device.allocate(1)
except Exception as error:
    print(error)
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def driver(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the stand-in driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stand-in driver needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = root / "tests" / "support" / "host_cuda.c"
    words = [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source), "-ldl"]
    subprocess.run([*words, "-Wl,-soname,libcuda.so.1"], check=True, capture_output=True)
    return folder


def test_without_both_packages_the_error_names_the_one_to_install() -> None:
    code = "import sys\nsys.modules['cuda'] = sys.modules['cuda.bindings'] = sys.modules['pycuda'] = None\n" + OPEN
    printed = python(code)
    assert printed.startswith("MissingDependencyError running an engine needs the Python package cuda-bindings")
    assert "cuda-bindings>=12.9.1,<13" in printed


@needs_bindings
def test_a_missing_driver_is_reported_with_advice(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists() or Path("/etc/nv_tegra_release").exists():
        pytest.skip("there is a driver here")
    printed = python(OPEN, LD_LIBRARY_PATH=str(tmp_path))
    assert printed.startswith("EngineLoadError GPU 0 cannot be used: cuInit failed with ")
    assert "--gpus all" in printed


@needs_bindings
def test_a_driver_without_a_gpu_is_distinguished(driver: Path) -> None:
    printed = python(OPEN, LD_LIBRARY_PATH=str(driver), HOST_CUDA_NO_DEVICE="1")
    assert "cuInit failed with CUDA_ERROR_NO_DEVICE. No NVIDIA GPU is visible" in printed


@needs_bindings
def test_calls_reach_the_driver_with_their_arguments_from_any_thread(driver: Path) -> None:
    info, *lines = python(USE, LD_LIBRARY_PATH=str(driver), LD_PRELOAD="").splitlines()
    assert "name='Host memory', compute_capability='8.7'" in info
    assert "driver_cuda='13.5', can_share_memory=True, multiprocessors=4" in info
    once = [
        "host memory: flags 3",  # portable and mapped
        "host memory: flags 1",
        "stream: flags 1",  # non-blocking
        "same memory True None",
        "capture: mode 1",  # thread-local
        "recorded 0",
        "launched 420",
        "event: flags 3",  # blocking, without timing
        "event: flags 2",
        "event waited for",
        "free 3145728",
        "event: flags 0",
        "event: flags 0",
        "elapsed 1.5",
        *["event freed"] * 4,
        "stream freed",
        "waits for stream 1",
        "gpu 0",
        "host memory freed",
        "view [7, 7]",
        "host memory freed",
    ]
    # The driver's lines pass through a buffer of C, so their order is undefined.
    assert sorted(lines) == sorted([*once, *once, "cuMemAlloc failed with CUDA_ERROR_INVALID_CONTEXT."])


@needs_bindings
@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_a_stream_or_an_event_does_not_outlive_the_failure_of_the_next_event(most: int, driver: Path) -> None:
    code = """
from edgerpn.runtime.backends.tensorrt.cuda import CudaError
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
device = open_device()
with device.active():
    try:
        stream = device.create_stream()
        device.time_ms(lambda: None, stream)
    except CudaError as error:
        print(error)
"""
    lines = python(code, LD_LIBRARY_PATH=str(driver), LD_PRELOAD="", HOST_CUDA_EVENTS=str(most)).splitlines()
    assert any(line.startswith("cuEventCreate failed with CUDA_ERROR_OUT_OF_MEMORY") for line in lines)
    # Two events belong to a stream.
    assert lines.count("stream freed") == (most < 2)
    assert lines.count("event freed") == most % 2


@needs_bindings
def test_a_function_that_the_driver_is_too_old_for_is_an_error_with_advice(driver: Path) -> None:
    code = f"""{OPEN.replace("print(open_device().info)", "device = open_device()")}
from edgerpn.runtime.backends.tensorrt.cuda import CudaError
with device.active():
    stream = device.create_stream()
    try:
        print(device.time_ms(lambda: None, stream))
    except CudaError as error:
        print(error)
"""
    printed = python(code, LD_LIBRARY_PATH=str(driver), LD_PRELOAD="", HOST_CUDA_VERSION="12060")
    # cuda-bindings 13 ask for the form of CUDA 12.8; those of the 12 line run there.
    is_newer = int(version("cuda-bindings").partition(".")[0]) > 12
    assert ("cuEventElapsedTime failed with CUDA_ERROR_NOT_FOUND" in printed) == is_newer
    assert ("The driver is older than the CUDA package" in printed) == is_newer
    assert ("1.5" in printed.splitlines()) != is_newer


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", "fewer slots"),
        ("CUDA_ERROR_NO_DEVICE", "nvidia-smi"),
        ("CUDA_ERROR_LAUNCH_FAILED", "start it again"),
        ("CUDA_ERROR_SOMETHING_NEW", "call failed with CUDA_ERROR_SOMETHING_NEW."),
    ],
)
def test_an_error_of_the_driver_contains_advice(name: str, advice: str) -> None:
    error = CudaError("call", name)
    assert str(error).startswith(f"call failed with {name}. ".rstrip())
    assert advice in str(error)
    assert (error.call, error.name) == ("call", name)


@needs_bindings
def test_errors_after_which_cuda_wants_a_new_process_contain_that_advice() -> None:
    from cuda.bindings import driver

    words = {error.name: " ".join((error.__doc__ or "").split()) for error in driver.CUresult}
    lost = [name for name, text in words.items() if "process must be terminated and relaunched" in text]
    if not lost:
        pytest.skip("this version of cuda-bindings does not describe its errors")
    assert [name for name in lost if "start it again" not in str(CudaError("call", name))] == []


def pycuda_standin(freed: list[int]) -> tuple[ModuleType, ModuleType]:
    """PyCUDA's modules with its rules for threads (src/cpp/cuda.hpp): a context stack for each thread, and memory that
    is freed only where its context is current, or on the thread that retained the context."""
    local = threading.local()

    def stack() -> list[Any]:
        found: list[Any] = getattr(local, "stack", [])
        local.stack = found
        return found

    class Context:
        def __init__(self) -> None:
            self.thread = threading.get_ident()

        def push(self) -> None:
            stack().append(self)

        @staticmethod
        def pop() -> None:
            stack().pop()

    class Allocation:
        def __init__(self, num_bytes: int) -> None:
            self.memory: npt.NDArray[np.uint8] = np.zeros(num_bytes, np.uint8)
            self.context: Context | None = stack()[-1]
            self.__array_interface__ = self.memory.__array_interface__

        def get_device_pointer(self) -> int:
            return int(self.memory.ctypes.data)

        def free(self) -> None:
            assert self.context is not None, "freed twice"
            if self.context in stack()[-1:] or threading.get_ident() == self.context.thread:
                freed.append(self.memory.nbytes)
            self.context = None

        def __del__(self) -> None:
            if self.context is not None:
                self.free()

    class Device:
        def __init__(self, index: int) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *_: {"name": "GPU", "compute_capability": (8, 7)}.get(name, 1)

        def retain_primary_context(self) -> Context:
            return Context()

    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    vars(package).update(VERSION_TEXT="2026.1", driver=driver)
    vars(driver).update(
        init=lambda: None, Device=Device, Context=Context, Error=RuntimeError, get_driver_version=lambda: 13000,
        device_attribute=SimpleNamespace(INTEGRATED=1, CAN_MAP_HOST_MEMORY=2, MULTIPROCESSOR_COUNT=3),
        host_alloc_flags=SimpleNamespace(PORTABLE=1, DEVICEMAP=2),
        pagelocked_empty=lambda size, dtype, mem_flags: np.asarray(Allocation(size)),
    )  # fmt: skip
    return package, driver


@pytest.mark.parametrize("is_mapped", [False, True])
def test_pinned_memory_of_pycuda_is_freed_on_any_thread(is_mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    package, driver = pycuda_standin(freed)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    name = "edgerpn.runtime.backends.tensorrt.cuda_pycuda"
    monkeypatch.delitem(sys.modules, name, raising=False)
    device = importlib.import_module(name).PyCudaDevice(0)
    monkeypatch.delitem(sys.modules, name)

    def work() -> None:
        with device.active():
            buffer = device.allocate_host(100, is_mapped=is_mapped)
        assert (buffer.device_address is not None) == is_mapped
        buffer.array[:] = 7
        view = buffer.array[:2]
        del buffer
        assert freed == []
        assert view.tolist() == [7, 7]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert freed == [100]

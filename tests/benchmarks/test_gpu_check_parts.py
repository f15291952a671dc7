"""The measuring parts of benchmarks/gpu_check.py, on the stand-in of library and GPU (see tensorrt_standin.py)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
from edgerpn.runtime.model import Model

pytestmark = pytest.mark.timeout(60)

MakeModel = Callable[..., Path]
SECONDS = 0.01


class WallClock:
    """The clock of a stand-in: the time until the stream's work is done."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def time_ms(self, work: Callable[[], object], stream: int) -> float:
        start = time.perf_counter()
        work()
        self._device.synchronize(stream)
        return 1000 * (time.perf_counter() - start)


@pytest.fixture(scope="module")
def parts(request: pytest.FixtureRequest) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of benchmarks/ as its script does."""
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture
def frames() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3), dtype=np.uint8)


def bare_engine(parts: Any, device: Any, library: Any, path: Path, frames: Any, batch: int) -> Any:
    with device.active():
        return parts("gpu_engine").BareEngine(
            path.read_bytes(), library.opened(), device, frames=frames, batch=batch
        )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4])
def test_an_engine_alone_is_timed_with_and_without_its_graph(
    parts: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any, batch: int
) -> None:
    device = standin.HostDevice()
    bare = bare_engine(parts, device, standin.Library(device), make_engine(tmp_path), frames, batch)
    with device.active():
        figures = parts("gpu_engine").measure(bare, WallClock(device), SECONDS, "engine")
        launches = device.calls.count("launch_graph")
        bare.close()
    assert set(figures["latency_ms"]) == {"engine, no graph", "engine, graph"}
    assert all(0 < row["p50"] <= row["p90"] <= row["p99"] for row in figures["latency_ms"].values())
    assert figures["latency_ms"]["engine, graph"]["rounds"] >= 20
    assert launches >= 20 + 5 * parts("gpu_engine").BACK_TO_BACK
    assert figures["back_to_back_ms"]["engine"] > 0
    assert not device.graphs


def test_an_engine_that_cannot_be_captured_says_why_and_is_timed_without(
    parts: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    library = standin.Library(device)
    library.refuses_capture = True
    bare = bare_engine(parts, device, library, make_engine(tmp_path), frames, 1)
    assert "STREAM_CAPTURE_INVALIDATED" in bare.why_no_graph
    with device.active():
        figures = parts("gpu_engine").measure(bare, WallClock(device), SECONDS, "engine")
    assert set(figures["latency_ms"]) == {"engine, no graph"}


def test_an_engine_that_the_library_refuses_is_skipped_with_its_words(
    parts: Any, standin: ModuleType, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    path = tmp_path / "broken.engine"
    path.write_bytes(b"no engine")
    with pytest.raises(parts("gpu_child").Skip, match="the magic tag is wrong"):
        bare_engine(parts, device, standin.Library(device), path, frames, 1)


def test_the_share_of_the_stage_is_what_the_network_alone_does_not_take(
    parts: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    library, path = standin.Library(device), make_engine(tmp_path)
    engines = {name: bare_engine(parts, device, library, path, frames, 1) for name in ("network", "whole")}
    launch = engines["whole"].launch

    def slow() -> None:
        time.sleep(0.01)
        launch()

    engines["whole"].launch = slow
    with device.active():
        figures = parts("gpu_stage").compare(engines, WallClock(device), SECONDS)
    assert 0.5 < figures["share"] < 1
    assert set(figures["latency_ms"]) == {"network, batch 1", "whole, batch 1"}


def test_the_runtime_is_timed_at_both_ends_of_the_profile(
    parts: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    backend = TensorRtBackend(make_engine(tmp_path), library=standin.Library(device).opened(), device=device)
    camera = np.zeros((192, 320, 3), np.uint8)
    rows = parts("gpu_runner").latencies(backend, device, WallClock(device), frames, camera, SECONDS)
    ways = ("with copies", "pinned slot", "upload, engine and download on the GPU")
    wanted = {f"{way}, batch {batch}" for way in ways for batch in (1, 4)}
    assert set(rows) == wanted | {"end to end, 320x192 frame"}
    assert all(row["p50"] > 0 for row in rows.values())
    assert parts("gpu_runner").rate([Model(backend)] * 2, camera, 0.1) > 0
    backend.close()
    with pytest.raises(RuntimeError, match="a thread failed: the model is closed"):
        parts("gpu_runner").rate([Model(backend)] * 2, camera, 0.1)


def test_what_the_runtime_says_of_graphs_is_heard(
    parts: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    device = standin.HostDevice(why_no_graphs="PyCUDA has none")
    listener = parts("gpu_runner").Listener()
    assert listener.graph() == "works"
    TensorRtBackend(make_engine(tmp_path), library=standin.Library(device).opened(), device=device).close()
    assert listener.graph().endswith("PyCUDA has none")


CLOCK = """
import sys
sys.path.insert(0, {folder!r})
import gpu_engine
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
device = open_device()
with device.active():
    stream = device.create_stream()
    clock = gpu_engine.GpuClock(device)
    work = []
    print("elapsed", clock.time_ms(lambda: work.append(1), stream), work)
    print("free", gpu_engine.free_mib())
try:
    gpu_engine.free_mib()
except gpu_engine.CudaError as error:
    print(error)
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux" or importlib.util.find_spec("cuda") is None,
    reason="the stand-in driver needs Linux, a C compiler and cuda-bindings",
)
def test_events_and_free_memory_come_from_the_driver(tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    source = here.parents[1] / "support" / "host_cuda.c"
    words = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source), "-ldl"]
    subprocess.run([*words, "-Wl,-soname,libcuda.so.1"], check=True, capture_output=True)
    code = CLOCK.format(folder=str(here.parents[2] / "benchmarks"))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed.count("elapsed 1.5 [1]") == 1
    assert printed.count("free 3.0") == 1
    assert printed.count("cuMemGetInfo failed with error 201.") == 1

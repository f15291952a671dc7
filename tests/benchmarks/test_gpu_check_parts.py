"""The measuring parts of the GPU check, on the stand-in of library and GPU (see tensorrt_standin.py)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.gpu import engine as gpu_engine
from benchmarks.gpu import runner as gpu_runner
from benchmarks.gpu import session as gpu_session
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


@pytest.fixture
def frames() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3), dtype=np.uint8)


def bare_engine(device: Any, library: Any, path: Path, frames: Any, batch: int) -> Any:
    with device.active():
        return gpu_engine.BareEngine(
            path.read_bytes(), library.opened(), device, frames=frames, batch=batch
        )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 4])
def test_an_engine_alone_is_timed_with_and_without_its_graph(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any, batch: int
) -> None:
    device = standin.HostDevice()
    library = standin.Library(device)
    library.requires_user_memory = True
    bare = bare_engine(device, library, make_engine(tmp_path), frames, batch)
    with device.active():
        figures = gpu_engine.measure(bare, WallClock(device), SECONDS, "engine")
        launches = device.calls.count("launch_graph")
        bare.close()
    assert set(figures["latency_ms"]) == {"engine, no graph", "engine, graph"}
    assert all(0 < row["p50"] <= row["p90"] <= row["p99"] for row in figures["latency_ms"].values())
    assert figures["latency_ms"]["engine, graph"]["rounds"] >= 20
    assert launches >= 20 + 5 * gpu_engine.BACK_TO_BACK
    assert figures["back_to_back_ms"]["engine"] > 0
    assert not device.graphs


def test_an_engine_that_cannot_be_captured_says_why_and_is_timed_without(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    library = standin.Library(device)
    library.refuses_capture = True
    bare = bare_engine(device, library, make_engine(tmp_path), frames, 1)
    assert "STREAM_CAPTURE_INVALIDATED" in bare.why_no_graph
    with device.active():
        figures = gpu_engine.measure(bare, WallClock(device), SECONDS, "engine")
    assert set(figures["latency_ms"]) == {"engine, no graph"}


def test_an_engine_that_the_library_refuses_is_skipped_with_its_words(
    standin: ModuleType, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    path = tmp_path / "broken.engine"
    path.write_bytes(b"no engine")
    with pytest.raises(gpu_session.Skip, match="the magic tag is wrong"):
        bare_engine(device, standin.Library(device), path, frames, 1)


def test_the_share_of_the_stage_is_what_the_network_alone_does_not_take(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    library, path = standin.Library(device), make_engine(tmp_path)
    engines = {name: bare_engine(device, library, path, frames, 1) for name in ("network", "whole")}
    launch = engines["whole"].launch

    def slow() -> None:
        time.sleep(0.01)
        launch()

    engines["whole"].launch = slow
    with device.active():
        figures = gpu_engine.compare(engines, WallClock(device), SECONDS)
    assert 0.5 < figures["share"] < 1
    assert set(figures["latency_ms"]) == {"network, batch 1", "whole, batch 1"}


def test_the_runtime_is_timed_at_both_ends_of_the_profile(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    backend = TensorRtBackend(make_engine(tmp_path), library=standin.Library(device).opened(), device=device)
    camera = np.zeros((192, 320, 3), np.uint8)
    rows = gpu_runner.latencies(backend, device, WallClock(device), frames, camera, SECONDS)
    ways = ("with copies", "pinned slot", "upload, engine and download on the GPU")
    wanted = {f"{way}, batch {batch}" for way in ways for batch in (1, 4)}
    assert set(rows) == wanted | {"end to end, 320x192 frame"}
    assert all(row["p50"] > 0 for row in rows.values())
    assert gpu_runner.rate([Model(backend)] * 2, camera, 0.1) > 0
    backend.close()
    with pytest.raises(RuntimeError, match="a thread failed: the model is closed"):
        gpu_runner.rate([Model(backend)] * 2, camera, 0.1)


def test_the_warning_of_the_runtime_about_graphs_is_kept(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path
) -> None:
    device = standin.HostDevice(why_no_graphs="PyCUDA has none")
    listener = gpu_runner.Listener()
    assert listener.graph() == "works"
    TensorRtBackend(make_engine(tmp_path), library=standin.Library(device).opened(), device=device).close()
    assert listener.graph().endswith("PyCUDA has none")


CLOCK = """
from benchmarks.gpu import engine
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
device = open_device()
with device.active():
    stream = device.create_stream()
    clock = engine.GpuClock(device)
    work = []
    print("elapsed", clock.time_ms(lambda: work.append(1), stream), work)
    print("free", engine.free_mib())
try:
    engine.free_mib()
except engine.CudaError as error:
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
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": ""}
    done = subprocess.run(
        [sys.executable, "-c", CLOCK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=here.parents[2],
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed.count("elapsed 1.5 [1]") == 1
    assert printed.count("free 3.0") == 1
    assert printed.count("cuMemGetInfo failed with error 201.") == 1

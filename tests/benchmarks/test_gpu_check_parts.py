"""The measuring parts of the GPU check, on the stand-in of library and GPU (see tensorrt_standin.py)."""

from __future__ import annotations

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

MakeModel = Callable[..., Path]
SECONDS = 0.01


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
        figures = gpu_engine.measure(bare, SECONDS, "engine")
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
        figures = gpu_engine.measure(bare, SECONDS, "engine")
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
        launch()
        device.enqueue(engines["whole"].stream, lambda: setattr(device, "clock_ms", device.clock_ms + 3))

    engines["whole"].launch = slow
    with device.active():
        figures = gpu_engine.compare(engines, SECONDS)
    assert figures["share"] == 0.75  # 1 ms of 4
    assert set(figures["latency_ms"]) == {"network, batch 1", "whole, batch 1"}


def test_the_runtime_is_timed_at_both_ends_of_the_profile(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, frames: Any
) -> None:
    device = standin.HostDevice()
    backend = TensorRtBackend(make_engine(tmp_path), library=standin.Library(device).opened(), device=device)
    camera = np.zeros((192, 320, 3), np.uint8)
    rows = gpu_runner.latencies(backend, device, frames, camera, SECONDS)
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

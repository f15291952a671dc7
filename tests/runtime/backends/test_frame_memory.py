"""Mapped or copied frames on an integrated GPU: both are timed while the engine loads, by the clock of the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import EngineLoadError

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


@pytest.fixture
def integrated(standin: ModuleType) -> Any:
    """A bench whose GPU shares the host's memory; a copy takes 1 ms, and so does the work in the GPU's own memory."""
    return standin.Bench(can_share_memory=True)


def answers(backend: Any, painted: Image) -> list[int]:
    """Counts of three frames one by one and of two at once, by which stale memory shows."""
    single = [int(backend.infer(painted[i : i + 1])[2][0]) for i in (1, 2, 3)]
    return [*single, *backend.infer(painted[3:5])[2].tolist()]


@pytest.mark.parametrize(("mapped_run_ms", "kept"), [(2.9, "mapped"), (3.1, "copied")])
def test_the_faster_memory_is_kept_by_every_slot(
    integrated: Any, make_engine: MakeModel, tmp_path: Path, painted: Image, mapped_run_ms: float, kept: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device = integrated.device
    device.mapped_run_ms = mapped_run_ms
    with caplog.at_level("INFO"):
        backend = integrated.load(make_engine(tmp_path), num_slots=2)
    report = backend.frame_memory
    assert (report.kept, report.mapped_ms, report.copied_ms) == (kept, pytest.approx(mapped_run_ms), pytest.approx(3))
    assert f"frame memory: {kept}, the faster one here: mapped {mapped_run_ms:.3f} ms, copied 3.000 ms" in caplog.text
    with backend.acquire() as first, backend.acquire() as second:
        before = integrated.count("upload")
        for slot, frame in ((first, painted[1]), (second, painted[2])):
            slot.frames[0] = frame
            slot.submit(1)
        assert [int(slot.result()[2][0]) for slot in (first, second)] == [1, 2]
        # The first slot launches its graph; the second is prepared: once run, once recorded.
        assert integrated.count("upload") - before == (0 if kept == "mapped" else 2)
    assert answers(backend, painted) == [1, 2, 3, 3, 4]
    backend.close()
    if kept == "mapped":
        assert set(device.memory) == device.mapped
    assert device.graphs == device.queues == {}


@pytest.mark.parametrize(("mapped_run_ms", "kept"), [(2.9, "mapped"), (3.1, "copied")])
def test_a_gpu_that_speeds_up_meanwhile_favours_neither(
    integrated: Any, make_engine: MakeModel, tmp_path: Path, mapped_run_ms: float, kept: str
) -> None:
    integrated.device.mapped_run_ms = mapped_run_ms
    integrated.device.speeding_up = 0.5  # each run: more than all the difference between the two
    backend = integrated.load(make_engine(tmp_path))
    assert backend.frame_memory.kept == kept
    backend.close()


@pytest.mark.parametrize("forced", ["mapped", "copied"])
def test_a_setting_chooses_without_measuring(
    integrated: Any, make_engine: MakeModel, tmp_path: Path, painted: Image, forced: str
) -> None:
    integrated.device.mapped_run_ms = 2.0 if forced == "copied" else 9.0  # the slower one is forced
    backend = integrated.load(make_engine(tmp_path), frame_memory=forced)
    assert integrated.count("time_ms") == 0
    assert (backend.frame_memory.kept, backend.frame_memory.mapped_ms) == (forced, None)
    assert answers(backend, painted) == [1, 2, 3, 3, 4]
    assert (integrated.count("upload") == 0) == (forced == "mapped")
    backend.close()


def test_other_gpus_copy_without_measuring_unless_told(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    path = make_engine(tmp_path)
    copying, mapping = standin.Bench(), standin.Bench()
    backend = copying.load(path)
    assert (backend.frame_memory.kept, copying.count("time_ms")) == ("copied", 0)
    assert backend.frame_memory.text() == "frame memory: copied"
    assert not copying.device.mapped
    backend.close()
    backend = mapping.load(path, frame_memory="mapped")
    assert answers(backend, painted) == [1, 2, 3, 3, 4]
    assert mapping.count("upload") == 0
    backend.close()


def test_both_are_timed_as_they_run_later_and_without_graphs_too(
    standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    path = make_engine(tmp_path)
    bench = standin.Bench(can_share_memory=True)
    backend = bench.load(path)
    assert bench.count("launch_graph") == bench.count("time_ms") == 4 * 6
    assert bench.library.events.count("context") == 1  # both ways share it
    backend.close()
    bench = standin.Bench(can_share_memory=True, why_no_graphs="PyCUDA has none")
    bench.device.mapped_run_ms = 5.0
    backend = bench.load(path)
    assert (backend.frame_memory.kept, backend.frame_memory.mapped_ms) == ("copied", pytest.approx(5))
    assert answers(backend, painted) == [1, 2, 3, 3, 4]
    backend.close()


def test_memory_that_runs_out_while_measuring_is_an_error_and_freed(
    integrated: Any, make_engine: MakeModel, tmp_path: Path
) -> None:
    integrated.device.failing_at["allocate", 3] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(EngineLoadError, match="memory is full"):
        integrated.load(make_engine(tmp_path))
    assert set(integrated.device.memory) == integrated.device.mapped
    assert integrated.device.graphs == integrated.device.queues == {}

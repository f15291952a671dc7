"""The runner on a real GPU: cuda.bindings or PyCUDA, TensorRT or TensorRT-RTX, and engines that are built here.

Skipped without a GPU; these have not been run yet.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import EngineLoadError, InputError, MissingDependencyError
from edgerpn.runtime import load
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.runtime.backends.tensorrt.library import import_library
from edgerpn.targets import RTX_CAPABILITIES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

Image = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def engine(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the `bright` model for this GPU, batches 1 to 4, beside its ONNX file."""
    folder = tmp_path_factory.mktemp("engine")
    onnx = make_model(folder, batch=None)
    for library in ("tensorrt", "tensorrt-rtx"):
        try:
            import_library(library)
        except (MissingDependencyError, EngineLoadError):
            continue
        words = ["build", str(onnx), "-o", str(folder / "gpu.engine"), "--backend", library, "--set", "batch=[1,2,4]"]
        if library == "tensorrt-rtx":
            capability = open_device().info.compute_capability
            words += ["--compute-capability", capability] if capability in RTX_CAPABILITIES else []
        done = subprocess.run([sys.executable, "-m", "edgerpn", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return folder / "gpu.engine"
    pytest.skip("neither TensorRT nor TensorRT-RTX imports here")


@pytest.fixture(scope="module")
def painted(paint: Callable[..., Image]) -> Image:
    return np.stack([paint(96, 160, box=(5 + i, 10, 60 + i, 70), count=1 + i % 5) for i in range(9)])


@pytest.fixture(scope="module")
def wanted(engine: Path, painted: Image) -> tuple[Any, ...]:
    with load(engine.parent / "bright.onnx", providers=["cpu"]) as model:
        return model.backend.infer(painted)


def assert_close(found: tuple[Any, ...], wanted: tuple[Any, ...], rows: slice) -> None:
    for one, other in zip(found[:3], wanted[:3], strict=True):
        np.testing.assert_allclose(one, other[rows], atol=1e-3)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 9])
def test_a_gpu_returns_the_outputs_of_onnx_runtime(
    engine: Path, painted: Image, wanted: Any, num_frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = TensorRtBackend(engine)
    for _ in range(3):
        assert_close(backend.infer(painted[:num_frames]), wanted, slice(num_frames))
    assert "without CUDA graphs" not in caplog.text
    backend.close()


def test_threads_share_a_gpu(engine: Path, painted: Image, wanted: Any) -> None:
    backend = TensorRtBackend(engine)
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for i in range(50):
                start = (first + i) % 6
                assert_close(backend.infer(painted[start : start + 3]), wanted, slice(start, start + 3))
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert errors == []


def test_tensors_of_pytorch_are_read_in_place(engine: Path, painted: Image, wanted: Any) -> None:
    torch = pytest.importorskip("torch")
    backend = TensorRtBackend(engine)
    frames = torch.from_numpy(painted[:2]).cuda()
    for _ in range(3):
        assert_close(backend.infer_device(frames), wanted, slice(2))
    with torch.cuda.stream(torch.cuda.Stream()):
        # Work that still runs on a side stream during the call.
        late = torch.zeros_like(frames)
        torch.cuda._sleep(50_000_000)
        late.copy_(frames, non_blocking=True)
        assert_close(backend.infer_device(late), wanted, slice(2))
    with pytest.raises(InputError, match="DLPack device type 1"):
        backend.infer_device(torch.from_numpy(painted[:2]))
    backend.close()


def test_frames_written_into_a_slot_need_no_copy(engine: Path, painted: Image, wanted: Any) -> None:
    backend = TensorRtBackend(engine)
    with backend.acquire() as first, backend.acquire() as second:
        first.frames[:2], second.frames[:1] = painted[:2], painted[2:3]
        first.submit(2)
        second.submit(1)
        assert_close(second.result(), wanted, slice(2, 3))
        assert_close(first.result(), wanted, slice(2))
    backend.close()


def test_inspect_says_that_it_can_run(engine: Path) -> None:
    from edgerpn.export.inspection import inspect_artifact

    checks = inspect_artifact(engine)["checks"]
    assert {check["verdict"] for check in checks} <= {"ok", "unknown"}


def test_memory_is_returned(engine: Path, painted: Image) -> None:
    torch = pytest.importorskip("torch")
    for _ in range(2):  # the first allocates memory that CUDA and the library keep
        backend = TensorRtBackend(engine)
        backend.infer(painted[:1])
        backend.close()
        del backend
        free, _ = torch.cuda.mem_get_info()
    for _ in range(5):
        backend = TensorRtBackend(engine)
        backend.infer(painted[:1])
        backend.close()
        del backend
    assert free - torch.cuda.mem_get_info()[0] < 64 << 20

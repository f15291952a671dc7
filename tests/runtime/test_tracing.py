"""NVTX ranges: around each stage of a frame, with the package nvtx and without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.runtime import tracing
from edgerpn.runtime.model import Model, load

Image = npt.NDArray[np.uint8]


class Attributes:
    def __init__(self, message: str) -> None:
        self.message = message


class RecordingDomain:
    """Refuses what nvtx 0.2.17 refuses, and also a pop without a push, which nvtx ignores."""

    def __init__(self) -> None:
        self.ranges: list[tuple[str, ...]] = []
        self._stacks: dict[int, list[str]] = {}

    def get_event_attributes(self, message: str | None = None) -> Attributes:
        assert isinstance(message, str)
        return Attributes(message)

    def push_range(self, attributes: Any) -> None:
        if not isinstance(attributes, Attributes):
            raise TypeError(f"expected EventAttributes, got {type(attributes).__name__}")
        stack = self._stacks.setdefault(threading.get_ident(), [])
        stack.append(attributes.message)
        self.ranges.append(tuple(stack))

    def pop_range(self) -> None:
        self._stacks[threading.get_ident()].pop()

    @property
    def is_closed(self) -> bool:
        return not any(self._stacks.values())


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDomain]:
    """A stand-in of the module nvtx, and the domain that it gives."""
    module, recording = ModuleType("nvtx"), RecordingDomain()

    def get_domain(name: str) -> RecordingDomain:
        assert name == "edgerpn"
        return recording

    module.get_domain = get_domain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvtx", module)
    forget()
    yield recording
    forget()


def forget() -> None:
    tracing.span.cache_clear()
    tracing._domain.cache_clear()


def test_a_frame_of_a_video_has_a_range_for_each_stage(
    domain: RecordingDomain, model_path: Path, video_path: Path
) -> None:
    with load(model_path) as model:
        assert len(list(model.stream(video_path, max_frames=3))) == 3
    assert {("decode",), ("preprocess",), ("inference",), ("postprocess",)} <= set(domain.ranges)


def test_an_image_is_decoded_in_a_range(domain: RecordingDomain, model_path: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((96, 160, 3), np.uint8))
    with load(model_path) as model:
        assert len(list(model.stream(tmp_path / "a.png"))) == 1
    assert ("decode",) in domain.ranges
    assert domain.is_closed


def test_an_engine_has_ranges_of_upload_inference_and_download(
    domain: RecordingDomain, bench: Any, make_engine: Callable[..., Path], tmp_path: Path, painted: Image
) -> None:
    model = Model(bench.load(make_engine(tmp_path), num_slots=1))
    # While it is prepared, the three enter the stream one by one.
    enqueued = [f"enqueue {part}" for part in ("upload", "inference", "download")]
    assert [name for (name,) in domain.ranges][:3] == enqueued
    domain.ranges.clear()
    model(painted[0])
    # A CUDA graph starts as a whole.
    assert domain.ranges == [("preprocess",), ("upload",), ("inference",), ("download",), ("postprocess",)]
    assert domain.is_closed
    model.close()


def test_a_range_ends_when_its_stage_fails(domain: RecordingDomain) -> None:
    with pytest.raises(ValueError, match="no"), tracing.span("inference"):
        raise ValueError("no")
    assert domain.ranges == [("inference",)]
    assert domain.is_closed


def test_without_the_package_ranges_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    forget()
    with tracing.span("decode"), tracing.span("decode"):
        pass
    assert tracing.span("decode") is tracing.span("decode")
    forget()


def compile_tool(root: Path, folder: Path) -> Path:
    """Compiles tests/support/nvtx_tool.c, which prints the ranges that it sees."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = root / "tests" / "support" / "nvtx_tool.c", folder / "nvtx_tool.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def test_a_real_tool_sees_our_ranges_by_the_real_package(
    model_path: Path, painted: Image, root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nvtx")
    cv2.imwrite(str(tmp_path / "a.png"), painted[0])
    code = """
import sys
from edgerpn.runtime import load
with load(sys.argv[1]) as model:
    print(len(list(model.stream(sys.argv[2]))))
"""
    environment = {**os.environ, "NVTX_INJECTION64_PATH": str(compile_tool(root, tmp_path))}
    words = [sys.executable, "-c", code, str(model_path), str(tmp_path / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    stages = ("decode", "preprocess", "inference", "postprocess")
    # A single image is also decoded once before the run, to see whether it can be.
    seen = done.stderr.splitlines()[-2 * len(stages) :]
    assert seen == [line for stage in stages for line in (f"+edgerpn/{stage}", "-edgerpn")]

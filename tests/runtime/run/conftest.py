"""Cameras over HTTP, short videos, and a model as slow as a test wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.proposals import Outputs
from edgerpn.runtime import Model, load
from edgerpn.runtime.backends.open_backend import open_backend
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from tests.support import patience
from tests.support.cameras import QUICK
from tests.support.cameras import make_mjpeg as make_camera  # noqa: F401 - a fixture


class SlowBackend:
    """A real backend, slowed down."""

    def __init__(self, path: Path, delay_s: float, **changes: Any) -> None:
        self._backend = open_backend(path, threads=1)
        self.delay_s = delay_s
        self.batches: list[int] = []
        self.calls: list[tuple[float, float]] = []
        """`time.monotonic()` before and after each inference."""
        self.gate: Callable[[], object] = lambda: None
        """Called before each inference; may hold it up."""
        self.changes = changes

    def __getattr__(self, name: str) -> Any:
        return self.changes[name] if name in self.changes else getattr(self._backend, name)

    def infer(self, frames: Any) -> Outputs:
        """Runs it, and notes how many frames came together."""
        self.gate()
        self.batches.append(len(frames))
        start_s = time.monotonic()
        time.sleep(self.delay_s)
        outputs = self._backend.infer(frames)
        self.calls.append((start_s, time.monotonic()))
        return outputs


@pytest.fixture
def live() -> Callable[..., SourceConfig]:
    """Settings of a camera with little patience."""

    def make(url: str, name: str, **settings: Any) -> SourceConfig:
        return SourceConfig(source=url, name=name, **{**QUICK, **settings})

    return make


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[Model]:
    """A model of batch 1."""
    with load(model_path, threads=1) as loaded:
        yield loaded


@pytest.fixture
def make_slow(make_model: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A model of any batch, slowed down; its `backend.batches` are the sizes of what it ran."""
    models: list[Model] = []

    def make(delay_s: float, *, batch: int | None = None, **changes: Any) -> Model:
        models.append(Model(SlowBackend(make_model(tmp_path, batch=batch), delay_s, **changes)))
        return models[-1]

    yield make
    for made in models:
        made.close()


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A lossless video of grey frames."""

    def make(num_frames: int = 40, size_wh: tuple[int, int] = (96, 64)) -> Path:
        path = tmp_path_factory.mktemp("clip") / "clip.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 25, size_wh)
        assert writer.isOpened()
        for index in range(num_frames):
            writer.write(np.full((size_wh[1], size_wh[0], 3), 2 * index % 200, np.uint8))
        writer.release()
        return path

    return make


class Run:
    """Iterates over a runner until a condition holds."""

    def __init__(self, runner: StreamRunner) -> None:
        self.runner = runner
        self.results: list[tuple[str, int, float]] = []
        self.events: list[Event] = []
        self._items = iter(runner)

    def until(self, is_it: Callable[[Result | Event], bool], timeout_s: float = patience.DEADLINE_S) -> Result | Event:
        """Returns the first item that fits."""
        end_s = time.monotonic() + timeout_s
        for item in self._items:
            if isinstance(item, Result):
                self.results.append((item.frame.source, item.index, item.age_ms or 0.0))
            else:
                self.events.append(item)
            if is_it(item):
                return item
            if time.monotonic() > end_s:
                break
        told = "\n".join(f"  {event.kind} {event.reason}: {event.message}" for event in self.events)
        raise AssertionError(f"it did not come within {timeout_s} s; {len(self.results)} results, events:\n{told}")

    def connected(self, *names: str) -> None:
        """Waits until all of these sources have connected, in whatever order."""
        self.until(
            lambda item: (
                set(names) <= {event.source for event in self.events if event.kind == "connected"}
                and isinstance(item, Result)
            )
        )

    def num_results(self, number: int) -> None:
        """Waits for so many results, from now on."""
        self.results.clear()
        self.until(lambda item: len(self.results) >= number)

    def for_s(self, seconds: float) -> None:
        """Takes all items for some time; at least one must come."""
        end_s = time.monotonic() + seconds
        self.until(lambda item: time.monotonic() >= end_s, seconds + patience.DEADLINE_S)

    def rest(self) -> None:
        """Takes everything until the runner ends."""
        with pytest.raises(AssertionError, match="did not come"):
            self.until(lambda item: False, 2 * patience.DEADLINE_S)


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Starts runners, and closes them."""
    runners: list[StreamRunner] = []

    def make(model: Model, *sources: SourceConfig, **settings: Any) -> Run:
        options = {name: settings.pop(name) for name in ("stays", "max_results", "on_tick") if name in settings}
        runners.append(StreamRunner(model, StreamsConfig(sources=sources, **settings), **options))
        return Run(runners[-1])

    yield make
    for runner in runners:
        runner.close()
    patience.wait_for_captures()

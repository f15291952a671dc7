"""Streams: order, limits, errors from every side, and never a thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import InputError, StreamOpenError, StreamStalledError
from edgerpn.proposals import Proposals
from edgerpn.runtime import Model, Result, load
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.pipeline import Pipeline
from edgerpn.runtime.sources.file_sources import open_source

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return load(model_path, threads=1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("edgerpn")] == []


class Frames:
    """A source of `count` tiny frames that may fail, or stay silent, at the end."""

    name, fps, is_images, drops = "frames", None, False, 0

    def __init__(
        self, count: int, *, is_live: bool = False, error: Exception | None = None, blocks: bool = False
    ) -> None:
        self.num_frames = count
        self.is_live = is_live
        self.num_taken = 0
        self._error = error
        self._blocks = blocks
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Frame | Event]:
        for index in range(self.num_frames):
            self.num_taken += 1
            yield Frame(
                image=np.zeros((4, 4, 3), np.uint8), index=index, media_time_s=None, captured_at=0.0,
                monotonic_s=time.monotonic(), source=self.name, decode_ms=0.0,
            )  # fmt: skip
        if self._error is not None:
            raise self._error
        if self._blocks:
            self.closed.wait()

    def close(self) -> None:
        self.closed.set()


def result_of(frame: Frame) -> Result:
    empty = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    return Result(proposals=empty, frame=frame, stage_ms={"inference": 0.0})


def indexes(items: Iterator[Result | Event] | Pipeline) -> list[int]:
    return [item.index for item in items if isinstance(item, Result)]


def test_a_video_streams_every_frame_in_order(model: Model, video_path: Path) -> None:
    results = list(model.stream(video_path))
    assert [result.index for result in results] == list(range(40))
    assert [len(result.proposals) for result in results] == [index % 4 for index in range(40)]
    assert set(results[0].stage_ms) == {"decode", "preprocess", "inference", "postprocess"}
    left = [float(result.proposals.boxes[0, 0]) for result in results[1:4]]
    assert left == pytest.approx([4, 8, 12], abs=2)


def test_a_folder_of_several_sizes_streams(
    model: Model, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "1.png"), paint(192, 320, count=2))
    (tmp_path / "2.png").write_bytes(b"broken")
    cv2.imwrite(str(tmp_path / "3.png"), paint(100, 90, box=(1, 1, 50, 50), count=3))
    results = list(model.stream(tmp_path))
    assert [len(result.proposals) for result in results] == [2, 3]
    assert [result.index for result in results] == [0, 2]
    assert "2.png: this file is not an image" in caplog.text


def test_results_come_in_order_though_workers_finish_in_any() -> None:
    def slow_for_even(frame: Frame) -> Result:
        time.sleep(0.01 if frame.index % 2 == 0 else 0)
        return result_of(frame)

    assert indexes(Pipeline(Frames(30), slow_for_even, workers=4)) == list(range(30))


def test_workers_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=5)

    def meet(frame: Frame) -> Result:
        meeting.wait()
        return result_of(frame)

    assert indexes(Pipeline(Frames(4), meet, workers=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("max_frames", [0, 1, 7, 100])
def test_max_frames_ends_the_stream(model: Model, video_path: Path, max_frames: int) -> None:
    assert len(list(model.stream(video_path, max_frames=max_frames))) == min(40, max_frames)


def test_an_empty_source_ends_at_once() -> None:
    assert indexes(Pipeline(Frames(0), result_of, workers=2)) == []


def test_a_slow_consumer_holds_back_the_source() -> None:
    source = Frames(1000)
    items = iter(Pipeline(source, result_of, workers=2))
    next(items)
    time.sleep(0.3)
    # 5 results wait, 2 are with workers, and 3 + 1 are decoded ahead.
    assert source.num_taken <= 15
    items.close()
    assert source.closed.is_set()


def test_a_live_source_is_only_read_when_the_model_is_free() -> None:
    source = Frames(1000, is_live=True)
    items = iter(Pipeline(source, result_of, workers=1))
    next(items)
    time.sleep(0.3)
    assert source.num_taken <= 3
    items.close()


def test_leaving_the_loop_stops_everything(model: Model, video_path: Path) -> None:
    for result in model.stream(video_path):
        if result.index == 3:
            break


def test_a_consumer_that_raises_gets_its_own_error(model: Model, video_path: Path) -> None:
    def consume() -> None:
        for result in model.stream(video_path):
            _ = 1 / (5 - result.index)

    with pytest.raises(ZeroDivisionError):
        consume()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_live", [False, True])
def test_an_error_of_the_source_comes_after_its_frames(workers: int, is_live: bool) -> None:
    source = Frames(6, is_live=is_live, error=StreamStalledError("camera gone"))
    seen: list[Result | Event] = []
    with pytest.raises(StreamStalledError, match="camera gone"):
        seen.extend(Pipeline(source, result_of, workers=workers))
    seen_live = iter(Pipeline(Frames(6, error=StreamStalledError("gone")), result_of, workers=workers))
    for expected in range(6):
        assert next(seen_live).index == expected  # type: ignore[union-attr]
    with pytest.raises(StreamStalledError, match="gone"):
        next(seen_live)


def test_the_first_error_in_frame_order_is_the_one_reported() -> None:
    def fail(frame: Frame) -> Result:
        if frame.index == 3:
            time.sleep(0.1)
            raise InputError("frame 3")
        if frame.index > 3:
            raise InputError(f"frame {frame.index}")
        return result_of(frame)

    items = iter(Pipeline(Frames(20), fail, workers=3))
    assert [next(items).index for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="frame 3"):
        next(items)


def test_a_frame_that_does_not_fit_ends_the_stream(
    make_model: Callable[..., Path], tmp_path: Path, video_path: Path
) -> None:
    with (
        load(make_model(tmp_path, source_hw=(50, 60))) as model,
        pytest.raises(InputError, match="--source-size 192x320"),
    ):
        list(model.stream(video_path))


def test_a_source_that_does_not_open_raises_in_the_iteration(model: Model, tmp_path: Path) -> None:
    stream = model.stream(tmp_path / "absent.mp4")
    with pytest.raises(StreamOpenError, match=r"absent\.mp4"):
        next(stream)


@pytest.mark.parametrize("is_live", [False, True])
def test_stop_ends_a_stream_whose_source_is_silent(is_live: bool) -> None:
    pipeline = Pipeline(Frames(2, is_live=is_live, blocks=True), result_of, workers=2)
    threading.Timer(0.3, pipeline.stop).start()
    start = time.monotonic()
    assert indexes(pipeline) == [0, 1]
    assert time.monotonic() - start < 5


def test_closing_a_stream_that_was_never_begun_is_fine(model: Model, video_path: Path) -> None:
    model.stream(video_path).close()  # type: ignore[attr-defined]
    pipeline = model.pipeline(open_source(video_path))
    pipeline.close()
    pipeline.close()


def test_impossible_numbers_are_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="workers"):
        Pipeline(Frames(1), result_of, workers=0)
    with pytest.raises(ValueError, match="max_frames"):
        Pipeline(Frames(1), result_of, max_frames=-1)

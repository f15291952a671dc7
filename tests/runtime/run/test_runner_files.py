"""Files through the runner: order, limits, errors of every part, and no thread left behind."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgerpn.errors import InputError, StreamError, StreamOpenError
from edgerpn.proposals import Proposals
from edgerpn.runtime import Model, Result, load
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.sources.file_sources import open_source


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return load(model_path, threads=1)


@pytest.fixture(autouse=True)
def no_thread_is_left(patience: Any) -> Iterator[None]:
    # The fixture that closes the runners ends before this one.
    yield
    patience.wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgerpn")])


class Frames:
    """A source of `count` tiny frames that may fail, or block, at the end."""

    name, fps, is_images = "frames", None, False

    def __init__(self, count: int, *, error: Exception | None = None, blocks: bool = False) -> None:
        self.num_frames = count
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


class PlainModel:
    """Calls `infer` for each frame, from as many threads as there are workers."""

    manifest: Any = SimpleNamespace(input=SimpleNamespace(batch=1, exif_reading="ignore", num_channels=3), engine=None)
    backend: Any = SimpleNamespace(frames_in_flight=1, is_cpu=True)

    def __init__(self, infer: Callable[[Frame], Result]) -> None:
        self._infer = infer

    def run_frames(self, frames: Sequence[Frame], *, pool: Any = None) -> list[Result | InputError]:
        return [self._infer(frame) for frame in frames]


class TurningModel(PlainModel):
    """A model that was trained on images turned by their EXIF orientation."""

    manifest: Any = SimpleNamespace(input=SimpleNamespace(batch=1, exif_reading="apply", num_channels=3), engine=None)


Items = Iterator[Result | Event]


@pytest.fixture
def run() -> Iterator[Callable[..., Items]]:
    """Iterates over a runner of one source, and closes it."""
    runners: list[StreamRunner] = []

    def make(source: Frames, infer: Callable[[Frame], Result] = result_of, **options: Any) -> Items:
        config = StreamsConfig(sources=(SourceConfig(source="opened", name=source.name),))
        runners.append(StreamRunner(PlainModel(infer), config, opened={source.name: source}, **options))
        return iter(runners[-1])

    yield make
    for runner in runners:
        runner.close()


def indexes(items: Items) -> list[int]:
    return [item.index for item in items if isinstance(item, Result)]


def test_a_video_streams_every_frame_in_order(model: Model, video_path: Path) -> None:
    results = list(model.stream(video_path))
    assert [result.index for result in results] == list(range(40))
    assert [len(result.proposals) for result in results] == [index % 4 for index in range(40)]
    assert list(results[0].stage_ms) == [
        "capture_lag", "decode", "wait", "preprocess", "inference", "postprocess"
    ]  # fmt: skip
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
    assert "2.png: not an image that OpenCV can decode (6 bytes)" in caplog.text


def test_results_come_in_order_though_workers_finish_in_any(run: Callable[..., Items]) -> None:
    def slow_for_even(frame: Frame) -> Result:
        time.sleep(0.01 if frame.index % 2 == 0 else 0)
        return result_of(frame)

    assert indexes(run(Frames(30), slow_for_even, workers=4)) == list(range(30))


def test_workers_run_at_the_same_time(run: Callable[..., Items]) -> None:
    meeting = threading.Barrier(2, timeout=40)

    def meet(frame: Frame) -> Result:
        meeting.wait()
        return result_of(frame)

    assert indexes(run(Frames(4), meet, workers=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("max_frames", [0, 1, 7, 100])
def test_max_frames_ends_the_stream(model: Model, video_path: Path, max_frames: int) -> None:
    assert len(list(model.stream(video_path, max_frames=max_frames))) == min(40, max_frames)


def test_an_empty_source_ends_at_once(run: Callable[..., Items]) -> None:
    assert indexes(run(Frames(0), workers=2)) == []


def test_a_slow_consumer_holds_back_the_source_and_loses_nothing(run: Callable[..., Items]) -> None:
    source = Frames(100)
    items = run(source, workers=2)
    assert isinstance(next(items), Result)
    time.sleep(0.3)
    # 5 results wait or are with workers, and 3 + 1 are decoded ahead.
    assert source.num_taken <= 10
    assert indexes(items) == list(range(1, 100))
    assert source.closed.is_set()


def test_closing_the_generator_closes_the_source(model: Model) -> None:
    source = Frames(1000)
    stream = model.stream(source)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert source.closed.is_set()


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
def test_an_error_of_the_source_comes_after_its_frames(run: Callable[..., Items], workers: int) -> None:
    items = run(Frames(6, error=StreamError("gone")), workers=workers)
    assert [next(items).index for _ in range(6)] == list(range(6))  # type: ignore[union-attr]
    with pytest.raises(StreamError, match="gone"):
        next(items)


def test_a_file_that_cannot_be_read_further_is_an_event_and_no_end_of_the_others(run: Callable[..., Items]) -> None:
    (error, ended) = [item for item in run(Frames(2, error=StreamOpenError("frames: cut"))) if isinstance(item, Event)]
    assert (error.kind, ended.kind, error.message) == ("error", "ended", "frames: cut")


def test_the_first_error_in_frame_order_is_raised(run: Callable[..., Items]) -> None:
    def fail(frame: Frame) -> Result:
        if frame.index == 3:
            time.sleep(0.1)
            raise InputError("frame 3")
        if frame.index > 3:
            raise InputError(f"frame {frame.index}")
        return result_of(frame)

    items = run(Frames(20), fail, workers=3)
    assert [next(items).index for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="frame 3"):
        next(items)


def test_a_frame_that_does_not_fit_ends_the_stream(
    make_model: Callable[..., Path], tmp_path: Path, video_path: Path
) -> None:
    with load(make_model(tmp_path, source_hw=(50, 60))) as model:
        with pytest.raises(InputError, match="--source-size 192x320"):
            list(model.stream(video_path))
        source = SourceConfig(source=str(video_path), name="a")
        # Among several sources it is an event, once for its size.
        with StreamRunner(model, StreamsConfig(sources=(source,))) as runner:
            (refused,) = runner
        assert isinstance(refused, Event)
        assert (refused.kind, refused.reason) == ("error", "unsupported")
        assert runner.stats()["a"].num_refused == 40


def test_every_unreadable_image_is_reported_however_long_the_model_takes(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    for number in range(1, 601):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    source = SourceConfig(source=str(tmp_path))

    def infer(frame: Frame) -> Result:
        # Long enough to read all images, if nothing held the reader up.
        end_s = time.monotonic() + 2.0
        while runner.stats()[source.label].state != "ended" and time.monotonic() < end_s:
            time.sleep(0.01)
        return result_of(frame)

    with StreamRunner(PlainModel(infer), StreamsConfig(sources=(source,)), workers=1) as runner:
        paths = [item.path for item in runner if isinstance(item, Event) and item.path is not None]
    assert [path.name for path in paths] == [f"{number}.png" for number in range(1, 601)]


class Complaints(Frames):
    """A source of events alone."""

    def __iter__(self) -> Iterator[Frame | Event]:
        for _ in range(self.num_frames):
            self.num_taken += 1
            yield Event(kind="error", source=self.name, message="frames: broken")


def test_a_caller_that_takes_nothing_holds_events_up_too(run: Callable[..., Items]) -> None:
    source = Complaints(100_000)
    items = run(source)
    next(items)
    # 64 slots for the caller, with 256 events at most, and as many in the mailbox; some are on their way or begun.
    limit = 80 * 256
    end_s = time.monotonic() + 2.0
    while source.num_taken <= limit and time.monotonic() < end_s:
        time.sleep(0.01)
    assert source.num_taken <= limit


def test_a_source_that_does_not_open_raises_in_the_iteration(model: Model, tmp_path: Path) -> None:
    stream = model.stream(tmp_path / "absent.mp4")
    with pytest.raises(StreamOpenError, match=r"absent\.mp4"):
        next(stream)


def test_stop_ends_a_run_whose_source_is_silent() -> None:
    source = Frames(2, blocks=True)
    config = StreamsConfig(sources=(SourceConfig(source="opened", name=source.name),))
    with StreamRunner(PlainModel(result_of), config, opened={source.name: source}, workers=2) as runner:
        items = iter(runner)
        assert indexes(itertools.islice(items, 2)) == [0, 1]
        threading.Timer(0.3, runner.stop).start()
        assert indexes(items) == []
    assert source.closed.is_set()


def test_a_stream_that_never_started_can_be_closed(model: Model, video_path: Path) -> None:
    model.stream(video_path).close()  # type: ignore[attr-defined]
    source = SourceConfig(source=str(video_path))
    runner = StreamRunner(model, StreamsConfig(sources=(source,)), opened={source.label: open_source(video_path)})
    runner.close()
    runner.close()


def test_a_file_opened_under_another_name_has_that_of_its_source(model: Model, video_path: Path) -> None:
    config = StreamsConfig(sources=(SourceConfig(source=str(video_path), name="door"),))
    with StreamRunner(model, config, opened={"door": open_source(video_path)}, max_results=3) as runner:
        assert [item.frame.source for item in runner if isinstance(item, Result)] == ["door"] * 3


def test_a_stream_that_the_garbage_collector_ends_in_its_own_worker_ends(
    model: Model, video_path: Path, monkeypatch: pytest.MonkeyPatch, patience: Any
) -> None:
    problems: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: problems.append(problem.exc_value))
    is_lost = threading.Event()
    run_frames = model.run_frames

    def collect_first(frames: Sequence[Frame], **options: Any) -> list[Result | InputError]:
        if frames[0].index and is_lost.wait(20):
            gc.collect()
        return run_frames(frames, **options)

    monkeypatch.setattr(model, "run_frames", collect_first)
    stream = model.stream(video_path)
    next(stream)
    circle: list[object] = [stream]
    circle.append(circle)
    del stream, circle
    is_lost.set()
    patience.wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgerpn")])
    assert problems == []


def test_impossible_numbers_are_mistakes_of_the_caller(run: Callable[..., Items]) -> None:
    with pytest.raises(ValueError, match="workers"):
        run(Frames(1), workers=0)
    with pytest.raises(ValueError, match="max_results"):
        run(Frames(1), max_results=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"track": True}, r"track: expected a TrackConfig or None, got True"),
        ({"workers": "2"}, r"workers: expected a whole number or None, got '2'"),
        ({"max_frames": 2.5}, r"max_frames: expected a whole number or None, got 2\.5"),
        ({"max_frames": -1}, r"max_frames: expected 0 or more, got -1"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_opened(
    model: Model, video_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        next(model.stream(video_path, **options))
    # The error still holds the variables of the call.
    assert str(video_path) not in open_files()


def open_files() -> list[str]:
    return [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]


def test_settings_of_a_wrong_type_are_refused_by_name(model: Model) -> None:
    for settings, message in (
        ({"sources": ["rtsp://user:secret@door/"]}, "sources: expected SourceConfig objects, got a str among them"),
        ({"batching": {"max_batch": 2}}, "batching: expected a BatchingConfig, got {'max_batch': 2}"),
        ({"track": "yes"}, "track: expected a TrackConfig or None, got 'yes'"),
    ):
        with pytest.raises(TypeError, match=message):
            StreamsConfig(**settings)
    with pytest.raises(TypeError, match="config: expected a StreamsConfig, got a SourceConfig"):
        StreamRunner(model, SourceConfig(source="a.mp4"))  # type: ignore[arg-type]


def test_an_opened_source_that_was_used_is_refused_and_not_empty(
    model: Model, video_path: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    for path, num_frames in ((video_path, 40), (tmp_path, 1)):
        source = open_source(path)
        assert len(list(model.stream(source))) == num_frames
        with pytest.raises(ValueError, match=f"{path}: this source was read .*; open it again"):
            list(model.stream(source))
    video = open_source(video_path)
    next(iter(video))
    with pytest.raises(ValueError, match=f"{video_path}: this source was read before; open it again"):
        next(iter(video))


def test_a_runner_is_iterated_over_once_and_only_while_it_is_open(model: Model, video_path: Path) -> None:
    config = StreamsConfig(sources=(SourceConfig(source=str(video_path)),))
    with StreamRunner(model, config) as runner:
        assert len(indexes(iter(runner))) == 40
        with pytest.raises(RuntimeError, match="this runner was iterated over before; make another StreamRunner"):
            next(iter(runner))
    with StreamRunner(model, config) as closed:
        items = iter(closed)
    with pytest.raises(RuntimeError, match="this runner was closed; make another StreamRunner"):
        next(items)


def test_a_signal_handler_may_stop_a_runner_that_is_being_stopped(model: Model) -> None:
    def interrupt(frame: object, event: str, argument: object) -> Any:
        # As a handler that Python calls between any two lines.
        runner.stop()
        return interrupt

    with StreamRunner(model, StreamsConfig()) as runner:
        sys.settrace(interrupt)
        try:
            runner.stop()
        finally:
            sys.settrace(None)
        assert list(runner) == []


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Lets the system refuse every thread: none has room for such a stack."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


class LastSource(SourceConfig):
    """A source before which the system runs out of threads."""

    @property
    def is_read_here(self) -> bool:
        threading.stack_size(1 << 46)
        return True


def test_a_runner_whose_thread_does_not_start_leaves_nothing_behind(
    model: Model, video_path: Path, patience: Any
) -> None:
    camera = SourceConfig(source="rtsp://127.0.0.1:9/x", name="door", backoff_first_s=0.1, backoff_max_s=0.1)
    file = SourceConfig(source=str(video_path), name="film")
    config = StreamsConfig(sources=(camera, file, LastSource(source=str(video_path), name="last")))
    before = threading.stack_size()
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            StreamRunner(model, config)
    finally:
        threading.stack_size(before)
    patience.wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgerpn")])


def test_a_source_that_finds_no_thread_neither_holds_up_the_run_nor_keeps_its_name(
    model: Model, video_path: Path, patience: Any
) -> None:
    before = patience.descriptors()
    with no_more_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
        StreamRunner(model, StreamsConfig())
    patience.wait_until(lambda: not patience.descriptors() - before)
    late = SourceConfig(source=str(video_path), name="late")
    with StreamRunner(model, StreamsConfig()) as runner:
        with no_more_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
            runner.add(late)
        assert runner.stats() == {}
        runner.add(late)
        assert len(indexes(iter(runner))) == 40


def test_a_rate_cap_leaves_out_frames_of_a_file_and_counts_them(model: Model, video_path: Path) -> None:
    source = SourceConfig(source=str(video_path), name="a", max_fps=10.0)
    with StreamRunner(model, StreamsConfig(sources=(source,))) as runner:
        frames = [item.frame for item in runner if isinstance(item, Result)]
    # 30 frames a second.
    assert 13 <= len(frames) <= 15
    assert [frame.num_skipped + 1 for frame in frames[1:]] == np.diff([frame.index for frame in frames]).tolist()


@pytest.mark.parametrize("is_open", [False, True])
def test_images_are_read_by_the_orientation_rule_of_the_model(tmp_path: Path, is_open: bool) -> None:
    orientation = Image.Exif()
    orientation[0x112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.jpg", exif=orientation)
    source = SourceConfig(source=str(tmp_path))
    for kind, size_hw in ((PlainModel, (48, 64)), (TurningModel, (64, 48))):
        opened = {source.label: open_source(tmp_path, name=source.label)} if is_open else {}
        with StreamRunner(kind(result_of), StreamsConfig(sources=(source,)), opened=opened) as runner:
            assert [item.image.shape[:2] for item in runner if isinstance(item, Result)] == [size_hw]

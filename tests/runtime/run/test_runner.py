"""Many streams: fairness, batches, freshness, sources that come and go."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import InferenceError
from edgerpn.runtime import Model
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import BatchingConfig, SourceConfig, StreamRunner, StreamsConfig

Make = Callable[..., Any]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def no_thread_is_left(patience: Any) -> Iterator[None]:
    # The fixture that closes the runners ends before this one.
    yield
    patience.wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgerpn")])


def is_event(kind: str, source: str = "") -> Callable[[Result | Event], bool]:
    return lambda item: isinstance(item, Event) and item.kind == kind and source in ("", item.source)


def is_result(source: str) -> Callable[[Result | Event], bool]:
    return lambda item: isinstance(item, Result) and item.frame.source == source


def test_files_give_every_frame_in_order_and_take_turns(model: Model, make_clip: Make, start: Make) -> None:
    sources = [SourceConfig(source=str(make_clip()), name=name) for name in "abcd"]
    run = start(model, *sources)
    run.rest()
    for name in "abcd":
        assert [index for source, index, _ in run.results if source == name] == list(range(40))
    # Files have events for problems only.
    assert run.events == []
    stats = run.runner.stats()
    assert {one.num_results for one in stats.values()} == {40}
    assert {one.state for one in stats.values()} == {"ended"}
    assert run.runner.num_dropped == run.runner.num_stale == 0


def test_boxes_are_those_of_the_model_alone(model: Model, video_path: Path, start: Make) -> None:
    alone = [result.proposals for result in model.stream(video_path)]
    run = start(model, SourceConfig(source=str(video_path), name="a"), SourceConfig(source=str(video_path), name="b"))
    found: dict[str, list[Any]] = {"a": [], "b": []}
    for item in run.runner:
        if isinstance(item, Result):
            found[item.frame.source].append(item.proposals)
            assert list(item.stage_ms) == [
                "capture_lag", "decode", "wait", "preprocess", "inference", "postprocess"
            ]  # fmt: skip
            assert item.age_ms is not None
            assert item.age_ms >= item.stage_ms["wait"] + item.stage_ms["inference"]
    for proposals in found.values():
        assert len(proposals) == len(alone) == 40
        for one, other in zip(proposals, alone, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)


def test_a_flood_and_a_dead_source_slow_no_other_source(
    make_slow: Make, make_camera: Make, live: Make, start: Make
) -> None:
    urls = {"flood": make_camera(fps=200).url, "a": make_camera(fps=20).url, "b": make_camera(fps=20).url}
    sources = [live(url, name) for name, url in urls.items()]
    run = start(make_slow(0.02), live("http://127.0.0.1:9/x", "dead"), *sources)
    run.connected(*urls)
    run.num_results(150)
    counts = Counter(source for source, _, _ in run.results)
    assert set(counts) == set(urls)
    # A third of 50 results a second for each; the slow ones lose nothing to the flood.
    assert min(counts["a"], counts["b"]) > 0.6 * max(counts["a"], counts["b"])
    assert min(counts["a"], counts["b"]) > 0.5 * counts["flood"]
    stats = run.runner.stats()
    assert stats["dead"].state in ("reconnecting", "starting")
    assert "refused" in stats["dead"].last_problem
    assert stats["flood"].num_dropped > 50


def test_under_overload_results_are_as_old_as_one_frame_and_one_inference(
    make_slow: Make, make_camera: Make, live: Make, start: Make, patience: Any
) -> None:
    run = start(make_slow(0.08), live(make_camera(fps=50).url, "camera"))
    run.until(is_result("camera"))
    run.num_results(30)
    ages = [age for _, _, age in run.results]
    # 20 ms + 80 ms, and something for the machine that runs this test.
    patience.assert_within(float(np.median(ages)) / 1e3, 0.1)
    patience.assert_within(float(np.percentile(ages, 95)) / 1e3, 0.12)
    # At 80 ms for each of 30 results, 120 frames came.
    assert run.runner.num_dropped > 40


def test_frames_that_are_too_old_are_events_and_never_results(
    make_slow: Make, make_camera: Make, live: Make, start: Make
) -> None:
    slow = make_slow(0.15)
    run = start(slow, live(make_camera(fps=50).url, "camera", max_age_ms=100.0))
    event: Any = run.until(is_event("stale"))
    assert event.age_ms > 100
    assert event.frame is not None
    assert "max_age_ms is 100" in event.message
    run.for_s(0.5)
    assert run.results == []
    slow.backend.delay_s = 0.0
    run.until(is_result("camera"))
    assert all(age <= 100 for _, _, age in run.results)
    assert run.runner.num_stale == run.runner.stats()["camera"].num_stale >= 3


def test_a_file_of_a_web_server_gives_a_slow_model_every_frame(
    make_slow: Make, make_clip: Make, live: Make, start: Make
) -> None:
    folder = make_clip(num_frames=6).parent
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/clip.avi"
            run = start(make_slow(0.05), live(url, "film", max_age_ms=20.0))
            run.until(is_event("ended"))
        finally:
            server.shutdown()
    assert [index for _, index, _ in run.results] == list(range(6))
    assert min(age for _, _, age in run.results) > 20


def test_a_camera_without_a_clock_does_not_seem_to_lag(
    model: Model, make_camera: Make, live: Make, start: Make
) -> None:
    # FFmpeg takes it for 25 frames a second, so that its time seems to fall behind by 0.6 s a second.
    run = start(model, live(make_camera(fps=10).url, "camera"))
    run.until(is_result("camera"))
    run.num_results(20)
    # It would be 1.2 s by now, and never less again.
    assert min(age for _, _, age in run.results[-5:]) < 600


def test_a_slow_consumer_gets_fresh_results_of_a_live_source(
    model: Model, make_camera: Make, live: Make, start: Make, patience: Any
) -> None:
    run = start(model, live(make_camera(fps=50).url, "camera"))
    run.until(is_result("camera"))
    ages = []
    for _ in range(10):
        time.sleep(0.1)
        item = run.until(is_result("camera"))
        assert isinstance(item, Result)
        ages.append(item.age_ms)
    # One batch waits while the consumer works, and another was taken when that one was done.
    patience.assert_within(float(np.median([age or 0.0 for age in ages])) / 1e3, 0.3)


def hold_until_all_are_there(slow: Any, run: Any, patience: Any) -> None:
    """Holds the model up until every source has given frames, so that none is done before another starts."""
    slow.backend.gate = lambda: patience.wait_until(
        lambda: all(stats.num_captured > 0 for stats in run.runner.stats().values())
    )


def test_a_batch_holds_one_frame_of_each_source_at_most(
    make_slow: Make, make_clip: Make, start: Make, patience: Any
) -> None:
    slow = make_slow(0.02, frames_in_flight=1)
    sources = [SourceConfig(source=str(make_clip(40)), name=name) for name in "abc"]
    run = start(slow, *sources, batching=BatchingConfig(max_batch=8, batch_wait_ms=200))
    hold_until_all_are_there(slow, run, patience)
    run.rest()
    assert max(slow.backend.batches) == 3
    # But for the first ones, when not all are connected, and the last.
    assert Counter(slow.backend.batches)[3] >= 20
    assert Counter(source for source, _, _ in run.results) == {"a": 40, "b": 40, "c": 40}


def test_a_batch_waits_for_stragglers_only_until_the_deadline(
    make_slow: Make, make_camera: Make, live: Make, start: Make
) -> None:
    slow = make_slow(0.0)
    sources = [live(make_camera(fps=25).url, "quick"), live(make_camera(fps=4).url, "straggler")]
    run = start(slow, *sources, batching=BatchingConfig(max_batch=2, batch_wait_ms=10))
    run.connected("quick", "straggler")
    run.num_results(40)
    counts = Counter(source for source, _, _ in run.results)
    # 25 to 4; a batcher that waited for the straggler would take as many of one as of the other.
    assert counts["quick"] > 2 * counts["straggler"] > 0


@pytest.mark.parametrize(("batch", "expected"), [(1, 1), (2, 2)])
def test_the_batch_is_that_of_the_model(
    make_slow: Make, make_clip: Make, start: Make, patience: Any, batch: int, expected: int
) -> None:
    slow = make_slow(0.01, batch=batch, frames_in_flight=1)
    run = start(slow, *(SourceConfig(source=str(make_clip(10)), name=name) for name in "abc"))
    hold_until_all_are_there(slow, run, patience)
    run.rest()
    assert max(slow.backend.batches) == expected
    assert len(run.results) == 30


@pytest.fixture
def without_garbage_collector() -> Iterator[None]:
    """Turns off the garbage collector, because a large program collects reference cycles seldom."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collector")
def test_a_source_that_does_not_fit_the_model_stops_no_other(
    make_model: Callable[..., Path], tmp_path: Path, make_clip: Make, start: Make
) -> None:
    from edgerpn.runtime import load

    with load(make_model(tmp_path, source_hw=(64, 96)), threads=1) as model:
        fits = SourceConfig(source=str(make_clip(10)), name="fits")
        other = SourceConfig(source=str(make_clip(10, size_wh=(64, 48))), name="other")
        run = start(model, fits, other)
        run.rest()
        assert {source for source, _, _ in run.results} == {"fits"}
        errors = [event for event in run.events if event.kind == "error"]
        assert [event.source for event in errors] == ["other"]
        assert "--source-size 48x64" in errors[0].message
        assert run.runner.stats()["other"].num_refused == 10


def test_a_source_that_comes_again_says_again_that_it_does_not_fit(
    make_model: Callable[..., Path], tmp_path: Path, make_clip: Make, start: Make
) -> None:
    from edgerpn.runtime import load

    with load(make_model(tmp_path, source_hw=(64, 96)), threads=1) as model:
        other = SourceConfig(source=str(make_clip(10, size_wh=(64, 48))), name="other")
        run = start(model, other, stays=True)
        run.until(is_event("error", "other"))
        run.runner.remove("other")
        run.until(is_event("ended", "other"))
        run.runner.add(other)
        run.until(is_event("error", "other"))


def test_sources_come_and_go_while_it_runs(model: Model, make_camera: Make, live: Make, start: Make) -> None:
    run = start(model, live(make_camera().url, "first"))
    run.until(is_result("first"))
    run.runner.add(live(make_camera().url, "second"))
    with pytest.raises(ValueError, match="two sources named 'second'"):
        run.runner.add(live("0", "second"))
    run.until(is_result("second"))
    assert run.runner.remove("first")
    assert not run.runner.remove("first")
    event: Any = run.until(is_event("ended", "first"))
    assert event.reason == "removed"
    run.results.clear()
    run.for_s(0.3)
    assert {source for source, _, _ in run.results} == {"second"}
    assert list(run.runner.stats()) == ["second"]


def test_new_settings_touch_only_the_sources_that_change(
    model: Model, make_camera: Make, live: Make, start: Make
) -> None:
    cameras = {name: make_camera().url for name in ("kept", "changed", "gone", "new")}
    run = start(model, *(live(cameras[name], name) for name in ("kept", "changed", "gone")))
    run.connected("kept", "changed", "gone")
    pids = {name: stats.pid for name, stats in run.runner.stats().items()}
    changed = live(cameras["changed"], "changed", max_fps=5.0)
    sources = (live(cameras["kept"], "kept", max_age_ms=0.001), changed, live(cameras["new"], "new"))
    thread = threading.Thread(target=run.runner.apply, args=(StreamsConfig(sources=sources),))
    thread.start()
    run.until(is_event("stale", "kept"))
    run.until(is_result("new"))
    thread.join()
    stats = run.runner.stats()
    assert list(stats) == ["kept", "changed", "new"]
    assert stats["kept"].pid == pids["kept"]
    assert stats["changed"].pid != pids["changed"]


def test_a_runner_may_outlive_its_sources(model: Model, make_clip: Make, start: Make, patience: Any) -> None:
    clip = str(make_clip(5))
    run = start(model, stays=True)
    run.runner.add(SourceConfig(source=clip, name="a"))
    run.until(lambda item: len(run.results) == 5)
    patience.wait_until(lambda: run.runner.stats()["a"].state == "ended")
    run.runner.add(SourceConfig(source=clip, name="b"))
    run.until(lambda item: len(run.results) == 10)
    assert run.runner.remove("a")
    run.until(is_event("ended", "a"))


def test_a_number_of_results_ends_it(model: Model, make_clip: Make, start: Make) -> None:
    run = start(model, SourceConfig(source=str(make_clip())), max_results=7)
    run.rest()
    assert len(run.results) == 7


def test_an_error_of_the_model_ends_it(make_slow: Make, make_clip: Make, start: Make) -> None:
    def fail(frames: Any) -> Any:
        raise InferenceError("out of memory")

    slow = make_slow(0.0, batch=1)
    slow.backend.infer = fail
    run = start(slow, SourceConfig(source=str(make_clip())))
    with pytest.raises(InferenceError, match="out of memory"):
        run.until(lambda item: False)


def test_ticks_continue_without_results_and_a_stop_ends_the_iteration_at_once(model: Model, live: Make) -> None:
    ticks: list[None] = []

    def tick() -> None:
        ticks.append(None)
        if len(ticks) == 8:
            runner.stop()

    config = StreamsConfig(sources=(live("http://127.0.0.1:9/x", "dead"),))
    with StreamRunner(model, config, on_tick=tick) as runner:
        kinds = {item.kind for item in runner if isinstance(item, Event)}
    assert len(ticks) == 8
    assert kinds <= {"started", "reconnecting"}


def test_statistics_follow_a_camera_through_a_reconnection(
    model: Model, make_camera: Make, live: Make, start: Make
) -> None:
    camera = make_camera(fps=50)
    run = start(model, live(camera.url, "camera"))
    run.until(is_result("camera"))
    run.num_results(60)
    stats = run.runner.stats()["camera"]
    assert stats.state in ("connected", "quiet")
    # 50 come; a busy machine drops some.
    assert 5 < stats.fps < 60
    assert stats.size_wh == (64, 48)
    assert stats.age_p50_ms is not None
    assert stats.age_p99_ms is not None
    assert stats.age_max_ms is not None
    assert 0 < stats.age_p50_ms <= stats.age_p99_ms <= stats.age_max_ms
    assert "FFMPEG" in stats.decoder.upper()
    assert stats.num_reconnects == 0
    camera.is_paused = True
    run.until(is_event("reconnecting"))
    assert "no frame for" in run.runner.stats()["camera"].last_problem
    camera.is_paused = False
    run.until(is_event("connected"))
    assert run.runner.stats()["camera"].num_reconnects == 1

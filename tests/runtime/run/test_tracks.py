"""Runs that follow objects: records, events, pictures and MOTChallenge's files; and runs that do not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgerpn.__main__ import main
from edgerpn.runtime import Model
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import SourceConfig, StreamsConfig, load_streams, to_toml
from edgerpn.runtime.run.session import run_streams
from edgerpn.runtime.tracking.config import TrackConfig

Make = Callable[..., Any]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "proposals.jsonl").read_text().splitlines()]


def test_a_run_with_tracks_writes_them_into_records_events_and_motchallenge_files(
    model_path: Path, video_path: Path, tmp_path: Path, make_video: Make
) -> None:
    other = tmp_path / "short.avi"
    make_video(other, num_frames=12)
    out = tmp_path / "out"
    assert main(["run", str(model_path), str(video_path), str(other), "--track", "-o", str(out),
                 "--mot", str(tmp_path / "mot")]) == 0  # fmt: skip
    records = records_of(out)
    for source, num_frames in ((str(video_path), 40), (str(other), 12)):
        mine = [record for record in records if record["source"] == source]
        frames = [record for record in mine if record["type"] == "frame"]
        assert len(frames) == num_frames
        # Every fourth frame has no proposals, and all others near copies of one object.
        for record in frames:
            assert [track and track["track_id"] for track in record["tracks"]] == [1, None, None][
                : len(record["tracks"])
            ]
        assert [track["is_confirmed"] for record in frames[:6] for track in record["tracks"] if track] == [
            False, False, True, True
        ]  # fmt: skip
        assert frames[-1]["tracks"][0]["age_s"] == pytest.approx((num_frames - 2) / 29.97, abs=2e-3)
        events = [(record["event"], record["frame"]) for record in mine if "track" in record]
        assert events == [("appeared", 3), ("left", num_frames - 1)]
        # The source's own end is the last word on it.
        assert (mine[-1]["event"], mine[-1]["reason"]) == ("ended", "end_of_stream")
    lines = (tmp_path / "mot" / f"{video_path.stem}.txt").read_text().splitlines()
    assert len(lines) == 28
    # Frame 3 of ours, with its box at x = 12, y = 40, is frame 4; its first pixel is 13, 41.
    assert lines[0] == "4,1,13.00,41.00,80.00,80.00,0.9000,-1,-1,-1"
    assert (out / "moving.mp4").stat().st_size > 0


def test_a_run_without_tracks_imports_no_tracking_and_writes_the_records_of_before(
    model_path: Path, video_path: Path, tmp_path: Path
) -> None:
    code = """
import sys
from edgerpn.__main__ import main
status = main(["run", *sys.argv[1:]])
print([name for name in sys.modules if name.startswith("edgerpn.runtime.tracking.")])
sys.exit(status)
"""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_path), str(video_path), "-o", str(out)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['edgerpn.runtime.tracking.config']"
    records = records_of(out)
    assert {record["type"] for record in records} == {"frame"}
    assert list(records[1]) == [
        "schema", "type", "source", "frame", "media_time_s", "captured_at", "age_ms", "width", "height", "dropped",
        "skipped", "stage_ms", "proposals",
    ]  # fmt: skip


def test_results_of_a_stream_have_tracks_when_they_are_asked_for(model: Model, video_path: Path) -> None:
    results = list(model.stream(video_path, track=TrackConfig(confirm_frames=1), max_frames=8))
    assert [[track and track.track_id for track in result.tracks or ()] for result in results] == [
        [], [1], [1, None], [1, None, None]
    ] * 2  # fmt: skip
    assert {result.tracks for result in model.stream(video_path, max_frames=8)} == {None}


def test_a_camera_that_reconnects_keeps_the_numbers_of_its_objects(
    make_slow: Make, make_camera: Make, live: Make, start: Make, paint: Make
) -> None:
    camera = make_camera(fps=20)
    picture = cv2.imencode(".jpg", paint(96, 160, box=(20, 20, 80, 80)))[1].tobytes()
    camera.jpeg = lambda index: picture
    camera.num_pictures = 15
    # Longer than the slowest machine takes.
    config = TrackConfig(confirm_frames=1, buffer_s=600.0, stationary_s=600.0)
    run = start(make_slow(0.01), live(camera.url, "door"), track=config, stays=True)
    tracks: set[int] = set()

    def is_third_connection(item: Result | Event) -> bool:
        if isinstance(item, Result):
            tracks.update(track.track_id for track in item.tracks or () if track)
        return isinstance(item, Result) and item.frame.connection == 3

    run.until(is_third_connection)
    assert tracks == {1}
    assert [event.kind for event in run.events if event.track is not None] == ["appeared"]
    run.runner.remove("door")
    left: Any = run.until(lambda item: isinstance(item, Event) and item.kind == "left")
    assert left.reason == "removed"
    ended: Any = run.until(lambda item: isinstance(item, Event))
    assert ended.kind == "ended"


def test_a_film_that_is_read_again_ends_first_and_has_new_numbers(model: Model, video_path: Path, start: Make) -> None:
    config = StreamsConfig(sources=(SourceConfig(source=str(video_path), name="film"),), track=TrackConfig())
    run = start(model, *config.sources, track=config.track, stays=True)
    items: list[Result | Event] = []

    def has_six(item: Result | Event) -> bool:
        items.append(item)
        return isinstance(item, Result) and item.index == 6

    def is_over(item: Result | Event) -> bool:
        items.append(item)
        return isinstance(item, Event) and item.reason == "end_of_stream"

    run.until(has_six)
    again = SourceConfig(source=str(video_path), name="film", max_fps=1000.0)
    run.runner.apply(dataclasses.replace(config, sources=(again,)))
    run.until(is_over)
    removed = next(number for number, item in enumerate(items) if isinstance(item, Event) and item.kind == "ended")
    parts = [[item for item in part if isinstance(item, Result)] for part in (items[:removed], items[removed:])]
    assert [result.index for result in parts[1]] == list(range(40))
    numbers = [{track.track_id for result in part for track in result.tracks or () if track} for part in parts]
    assert numbers == [{1}, {2}]


def test_a_damaged_film_ends_once(model: Model, make_video: Make, tmp_path: Path, start: Make) -> None:
    make_video(tmp_path / "whole.avi", num_frames=40)
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    run = start(model, SourceConfig(source=str(tmp_path / "cut.avi")), track=TrackConfig())
    run.rest()
    assert [event.reason for event in run.events if event.kind == "ended"] == ["codec"]


def test_a_run_that_is_stopped_tells_of_its_tracks(model: Model, video_path: Path, start: Make) -> None:
    run = start(model, SourceConfig(source=str(video_path)), track=TrackConfig(), max_results=10)
    run.rest()
    assert [(event.kind, event.frame) for event in run.events] == [("appeared", 3), ("left", 9)]


@pytest.mark.parametrize(
    "arguments", [["--track"], ["--set", "track.buffer_s=5"], ["--track", "--set", "track.buffer_s=5"]]
)
def test_any_setting_of_tracks_switches_them_on(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "model.onnx", "a.mp4", *arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert f"buffer_s = {5.0 if len(arguments) > 1 else 2.0}" in printed.partition("[track]")[2]


def test_settings_of_tracks_come_back_from_their_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[track]\nhigh_score = 0.6\n[sources.a]\nsource = 'a.mp4'\n")
    config = load_streams(tmp_path / "a.toml")
    assert config.track == TrackConfig(high_score=0.6)
    (tmp_path / "b.toml").write_text(to_toml(config))
    assert load_streams(tmp_path / "b.toml") == config
    assert load_streams(sources=["a.mp4"]).track is None


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["a.avi", "--mot", "a.txt"], 2, "--mot a.txt: this run has no tracks; add --track"),
        (["a.avi", "b.avi", "--track", "--mot", "a.txt"], 2, "one file holds one source; name a folder for those of 2"),
        (["a.avi", "--track", "--mot", "a.txt", "--jsonl", "a.txt"], 1, "given for two outputs"),
        (
            ["a.avi", "--track", "--mot", "a.txt", "--http", "127.0.0.1:0", "--set", "http.control=true"],
            2,
            "name a folder for others, which may come",
        ),
        (["a.avi", "--track", "--mot", "a.avi"], 2, "--mot a.avi: expected a file, .txt or .csv, or a folder"),
        (["a.avi", "--track", "--mot", "-"], 2, "--mot -: expected a file"),
    ],
)
def test_wrong_outputs_of_tracks_are_refused(
    arguments: list[str],
    status: int,
    text: str,
    model_path: Path,
    make_video: Make,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.avi", "b.avi"):
        make_video(Path(name), num_frames=1)
    assert main(["run", str(model_path), *arguments]) == status
    assert text in capsys.readouterr().err
    assert not Path("a.txt").exists()


class ClosedWindow:
    """A window that the user closes after some results."""

    target = ""
    is_closed_by_user = False

    def __init__(self, num_results: int) -> None:
        self.num_results = num_results
        self.items: list[Result | Event] = []

    def write(self, result: Result) -> None:
        self.items.append(result)
        self.is_closed_by_user = len([item for item in self.items if isinstance(item, Result)]) == self.num_results

    def event(self, event: Event) -> None:
        self.items.append(event)

    def close(self) -> None:
        pass


def test_the_tracks_of_a_run_whose_window_is_closed_leave(model: Model, video_path: Path) -> None:
    window = ClosedWindow(8)
    config = StreamsConfig(sources=(SourceConfig(source=str(video_path)),), track=TrackConfig())
    run_streams(model, config, [window])
    assert len([item for item in window.items if isinstance(item, Result)]) == 8
    events = [(item.kind, item.frame) for item in window.items if isinstance(item, Event)]
    assert events == [("appeared", 3), ("left", 7)]

"""Sinks: whole lines, whole videos, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import SinkError
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import Painter, class_color, draw_proposals, score_color, track_color
from edgerpn.runtime.frame import Event, Frame, Result, Track
from edgerpn.runtime.sinks import JsonLinesConfig, Output, QueuedSink, open_sinks
from edgerpn.runtime.sinks.picture_sinks import ImageFolderSink, VideoSink, WindowSink
from edgerpn.runtime.timing import LatencyHistogram
from tests.support.classes import CLASS_NAMES, classed

MakeResult = Callable[..., Result]


@pytest.fixture
def make_result() -> MakeResult:
    def make(index: int = 0, *, height: int = 48, width: int = 64, path: Path | None = None) -> Result:
        frame = Frame(
            image=np.full((height, width, 3), 100, np.uint8), index=index, media_time_s=index / 29.97,
            captured_at=1_700_000_000.25, monotonic_s=0.0, source="cars.mp4", decode_ms=1.0, path=path,
        )  # fmt: skip
        proposals = Proposals(np.array([[1.23456, 2, 30.1, 40]]), np.array([0.87654]))
        return Result(proposals=proposals, frame=frame, stage_ms={"decode": 1.0, "inference": 12.3456789})

    return make


def open_lines(path: Path | str) -> QueuedSink:
    (sink,) = open_sinks([Output(kind="jsonl", config=JsonLinesConfig(path=str(path)))], is_live=False)
    return sink


def test_results_and_events_become_lines_in_order(make_result: MakeResult, tmp_path: Path) -> None:
    sink = open_lines(tmp_path / "new" / "a.jsonl")
    sink.write(make_result(0))
    sink.event(Event(kind="error", source="photos", message="b.jpg: empty", happened_at=0.0, path=Path("b.jpg")))
    sink.write(make_result(1))
    sink.close()
    sink.close()
    records = [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()]
    assert [record["type"] for record in records] == ["frame", "event", "frame"]
    assert records[1]["event"] == "error"
    assert records[1]["path"] == "b.jpg"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_a_run_of_files_and_is_reported_once(
    make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_lines("/dev/full")
    sink.write(make_result(0))
    with pytest.raises(SinkError, match="/dev/full: cannot be written: No space left"):
        sink.close()
    # The run reports the error that ends it; the log has nothing to add.
    assert caplog.text == ""


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("fps", [30000 / 1001, 12.5, 60.0])
def test_a_video_keeps_frames_and_rate(make_result: MakeResult, tmp_path: Path, suffix: str, fps: float) -> None:
    path = tmp_path / f"a{suffix}"
    sink = VideoSink(path, Painter(), fps=fps)
    for index in range(9):
        sink.write(make_result(index))
        assert not path.exists()
    sink.close()
    sink.close()
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=1e-3)
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 9
    assert os.listdir(tmp_path) == [path.name]


def test_a_change_of_size_is_refused_and_the_video_so_far_is_kept(make_result: MakeResult, tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "a.mp4", Painter(), fps=None)
    sink.write(make_result(0))
    with pytest.raises(SinkError, match=r"frame 1 is 32x48, but the video began with 64x48.*--output DIR"):
        sink.write(make_result(1, width=32))
    sink.close()
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_a_video_without_frames_leaves_no_file(tmp_path: Path) -> None:
    VideoSink(tmp_path / "a.mp4", Painter(), fps=25.0).close()
    assert os.listdir(tmp_path) == []


def test_unknown_video_files_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SinkError, match=r"as '\.webm'; known: \.mp4, \.avi"):
        VideoSink("a.webm", Painter(), fps=25.0)


def test_a_video_that_lost_frames_is_not_given_its_name(make_result: MakeResult, tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"older")
    sink = VideoSink(tmp_path / "a.avi", Painter(), fps=25.0)
    for index in range(5):
        sink.write(make_result(index))
    assert sink._file is not None
    sink._file.num_frames += 3
    with pytest.raises(SinkError, match="holds 5 of 8 frames"):
        sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]
    assert (tmp_path / "a.avi").read_bytes() == b"older"


def test_images_of_equal_names_do_not_overwrite_each_other(make_result: MakeResult, tmp_path: Path) -> None:
    sink = ImageFolderSink(tmp_path, Painter())
    for folder, name in (("a", "x.jpg"), ("b", "x.jpeg"), ("b", "x.bmp")):
        sink.write(make_result(0, path=Path(folder, name)))
    sink.close()
    assert sorted(os.listdir(tmp_path)) == ["x-2.jpg", "x.jpg", "x.png"]
    assert cv2.imread(str(tmp_path / "x.png")).shape == (48, 64, 3)


def test_images_of_long_names_have_room_for_another_suffix_and_a_number(
    make_result: MakeResult, tmp_path: Path
) -> None:
    sink = ImageFolderSink(tmp_path, Painter())
    for folder in "ab":
        for name in ("x" * 252 + ".gz", "x" * 251 + ".jpg"):
            sink.write(make_result(0, path=Path(folder, name)))
    sink.close()
    assert [len(list(tmp_path.glob(f"*.{kind}"))) for kind in ("png", "jpg")] == [2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="DISPLAY is how Linux names a screen")
def test_a_window_without_a_screen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match="no display here"):
        WindowSink(Painter(), title="x")


def many_boxes(count: int) -> Proposals:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 150, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 150, (count, 2))], axis=1)
    return Proposals(boxes.astype(np.float32), np.sort(rng.random(count).astype(np.float32))[::-1])


def changed(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> int:
    return int((before != after).any(axis=2).sum())


def test_drawing_leaves_the_frame_alone_and_stops_at_the_top() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    proposals = many_boxes(100)
    few, all_of_them = (draw_proposals(image, proposals, top=top, nms_iou=1) for top in (5, 100))
    assert (image == 128).all()
    assert 0 < changed(image, few) < changed(image, all_of_them)
    np.testing.assert_array_equal(draw_proposals(image, proposals[:0]), image)


def test_near_copies_are_drawn_only_on_request() -> None:
    image = np.full((100, 100, 3), 60, np.uint8)
    boxes = np.array([[20, 20, 80, 80], [22, 22, 82, 82], [5, 5, 15, 15]], np.float32)
    proposals = Proposals(boxes, np.array([0.9, 0.8, 0.7], np.float32))
    # A near copy takes no place from another object.
    np.testing.assert_array_equal(
        draw_proposals(image, proposals, top=2), draw_proposals(image, proposals[[0, 2]], nms_iou=1)
    )
    assert changed(draw_proposals(image, proposals), draw_proposals(image, proposals, nms_iou=1)) > 0


def test_a_better_box_is_thicker_and_brighter() -> None:
    image = np.full((100, 300, 3), 60, np.uint8)
    boxes = np.array([[10, 30, 90, 90], [110, 30, 190, 90], [210, 30, 290, 90]], np.float32)
    drawn = draw_proposals(image, Proposals(boxes, np.array([0.9, 0.6, 0.1], np.float32)))
    strip = (drawn[60].astype(int) - 60).sum(axis=1)
    widths = [int((strip[start : start + 100] != 0).sum()) for start in (0, 100, 200)]
    peaks = [int(strip[start : start + 100].max()) for start in (0, 100, 200)]
    assert widths == sorted(widths, reverse=True)
    assert peaks[0] > peaks[1] > peaks[2] > 0
    assert sum(score_color(1.0)) > sum(score_color(0.0))


def test_each_class_has_its_colour_and_every_box_its_name() -> None:
    image = np.full((100, 1400, 3), 60, np.uint8)
    boxes = np.array([[x, 30, x + 80, 90] for x in range(10, 1400, 200)], np.float32)
    proposals = Proposals(boxes, np.full(7, 0.9, np.float32))
    drawn = draw_proposals(image, classed(proposals, [CLASS_NAMES[n % 3] for n in range(7)]))
    sides = [drawn[60, x : x + 2].reshape(-1).tolist() for x in range(10, 1400, 200)]
    for number in range(3):
        assert sides[number] == pytest.approx([*class_color(number % 3)] * 2, abs=3)
    # Labels stand above the boxes: those of all, instead of the first five, and with the names wider ones.
    with_text = [changed(image[:27, x : x + 200], drawn[:27, x : x + 200]) for x in range(0, 1400, 200)]
    plain = draw_proposals(image, proposals)
    scores_only = [changed(image[:27, x : x + 200], plain[:27, x : x + 200]) for x in range(0, 1400, 200)]
    assert min(with_text) > 1.5 * max(scores_only)
    assert scores_only[5:] == [0, 0]
    assert len({class_color(label) for label in range(20)}) == 20
    weak = classed(Proposals(boxes, np.array([0.9] * 5 + [0.3, 0.1], np.float32)), ["fish"] * 7)
    drawn = draw_proposals(image, weak)
    labelled = [changed(image[:27, x : x + 200], drawn[:27, x : x + 200]) > 0 for x in range(0, 1400, 200)]
    assert labelled == [True] * 6 + [False]
    # On an empty road the best ones are weak too.
    drawn = draw_proposals(image, classed(Proposals(boxes, np.full(7, 0.06, np.float32)), ["fish"] * 7))
    assert changed(image[:27], drawn[:27]) == 0


def test_a_label_is_as_transparent_as_its_box() -> None:
    image = np.full((100, 400, 3), 60, np.uint8)
    boxes = np.array([[10, 40, 90, 90], [210, 40, 290, 90]], np.float32)
    strong, weak = (
        draw_proposals(image, classed(Proposals(boxes, np.array(scores, np.float32)), ["fish", "fish"]))
        for scores in ([0.9, 0.9], [0.9, 0.3])
    )
    np.testing.assert_array_equal(strong[:38, :200], weak[:38, :200])
    corner = 39, 211
    color = np.array(class_color(0))
    np.testing.assert_allclose(strong[corner], color, atol=2)
    np.testing.assert_allclose(weak[corner], 60 + (color - 60) * 0.5, atol=2)


def test_of_a_hundred_boxes_that_score_alike_the_first_still_stand_out() -> None:
    image = np.full((200, 200, 3), 60, np.uint8)
    boxes = np.array([[x, y, x + 9, y + 9] for y in range(10, 200, 19) for x in range(10, 200, 19)], np.float32)
    drawn = draw_proposals(image, Proposals(boxes, np.full(100, 0.9, np.float32)), top=100).astype(int)
    light = [int(np.abs(drawn[y - 5 : y + 14, x - 5 : x + 14] - 60).sum()) for x, y in boxes[:, :2].astype(int)]
    # The first ones carry labels.
    assert light[10] > 2 * light[40] > 2 * light[99] > 0


def test_boxes_at_and_beyond_the_border_are_drawn_without_complaint() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = np.array([[-50, -50, 100, 100], [0, 0, 30, 20], [29, 19, 29, 19], [5, 5, 5, 15]], np.float32)
    assert changed(image, draw_proposals(image, Proposals(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32)))) > 0


def test_confirmed_tracks_are_drawn_instead_of_proposals_each_in_its_colour(make_result: MakeResult) -> None:
    result = make_result(height=100, width=300)
    boxes = np.array([[10, 30, 90, 90], [110, 30, 190, 90], [210, 30, 290, 90]], np.float32)
    tracks = [Track(track_id=n, age_s=1.0, dwell_s=0.0, is_confirmed=n < 3) for n in (1, 2, 3)]
    result = dataclasses.replace(
        result, proposals=Proposals(boxes, np.array([0.9, 0.6, 0.1], np.float32)), tracks=tuple(tracks)
    )
    drawn = Painter(top=2).paint(result)
    # The sides of the boxes; the third is not confirmed.
    assert [tuple(drawn[60, x].tolist()) for x in (10, 110, 210)] == [track_color(1), track_color(2), (100, 100, 100)]
    # Numbers stand above the boxes.
    assert changed(result.image[:30], drawn[:30]) > 50
    np.testing.assert_array_equal(Painter(top=1).paint(result)[:, 100:], result.image[:, 100:])
    np.testing.assert_array_equal(Painter().paint(dataclasses.replace(result, tracks=(None,) * 3)), result.image)


def test_percentiles_are_right_within_one_percent() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile_ms(50) is None
    durations = np.random.default_rng(0).lognormal(2, 1, 5000)
    for duration_ms in durations:
        histogram.add(float(duration_ms))
    for percent in (5, 50, 95, 99):
        exact = np.percentile(durations, percent, method="inverted_cdf")
        assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.01)
    histogram.add(0.0)
    histogram.add(1e12)
    assert histogram.total == 5002

"""`edgerpn run` as users call it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.__main__ import main
from edgerpn.runtime.run import session
from tests.support.classes import CLASS_NAMES
from tests.support.mjpeg_server import MjpegCamera
from tests.support.models import ANGLES


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    return sum(1 for _ in iter(lambda: capture.read()[0], False))


def test_a_video_becomes_records_and_an_annotated_video(
    model_path: Path, video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(model_path), str(video_path), "--out", str(out), "--video", str(tmp_path / "v.avi")]) == 0
    frames = records(out / "proposals.jsonl")
    assert [record["frame"] for record in frames] == list(range(40))
    assert [len(record["proposals"]) for record in frames] == [index % 4 for index in range(40)]
    assert (frames[0]["width"], frames[0]["height"]) == (320, 192)
    assert count_frames(out / "annotated.mp4") == count_frames(tmp_path / "v.avi") == 40
    summary = capsys.readouterr().out
    assert summary.startswith("40 frames in ")
    assert "annotated.mp4" in summary
    assert "ONNX Runtime" in summary


def plain(path: Path) -> list[dict[str, Any]]:
    """Records without what depends on the clock."""
    return [
        {key: value for key, value in record.items() if key not in ("captured_at", "age_ms", "stage_ms")}
        for record in records(path)
    ]


@pytest.mark.parametrize("options", [["--set", "min_score=0.0"], ["--http", "127.0.0.1:0"], ["--config"]])
def test_outputs_depend_on_the_sources_and_not_on_the_options(
    options: list[str], model_path: Path, video_path: Path, tmp_path: Path
) -> None:
    if options == ["--config"]:
        (tmp_path / "run.toml").write_text("[batching]\nbatch_wait_ms = 1.0\n")
        options = ["--config", str(tmp_path / "run.toml")]
    bare, other = tmp_path / "bare", tmp_path / "other"
    assert main(["run", str(model_path), str(video_path), "-o", str(bare)]) == 0
    assert main(["run", str(model_path), str(video_path), "-o", str(other), *options]) == 0
    assert sorted(os.listdir(bare)) == sorted(os.listdir(other)) == [".edgerpn", "annotated.mp4", "proposals.jsonl"]
    assert plain(bare / "proposals.jsonl") == plain(other / "proposals.jsonl")
    assert count_frames(other / "annotated.mp4") == 40


class CountingBar:
    """Stands in for the bar of a terminal."""

    def __init__(self, total: float | None, label: str, *, unit: str) -> None:
        self.total = total
        self.num_updates = 0

    def __enter__(self) -> CountingBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.is_closed = True

    def update(self) -> None:
        self.num_updates += 1


@pytest.mark.parametrize(
    ("options", "total"), [([], 40), (["--set", "min_score=0.5"], 40), (["--max-frames", "7"], 7), (["again"], 80)]
)
def test_a_progress_bar_counts_the_frames_of_files_whatever_the_options(
    options: list[str], total: int, model_path: Path, video_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[CountingBar] = []

    def progress(total: float | None, label: str, *, unit: str) -> CountingBar:
        bars.append(CountingBar(total, label, unit=unit))
        return bars[-1]

    monkeypatch.setattr(session, "progress", progress)
    again = os.path.relpath(video_path)
    assert main(["run", str(model_path), str(video_path), *(again if one == "again" else one for one in options)]) == 0
    (bar,) = bars
    assert (bar.total, bar.num_updates, bar.is_closed) == (total, total, True)


def test_several_files_and_images_become_one_video_each_and_annotated_images(
    model_path: Path, video_path: Path, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), paint(100, 160, count=1, box=(5, 5, 60, 60)))
    sources = ["[sources.door]", f"source = '{video_path}'", f"[sources.'{images}']", f"source = '{images}'"]
    (tmp_path / "run.toml").write_text("\n".join(sources))
    words = ["--config", str(tmp_path / "run.toml"), "-o", str(out)]
    assert main(["run", str(model_path), str(video_path), *words]) == 0
    assert sorted(os.listdir(out)) == [".edgerpn", "a.png", "door.mp4", f"{video_path.stem}.mp4", "proposals.jsonl"]
    assert count_frames(out / "door.mp4") == count_frames(out / f"{video_path.stem}.mp4") == 40
    assert len(records(out / "proposals.jsonl")) == 81


def test_a_wrong_file_ends_the_run_before_the_model_is_loaded(
    video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent.mp4")
    for sources in ([absent], [str(video_path), absent]):
        assert main(["run", str(tmp_path / "absent.onnx"), *sources]) == 1
        assert capsys.readouterr().err == f"error: {absent}: no such file or folder\n"


def test_a_folder_becomes_annotated_images_and_names_the_broken_one(
    model_path: Path, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index in (1, 3):
        cv2.imwrite(str(images / f"{index}.png"), paint(100 * index, 160, count=1, box=(5, 5, 60, 60)))
    (images / "2.png").write_bytes(b"broken")
    assert main(["run", str(model_path), str(images), "--out", str(out)]) == 0
    assert sorted(os.listdir(out)) == [".edgerpn", "1.png", "3.png", "proposals.jsonl"]
    kinds = [record["type"] for record in records(out / "proposals.jsonl")]
    assert kinds == ["frame", "event", "frame"]
    assert "1 unreadable" in capsys.readouterr().out
    original, annotated = cv2.imread(str(images / "1.png")), cv2.imread(str(out / "1.png"))
    assert original.shape == annotated.shape
    assert not np.array_equal(original, annotated)


def test_damaged_images_are_used_named_and_counted(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("simplejpeg", reason="only cut files are found without it")
    noise = np.random.default_rng(0).integers(0, 255, (100, 160, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    (tmp_path / "1.jpg").write_bytes(data)
    (tmp_path / "2.jpg").write_bytes(data[: len(data) * 3 // 4] + b"\xff\xd9")
    assert main(["run", str(model_path), str(tmp_path), "--jsonl", str(tmp_path / "out.jsonl")]) == 0
    found = [
        (record["type"], record.get("event"), Path(record["path"]).name) for record in records(tmp_path / "out.jsonl")
    ]
    assert found == [("frame", None, "1.jpg"), ("event", "damaged", "2.jpg"), ("frame", None, "2.jpg")]
    printed = capsys.readouterr()
    assert "; 1 damaged; " in printed.out
    assert "2.jpg: damaged (premature end of data segment); used as far as it decodes" in printed.err


def test_standard_output_holds_records_only(
    model_path: Path, video_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model_path), str(video_path), "--jsonl", "-", "--max-frames", "5"]) == 0
    printed = capfd.readouterr()
    assert [json.loads(line)["frame"] for line in printed.out.splitlines()] == [0, 1, 2, 3, 4]
    assert printed.err.splitlines()[-1].startswith("5 frames in ")


def test_near_copies_are_left_out_of_pictures_and_not_of_records(
    model_path: Path, paint: Callable[..., Any], tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), paint(192, 320, box=(20, 20, 280, 160), count=3))
    drawn = []
    for name, words in (("default", []), ("few", ["--nms", "0.5"]), ("all", ["--nms", "1"])):
        assert main(["run", str(model_path), str(image), "-o", str(tmp_path / name), *words]) == 0
        assert [len(record["proposals"]) for record in records(tmp_path / name / "proposals.jsonl")] == [3]
        drawn.append(cv2.imread(str(tmp_path / name / "a.png")))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_a_score_limit_holds_for_every_output(model_path: Path, video_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert main(["run", str(model_path), str(video_path), "--jsonl", str(path), "--min-score", "0.88"]) == 0
    assert {len(record["proposals"]) for record in records(path)} == {0, 1}


def test_without_outputs_there_is_a_summary(
    model_path: Path, video_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model_path), str(video_path), "--max-frames", "2"]) == 0
    assert capsys.readouterr().out.strip().endswith("nothing written")


def test_no_output_overwrites_an_input(
    model_path: Path, video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = video_path.read_bytes()
    assert main(["run", str(model_path), str(video_path), "--video", str(video_path)]) == 1
    assert "is an input of the run" in capsys.readouterr().err
    assert video_path.read_bytes() == before
    assert main(["run", str(model_path), str(video_path), "--jsonl", str(model_path.with_suffix(".json"))]) == 1
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    assert main(["run", str(model_path), str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "the images of a source lie there" in capsys.readouterr().err
    same = str(tmp_path / "x" / "proposals.jsonl")
    assert main(["run", str(model_path), str(video_path), "--jsonl", same, "--out", str(tmp_path / "x")]) == 1
    assert "given for two outputs" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--video"])
def test_a_second_run_replaces_the_pictures_of_the_first_and_no_others(
    flag: str,
    model_path: Path,
    paint: Callable[..., npt.NDArray[np.uint8]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), paint(100, 160, count=1, box=(5, 5, 60, 60)))
    words = ["run", str(model_path), str(images), flag, str(out)]
    assert main(words) == 0
    first = (out / "a.png").read_bytes()
    (out / "a.png").write_bytes(b"old")
    assert main(words) == 0
    assert (out / "a.png").read_bytes() == first
    cv2.imwrite(str(images / "b.png"), paint(100, 160, count=1, box=(5, 5, 60, 60)))
    (out / "b.png").write_bytes(b"mine")
    assert main(words) == 1
    problem = f"{out / 'b.png'}: would be overwritten, and no earlier run made this file; choose another folder"
    assert problem in capsys.readouterr().err
    assert (out / "b.png").read_bytes() == b"mine"


def test_when_nothing_could_be_read_the_status_says_so(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    (tmp_path / "b.png").write_bytes(b"broken")
    assert main(["run", str(model_path), str(tmp_path)]) == 1


@pytest.mark.parametrize(
    "option", [["--min-score", "2"], ["--top", "0"], ["--nms", "0"], ["--max-frames", "x"], ["--threads", "-1"]]
)
def test_impossible_options_are_wrong_usage(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "m.onnx", "v.mp4", *option])
    assert caught.value.code == 2
    assert "expected a" in capsys.readouterr().err


def test_an_error_in_the_middle_leaves_whole_files(
    model_path: Path, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index, height in enumerate([100, 100, 120]):
        cv2.imwrite(str(images / f"{index}.png"), paint(height, 160, box=(5, 5, 60, 60)))
    arguments = ["--video", str(tmp_path / "a.mp4"), "--jsonl", str(tmp_path / "a.jsonl")]
    assert main(["run", str(model_path), str(images), *arguments]) == 1
    assert "a video file has one size" in capsys.readouterr().err
    assert count_frames(tmp_path / "a.mp4") == 2
    # The last picture may be counted before the other output refuses it.
    assert [record["frame"] for record in records(tmp_path / "a.jsonl")] in ([0, 1], [0, 1, 2])


# Waits in the middle of the run, so that the signal arrives before its end, and draws slowly.
_SLOW_RUN = """
import os, sys, time
from edgerpn.runtime import draw
quick, drawn = draw.draw_proposals, []
def slow(*arguments, **options):
    drawn.append(1)
    while len(drawn) > 5 and not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    time.sleep(0.05)
    return quick(*arguments, **options)
draw.draw_proposals = slow
from edgerpn.__main__ import main
from edgerpn.runtime.run import session
from tests.support.mjpeg_server import MjpegCamera
from tests.support.models import ANGLES
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_files(
    model_path: Path, video_path: Path, tmp_path: Path, patience: Any, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _SLOW_RUN, "run", str(model_path), str(video_path), "--out", str(out)]
    command += ["--log-level", "warning"]
    gate = tmp_path / "gate"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "GATE": str(gate)}
    )
    # The video's temporary file appears with the first frame.
    patience.wait_until(lambda: list(out.glob(".annotated.*.mp4")))
    process.send_signal(number)
    gate.touch()
    printed, complaints = process.communicate(timeout=patience.DEADLINE_S)
    assert process.returncode == status, complaints
    num_frames = len(records(out / "proposals.jsonl"))
    assert 1 <= num_frames < 40
    assert count_frames(out / "annotated.mp4") == num_frames
    assert sorted(os.listdir(out)) == [".edgerpn", "annotated.mp4", "proposals.jsonl"]
    assert f"stopped by {number.name}" in printed
    assert printed.startswith(f"{num_frames} frames")
    assert complaints == ""


def test_a_closed_pipe_is_an_error_without_a_traceback(model_path: Path, video_path: Path) -> None:
    command = [sys.executable, "-m", "edgerpn", "run", str(model_path), str(video_path), "--jsonl", "-"]
    command += ["--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 1
    assert complaints == "error: standard output: cannot be written: Broken pipe\n"


@pytest.mark.parametrize("source", ["63", "/dev/video63", "/dev/v4l/by-id/usb-absent"])
def test_a_camera_of_the_command_line_that_is_not_there_ends_the_command(
    source: str, model_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerpn.runtime.model.load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["run", str(model_path), source]) == 1
    device = source if source.startswith("/") else f"/dev/video{source}"
    assert f"error: {source}: no such camera ({device} does not exist); cameras here: " in capsys.readouterr().err


def test_a_camera_of_the_settings_that_is_not_there_is_tried_again(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MjpegCamera() as camera:
        sources = f'[sources.yard]\nsource = "/dev/video63"\n[sources.door]\nsource = "{camera.url}"\n'
        (tmp_path / "streams.toml").write_text(sources)
        words = ["--config", str(tmp_path / "streams.toml"), "--jsonl", str(tmp_path / "lines"), "--max-frames", "2"]
        assert main(["run", str(model_path), *words]) == 0
    events = [line for line in records(tmp_path / "lines") if line["source"] == "yard" and line["type"] == "event"]
    assert [line["event"] for line in events] in (["started"], ["started", "reconnecting"])


@pytest.mark.parametrize("has_display", [False, True])
def test_windows_that_cannot_open_end_the_command_before_any_source(
    has_display: bool, model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if has_display:
        monkeypatch.setenv("DISPLAY", ":9")
        monkeypatch.setattr("edgerpn.runtime.sinks.picture_sinks.has_windows", lambda cv2: False)
    # A camera that is down: its first result, and so its window, would never come.
    assert main(["run", str(model_path), "http://127.0.0.1:9/x", "--show"]) == 1
    expected = "this build of OpenCV has no windows" if has_display else "there is no display here"
    assert f"--show: {expected}" in capsys.readouterr().err


def test_embeddings_reach_the_records_of_flags_and_tables(
    make_model: Callable[..., Path], video_path: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path, is_described=True)
    config = tmp_path / "run.toml"
    tables = [f'[[outputs]]\nkind = "jsonl"\npath = "{tmp_path}/{name}.jsonl"\n' for name in ("plain", "table")]
    config.write_text(tables[0] + tables[1] + 'embeddings = "base64"\n')
    flags = ["--jsonl", str(tmp_path / "flag.jsonl"), "--embeddings", "base64", "--max-frames", "4"]
    assert main(["run", str(model), str(video_path), "--config", str(config), *flags]) == 0
    for name in ("flag", "table"):
        texts = [record["embeddings"] for record in records(tmp_path / f"{name}.jsonl")]
        assert [len(rows) for rows in texts] == [0, 1, 2, 3]
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in texts[3]]
        np.testing.assert_array_equal(vectors, ANGLES[:3])
    assert all("embeddings" not in record for record in records(tmp_path / "plain.jsonl"))


def test_names_of_classes_reach_records_tracks_and_their_events(
    make_model: Callable[..., Path], video_path: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path, class_names=CLASS_NAMES)
    out = tmp_path / "out"
    assert main(["run", str(model), str(video_path), "-o", str(out), "--track", "--max-frames", "12"]) == 0
    lines = records(out / "proposals.jsonl")
    frames = [record for record in lines if record["type"] == "frame"]
    assert [record["labels"] for record in frames[:4]] == [[], ["fish"], ["fish", "crab"], ["fish", "crab", "fish"]]
    assert frames[3]["class_scores"] == [row[4] for row in frames[3]["proposals"]]
    assert {track["label"] for record in frames for track in record["tracks"] if track} == {"fish"}
    (appeared,) = [record for record in lines if record.get("event") == "appeared"]
    assert appeared["track"]["label"] == "fish"
    assert appeared["message"].endswith("(fish) appeared")


def test_embeddings_need_a_model_that_has_them_and_records(
    model_path: Path, video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(model_path), str(video_path), "--embeddings", "base64"]
    assert main(command) == 2
    assert "--embeddings is for JSON lines: name a file with --jsonl FILE" in capsys.readouterr().err
    assert main([*command, "--jsonl", str(tmp_path / "a.jsonl")]) == 1
    assert "the model bright does not have them; export it again with --embeddings" in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()

"""`edgerpn run` on many and live sources, as a process of its own: signals, kills, and every line that it writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import pytest

from edgerpn.__main__ import main
from edgerpn.runtime import Model
from edgerpn.runtime.run import SourceConfig, StreamsConfig
from edgerpn.runtime.sinks.record import record_schema

Make = Callable[..., Any]

pytestmark = pytest.mark.timeout(240)


def records(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, each checked against the schema."""
    validator = jsonschema.Draft202012Validator(record_schema())
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert not text or text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        validator.validate(record)
    return found


def wait_until(is_it: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + 60
    while not (found := is_it()) and time.monotonic() < end_s:
        time.sleep(0.03)
    assert found, "it did not happen in time"
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Capture processes of a run; started by one of its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in path.read_text().split()]
    return found


def num_frames(path: Path, source: str) -> int:
    """Frames of a source so far, from whole lines only."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return sum(f'"type":"frame","source":"{source}"'.encode() in line for line in lines)


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*tables: str, min_score: float = 0.0, **urls: str) -> Path:
        path = tmp_path / "streams.toml"
        sources = [f'[sources.{name}]\nsource = "{url}"' for name, url in urls.items()]
        patience = "gap_s = 0.5\nstall_s = 2.0\nbackoff_first_s = 0.2\nbackoff_max_s = 0.8"
        path.write_text("\n".join([f"min_score = {min_score}", "[defaults]", patience, *sources, *tables]))
        return path

    return write


@pytest.fixture
def command(model_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def run(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "edgerpn", "run", str(model_path), *map(str, words)]
        processes.append(
            subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_several_files_become_records_and_a_video_each(
    model_path: Path, make_clip: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [str(make_clip(12)), str(make_clip(9))]
    out = tmp_path / "out"
    assert main(["run", str(model_path), "--out", str(out), *clips]) == 0
    found = records(out / "proposals.jsonl")
    for clip, count in zip(clips, (12, 9), strict=True):
        ours = [record for record in found if record["source"] == clip]
        assert [record["frame"] for record in ours if record["type"] == "frame"] == list(range(count))
        assert [record for record in ours if record["type"] == "event"] == []
    # Both files are called clip.avi.
    assert sorted(os.listdir(out)) == [".edgerpn", "clip-2.mp4", "clip.mp4", "proposals.jsonl"]
    assert capsys.readouterr().out.startswith("21 frames in ")


def test_a_file_that_is_missing_when_the_settings_are_read_again_is_an_event(
    model: Model, make_clip: Make, start: Make, tmp_path: Path
) -> None:
    run = start(model, stays=True)
    missing = SourceConfig(source=str(tmp_path / "no.mp4"), name="no")
    run.runner.apply(StreamsConfig(sources=(missing, SourceConfig(source=str(make_clip(3)), name="clip"))))
    run.until(lambda item: len(run.results) == 3 and len(run.events) == 2)
    assert [(event.kind, event.source, event.reason) for event in run.events] == [
        ("error", "no", "not_found"),
        ("ended", "no", "not_found"),
    ]


def test_pictures_that_the_shell_lists_are_one_source(model_path: Path, tmp_path: Path, paint: Make) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), paint(100, 160, box=(5, 5, 60, 60)))
    (tmp_path / "1.png").write_bytes(b"broken")
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    assert main(["run", str(model_path), *paths, "--jsonl", str(tmp_path / "a.jsonl")]) == 0
    found = records(tmp_path / "a.jsonl")
    assert [record["type"] for record in found] == ["frame", "event", "frame"]
    assert [record["path"] for record in found] == paths


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        ([], 2, "SOURCE: expected at least one"),
        (["clip", "http://127.0.0.1:9/x", "--video", "c.mp4"], 2, "name a folder for those of 2"),
        (["clip", "http://127.0.0.1:9/x", "--jsonl", "clip"], 1, "is an input of the run"),
        (["a.mp4", "--set", "batching.speed=1"], 2, "batching.speed: unknown setting"),
        ([f"{index}.mp4" for index in range(101)], 2, "expected at most 100 sources, got 101"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    model_path: Path, words: list[str], status: int, problem: str, make_clip: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(make_clip(3))
    assert main(["run", str(model_path), *(clip if word == "clip" else word for word in words)]) == status
    assert problem in capsys.readouterr().err


def test_print_config_shows_the_settings_of_the_run(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--print-config", "rtsp://user:hunter2@host/x", "--min-score", "0.5", "--set", "defaults.max_age_ms=9"]
    assert main(["run", str(model_path), *words]) == 0
    printed = capsys.readouterr().out
    assert "min_score = 0.5" in printed
    assert "max_age_ms = 9.0" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_live_run_within_two_seconds_with_whole_files(
    number: signal.Signals, make_camera: Make, command: Make, tmp_path: Path, settings_file: Make, patience: Any
) -> None:
    out = tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # One camera works, one accepts and never answers, one is down.
        never = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x"
        file = settings_file(door=make_camera().url, never=never, down="http://127.0.0.1:9/x")
        process = command("--config", file, "--out", out, "--log-format", "json")
        wait_until(lambda: num_frames(out / "proposals.jsonl", "door") > 20)
        pids = children(process.pid)
        start_s = time.monotonic()
        process.send_signal(number)
        printed, complaints = process.communicate(timeout=60)
        patience.assert_within(time.monotonic() - start_s, 2.0)
    assert process.returncode == 0
    assert len(pids) >= 2
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    frames = [record for record in records(out / "proposals.jsonl") if record["type"] == "frame"]
    assert f"stopped by {number.name}" in printed
    assert int(printed.split()[0]) == len(frames)
    (video,) = out.glob("*.mp4")
    assert cv2.VideoCapture(str(video)).read()[0]
    assert [path.name for path in out.glob(".*")] == [".edgerpn"]
    messages = [json.loads(line)["message"] for line in complaints.splitlines()]
    assert any("the connection is refused" in message for message in messages)


def test_only_dead_cameras_are_tried_again_and_one_that_comes_back_is_used(
    make_camera: Make, command: Make, tmp_path: Path, settings_file: Make
) -> None:
    lines = tmp_path / "a.jsonl"
    camera = make_camera()
    camera.is_paused = True
    process = command(
        "--config", settings_file(door=camera.url), "--jsonl", lines, "--set", "defaults.open_timeout_s=1"
    )
    wait_until(lambda: any(record.get("event") == "reconnecting" for record in records_so_far(lines)))
    assert process.poll() is None
    camera.is_paused = False
    wait_until(lambda: num_frames(lines, "door") > 3)


def records_so_far(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def test_hangup_reads_the_settings_again(make_camera: Make, command: Make, tmp_path: Path, settings_file: Make) -> None:
    lines = tmp_path / "a.jsonl"
    first, second = make_camera().url, make_camera().url
    process = command("--config", settings_file(first=first), "--jsonl", lines)
    wait_until(lambda: num_frames(lines, "first") > 3)
    settings_file("[broken")
    complaints: list[str] = []
    reading = threading.Thread(target=lambda: complaints.extend(process.stderr))
    reading.start()
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings not taken over" in "".join(complaints))
    settings_file('[[outputs]]\nkind = "jsonl"', first=first)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: "outputs[0].path: missing" in "".join(complaints))
    settings_file(f'[[outputs]]\nkind = "jsonl"\npath = "{tmp_path}/b.jsonl"', second=second)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: num_frames(lines, "second") > 3)
    wait_until(lambda: "these settings stay as they were when the run started: outputs" in "".join(complaints))
    assert not (tmp_path / "b.jsonl").exists()
    before = num_frames(lines, "first")
    time.sleep(0.3)
    assert num_frames(lines, "first") == before
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reading.join()
    removed = [record for record in records(lines) if record.get("reason") == "removed"]
    assert [(record["source"], record["event"]) for record in removed] == [("first", "ended")]


def test_kill_9_of_a_capture_process_is_an_event_and_of_the_run_leaves_no_orphan(
    make_camera: Make, command: Make, tmp_path: Path, settings_file: Make
) -> None:
    lines = tmp_path / "a.jsonl"
    shared = set(os.listdir("/dev/shm"))
    process = command("--config", settings_file(door=make_camera().url, yard=make_camera().url), "--jsonl", lines)
    wait_until(lambda: num_frames(lines, "door") > 3 and num_frames(lines, "yard") > 3)
    first = children(process.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    crash = wait_until(lambda: [record for record in records_so_far(lines) if record.get("reason") == "crashed"])[0]
    before = num_frames(lines, crash["source"])
    wait_until(lambda: num_frames(lines, crash["source"]) > before + 3)
    pids = children(process.pid)
    assert len(pids) == 2
    assert pids != first
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in [*first, *pids]))
    assert set(os.listdir("/dev/shm")) <= shared
    # The written lines are whole even then.
    records(lines)


def test_systemd_gets_the_states_of_the_run(
    make_camera: Make, command: Make, tmp_path: Path, settings_file: Make
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60.0)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        process = command("--config", settings_file(door=make_camera().url), **environment)
        assert receiver.recv(1000) == b"READY=1\nSTATUS=1 sources"
        assert receiver.recv(1000) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        while (told := receiver.recv(1000)) == b"WATCHDOG=1" or told.startswith(b"STATUS="):
            pass
        assert told == b"STOPPING=1"
    process.communicate(timeout=60)


def test_a_camera_does_not_wait_for_a_caller_that_keeps_every_result(
    model: Model, make_camera: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kept = list(model.stream(make_camera().url, max_frames=20))
    assert len({result.index for result in kept}) == 20
    values = [result.image[::8, ::8].copy() for result in kept]
    assert all((result.image[::8, ::8] == value).all() for result, value in zip(kept, values, strict=True))
    told = [record.message for record in caplog.records if "further ones are copied" in record.message]
    assert len(told) == 1
    assert "5 pictures are in use at the same time" in told[0]
    assert "slots = 8" in told[0]


def test_a_model_streams_from_a_camera(model: Model, make_camera: Make) -> None:
    stream = model.stream(make_camera().url)
    indexes = [next(stream).index for _ in range(5)]
    assert indexes == sorted(set(indexes))
    stream.close()  # type: ignore[attr-defined]

"""Kills and reconnects leave no process, descriptor, thread or memory behind."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig, CaptureGroup, open_capture
from edgerpn.runtime.sources.decoders import Choice
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.ffmpeg_reader import FfmpegReader
from edgerpn.runtime.sources.process import CaptureProcess
from tests.support.patience import DEADLINE_S

Make = Callable[..., Any]


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)])
def test_a_capture_process_that_dies_is_reported_and_replaced(number: signal.Signals, camera: Any, play: Make) -> None:
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    held, _ = player.frame()
    copy = held.image.copy()
    pid = player.capture.stats.pid
    os.kill(pid, number)
    error = player.event("error")
    assert error.reason == "crashed"
    assert number.name in error.message
    assert player.event("reconnecting").attempt == 1
    player.recovers()
    assert player.capture.stats.pid != pid
    assert not is_running(pid)
    # A held frame outlives the process that wrote it.
    assert np.array_equal(held.image, copy)


def test_a_capture_process_imports_nothing_from_the_current_folder(
    clip: Path, play: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "queue", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    item, _ = play(str(clip)).until(lambda item: isinstance(item, Frame) or item.kind == "error", DEADLINE_S)
    assert isinstance(item, Frame), item.message


def test_killing_the_parent_leaves_no_process_and_no_memory(clip: Path, patience: Any) -> None:
    before = set(os.listdir("/dev/shm"))
    code = """
import sys, time
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources import CaptureConfig, CaptureGroup
group = CaptureGroup()
# One waits for its consumer for ever, the other for its next attempt or inside its connection.
captures = [group.add(CaptureConfig(source=sys.argv[1], policy="every")), group.add(CaptureConfig(source=sys.argv[2]))]
frames = []
while len(frames) < 8:
    item = captures[0].take()
    if isinstance(item, Frame):
        frames.append(item)
while captures[1].stats.pid is None:
    time.sleep(0.01)
print(*(capture.stats.pid for capture in captures), flush=True)
time.sleep(60)
"""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/never-answers"
    parent = subprocess.Popen([sys.executable, "-c", code, str(clip), url], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(text) for text in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    listener.close()
    patience.wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert set(os.listdir("/dev/shm")) <= before


@contextmanager
def few_descriptors(num_free: int) -> Iterator[None]:
    """Leaves this process so many file descriptors to open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for fd in held[:num_free]:
            os.close(fd)
        del held[:num_free]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("num_free", range(7))
def test_a_process_without_descriptors_is_an_error_that_leaves_none_open(num_free: int, patience: Any) -> None:
    gc.collect()
    before = patience.descriptors()
    with few_descriptors(num_free), pytest.raises(StreamOpenError, match="no capture process can be started"):
        CaptureProcess(CaptureConfig(source="rtsp://127.0.0.1:9/x", name="door"))
    patience.wait_until(lambda: not patience.descriptors() - before)


def test_ffmpeg_that_does_not_start_now_may_start_later(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CaptureConfig(source="rtsp://127.0.0.1:9/x")
    choice = Choice(decoder="ffmpeg-process", why="a test")
    with few_descriptors(2), pytest.raises(CaptureFailedError, match=r"ffmpeg does not start: .*open files") as failed:
        FfmpegReader(config, choice)
    assert not failed.value.is_final
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CaptureFailedError, match=r"ffmpeg does not start: .*No such file") as failed:
        FfmpegReader(config, choice)
    assert failed.value.is_final


def test_a_moment_without_descriptors_ends_no_source(make_group: Make, quick: dict[str, Any]) -> None:
    group = make_group()
    early, late = (CaptureConfig(source="rtsp://127.0.0.1:9/x", name=name, **quick) for name in ("early", "late"))
    group.add(early)
    with few_descriptors(0):
        group.add(late)
        reasons: dict[str, str] = {}
        while reasons.get("late") != "crashed":
            event = group.take(DEADLINE_S)
            assert isinstance(event, Event)
            reasons[event.source] = event.reason
        assert "late: no capture process can be started" in event.message
        assert "open files (ulimit -n)" in event.fix
    while list(reasons.values()) != ["refused", "refused"]:
        event = group.take(DEADLINE_S)
        assert isinstance(event, Event)
        reasons[event.source] = event.reason


@pytest.mark.parametrize("executable", ["", None])
def test_an_interpreter_that_does_not_know_its_python_is_one_error(
    executable: str | None, make_group: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    group = make_group()
    group.add(CaptureConfig(source="rtsp://127.0.0.1:9/x", name="door"))
    events = []
    while isinstance(event := group.take(DEADLINE_S), Event):
        events.append((event.kind, event.reason, event.message))
    problem = "sys.executable is empty; set it to the path of a Python that has edgerpn"
    message = f"door: no capture process can be started: {problem}"
    assert events[1:] == [("error", "dependency", message), ("ended", "dependency", message)]


@pytest.mark.parametrize("has_program", [True, False])
def test_a_program_in_place_of_python_is_named_with_advice(
    has_program: bool, play: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "app"
    if has_program:
        program.write_text("#!/bin/sh\necho 'app: unknown argument -c' >&2\nexit 2\n")
        program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    error = play("rtsp://127.0.0.1:9/x").event("error")
    problem = "(exit status 2) [app: unknown argument -c]" if has_program else "No such file or directory"
    assert (error.reason, problem in error.message) == ("crashed", True)
    assert f"a Python that has edgerpn; sys.executable is {program}. A program in one file" in error.fix


def test_a_module_path_that_is_no_text_ends_no_source(
    clip: Path, make_group: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [clip.parent, *sys.path])
    group = make_group()
    group.add(CaptureConfig(source=str(clip)))
    while not isinstance(item := group.take(DEADLINE_S), Frame):
        assert isinstance(item, Event)
        assert item.kind in ("started", "connected"), item.message
    assert item.index == 0


def test_closing_ends_a_source_that_never_answers(clip: Path, patience: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/never-answers"
        group = CaptureGroup()
        captures = [group.add(CaptureConfig(source=url)), group.add(CaptureConfig(source=str(clip)))]
        listener.settimeout(40.0)
        with listener.accept()[0]:
            patience.wait_until(lambda: all(capture.stats.pid for capture in captures))
            pids = [capture.stats.pid for capture in captures]
            group.close()
        patience.wait_until(lambda: not any(pid and is_running(pid) for pid in pids))


def test_a_silent_server_is_a_timeout(play: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        player = play(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x", open_timeout_s=0.5)
        down = player.event("reconnecting")
        assert down.reason == "timeout"
        assert "firewall" in down.fix


@pytest.mark.slow
def test_fifty_reconnects_leave_no_descriptor_thread_or_memory_behind(make_mjpeg: Make, quick: dict[str, Any]) -> None:
    # Killed as soon as it delivers: a whole reconnect, without waiting for a network.
    settings = {**quick, "backoff_first_s": 0.01, "backoff_max_s": 0.02}
    camera = make_mjpeg()
    with open_capture(CaptureConfig(source=camera.url, **settings)) as capture:
        counts = []
        for _ in range(50):
            while not isinstance(capture.take(40.0), Frame):
                pass
            pid = capture.stats.pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            while (item := capture.take(40.0)) is None or getattr(item, "kind", "") != "reconnecting":
                pass
            del item
            gc.collect()
            rss_kb = int(Path("/proc/self/statm").read_text().split()[1]) * 4
            counts.append((num_fds(), threading.active_count(), rss_kb))
    # The least of several, because the moment of a count varies. One leak per reconnect would be about 35.
    early, late = (np.array(part).min(axis=0) for part in (counts[5:15], counts[-10:]))
    assert late[0] - early[0] < 12
    assert late[1] - early[1] < 12
    assert late[2] - early[2] < 4000

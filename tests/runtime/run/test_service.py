"""The log, systemd, and settings read again."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgerpn.errors import ConfigError
from edgerpn.runtime import Model
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import SourceConfig, StreamsConfig, logs
from edgerpn.runtime.run.logs import RepeatFilter, log_event, log_to_stderr
from edgerpn.runtime.run.service import Notifier, Service
from edgerpn.runtime.sinks.sink_queue import FailureLog
from edgerpn.runtime.tracking.config import TrackConfig

Make = Callable[..., Any]
_logger = logging.getLogger("edgerpn.test")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The receiving end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(40.0)
        yield receiver


def environment(receiver: socket.socket, **values: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": receiver.getsockname(), **values}


def test_a_log_line_for_people_holds_time_level_and_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr("text", "info"):
        _logger.info("cannot open rtsp://user:hunter2@host/x")
        _logger.debug("unseen")
    line = capsys.readouterr().err
    assert line.endswith("info: cannot open rtsp://***@host/x\n")
    assert line[:4].isdigit()
    _logger.info("afterwards")
    assert capsys.readouterr().err == ""


def test_a_log_line_for_programs_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr("json", "warning"):
        _logger.warning('a "quoted"\nmessage with token=%s', "hunter2")
        try:
            int("inside")
        except ValueError:
            _logger.exception("it failed")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["logger"], first["repeated"]) == ("warning", "edgerpn.test", 0)
    assert first["message"] == 'a "quoted"\nmessage with token=***'
    assert first["time"].endswith("Z")
    assert "ValueError: invalid literal" in second["message"]


def test_text_of_a_server_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr("text", "warning"):
        _logger.warning("the server answers 503 %s", "\x1b[31mred\r\x9b0m, gr\u00fcn\n\tend")
    assert "503 \\x1b[31mred\\x0d\\x9b0m, gr\u00fcn\n\tend" in capsys.readouterr().err


def test_repeated_messages_are_counted_and_logged_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    record = logging.makeLogRecord({"name": "a", "levelno": logging.WARNING, "msg": "next attempt in %.1f s"})
    limited = RepeatFilter(repeat_s=60.0)

    def passes(delay_s: float) -> bool:
        record.args = (delay_s,)
        return limited.filter(record)

    assert [passes(delay_s) for delay_s in (1.0, 2.5, 17.0)] == [True, False, False]
    other = logging.makeLogRecord({"name": "a", "levelno": logging.WARNING, "msg": "something else"})
    assert limited.filter(other)
    now_s[0] += 59.0
    assert not passes(30.0)
    now_s[0] += 2.0
    assert passes(30.0)
    assert vars(record)["num_repeated"] == 3
    record.levelno = logging.ERROR
    assert passes(1.0)
    assert passes(1.0)


def test_failures_of_sources_that_differ_in_digits_are_both_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr("text", "warning"):
        for source in ("cam1", "rtsp://***@192.168.1.10/1", "cam2", "rtsp://***@192.168.1.11/1"):
            for delay_s in (1.5, 2.5):
                message = f"{source}: no answer; next attempt in {delay_s} s"
                log_event(Event(kind="reconnecting", source=source, message=message))
    lines = [line.partition("warning: ")[2].partition(": no")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["cam1", "rtsp://***@192.168.1.10/1", "cam2", "rtsp://***@192.168.1.11/1"]


def test_outputs_whose_addresses_differ_in_digits_are_both_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr("text", "warning"):
        for host in ("10.0.0.1", "10.0.0.2"):
            FailureLog(f"webhook http://{host}/").failed(ConnectionRefusedError("refused"))
    assert capsys.readouterr().err.count("refused") == 2


def test_the_memory_of_repetition_is_bounded() -> None:
    limited = RepeatFilter()
    for index in range(2000):
        name = "".join(chr(97 + int(digit)) for digit in str(index))
        limited.filter(logging.makeLogRecord({"name": name, "levelno": logging.INFO, "msg": "x"}))
    assert len(limited._seen) <= 512


def test_without_systemd_nothing_is_sent_and_nothing_fails() -> None:
    for notifier in (Notifier({}), Notifier({"NOTIFY_SOCKET": "/nowhere/notify"})):
        notifier.ready("x")
        notifier.alive()
        notifier.stopping()
        assert notifier.watchdog_s == 0


def test_an_abstract_address_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"edgerpn-test-{os.getpid()}"
        receiver.bind(f"\0{name}")
        receiver.settimeout(40.0)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("fine")
        assert receiver.recv(1000) == b"STATUS=fine"


def test_the_watchdog_of_another_process_is_not_ours(systemd: socket.socket) -> None:
    values = environment(systemd, WATCHDOG_USEC="3000000")
    assert Notifier(values).watchdog_s == 3.0
    assert Notifier({**values, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 3.0
    assert Notifier({**values, "WATCHDOG_PID": "1"}).watchdog_s == 0


def test_the_watchdog_is_fed_while_sources_are_dead_and_not_when_the_model_hangs(
    systemd: socket.socket, make_slow: Make, make_clip: Make, start: Make, patience: Any
) -> None:
    service = Service(lambda: StreamsConfig(), Notifier(environment(systemd, WATCHDOG_USEC="400000")))
    slow = make_slow(0.0, batch=1)
    run = start(slow, stays=True, on_tick=service.tick)
    service.begin(run.runner)
    assert systemd.recv(1000) == b"READY=1\nSTATUS=0 sources"
    told: list[tuple[float, bytes]] = []

    def listen() -> None:
        while (message := systemd.recv(1000)) != b"STATUS=over":
            told.append((time.monotonic(), message))

    def add() -> None:
        # While idle it is fed all the same.
        patience.wait_until(lambda: len(told) >= 3)
        slow.backend.delay_s = 1.6
        run.runner.add(SourceConfig(source=str(make_clip(1)), name="a"))

    threads = [threading.Thread(target=listen), threading.Thread(target=add)]
    for thread in threads:
        thread.start()
    run.until(lambda item: isinstance(item, Result))
    Notifier(environment(systemd)).status("over")
    for thread in threads:
        thread.join()
    assert {message for _, message in told} <= {b"WATCHDOG=1"} | {m for _, m in told if m.startswith(b"STATUS=")}
    ((begin_s, end_s),) = slow.backend.calls
    # None from the moment on at which the inference took longer than the watchdog allows.
    assert not [moment for moment, message in told if begin_s + 0.6 < moment < end_s and message == b"WATCHDOG=1"]


def test_settings_are_read_again_and_bad_ones_change_nothing(
    systemd: socket.socket, model: Model, make_camera: Make, live: Make, start: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = live(make_camera().url, "first"), live(make_camera().url, "second")
    answers: list[Any] = [
        ConfigError(["max_age: unknown setting"]),
        StreamsConfig(sources=(second,), min_score=0.5, track=TrackConfig()),
    ]

    def load() -> StreamsConfig:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    service = Service(load, Notifier(environment(systemd)))
    run = start(model, first, on_tick=service.tick)
    service.begin(run.runner)
    assert systemd.recv(1000).startswith(b"READY=1")
    run.until(lambda item: isinstance(item, Event) and item.kind == "connected")
    service.want_reload()
    run.until(lambda item: "max_age: unknown setting" in caplog.text)
    assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert systemd.recv(1000).startswith(b"READY=1\nSTATUS=1 of 1 sources up")
    assert list(run.runner.stats()) == ["first"]
    service.want_reload()
    run.until(lambda item: isinstance(item, Event) and item.kind == "connected" and item.source == "second")
    assert list(run.runner.stats()) == ["second"]
    assert "these settings stay as they were when the run started: track" in caplog.text

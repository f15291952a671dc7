"""`edgerpn run --http`, as a process of its own and in this one: start, failure, end."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError, MissingDependencyError
from edgerpn.runtime.run import SourceConfig, StreamsConfig, load_streams
from edgerpn.runtime.run.loading import load_source
from edgerpn.runtime.run.service import Notifier, RemoteStreams, Service
from edgerpn.runtime.run.streams_config import MAX_SOURCES
from edgerpn.runtime.web import HttpConfig, open_page

Make = Callable[..., Any]

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def command(model_path: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    processes: list[subprocess.Popen[str]] = []

    def run(*words: str | Path) -> tuple[subprocess.Popen[str], str]:
        """Starts a run; its process and the address of its page."""
        log = tmp_path / "log"
        line = [sys.executable, "-m", "edgerpn", "run", str(model_path), *map(str, words)]
        with log.open("w") as file:
            processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=file, text=True))
        end_s = time.monotonic() + 60
        while not (found := re.search(r"web page: http://(\S+)/", log.read_text())):
            assert time.monotonic() < end_s
            assert processes[-1].poll() is None, log.read_text()
            time.sleep(0.05)
        return processes[-1], found.group(1)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_run_with_open_streams(command: Make, make_camera: Make, tmp_path: Path, patience: Any) -> None:
    lines = tmp_path / "a.jsonl"
    process, address = command(make_camera().url, "--http", "127.0.0.1:0", "--jsonl", lines)
    connections = [http.client.HTTPConnection(address, timeout=20) for _ in range(4)]
    while not (lines.exists() and lines.stat().st_size):
        time.sleep(0.05)
    for connection, path in zip(connections, ("stream.mjpeg", "stream.mjpeg", "proposals", "proposals"), strict=True):
        connection.request("GET", f"/api/v1/{path}")
        assert connection.getresponse().readline()
    # One more that takes nothing, and one that asks for nothing.
    host, _, port = address.partition(":")
    stuck = socket.create_connection((host, int(port)))
    stuck.sendall(b"GET /api/v1/stream.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    silent = socket.create_connection((host, int(port)))
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=patience.DEADLINE_S)
    assert process.returncode == 0
    # Every limit for the end of the page and of the outputs was kept.
    log = (tmp_path / "log").read_text()
    assert "does not end" not in log
    assert "graceful shutdown exceeded" not in log
    assert "closing takes too long" not in log
    assert "stopped by SIGTERM" in printed
    for connection in connections:
        connection.close()
    stuck.close()
    silent.close()


def test_one_file_runs_with_a_page_and_ends_as_without(command: Make, video_path: Path, tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    process, _ = command(video_path, "--http", "127.0.0.1:0", "--jsonl", lines)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert printed.startswith("40 frames in ")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sum(record["type"] == "frame" for record in records) == 40


def test_a_run_with_control_starts_without_sources_and_keeps_those_added_by_http(
    command: Make, make_camera: Make, tmp_path: Path
) -> None:
    file = tmp_path / "streams.toml"
    file.write_text('[http]\nlisten = "127.0.0.1:0"\ncontrol = true\n[defaults]\nmax_age_ms = 1234\n')
    process, address = command("--config", file)

    def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def until(is_it: Callable[[], Any]) -> Any:
        end_s = time.monotonic() + 40
        while not (found := is_it()):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        return found

    until(lambda: ask("GET", "/healthz")[1]["status"] == "ok")
    assert ask("POST", "/api/v1/sources", {"name": "yard", "source": make_camera().url})[0] == 201
    until(lambda: ask("GET", "/readyz")[0] == 200)
    file.write_text(file.read_text() + f'[sources.door]\nsource = "{make_camera().url}"\n')
    process.send_signal(signal.SIGHUP)
    until(lambda: {row["name"] for row in ask("GET", "/api/sources")[1]["sources"]} == {"door", "yard"})
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_port_that_is_taken_is_one_error_before_any_camera(
    model_path: Path, make_camera: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["run", str(model_path), make_camera().url, "--http", listen]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: http.listen: {listen}: cannot listen there: Address already in use")


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["--http", "0.0.0.0:0"], 1, "needs a token"),
        (["--http", "nonsense"], 2, "expected HOST:PORT"),
        (["--http", "192.0.2.1:0", "--set", "http.token_env=HOME_OF_NOTHING"], 1, "HOME_OF_NOTHING is not set"),
        (["--set", "http.lisen=80"], 2, "did you mean 'listen'"),
    ],
)
def test_a_page_that_cannot_be_is_one_error(
    model_path: Path, words: list[str], status: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model_path), "http://127.0.0.1:9/x", *words]) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert problem in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_says_how_to_get_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"edgerpn\[web\]"):
        open_page(HttpConfig(listen="127.0.0.1:0"))


def test_without_an_address_there_is_no_page() -> None:
    assert open_page(HttpConfig()) is None


def test_the_runtime_does_not_load_the_web_packages_without_a_page(model_path: Path, video_path: Path) -> None:
    code = (
        "import sys\nfrom edgerpn.__main__ import main\nassert main(sys.argv[1:]) == 0\n"
        "print(sorted({'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    words = ["run", str(model_path), str(video_path), os.path.relpath(video_path), "--set", "min_score=0.1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_print_config_shows_the_page_as_settings_that_load_again(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--http", "8080", "--top", "7", "--set", "http.hosts=['a.example']", "--print-config"]
    assert main(["run", str(model_path), "rtsp://host/x", *words]) == 0
    printed = capsys.readouterr().out
    assert "[http]" in printed
    assert 'listen = "8080"' in printed
    file = tmp_path / "again.toml"
    file.write_text(printed)
    http_config = load_streams(file).http
    assert (http_config.address, http_config.top, http_config.hosts) == (("127.0.0.1", 8080), 7, ("a.example",))


def test_closing_twice_does_nothing() -> None:
    page = open_page(HttpConfig(listen="127.0.0.1:0"))
    assert page is not None
    page.close()
    page.close()
    # The port is free again at once.
    port = int(page.url.rstrip("/").rpartition(":")[2])
    again = open_page(HttpConfig(listen=f"127.0.0.1:{port}"))
    assert again is not None
    again.close()


def test_a_source_of_the_network_has_the_defaults_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "streams.toml"
    file.write_text("[defaults]\nmax_age_ms = 300\ngap_s = 2.0\n[sources.x]\nsource = '0'\n")
    made = load_source(file, {"source": "http://h/x", "gap_s": 3}, overrides=["defaults.stall_s=9", "sources.x.name=x"])
    assert (made.max_age_ms, made.gap_s, made.stall_s, made.source) == (300, 3, 9, "http://h/x")


class Runner:
    """Keeps the sources that it gets."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def stats(self) -> dict[str, Any]:
        return self.names

    def add(self, config: SourceConfig) -> None:
        self.names[config.label] = config

    def apply(self, config: StreamsConfig) -> None:
        self.names = {source.label: source for source in config.sources}

    def remove(self, name: str) -> bool:
        return self.names.pop(name, None) is not None


def test_sources_of_the_network_are_counted_and_outlast_a_reload() -> None:
    runner = Runner()
    remote = RemoteStreams(runner, [], lambda table: SourceConfig(**table), max_sources=2)  # type: ignore[arg-type]
    assert remote.add({"source": "http://h/x", "name": "a"}) == "a"
    remote.add({"source": "http://h/y", "name": "b"})
    with pytest.raises(ValueError, match="2 sources"):
        remote.add({"source": "http://h/z"})
    file = StreamsConfig(sources=(SourceConfig(source="rtsp://h/x", name="b"),))
    remote.apply(file)
    assert [source.source for source in runner.names.values()] == ["rtsp://h/x", "http://h/x"]
    more = dataclasses.replace(file, sources=(*file.sources, SourceConfig(source="rtsp://h/y", name="c")))
    with pytest.raises(ConfigError, match="expected at most 2, got 2 of the settings and 1 that were added"):
        remote.apply(more)
    assert set(runner.names) == {"b", "a"}
    assert remote.remove("a")
    assert not remote.remove("a")
    remote.apply(more)
    assert set(runner.names) == {"b", "c"}


def test_a_source_that_comes_during_a_reload_outlasts_it() -> None:
    runner, is_applying, may_go_on = Runner(), threading.Event(), threading.Event()

    def slow_apply(config: StreamsConfig) -> None:
        is_applying.set()
        assert may_go_on.wait(20)
        Runner.apply(runner, config)

    runner.apply = slow_apply  # type: ignore[method-assign]
    remote = RemoteStreams(runner, [], lambda table: SourceConfig(**table), max_sources=9)  # type: ignore[arg-type]
    reloading = threading.Thread(target=remote.apply, args=(StreamsConfig(),))
    adding = threading.Thread(target=remote.add, args=({"source": "http://h/x", "name": "a"},))
    reloading.start()
    assert is_applying.wait(20)
    adding.start()
    adding.join(0.3)
    may_go_on.set()
    for thread in (reloading, adding):
        thread.join(20)
    assert set(runner.names) == {"a"}


def test_too_many_sources_of_a_file_that_is_read_again_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner()
    many = StreamsConfig(sources=tuple(SourceConfig(source=f"http://h/{number}") for number in range(MAX_SOURCES + 1)))
    service = Service(lambda: many, Notifier())
    service.begin(runner)  # type: ignore[arg-type]
    service.want_reload()
    service.tick()
    assert service._reloading is not None
    service._reloading.join(20)
    assert runner.names == {}
    assert f"expected at most {MAX_SOURCES}, got {MAX_SOURCES + 1}" in caplog.text

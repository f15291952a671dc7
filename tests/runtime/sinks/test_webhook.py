"""The webhook against a real server: batches, retries, no redirects, no secrets in sight."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgerpn.errors import ConfigError, SinkError
from edgerpn.runtime.frame import Result
from edgerpn.runtime.sinks import QueuedSink, WebhookConfig, close_sinks, open_sinks, read_outputs
from edgerpn.runtime.sinks.webhook import WebhookSink
from tests.support.classes import classed

MakeResult = Callable[..., Result]


class Server:
    """Keeps posted records; answers 200, or the next of `answers` (status and headers; 0: silence, -1: breaks off)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.closes_idle = False
        """Whether it closes a connection after each answer, without saying so in the answer."""
        self.is_over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.path, dict(self.headers), body))
                status, headers = server.answers.pop(0) if server.answers else (200, {})
                if status <= 0:
                    if status == 0:
                        server.is_over.wait()
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.close_connection = self.close_connection or server.closes_idle

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?site=1"

    def frames(self) -> list[int]:
        return [record["frame"] for _, _, body in self.requests for record in body]

    def close(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def opened(url: str, **settings: Any) -> QueuedSink:
    table = {"kind": "webhook", "url": url, "batch_s": 0.02, **settings}
    (sink,) = open_sinks(read_outputs([table], source="test"), is_live=True)
    return sink


def test_records_arrive_in_batches_over_one_connection(server: Server, make_result: MakeResult) -> None:
    sink = opened(server.url, batch=40)
    for index in range(100):
        sink.write(make_result(index))
    sink.close()
    assert server.frames() == list(range(100))
    assert all(len(body) <= 40 for _, _, body in server.requests)
    assert len(server.requests) <= 6
    path, headers, body = server.requests[0]
    assert path == "/hook?site=1"
    assert headers["Content-Type"] == "application/json"
    assert body[0]["type"] == "frame"
    assert body[0]["proposals"] == [[1.0, 2.0, 30.0, 40.0, 0.875]]
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.requests}) == len(server.requests)


def test_a_request_that_breaks_on_a_new_connection_is_an_error_and_waits(
    server: Server, make_result: MakeResult, until: Any
) -> None:
    # The first answer ends its connection, so that the second request opens one.
    server.answers = [(200, {"Connection": "close"}), (-1, {})]
    sink = opened(server.url)
    for index in range(2):
        sink.write(make_result(index))
        until(lambda: sink.stats().written == index + 1)  # noqa: B023 - called at once
    assert server.frames() == [0, 1, 1]
    assert sink.stats().errors == 1
    sink.close()


def test_a_connection_that_the_server_closed_while_idle_is_no_error(
    server: Server, make_result: MakeResult, until: Any
) -> None:
    server.closes_idle = True
    sink = opened(server.url)
    for index in range(3):
        sink.write(make_result(index))
        until(lambda: sink.stats().written == index + 1)  # noqa: B023 - called at once
    sink.close()
    assert server.frames() == [0, 1, 2]
    assert (sink.stats().errors, sink.stats().last_error) == (0, "")


def test_the_names_of_classes_arrive_with_their_boxes(server: Server, make_result: MakeResult) -> None:
    result = make_result()
    sink = opened(server.url)
    named = classed(result.proposals[[0, 0]], ["größte Muschel", "fish"], [0.75, 0.5])
    sink.write(dataclasses.replace(result, proposals=named))
    sink.close()
    ((_, _, (record,)),) = server.requests
    assert (record["labels"], record["class_scores"]) == (["größte Muschel", "fish"], [0.75, 0.5])


def test_a_time_to_wait_of_thousands_of_digits_is_a_failure_like_others(
    server: Server, make_result: MakeResult, until: Any
) -> None:
    server.answers = [(503, {"Retry-After": "0" * 5000})]
    sink = opened(server.url)
    sink.write(make_result(0))
    until(lambda: len(server.requests) >= 2)
    sink.close()
    stats = sink.stats()
    assert (stats.written, stats.dropped, stats.errors) == (1, 0, 1)


def test_a_request_that_failed_is_repeated_as_it_was(server: Server, make_result: MakeResult, until: Any) -> None:
    server.answers = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"})]
    sink = opened(server.url, batch=10)
    for index in range(3):
        sink.write(make_result(index))
    until(lambda: len(server.requests) >= 1)
    for index in range(3, 6):
        sink.write(make_result(index))
    sink.close()
    keys = [headers["Idempotency-Key"] for _, headers, _ in server.requests]
    bodies = [[record["frame"] for record in body] for _, _, body in server.requests]
    assert len(set(keys[:3])) == 1
    assert bodies[0] == bodies[1] == bodies[2]
    assert [frame for body in bodies[2:] for frame in body] == list(range(6))
    assert len(set(keys)) == len(keys) - 2
    stats = sink.stats()
    assert (stats.written, stats.dropped, stats.errors) == (6, 0, 2)
    assert "the server answers 503" in stats.last_error or "429" in stats.last_error


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_final_refusal_loses_the_batch_and_is_counted(
    server: Server, make_result: MakeResult, until: Any, status: int
) -> None:
    server.answers = [(status, {})]
    sink = opened(server.url, batch=1)
    sink.write(make_result(0))
    until(lambda: sink.stats().errors == 1)
    sink.write(make_result(1))
    sink.close()
    assert (sink.stats().written, sink.stats().dropped) == (1, 1)
    assert f"the server answers {status}" in sink.stats().last_error


def test_redirects_are_not_followed_so_that_no_token_leaves(
    server: Server, make_result: MakeResult, until: Any
) -> None:
    other = Server()
    server.answers = [(302, {"Location": other.url}), (307, {"Location": other.url})]
    sink = opened(server.url, batch=1)
    sink.write(make_result(0))
    sink.write(make_result(1))
    until(lambda: sink.stats().dropped == 2)
    sink.close()
    other.close()
    assert other.requests == []
    assert "a redirect, which is not followed" in sink.stats().last_error


def test_neither_writes_nor_closing_wait_for_a_silent_server(
    server: Server, make_result: MakeResult, until: Any
) -> None:
    server.answers = [(0, {})] * 10
    sink = opened(server.url, queue=20, timeout_s=30.0)
    sink.write(make_result(0))
    until(lambda: server.requests)
    for index in range(1, 200):
        sink.write(make_result(index))
    assert sink.stats().dropped == 179
    close_sinks([sink], timeout_s=0.3)
    # The server would be silent for 30 s more.
    assert (sink.stats().written, sink.stats().dropped, sink.stats().queued) == (0, 200, 0)


def test_no_answer_in_time_is_an_error_and_tried_again(server: Server, make_result: MakeResult) -> None:
    server.answers = [(0, {})]
    sink = opened(server.url, timeout_s=0.1)
    sink.write(make_result(0))
    sink.close()
    assert server.frames() == [0, 0]
    assert "no answer in time" in sink.stats().last_error
    assert sink.stats().written == 1


def test_a_server_that_is_away_gets_everything_when_it_is_back(make_result: MakeResult, until: Any) -> None:
    away = Server()
    away.close()
    sink = opened(away.url)
    for index in range(50):
        sink.write(make_result(index))
    until(lambda: sink.stats().is_failing)
    assert "Connection refused" in sink.stats().last_error
    back = Server()
    sink._sink._parts = sink._sink._parts._replace(netloc=f"127.0.0.1:{back.port}")  # type: ignore[union-attr]
    sink.close()
    back.close()
    assert back.frames() == list(range(50))


def test_tokens_come_from_the_environment_or_a_file_and_are_never_shown(
    server: Server, make_result: MakeResult, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HOOK_TOKEN", "Bearer s3cr3t\n")
    token_file = tmp_path / "token"
    token_file.write_text("s3cr3t-2\n")
    address = f"127.0.0.1:{server.port}/hook"
    sinks = [
        opened(f"http://{address}", token_env="HOOK_TOKEN"),
        opened(f"http://{address}", token_file=str(token_file), header="X-Key"),
        opened(f"http://cam:s3cr3t%403@{address}?token=s3cr3t-4"),
        opened(f"http://cam:s3cr3t-5@127.0.0.1:9/{address}"),
    ]
    for sink in sinks:
        sink.write(make_result(0))
    until(lambda: len(server.requests) == 3)
    close_sinks(sinks, timeout_s=0.5)
    sent = [headers.get("Authorization") or headers.get("X-Key") for _, headers, _ in server.requests]
    assert sorted(map(str, sent)) == ["Basic Y2FtOnMzY3IzdEAz", "Bearer s3cr3t", "s3cr3t-2"]
    told = caplog.text + repr([sink.stats() for sink in sinks]) + repr([sink._config for sink in sinks])
    assert "s3cr3t" not in told
    assert "***" in told


def test_a_token_that_is_missing_is_refused_at_once() -> None:
    with pytest.raises(SinkError, match="the environment variable NO_SUCH_THING is not set"):
        WebhookSink(WebhookConfig(url="http://host/", token_env="NO_SUCH_THING"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "ftp://user:s3cr3t@host/"}, "url: expected http:// or https:// and a host, got 'ftp://***@host/'"),
        ({"url": "http://user:s3cr3t#x@host:99999/"}, "which is not a URL"),
        ({"url": "http://user:12/34s3cr3t@host/"}, "/ as %2F"),
        ({"url": "http://user:s3cr3t/x@host:1/"}, "write / as %2F"),
        ({"url": "http://host/", "header": "X: y"}, "header: expected the name of a header"),
        ({"url": "http://a:s3cr3t@host/", "token_env": "X"}, "one of password, token_env and token_file"),
        ({"url": "http://host/", "batch": 0}, "batch: expected 1..10000, got 0"),
    ],
)
def test_wrong_settings_are_refused_without_showing_passwords(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_outputs([{"kind": "webhook", **settings}], source="streams.toml")
    assert problem in str(caught.value)
    assert "s3cr3t" not in str(caught.value)

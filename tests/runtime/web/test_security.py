"""A hostile client or page cannot harm a running server."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from edgerpn.runtime.web import connections, requests, routes
from edgerpn.runtime.web.access import COOKIE
from edgerpn.runtime.web.requests import MAX_BODY

Make = Callable[..., Any]

TOKEN = "a-token-of-enough-characters"
PATHS = (
    "/", "/page.css", "/page.js", "/icon.svg", "/login", "/healthz", "/readyz", "/metrics", "/openapi.json",
    "/api/v1/status", "/api/v1/sources", "/api/v1/view", "/api/v1/events", "/api/v1/nothing", "/nothing",
)  # fmt: skip


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


def raw(address: tuple[str, int], request: bytes) -> bytes:
    """The answer to bytes that no client would send."""
    with socket.create_connection(address, timeout=10) as sent:
        sent.sendall(request)
        sent.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sent.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_forbids_everything_that_the_page_does_not_need(empty_site: Any, path: str) -> None:
    headers = empty_site.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    for name, value in {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }.items():
        assert headers.get_all(name) == [value]
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers
    assert headers["Cache-Control"] in ("no-store", "no-cache")


def test_no_path_leads_to_the_file_system(empty_site: Any) -> None:
    site = empty_site
    ups = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "..%5c", "....//", "%252e%252e%252f", "/", "%00/")
    starts = ("/", "/api/v1/", "/static/", "//", "/page.css/", "/api/v1/sources/")
    for start in starts:
        for up in ups:
            for end in ("etc/passwd", "routes.py", "page.html", "__init__.py"):
                request = f"GET {start}{up * 6}{end} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                answer = raw(site.client.address, request.encode())
                assert re.match(rb"HTTP/1.1 (404|400|307)", answer), request
                assert b"root:" not in answer
                assert b"import" not in answer
    for path in ("/routes.py", "/page.html", "/login.html", "/openapi.json/x", "/api/v1/openapi.json"):
        assert site.get(path).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: evil.example.org", 421),
        ("Host: 127.0.0.1.evil.example.org", 421),
        ("Host: ", 421),
        ("X-Forwarded-Host: localhost\r\nHost: evil.example.org", 421),
        ("Host: localhost\r\nHost: evil.example.org", 400),
        ("Host: 127.0.0.1\r\nOrigin: http://evil.example.org", 403),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors", 403),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate", 200),
        ("Host: 127.0.0.1\r\nOrigin: http://127.0.0.1", 200),
        ("Host: 127.0.0.1", 200),
    ],
)
def test_other_names_and_other_pages_get_nothing(down_site: Any, headers: str, status: int) -> None:
    site = down_site
    request = f"GET /api/v1/status HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
    answer = raw(site.client.address, request.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"door" in answer) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Origin": "http://evil.example.org"}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Content-Type": "application/json", "Host": "evil.example.org"}, 421),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 201),
    ],
)
def test_a_form_or_script_of_another_page_adds_no_source(
    control_site: Any, headers: dict[str, str], status: int
) -> None:
    site = control_site
    answer = site.client("POST", "/api/v1/sources", body=b'{"source": "http://127.0.0.1:9/x"}', headers=headers)
    assert answer.status == status
    assert len(site.hub.streams.stats()) == (status == 201)
    if status == 201:
        assert site.client("DELETE", "/api/v1/sources", query={"name": answer.json["name"]}).status == 204


def test_oversized_bodies_and_bodies_other_than_json_are_refused(control_site: Any) -> None:
    site = control_site
    json_type = {"Content-Type": "application/json"}
    for body, status in (
        (b" " * (MAX_BODY + 1), 413), (b"{", 400), (b"[" * 10_000, 400), (b"\xff\xfe", 400), (b"[1]", 422),
        (b'{"source": NaN}', 422),
    ):  # fmt: skip
        answer = site.client("POST", "/api/v1/sources", body=body, headers=json_type)
        assert answer.status == status
    assert site.client("POST", "/api/v1/view", body={}).status == 405
    assert site.client("TRACE", "/").status == 405
    assert raw(site.client.address, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert site.get("/api/v1/events", query={"after": "9" * 5000}).status == 400


def test_with_a_token_no_answer_without_it_names_sources(serve: Make, token_file: str, make_camera: Make) -> None:
    site = serve({"door": make_camera().url, "yard": "http://127.0.0.1:9/x"}, token_file=token_file)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    site.until(lambda: site.get("/readyz").status == 200)
    for path in (*PATHS, "/api/v1/proposals", "/api/v1/picture.jpg", "/api/v1/stream.mjpeg", "/page.js"):
        answer = site.get(path)
        assert b"door" not in answer.body
        assert b"yard" not in answer.body
        is_open = path in ("/login", "/healthz", "/readyz", "/page.css", "/icon.svg")
        assert answer.status == (200 if is_open else 303 if path == "/" else 401), path
        assert site.get(path, query={"token": TOKEN}).status == answer.status
    assert site.get("/api/v1/status").headers["WWW-Authenticate"] == "Bearer"
    assert site.get("/").headers["Location"] == "/login"
    assert [one["name"] for one in site.get("/readyz", headers=bearer).json["sources_down"]] == ["yard"]
    assert site.get("/api/v1/sources", headers=bearer).status == 200
    assert site.client("PUT", "/api/v1/view", body={"top": 3}).status == 401
    assert site.get("/metrics", headers={"Authorization": f"Bearer {TOKEN[:-1]}"}).status == 401
    assert site.get("/metrics", headers={"Cookie": f"{COOKIE}=9999999999.\xe9"}).status == 401


def test_a_browser_logs_in_and_out_with_a_cookie_that_is_not_the_token(
    serve: Make, token_file: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    site = serve(token_file=token_file)
    start_s = time.monotonic()
    wrong = site.client("POST", "/login", form={"token": "guess"})
    assert (wrong.status, wrong.headers["Set-Cookie"]) == (403, None)
    assert time.monotonic() - start_s > 0.4
    monkeypatch.setattr(routes, "WRONG_TOKEN_S", 0.0)
    assert site.client("POST", "/login", form={"token": TOKEN}, headers={"Origin": "http://evil.org"}).status == 403
    for broken in (b"", b"\xff", b"token", b"&".join(b"a=b" for _ in range(50))):
        assert site.client("POST", "/login", body=broken, headers={"Content-Type": "x/y"}).status == 403
    answer = site.client("POST", "/login", form={"token": TOKEN})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    value, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= {attribute.lower() for attribute in attributes}
    assert "secure" not in {attribute.lower() for attribute in attributes}
    cookie = {"Cookie": value}
    page = site.get("/", headers=cookie)
    assert page.status == 200
    state = site.get("/api/v1/status", headers=cookie)
    assert state.json["login"]
    secure = site.client(
        "POST", "/login", form={"token": TOKEN}, headers={"Origin": f"https://127.0.0.1:{site.client.address[1]}"}
    )
    assert "secure" in secure.headers["Set-Cookie"].lower()
    out = site.client("POST", "/logout", headers=cookie)
    assert 'edgerpn_session=""' in out.headers["Set-Cookie"]
    for told in (page.body, state.body, answer.body, str(answer.headers).encode(), caplog.text.encode()):
        assert TOKEN.encode() not in told
    assert TOKEN not in repr(vars(site.page))


def test_names_are_text_in_every_answer_and_never_markup(serve: Make) -> None:
    name = "<img src=x onerror=alert(1)>\"'&{{7*7}}"
    site = serve({name: "http://127.0.0.1:9/x"})
    site.until(lambda: site.row(name)["last_problem"])
    for path in ("/api/v1/status", "/api/v1/sources", "/api/v1/events", "/readyz"):
        answer = site.get(path)
        assert answer.headers["Content-Type"] == "application/json"
        assert b"onerror" in answer.body
    assert b"onerror" not in site.get("/").body
    missing = site.get("/<script>alert(1)</script>")
    assert missing.headers["Content-Type"] == "application/json"
    assert b"script" not in missing.body


@pytest.mark.parametrize("name", ["page.html", "login.html", "page.js", "charts.js", "pictures.js", "page.css"])
def test_the_page_holds_no_inline_script_no_markup_from_text_and_nothing_of_others(name: str) -> None:
    text = files("edgerpn.runtime.web").joinpath(name).read_text(encoding="utf-8")
    assert text.isascii()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    # The name space of SVG is no address.
    assert not re.search(r"(?:https?:)?//[\w.]+\.\w+", text.replace("http://www.w3.org/2000/svg", ""))
    if name.endswith(".html"):
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Sets the limits of the next server, which sweeps its connections often."""

    def set_limits(**limits: Any) -> connections.Connections:
        made = connections.Connections(**limits)
        monkeypatch.setattr("edgerpn.runtime.web.server.Connections", lambda: made)
        monkeypatch.setattr("edgerpn.runtime.web.server.SAMPLE_S", 0.05)
        return made

    return set_limits


def test_many_silent_connections_use_up_neither_the_server_nor_the_process(serve: Make, limit: Make) -> None:
    limits = limit(max_connections=10, request_s=0.5)
    site = serve()
    silent = [socket.create_connection(site.client.address, timeout=5) for _ in range(30)]
    try:
        # Beyond ten at once, and those that were let in after a while; then there is room again.
        assert all(is_cut_off(one) for one in silent)
        site.until(lambda: len(limits) == 0)
        assert site.get("/healthz").status == 200
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize(
    "start",
    [
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\ntoken=",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
        b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\nx",
        b"GET /he",
    ],
)
def test_connections_that_dribble_do_not_lock_others_out(
    serve: Make, limit: Make, token_file: str, start: bytes
) -> None:
    limits = limit(max_connections=10, request_s=0.5)
    site = serve(token_file=token_file)
    slow = [socket.create_connection(site.client.address, timeout=5) for _ in range(10)]
    for one in slow:
        one.sendall(start)
    site.until(lambda: len(limits) == 10)

    def is_answered() -> bool:
        for one in slow:
            with suppress(OSError):
                one.sendall(b"x")
        try:
            return bool(site.get("/healthz").status == 200)
        except (OSError, http.client.HTTPException):
            return False

    site.until(is_answered, 15.0)
    for one in slow:
        one.close()


def test_streams_outlive_the_limit_for_requests(
    serve: Make, make_camera: Make, limit: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = limit(request_s=0.2)
    num_sweeps = 0
    sweep = limits.sweep

    def counted() -> None:
        nonlocal num_sweeps
        sweep()
        num_sweeps += 1

    monkeypatch.setattr(limits, "sweep", counted)
    site = serve({"door": make_camera().url})
    with (
        site.client.open("/api/v1/stream.mjpeg", {"source": "none"}) as refused,
        site.client.open("/api/v1/proposals") as records,
    ):
        assert refused.status == 404
        # Twenty sweeps are a second or more: five times the limit.
        end = num_sweeps + 20
        while num_sweeps < end:
            assert records.readline()
        site.until(lambda: len(limits) == 1)


def test_a_body_that_does_not_come_is_given_up_with_an_answer(serve: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_S", 0.2)
    site = serve()
    with socket.create_connection(site.client.address, timeout=20) as slow:
        slow.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        answer = b""
        while part := slow.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'{"error":"expected the body of the request within 0.2 s"}' in answer


def test_one_address_does_not_take_all_connections_unless_it_is_this_machine(
    serve: Make, limit: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = limit(max_per_address=3)
    site = serve()
    with ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection(site.client.address, timeout=5)) for _ in range(6)]
        site.until(lambda: len(limits) == 6)
        monkeypatch.setattr(connections, "is_loopback", lambda host: False)
        many.append(stack.enter_context(socket.create_connection(site.client.address, timeout=5)))
        assert is_cut_off(many[-1])
        assert len(limits) == 6


def test_the_server_ends_at_once_with_clients_that_do_not(
    serve: Make, patience: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = serve()
    with ExitStack() as stack:
        for start in (b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", b"GET /he", b""):
            stack.enter_context(socket.create_connection(site.client.address, timeout=5)).sendall(start)
        site.until(lambda: len(site.page.connections) == 3)
        site.page.close()
        patience.wait_until(lambda: not site.page._thread.is_alive())
    # The server aborted them itself, before uvicorn's limit for a graceful end.
    assert "graceful shutdown exceeded" not in caplog.text
    assert "does not end" not in caplog.text


def test_a_route_that_fails_answers_json_and_fills_no_log(
    empty_site: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = empty_site

    def fail() -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(site.hub, "down", fail)
    for _ in range(3):
        answer = site.get("/readyz")
        assert answer.status == 500
        assert answer.json == {"error": "internal error; see the log"}
        assert answer.headers["X-Frame-Options"] == "DENY"
    # The last line may come after its answer.
    site.until(lambda: len([r for r in caplog.records if "'/readyz' failed: broken" in r.getMessage()]) == 3)
    failed = [record for record in caplog.records if "'/readyz' failed: broken" in record.getMessage()]
    assert [record.levelno for record in failed] == [logging.ERROR] * 3
    assert [bool(record.exc_info) for record in failed] == [True, False, False]


def test_a_client_that_goes_during_its_request_is_not_an_error(
    serve: Make, limit: Make, patience: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # No limit ends the request before the client does.
    monkeypatch.setattr(requests, "BODY_S", 2 * patience.DEADLINE_S)
    limits = limit(request_s=2 * patience.DEADLINE_S)
    site = serve()
    with socket.create_connection(site.client.address, timeout=patience.DEADLINE_S) as gone:
        gone.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        # The answer comes when the route waits for the body.
        assert gone.recv(100).startswith(b"HTTP/1.1 100 ")
        gone.sendall(b"abc")
        assert site.get("/healthz").status == 200
    site.until(lambda: len(limits) == 0)
    assert site.get("/healthz").status == 200
    # The runs of other tests report their sources, which are down.
    of_server = [record for record in caplog.records if record.name != "edgerpn.runtime.run.logs"]
    assert [record.getMessage() for record in of_server if record.levelno >= logging.WARNING] == []


def test_many_streams_at_once_do_not_pass_the_limit(serve: Make) -> None:
    site = serve(max_streams=2)
    with ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection(site.client.address, timeout=20)) for _ in range(12)]
        site.until(lambda: len(site.page.connections) == 12)
        for one in many:
            one.sendall(b"GET /api/v1/proposals HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = [one.recv(12) for one in many]
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.count(b"HTTP/1.1 503") == 10


def is_cut_off(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_there_are_only_so_many_open_streams(serve: Make, make_camera: Make) -> None:
    site = serve({"door": make_camera().url}, max_streams=2)
    with site.client.open("/api/v1/proposals") as one, site.client.open("/api/v1/stream.mjpeg") as two:
        assert one.readline()
        assert two.readline()
        refused = site.get("/api/v1/proposals")
        assert refused.status == 503
        assert "max_streams" in refused.json["error"]
    site.until(lambda: site.client("HEAD", "/api/v1/proposals").status == 200)

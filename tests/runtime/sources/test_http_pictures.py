"""Web servers of cameras: single pictures are requested again and again, and refusals are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgerpn.runtime.sources import CaptureConfig, CaptureFailedError
from edgerpn.runtime.sources.http_pictures import HttpClient, explain
from tests.support.web_server import Answer, WebServer, digest_login, picture

Make = Callable[..., Any]

JPEG = picture()
ANSWERS: dict[str, Answer | Callable[[Any], Answer]] = {
    "/snapshot.jpg": Answer(body=JPEG, headers=(("Content-Type", "image/jpeg"),)),
    # Cameras name their pictures anything.
    "/cgi?channel=1&q=a@b": Answer(body=JPEG, headers=(("Content-Type", "text/html"),), has_length=False),
    "/still.png": Answer(body=picture(".png")),
    "/still.webp": Answer(body=picture(".webp")),
    "/still.bmp": Answer(body=picture(".bmp")),
    "/locked": digest_login("viewer", "p@ss/w#rd", Answer(body=JPEG)),
    "/moved": Answer(302, headers=(("Location", "/locked"),)),
    "/away": Answer(302, headers=(("Location", "file:///etc/hostname"),)),
    "/cut": Answer(body=JPEG[: len(JPEG) // 2] + b"\0" * 8000, has_length=False),
    "/short": Answer(body=JPEG[:-9], headers=(("Content-Length", str(len(JPEG))),), has_length=False),
    "/bare401": Answer(401),
    "/negotiate": Answer(401, headers=(("WWW-Authenticate", "Negotiate"),)),
    "/empty": Answer(401, headers=(("WWW-Authenticate", 'Digest realm="camera", nonce="n1", opaque='),)),
    "/403": Answer(403),
    "/429": Answer(429),
    "/500": Answer(500),
    "/502": Answer(502),
    "/503": Answer(503),
    "/login": Answer(body=b"\n<!DOCTYPE html><html><form><input type='password'></form>"),
    "/page": Answer(body=b"<html><h1>Welcome</h1></html>"),
    "/json": Answer(body=b'{"status": "ok"}', headers=(("Content-Type", "application/json"),)),
    "/list": Answer(body=b"#EXTM3U\n", headers=(("Content-Type", "text/plain"),)),
    "/nothing": Answer(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer(ANSWERS) as started:
        yield started


def with_login(url: str, login: str) -> str:
    return url.replace("//", f"//{login}@") if login else url


@pytest.mark.parametrize("path", ["/snapshot.jpg", "/cgi?channel=1&q=a@b", "/still.png", "/still.webp", "/still.bmp"])
def test_a_picture_is_known_by_its_content(path: str, server: WebServer) -> None:
    answer = explain(CaptureConfig(source=server.url + path))
    assert (answer.reason, answer.body) == ("picture", getattr(ANSWERS[path], "body", None))


@pytest.mark.parametrize(
    ("path", "login", "reason", "message"),
    [
        ("/bare401", "", "unauthorised", "401 Unauthorized: wrong or missing password (the address has none)"),
        ("/bare401", "viewer:hunter2", "unauthorised", "401 Unauthorized: wrong or missing password"),
        ("/locked", "viewer:hunter2", "unauthorised", "401 Unauthorized: wrong or missing password"),
        ("/negotiate", "viewer:hunter2", "unauthorised", "401 Unauthorized"),
        ("/empty", "viewer:hunter2", "unauthorised", "a login of a kind that is not known here"),
        ("/403", "", "unauthorised", "403 Forbidden"),
        ("/none", "", "not_found", "404 Not Found"),
        ("/429", "", "busy", "429 Too Many Requests"),
        ("/503", "", "busy", "503 Service Unavailable"),
        ("/500", "", "server", "500 Internal Server Error"),
        ("/502", "", "server", "502 Bad Gateway"),
        ("/login", "", "unauthorised", "with a login page, not with a video"),
        ("/page", "", "not_found", "with a web page, not with a video"),
        ("/json", "", "not_found", "with a text (application/json), not with a video"),
        ("/list", "", "codec", "not with a video (text/plain)"),
        ("/nothing", "", "unknown", "with nothing"),
        ("/cut", "", "unknown", "sent a part of a picture"),
        ("/short", "", "unknown", "sent a part of a picture"),
        ("/away", "", "unknown", "302 with a redirect that is not followed"),
    ],
)
def test_every_other_answer_has_its_reason(path: str, login: str, reason: str, message: str, server: WebServer) -> None:
    answer = explain(CaptureConfig(source=with_login(server.url, login) + path))
    assert (answer.reason, answer.body) == (reason, b"")
    assert message in answer.message
    assert "hunter2" not in answer.message


@pytest.mark.parametrize("path", ["/locked", "/moved"])
def test_a_password_is_tried_once_and_never_in_plain_where_digest_is_offered(path: str, server: WebServer) -> None:
    server.requests.clear()
    assert explain(CaptureConfig(source=with_login(server.url, "viewer:p%40ss%2Fw%23rd") + path)).body == JPEG
    logins = [headers["Authorization"] for _, headers in server.requests if headers["Authorization"]]
    assert len(logins) == 1
    assert logins[0].startswith("Digest ")
    server.requests.clear()
    explain(CaptureConfig(source=with_login(server.url, "viewer:wrong") + path))
    # Cameras lock an account after a few wrong passwords.
    assert sum(headers["Authorization"] is not None for _, headers in server.requests) == 1


def test_headers_of_the_settings_stay_with_their_host(server: WebServer) -> None:
    options = "headers;X-Token: abc\r\nAuthorization: Bearer t|user_agent;door/1"
    home = server.url.replace("127.0.0.1", "localhost")
    away: dict[str, Any] = {"/here": Answer(302, headers=(("Location", "/snapshot.jpg"),))}
    away |= {"/there": Answer(302, headers=(("Location", f"{home}/snapshot.jpg"),)), "/snapshot.jpg": Answer(body=JPEG)}
    with WebServer(away) as other:
        for path in ("/here", "/there"):
            answer = HttpClient(CaptureConfig(source=other.url + path, ffmpeg_options=options)).get(40.0)
            assert answer.reason == "picture"
        for _, headers in other.requests:
            assert (headers["X-Token"], headers["Authorization"], headers["User-Agent"]) == (
                "abc",
                "Bearer t",
                "door/1",
            )
        assert len(other.requests) == 3
    _, headers = server.requests[-1]
    assert (headers["X-Token"], headers["Authorization"], headers["User-Agent"]) == (None, None, "door/1")


def test_certificates_are_read_before_anything_is_sent(tmp_path: Any) -> None:
    config = CaptureConfig(source="https://127.0.0.1:9/x", ffmpeg_options=f"tls_verify;1|ca_file;{tmp_path}/none.pem")
    with pytest.raises(CaptureFailedError, match="ca_file cannot be read: No such file"):
        HttpClient(config)


def test_an_address_of_one_picture_is_requested_again_and_again(server: WebServer, play: Make) -> None:
    player = play(f"{server.url}/snapshot.jpg", rate_hz=20.0, name="yard")
    found = player.event("reconnecting")
    assert (found.reason, found.delay_s) == ("picture", 0.0)
    assert found.message == "yard: the address gives one picture at a time; next attempt in 0.0 s"
    connected = player.event("connected")
    assert "the address gives one picture, requested 20 times a second" in connected.decoder
    assert (connected.fps, connected.is_live, connected.size_wh) == (20.0, True, (64, 48))
    first, _ = player.frame()
    last, _ = player.until(lambda item: getattr(item, "index", 0) >= first.index + 5, 40.0)
    assert last.image.shape == (48, 64, 3)
    assert abs(int(last.image[0, 0, 0]) - 90) < 3
    # Five periods; a server or a machine that is slower sets the pace.
    assert last.monotonic_s - first.monotonic_s > 0.2
    assert "error" not in player.kinds()


def test_a_picture_behind_a_login_by_the_setting(server: WebServer, play: Make) -> None:
    source = with_login(server.url, "viewer:p%40ss%2Fw%23rd") + "/locked"
    player = play(source, decoder="picture", rate_hz=20.0)
    first, _ = player.frame()
    player.until(lambda item: getattr(item, "index", 0) >= first.index + 2, 40.0)
    assert player.kinds(is_patient=True) == ["started", "connected"]
    wrong = play(with_login(server.url, "viewer:hunter2") + "/locked", decoder="picture", name="wrong")
    assert wrong.event("reconnecting").reason == "unauthorised"
    assert "hunter2" not in repr(wrong.events)


def test_the_setting_needs_an_address_of_http(play: Make) -> None:
    failed = play("rtsp://127.0.0.1:9/x", decoder="picture").event("error")
    assert (failed.reason, "expected an address of http or https" in failed.message) == ("unsupported", True)


def test_a_decoder_of_the_settings_is_kept_and_the_message_names_it(server: WebServer, play: Make) -> None:
    player = play(f"{server.url}/snapshot.jpg", decoder="ffmpeg")
    for _ in range(2):
        event = player.event("reconnecting")
        assert event.reason == "picture"
        assert "decoder = auto or picture" in event.fix


@pytest.mark.parametrize(
    ("path", "reason"), [("/bare401", "unauthorised"), ("/login", "unauthorised"), ("/429", "busy"), ("/500", "server")]
)
def test_a_source_names_the_answer_of_its_server(path: str, reason: str, server: WebServer, play: Make) -> None:
    down = play(server.url + path, name="door").event("reconnecting")
    assert down.reason == reason
    assert down.message.startswith("door: the server answers ")
    assert "[" not in down.message
    assert "H.264" not in down.fix

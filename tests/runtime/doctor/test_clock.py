"""The camera's clock against ours, asked over real connections."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from edgerpn.runtime.doctor.clock import ClockSkew, find_clock_skew, skew_in_words
from edgerpn.runtime.sources import CaptureConfig

Make = Callable[..., Any]

pytestmark = pytest.mark.timeout(120)


class Answerer:
    """Gives one answer to every request; keeps the requests."""

    def __init__(self, answer: Callable[[], bytes], *, is_silent: bool = False, context: Any = None) -> None:
        self.asked: list[bytes] = []
        self.is_over = threading.Event()
        outer = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                stream = self.request if context is None else context.wrap_socket(self.request, server_side=True)
                outer.asked.append(stream.recv(4096))
                stream.sendall(answer())
                if is_silent:
                    outer.is_over.wait(60)
                if context is not None:
                    stream.close()

        self.server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def answer() -> Iterator[Callable[..., Answerer]]:
    """Starts servers, and ends them."""
    servers: list[Answerer] = []

    def start(text: bytes | Callable[[], bytes], **settings: Any) -> Answerer:
        servers.append(Answerer(text if callable(text) else lambda: text, **settings))
        return servers[-1]

    yield start
    for one in servers:
        one.is_over.set()
        one.server.shutdown()
        one.server.server_close()


def dated(protocol: str, shift_s: float) -> Callable[[], bytes]:
    return lambda: (
        f"{protocol}/1.0 401 Unauthorized\r\nCSeq: 1\r\ndate: {formatdate(time.time() + shift_s, usegmt=True)}\r\n\r\n"
    ).encode()


def ask(url: str, timeout_s: float = 20.0) -> ClockSkew:
    return find_clock_skew(CaptureConfig(source=url), timeout_s=timeout_s)


@pytest.mark.parametrize("shift_s", [-7200.0, 0.0, 5.0])
@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_clock_that_is_wrong_is_measured(scheme: str, shift_s: float, answer: Make) -> None:
    server = answer(dated(scheme.upper(), shift_s))
    # The date lies between request and answer, which are far apart on a busy machine.
    for _ in range(3):
        start_s = time.monotonic()
        found = ask(f"{scheme}://127.0.0.1:{server.port}/x")
        if time.monotonic() - start_s < 0.5:
            break
    assert found.why_unknown == ""
    assert found.skew_s == pytest.approx(shift_s, abs=1.0)


def test_no_credentials_are_sent(answer: Make) -> None:
    server = answer(dated("RTSP", 0))
    for path in ("cam?token=hunter3", "user=admin_password=hunter4_channel=1.sdp"):
        assert ask(f"rtsp://viewer:hunter2@127.0.0.1:{server.port}/{path}").skew_s is not None
    first, second = server.asked
    place = f"rtsp://127.0.0.1:{server.port}".encode()
    assert first.startswith(b"OPTIONS " + place + b"/cam RTSP/1.0\r\nCSeq: 1\r\n")
    assert second.startswith(b"OPTIONS " + place + b"/ RTSP/1.0\r\n")
    web = answer(dated("HTTP", 0))
    assert ask(f"http://viewer:hunter2@127.0.0.1:{web.port}/user=hunter5?pwd=hunter3").skew_s is not None
    assert web.asked[0].startswith(b"HEAD / HTTP/1.1\r\n")
    assert not any(word in text for text in (first, second, *web.asked) for word in (b"hunter", b"viewer", b"uthoriz"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_camera_with_a_certificate_of_its_own_is_asked_too(answer: Make, tmp_path: Path) -> None:
    names = ("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), "-subj", "/CN=camera")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = answer(dated("RTSP", 3600), context=context)
    assert ask(f"rtsps://127.0.0.1:{server.port}/x").skew_s == pytest.approx(3600, abs=20)


@pytest.mark.parametrize(
    ("date", "skew_s"),
    [("Thu, Jan 01 1970 00:10:00 GMT", 600.5), ("Thu, 01 Jan 1970 08:10:00 +0800", 600.5)],
)
def test_dates_as_cameras_write_them_are_understood(date: str, skew_s: float, answer: Make) -> None:
    server = answer(f"RTSP/1.0 200 OK\r\nDate: {date}\r\n\r\n".encode())
    found = ask(f"rtsp://127.0.0.1:{server.port}/x")
    assert found.skew_s == pytest.approx(skew_s - time.time(), abs=30)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\nDate: Thu, 26 Nov 2026 15:34:57 GMT\r\n", "the answer has no date"),
        (b"RTSP/1.0 200 OK\r\nDate: the day before\r\n\r\n", "the answer has an invalid date"),
        (b"RTSP/1.0 200 OK\r\nDate: Thu, 26 Nov 99999999999999999999 15:34:57 GMT\r\n\r\n", "has an invalid date"),
        (b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 15:34:57 GMT\r\n\r\n", "did not answer in RTSP"),
        (bytes(range(256)) * 1000, "did not answer in RTSP"),
        (b"", "did not answer in RTSP"),
    ],
)
def test_an_answer_without_a_time_is_named(text: bytes, why: str, answer: Make) -> None:
    found = ask(f"rtsp://127.0.0.1:{answer(text).port}/x")
    assert found.skew_s is None
    assert why in found.why_unknown


@pytest.mark.parametrize("text", [b"", b"RTSP/1.0 200 OK\r\n"])
def test_a_server_that_hangs_is_given_up(text: bytes, answer: Make) -> None:
    found = ask(f"rtsp://127.0.0.1:{answer(text, is_silent=True).port}/x", timeout_s=0.5)
    assert found == ClockSkew(why_unknown="no answer within 0.5 s")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/dev/video0", "only RTSP and HTTP"),
        ("a.mp4", "only RTSP and HTTP"),
        ("udp://127.0.0.1:9", "only RTSP and HTTP"),
        ("rtsp://127.0.0.1:9/x", "could not be asked: "),
    ],
)
def test_sources_that_cannot_be_asked_are_named(source: str, why: str) -> None:
    found = ask(source)
    assert found.skew_s is None
    assert why in found.why_unknown


def test_a_skew_in_words() -> None:
    assert skew_in_words(-0.4) == "in step with ours (to about 1 s)"
    assert skew_in_words(5.2) == "5 s ahead (to about 1 s)"
    assert skew_in_words(-7200.3) == "7200 s (2.0 h) behind (to about 1 s)"


def test_a_real_rtsp_server_reports_its_time(make_camera: Make) -> None:
    found = ask(f"rtsp://127.0.0.1:{make_camera().port}/cam")
    assert found.skew_s == pytest.approx(0, abs=10)


@pytest.mark.usefixtures("no_key_frames")
def test_the_report_names_a_camera_whose_clock_is_wrong(
    make_mjpeg: Make, doctor: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BaseHTTPRequestHandler.date_time_string
    monkeypatch.setattr(
        BaseHTTPRequestHandler, "date_time_string", lambda self, at=None: real(self, (at or time.time()) + 600)
    )
    _, report, _ = doctor(make_mjpeg().url, "--seconds", "1")
    assert report["figures"]["clock"]["skew_s"] == pytest.approx(600, abs=10)
    (finding,) = [one for one in report["findings"] if "clock" in one["text"]]
    assert finding["kind"] == "hint"
    assert finding["text"].startswith("the camera's clock is ")
    assert finding["text"].endswith("s ahead (to about 1 s)")
    assert "NTP" in finding["advice"]

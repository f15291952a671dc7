"""A web server that gives fixed answers, as cameras, gateways and their login pages do."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


@dataclass(frozen=True)
class Answer:
    """One answer; without a length the end of the connection ends its body."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    has_length: bool = True


@dataclass
class WebServer:
    """Serves http://127.0.0.1:PORT from a thread: each path has an answer, or a function of the request's headers."""

    answers: dict[str, Answer | Callable[[Message], Answer]]
    requests: list[tuple[str, Message]] = field(default_factory=list)
    """Path and headers of each request so far."""

    def __enter__(self) -> WebServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def picture(suffix: str = ".jpg", level: int = 90) -> bytes:
    """Returns the file of a grey picture, 64x48."""
    return cv2.imencode(suffix, np.full((48, 64, 3), level, np.uint8))[1].tobytes()


def digest_login(user: str, password: str, answer: Answer) -> Callable[[Message], Answer]:
    """Demands a login of the kind digest (RFC 2617, MD5), as most cameras do, and offers the plain one beside it."""
    challenge = 'Digest realm="camera", nonce="n1", qop="auth"'
    refusal = Answer(
        401, headers=(("WWW-Authenticate", 'Basic realm="camera"'), ("WWW-Authenticate", challenge)), has_length=False
    )

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    def give(headers: Message) -> Answer:
        sent = dict(re.findall(r'(\w+)="?([^",]*)"?', headers.get("Authorization", "")))
        if "response" not in sent:
            return refusal
        middle = ":".join(sent[name] for name in ("nonce", "nc", "cnonce", "qop"))
        expected = md5(f"{md5(f'{user}:camera:{password}')}:{middle}:{md5('GET:' + sent['uri'])}")
        return answer if sent["response"] == expected else refusal

    return give


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers))
            answer = server.answers.get(self.path, Answer(404))
            answer = answer(self.headers) if callable(answer) else answer
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if answer.has_length:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *arguments: object) -> None:
            """Logs nothing."""

    return Handler

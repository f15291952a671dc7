"""A camera that serves Motion JPEG over HTTP, as many cheap ones do."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np


class MjpegCamera:
    """Serves http://127.0.0.1:PORT/ from a thread; picture i is grey of the value i % 200."""

    def __init__(
        self,
        *,
        fps: float = 50.0,
        size_wh: tuple[int, int] = (64, 48),
        login: str = "",
        port: int = 0,
        has_lengths: bool = True,
    ) -> None:
        """Starts the server.

        Args:
            fps: Pictures in a second.
            size_wh: Their width and height.
            login: user:password; empty: none required.
            port: 0: any free one.
            has_lengths: Whether each picture has a Content-Length; without, the next boundary ends it.
        """
        self.fps = fps
        self.size_wh = size_wh
        self.has_lengths = has_lengths
        self.is_paused = False
        self.num_pictures = 0
        """Pictures after which a connection ends; 0: endless."""
        self.pauses: dict[int, float] = {}
        """Seconds of silence before a picture, by its number in the connection."""
        self.authorization = "Basic " + base64.b64encode(login.encode()).decode() if login else ""
        self._is_closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> MjpegCamera:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        self._server.shutdown()
        self._server.server_close()

    def jpeg(self, index: int) -> bytes:
        """Returns the file of one picture."""
        width, height = self.size_wh
        return cv2.imencode(".jpg", np.full((height, width, 3), index % 200, np.uint8))[1].tobytes()

    def write_pictures(self, out: Any) -> None:
        """Writes pictures until the viewer disconnects."""
        index = 0
        while not self._is_closed:
            time.sleep(1 / self.fps)
            if self.is_paused:
                continue
            time.sleep(self.pauses.get(index, 0.0))
            data = self.jpeg(index)
            length = f"Content-Length: {len(data)}\r\n" if self.has_lengths else ""
            out.write(f"--edge\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + data + b"\r\n")
            index += 1
            if index == self.num_pictures:
                return


def _handler(camera: MjpegCamera) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if camera.authorization and self.headers.get("Authorization") != camera.authorization:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=edge")
            self.end_headers()
            try:
                camera.write_pictures(self.wfile)
            except OSError:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            """Logs nothing."""

    return Handler

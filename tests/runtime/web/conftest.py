"""Runs with a page on a free port, painted cameras, and a client that speaks plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import cv2
import pytest

from edgerpn.runtime import Model, load
from edgerpn.runtime.run import SourceConfig, StreamsConfig
from edgerpn.runtime.run.session import run_streams
from edgerpn.runtime.web import HttpConfig, open_page
from edgerpn.runtime.web.server import WebServer
from tests.support import patience
from tests.support.mjpeg_server import MjpegCamera

QUICK = {
    "gap_s": 0.4,
    "stall_s": 1.5,
    "open_timeout_s": 4.0,
    "backoff_first_s": 0.2,
    "backoff_max_s": 0.8,
    "healthy_s": 1.0,
}
SIZE_WH = (320, 192)
NUM_BOXES = 6


class Client:
    """Requests to one server, each over a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self.address = (parts.hostname or "", parts.port or 0)

    def __call__(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
        form: dict[str, str] | None = None,
    ) -> Answer:
        """One request; `body` is sent as JSON unless it is bytes."""
        sent = dict(headers or {})
        data: bytes | None = body if isinstance(body, bytes) else None
        if body is not None and data is None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if form is not None:
            data = urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=15)) as connection:
            connection.request(method, target, body=data, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str, **options: Any) -> Answer:
        return self("GET", path, **options)

    @contextlib.contextmanager
    def open(
        self, path: str, query: dict[str, Any] | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer without an end."""
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=15)) as connection:
            connection.request("GET", target, headers=headers)
            yield connection.getresponse()


class Answer:
    """The answer to a request."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


class Site:
    """A run with its page."""

    def __init__(self, model: Model, page: WebServer, config: StreamsConfig) -> None:
        self.page = page
        self.hub = page.hub
        self.client = Client(page.url)
        self.get = self.client.get
        self._thread = threading.Thread(
            target=run_streams, args=(model, config, ()), kwargs={"page": page, "stays": True}
        )
        self._thread.start()
        self.until(lambda: self.hub.streams)

    def row(self, name: str) -> dict[str, Any]:
        """The figures of one source."""
        return next(row for row in self.get("/api/v1/sources").json["sources"] if row["name"] == name)

    def until(self, is_it: Callable[[], Any], timeout_s: float = patience.DEADLINE_S) -> Any:
        """Waits until a condition holds."""
        end_s = time.monotonic() + timeout_s
        while not (found := is_it()):
            assert time.monotonic() < end_s, "it did not happen in time"
            time.sleep(0.03)
        return found

    def until_up(self, *names: str) -> None:
        """Waits until sources deliver results."""
        self.until(lambda: all(self.row(name)["num_results"] > 1 for name in names))

    def close(self) -> None:
        streams: Any = self.hub.streams
        streams._runner.stop()
        self._thread.join(patience.DEADLINE_S)
        assert not self._thread.is_alive()
        self.page.close()


@pytest.fixture(scope="session")
def painted_camera(paint: Callable[..., Any]) -> Any:
    """A camera whose pictures have a green box that moves, on which the model `bright` finds several boxes."""
    width, height = SIZE_WH
    frames = [paint(height, width, box=(8 * i, 40, 8 * i + 80, 120), count=NUM_BOXES) for i in range(20)]
    files = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for frame in frames]

    class PaintedCamera(MjpegCamera):
        def jpeg(self, index: int) -> bytes:
            """The file of one picture."""
            return files[index % len(files)]

    return PaintedCamera


@pytest.fixture
def make_camera(painted_camera: Any) -> Iterator[Callable[..., Any]]:
    """Starts painted cameras."""
    cameras: list[Any] = []

    def make(**options: Any) -> Any:
        cameras.append(painted_camera(**{"fps": 20.0, **options}))
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.__exit__()


@pytest.fixture(scope="session")
def web_model(model_path: Path) -> Iterator[Model]:
    """A model of batch 1."""
    with load(model_path, threads=1) as loaded:
        yield loaded


@contextlib.contextmanager
def serving(web_model: Model) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def start(
        sources: dict[str, str] | None = None, *, model: Model | None = None, source: Any = None, **http: Any
    ) -> Site:
        page = open_page(HttpConfig(**{"listen": "127.0.0.1:0", **http}))
        assert page is not None
        settings = {**QUICK, **(source or {})}
        config = StreamsConfig(
            sources=tuple(SourceConfig(source=url, name=name, **settings) for name, url in (sources or {}).items())
        )
        sites.append(Site(model or web_model, page, config))
        return sites[-1]

    try:
        yield start
    finally:
        for site in sites:
            site.close()


@pytest.fixture
def serve(web_model: Model) -> Iterator[Callable[..., Site]]:
    """Starts runs of sources, by name, with a page."""
    with serving(web_model) as start:
        yield start


@pytest.fixture(scope="module")
def empty_site(web_model: Model) -> Iterator[Site]:
    """A run without sources, for tests that change nothing."""
    with serving(web_model) as start:
        yield start()


@pytest.fixture(scope="module")
def down_site(web_model: Model) -> Iterator[Site]:
    """A run whose only source, door, is down; for tests that change nothing."""
    with serving(web_model) as start:
        yield start({"door": "http://127.0.0.1:9/x"})


@pytest.fixture(scope="module")
def control_site(web_model: Model) -> Iterator[Site]:
    """A run without sources that allows control; its tests leave no source behind."""
    with serving(web_model) as start:
        yield start(control=True)


ODD_NAME = 'yard/../"x\\c\nd'


@pytest.fixture(scope="module")
def camera_site(web_model: Model, painted_camera: Any) -> Iterator[Site]:
    """A run of two cameras, `door` and `odd_name`, and of the source `down`; its tests leave the view as it was.

    Most boxes of its model are near copies of each other."""
    with painted_camera(fps=20.0) as door, painted_camera(fps=20.0) as odd, serving(web_model) as start:
        site = start({"door": door.url, ODD_NAME: odd.url, "down": "http://127.0.0.1:9/x"}, nms_iou=1.0)
        site.until_up("door", ODD_NAME)
        yield site


@pytest.fixture
def odd_name() -> str:
    """A source's name with characters that need escapes."""
    return ODD_NAME


@pytest.fixture
def read_part() -> Callable[[Any], tuple[dict[str, str], bytes]]:
    """Reads the next picture of an MJPEG stream: its headers and its file."""

    def read(stream: Any) -> tuple[dict[str, str], bytes]:
        headers: dict[str, str] = {}
        while True:
            line = stream.readline().decode("ascii")
            assert line, "the stream has ended"
            if line.strip() and not line.startswith("--"):
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            elif not line.strip() and headers:
                return headers, stream.read(int(headers["content-length"]))

    return read


@pytest.fixture
def bright_model(make_model: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Model]]:
    """Makes models whose inference waits while `gate` of their backend is closed."""
    made: list[Model] = []

    def make() -> Model:
        inner = load(make_model(tmp_path), threads=1)
        made.append(Model(Held(inner.backend)))
        return made[-1]

    yield make
    for model in made:
        model.close()


class Held:
    """A real backend that waits for its gate."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.gate = threading.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def infer(self, frames: Any) -> Any:
        """Waits for the gate, and infers."""
        assert self.gate.wait(patience.DEADLINE_S)
        return self._backend.infer(frames)


@pytest.fixture
def make_client() -> Callable[[str], Client]:
    """Makes clients of a server."""
    return Client

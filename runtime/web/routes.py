"""The paths of the page and its API, and their answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from edgerpn import __version__
from edgerpn.errors import EdgeRpnError
from edgerpn.runtime.redaction import redact
from edgerpn.runtime.run.http_config import MAX_TOP, HttpConfig
from edgerpn.runtime.sinks.record import iso_utc, record_schema
from edgerpn.runtime.threads import NoThreadError, start_thread
from edgerpn.runtime.web.access import COOKIE, COOKIE_S, AccessRules, is_https
from edgerpn.runtime.web.hub import SAMPLED, UP_STATES, Hub
from edgerpn.runtime.web.metrics import families
from edgerpn.runtime.web.requests import (
    check_added,
    http_problem,
    internal_problem,
    json_object,
    read_body,
    whole_number,
)
from edgerpn.runtime.web.streaming import StreamRoutes

Argument = TypeVar("Argument")
Changed = TypeVar("Changed")

API = 1
"""Version of the API: /api/v1 keeps its meaning, /api is the newest version."""
WRONG_TOKEN_S = 0.5
"""Seconds until the answer to a wrong token, which slows guessing down."""
# All paths that are served from a file, which is read once. No request reaches the file system.
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/pictures.js": ("pictures.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_SHOWN = (
    "state", "num_results", "num_captured", "num_dropped", "num_stale", "num_refused", "num_reconnects", "fps",
    "age_p50_ms", "age_p99_ms", "inference_p50_ms", "inference_p99_ms", "frame_age_s", "size_wh", "decoder",
    "last_problem",
)  # fmt: skip


class PageRoutes:
    """All answers of one server but the endless ones; for the thread of its loop."""

    def __init__(self, hub: Hub, live: StreamRoutes, access: AccessRules, config: HttpConfig) -> None:
        self._hub = hub
        self._live = live
        self._access = access
        self._config = config
        self._changing = asyncio.Lock()
        self._run = secrets.token_hex(4)
        self._login = _file("login.html").decode()
        self._openapi = json.loads(_file("openapi.json"))
        self._openapi["info"]["version"] = f"{API} (EdgeRPN {__version__})"

    def application(self) -> Starlette:
        api = [
            Route("/status", self.status),
            Route("/sources", self.sources),
            Route("/sources", self.add, methods=["POST"]),
            Route("/sources", self.remove, methods=["DELETE"]),
            Route("/view", self.view),
            Route("/view", self.set_view, methods=["PUT"]),
            Route("/events", self.events),
            Route("/proposals", self._live.proposals),
            Route("/picture.jpg", self._live.picture),
            Route("/stream.mjpeg", self._live.stream),
            Route("/record.schema.json", self.schema),
        ]
        return Starlette(
            routes=[
                *(_static(path, *found) for path, found in _FILES.items()),
                Route("/login", self.login_page),
                Route("/login", self.login, methods=["POST"]),
                Route("/logout", self.logout, methods=["POST"]),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
                Mount(f"/api/v{API}", routes=api),
                Mount("/api", routes=api),
            ],
            exception_handlers={HTTPException: http_problem, Exception: internal_problem},
        )

    async def healthz(self, request: Request) -> Response:
        """Reports whether the process works."""
        is_healthy, word = self._hub.health()
        return JSONResponse({"status": word}, status_code=200 if is_healthy else 503)

    async def readyz(self, request: Request) -> Response:
        """Reports whether at least one source is up; names sources only to clients with access."""
        stats, down = self._hub.stats(), set(self._hub.down())
        is_ready = self._hub.health()[0] and len(down) < len(stats)
        body: dict[str, Any] = {"ready": is_ready, "up": len(stats) - len(down), "down": len(down)}
        if request.state.is_allowed:
            body["sources_down"] = [
                {"name": name, "state": stats[name]["state"], "last_problem": stats[name]["last_problem"]}
                for name in stats
                if name in down
            ]
        return JSONResponse(body, status_code=200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Returns the metrics for Prometheus."""
        hub, live = self._hub, self._live
        found = families(
            hub.stats(),
            hub.sink_stats(),
            up_states=UP_STATES,
            info=dataclasses.asdict(hub.info),
            gauges={
                "edgerpn_model_busy_seconds": (
                    hub.streams.busy_s if hub.streams else 0.0,
                    "Seconds of the slowest batch in the model.",
                ),
                "edgerpn_web_streams": (live.num_open, "Open streams of pictures and records."),
            },
            counters={
                "edgerpn_web_pictures_encoded": (hub.pictures.num_encoded, "Pictures encoded for viewers."),
                "edgerpn_web_records_dropped": (hub.feed.num_dropped, "Records dropped because clients were too slow."),
            },
        )
        body, content_type = hub.metrics.text(request.headers.get("accept", ""), found)
        return Response(body, headers={"Content-Type": content_type})

    async def status(self, request: Request) -> Response:
        """Returns everything that the page shows, of samples and events only new ones."""
        after_sample, after_event = (whole_number(request, name) for name in ("after_sample", "after_event"))
        hub = self._hub
        rows = [{**row, "samples": hub.samples(row["name"], after=after_sample)} for row in self._rows()]
        return JSONResponse(
            {
                "api": API,
                "run": self._run,
                "version": __version__,
                **dataclasses.asdict(hub.info),
                "time": iso_utc(time.time()),
                "health": hub.health()[1],
                "control": self._config.control,
                "login": self._access.needs_token,
                "view": dataclasses.asdict(hub.pictures.view),
                "sampled": SAMPLED,
                "sample": hub.last_sample,
                "sources": rows,
                "outputs": [dataclasses.asdict(sink) for sink in hub.sink_stats()],
                "events": hub.feed.events(after=after_event),
            }
        )

    async def sources(self, request: Request) -> Response:
        """Lists all sources."""
        return JSONResponse({"api": API, "sources": self._rows()})

    async def add(self, request: Request) -> Response:
        """Adds a source."""
        streams = self._controlled()
        table = await json_object(request)
        try:
            check_added(table)
            name = await self._change(streams.add, table)
        except EdgeRpnError as error:
            raise HTTPException(422, redact(str(error))) from error
        except (ValueError, RuntimeError) as error:
            raise HTTPException(409, redact(str(error))) from error
        return JSONResponse({"api": API, "name": name}, status_code=201)

    async def remove(self, request: Request) -> Response:
        """Ends and removes a source."""
        streams = self._controlled()
        name = request.query_params.get("name", "")
        if not await self._change(streams.remove, name):
            raise HTTPException(404, "no such source; expected ?name=NAME")
        return Response(status_code=204)

    async def view(self, request: Request) -> Response:
        """Returns the choice of drawn boxes."""
        return JSONResponse(dataclasses.asdict(self._hub.pictures.view))

    async def set_view(self, request: Request) -> Response:
        """Changes the drawn boxes for all viewers; emitted records stay the same."""
        table = await json_object(request)
        score, top, iou = (table.pop(key, None) for key in ("min_score", "top", "nms_iou"))
        view = self._hub.pictures.view
        if score is not None:
            if not _is_number(score, int | float) or not 0 <= score <= 1:
                raise HTTPException(422, "min_score: expected a number from 0 to 1")
            view = dataclasses.replace(view, min_score=float(score))
        if top is not None:
            if not _is_number(top, int) or not 1 <= top <= MAX_TOP:
                raise HTTPException(422, f"top: expected a whole number from 1 to {MAX_TOP}")
            view = dataclasses.replace(view, top=top)
        if iou is not None:
            if not _is_number(iou, int | float) or not 0 < iou <= 1:
                raise HTTPException(422, "nms_iou: expected a number above 0, to 1")
            view = dataclasses.replace(view, nms_iou=float(iou))
        if table:
            raise HTTPException(422, "expected min_score, top and nms_iou only")
        self._hub.pictures.set_view(view)
        return JSONResponse(dataclasses.asdict(view))

    async def events(self, request: Request) -> Response:
        """Lists the last events."""
        after, names = whole_number(request, "after"), request.query_params.getlist("source")
        found = [event for event in self._hub.feed.events(after=after) if not names or event["source"] in names]
        return JSONResponse({"api": API, "events": found})

    async def schema(self, request: Request) -> Response:
        """Returns the JSON Schema of the records."""
        return JSONResponse(record_schema())

    async def openapi(self, request: Request) -> Response:
        """Returns the description of the API."""
        return JSONResponse(self._openapi)

    async def login_page(self, request: Request) -> Response:
        """Returns a form for the token."""
        return self._login_form("")

    async def login(self, request: Request) -> Response:
        """Exchanges the token for a cookie."""
        try:
            form = parse_qs((await read_body(request)).decode("utf-8"), max_num_fields=4)
        except (UnicodeDecodeError, ValueError):
            form = {}
        if not self._access.is_token(form.get("token", [""])[0]):
            await asyncio.sleep(WRONG_TOKEN_S)
            return self._login_form("Wrong token.", status=403)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE,
            self._access.new_session(),
            max_age=COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=is_https(request.headers),
        )
        return answer

    async def logout(self, request: Request) -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    def _login_form(self, message: str, *, status: int = 200) -> Response:
        return Response(self._login.replace("{message}", message), status_code=status, media_type="text/html")

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "is_up": stats["state"] in UP_STATES, **{key: _rounded(stats[key]) for key in _SHOWN}}
            for name, stats in self._hub.stats().items()
        ]

    async def _change(self, function: Callable[[Argument], Changed], argument: Argument) -> Changed:
        """Calls a function in a thread: starting a process takes a moment, ending one up to two seconds.

        Not in a pool, which does its work later when no thread starts for it.

        Raises:
            HTTPException: The system gives no more threads.
        """
        done: Future[Changed] = Future()
        # A client that goes does not cancel it.
        done.set_running_or_notify_cancel()

        def work() -> None:
            try:
                done.set_result(function(argument))
            except BaseException as error:  # noqa: BLE001 - raised again for the request
                done.set_exception(error)

        async with self._changing:
            try:
                start_thread(threading.Thread(target=work, name="edgerpn-change", daemon=True))
            except NoThreadError as error:
                raise HTTPException(503, str(error)) from error
            return await asyncio.wrap_future(done)

    def _controlled(self) -> Any:
        if not self._config.control:
            raise HTTPException(403, "changing sources by HTTP needs the setting http.control = true")
        if self._hub.streams is None:
            raise HTTPException(503, "the model is still loading")
        return self._hub.streams


def _file(name: str) -> bytes:
    return files("edgerpn.runtime.web").joinpath(name).read_bytes()


def _static(path: str, name: str, content_type: str) -> Route:
    body = _file(name)

    async def answer(request: Request) -> Response:
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-cache"})

    return Route(path, answer)


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value

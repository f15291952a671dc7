"""The API of a running server: figures, records, pictures, sources that come and go."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Mount, Route

from edgerpn.runtime.sinks.record import record_schema
from edgerpn.runtime.web import HttpConfig, open_page, routes
from edgerpn.runtime.web.requests import check_added

Make = Callable[..., Any]

OPENAPI = json.loads(files("edgerpn.runtime.web").joinpath("openapi.json").read_text())


def validate(value: Any, schema: dict[str, Any]) -> None:
    """Checks a value against a schema of the description."""
    jsonschema.Draft202012Validator({**schema, "components": OPENAPI["components"]}).validate(value)


def described(path: str, method: str = "get", status: int = 200) -> dict[str, Any]:
    answer = OPENAPI["paths"][path][method]["responses"][str(status)]
    return answer["content"]["application/json"]["schema"]


def decoded(jpeg: bytes) -> Any:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def yellow(picture: Any) -> int:
    """Pixels of the colour that boxes are drawn in."""
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    return int(np.count_nonzero((red > 140) & (red > blue + 70) & (red > green - 60)))


def test_everything_that_is_answered_is_as_it_is_described(camera_site: Any) -> None:
    site = camera_site
    site.until(lambda: site.row("down")["state"] == "reconnecting")
    for path in ("/healthz", "/readyz", "/api/v1/status", "/api/v1/sources", "/api/v1/view", "/api/v1/events"):
        answer = site.get(path)
        assert answer.status == 200
        validate(answer.json, described(path))
    door, down = site.row("door"), site.row("down")
    assert (door["is_up"], door["size_wh"]) == (True, [320, 192])
    assert door["age_p50_ms"] <= door["age_p99_ms"]
    assert door["inference_p50_ms"] <= door["inference_p99_ms"]
    assert (down["is_up"], down["num_results"]) == (False, 0)
    assert "refused" in down["last_problem"]
    ready = site.get("/readyz").json
    assert (ready["ready"], [source["name"] for source in ready["sources_down"]]) == (True, ["down"])
    assert site.get("/api/sources").json.keys() == site.get("/api/v1/sources").json.keys()
    assert site.get("/api/v1/record.schema.json").json == record_schema()


def test_every_route_is_described_and_the_other_way_round() -> None:
    site = routes.PageRoutes(None, None, None, None)  # type: ignore[arg-type]
    site._live = FakeLive()  # type: ignore[assignment]
    found = set()
    for route in site.application().routes:
        if isinstance(route, Mount) and route.path == "/api/v1":
            found |= {(route.path + inner.path, m) for inner in route.routes for m in inner.methods}  # type: ignore[attr-defined]
        elif isinstance(route, Route):
            found |= {(route.path, method) for method in route.methods or ()}
    pages = {
        "/",
        "/page.css",
        "/page.js",
        "/charts.js",
        "/pictures.js",
        "/icon.svg",
        "/login",
        "/logout",
        "/openapi.json",
    }
    found = {(path, method.lower()) for path, method in found if path not in pages and method != "HEAD"}
    assert found == {(path, method) for path, methods in OPENAPI["paths"].items() for method in methods}


class FakeLive:
    """Has the names of answers only."""

    proposals = picture = stream = staticmethod(lambda request: None)


def test_the_description_is_openapi_with_our_version(empty_site: Any) -> None:
    found = empty_site.get("/openapi.json").json
    assert found["openapi"].startswith("3.1")
    assert "EdgeRPN" in found["info"]["version"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert references <= set(found["components"]["schemas"])
    for schema in found["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_records_come_as_server_sent_events_of_the_asked_sources_and_types(serve: Make, make_camera: Make) -> None:
    site = serve({"door": make_camera().url, "yard": make_camera().url})
    site.until_up("door", "yard")
    validator = jsonschema.Draft202012Validator(record_schema())
    for query, sources, kinds in (
        ({}, {"door", "yard"}, {"frame"}),
        ({"source": ["door"], "type": "frame"}, {"door"}, {"frame"}),
    ):
        with site.client.open("/api/v1/proposals", query) as stream:
            assert stream.headers["Content-Type"] == "text/event-stream"
            found = [next_event(stream) for _ in range(12)]
        for kind, record in found:
            validator.validate(record)
            assert record["type"] == kind
        assert {record["source"] for _, record in found} == sources
        assert {kind for kind, _ in found} == kinds
        assert all(len(record["proposals"]) >= 5 for _, record in found)
    assert site.get("/api/v1/proposals", query={"type": "nonsense"}).status == 400
    site.until(lambda: site.hub.feed.num_listeners == 0)


def next_event(stream: Any) -> tuple[str, Any]:
    kind = ""
    while line := stream.readline().decode():
        if line.startswith("event: "):
            kind = line[7:].strip()
        elif line.startswith("data: "):
            return kind, json.loads(line[6:])
    raise AssertionError("the stream has ended")


def test_events_are_remembered_and_sent_to_listeners(serve: Make, make_camera: Make) -> None:
    camera = make_camera()
    site = serve({"door": camera.url})
    site.until_up("door")
    events = site.get("/api/v1/events").json["events"]
    assert [event["event"] for event in events] == ["started", "connected"]
    assert site.get("/api/v1/events", query={"after": events[0]["id"]}).json["events"] == events[1:]
    assert site.get("/api/v1/events", query={"source": "other"}).json["events"] == []
    with site.client.open("/api/v1/proposals", {"type": "event"}) as stream:
        site.until(lambda: site.hub.feed.num_listeners == 1)
        camera.__exit__()
        kind, record = next_event(stream)
    assert (kind, record["event"], record["source"]) == ("event", "reconnecting", "door")


def test_pictures_come_one_by_one_and_as_a_stream_of_several_sources(
    camera_site: Any, odd_name: str, read_part: Make
) -> None:
    site = camera_site
    one = site.get("/api/v1/picture.jpg", query={"source": odd_name})
    encoded = "yard%2F..%2F%22x%5Cc%0Ad"
    assert (one.status, one.headers["Content-Type"], one.headers["X-Source"]) == (200, "image/jpeg", encoded)
    assert decoded(one.body).shape == (192, 320, 3)
    assert yellow(decoded(one.body)) > 100
    with site.client.open("/api/v1/stream.mjpeg", {"source": ["door", odd_name]}) as stream:
        assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace; boundary=")
        parts = [read_part(stream) for _ in range(8)]
    with site.client.open("/api/v1/stream.mjpeg", {"raw": 1, "source": "door"}) as stream:
        assert stream.headers["Content-Type"] == "application/octet-stream"
        assert read_part(stream)[0]["x-source"] == "door"
    assert {headers["x-source"] for headers, _ in parts} == {"door", encoded}
    assert all(headers["x-live"] == "1" and int(headers["x-boxes"]) >= 5 for headers, _ in parts)
    # The two cameras may happen to paint the same.
    assert len({(headers["x-source"], headers["x-frame"]) for headers, _ in parts}) > 4
    assert len({jpeg for _, jpeg in parts}) > 1
    for path in ("/api/v1/picture.jpg", "/api/v1/stream.mjpeg"):
        assert site.get(path, query={"source": "none"}).status == 404
        assert site.client("HEAD", path, query={"source": "door"}).body == b""
    assert site.get("/api/v1/picture.jpg").status == 400
    site.until(lambda: site.hub.pictures.num_viewers == 0)


def test_the_sliders_change_drawn_boxes_and_not_emitted_records(camera_site: Any, read_part: Make) -> None:
    site = camera_site

    def drawn(view: dict[str, Any], fits: Callable[[int], bool]) -> int:
        assert site.client("PUT", "/api/v1/view", body=view).status == 200
        with site.client.open("/api/v1/stream.mjpeg", {"source": "door"}) as stream:
            while True:
                headers, jpeg = read_part(stream)
                if fits(int(headers["x-boxes"])):
                    return yellow(decoded(jpeg))

    all_boxes = drawn({"min_score": 0.0, "top": 20, "nms_iou": 1}, lambda count: count >= 5)
    drawn({"nms_iou": 0.6}, lambda count: 1 <= count < 5)
    one_box = drawn({"top": 1}, lambda count: count == 1)
    none = drawn({"min_score": 0.95}, lambda count: count == 0)
    assert all_boxes > one_box > none == 0
    assert site.get("/api/v1/view").json == {"min_score": 0.95, "top": 1, "nms_iou": 0.6}
    with site.client.open("/api/v1/proposals", {"type": "frame"}) as stream:
        assert len(next_event(stream)[1]["proposals"]) >= 5
    site.client("PUT", "/api/v1/view", body={"min_score": 0.0, "top": 20, "nms_iou": 1})


@pytest.mark.parametrize(
    "body",
    [
        {"min_score": 2},
        {"nms_iou": 0},
        {"min_score": True},
        {"top": 0},
        {"top": 1.5},
        {"topp": 3},
        [],
        "x",
        {"min_score": "0"},
    ],
)
def test_a_wrong_view_is_refused(empty_site: Any, body: Any) -> None:
    site = empty_site
    answer = site.client("PUT", "/api/v1/view", body=body)
    assert answer.status == 422
    assert answer.json["error"]
    assert site.get("/api/v1/view").json == {"min_score": 0.0, "top": 20, "nms_iou": 0.6}


def test_sources_are_added_and_removed_while_it_runs(serve: Make, make_camera: Make) -> None:
    site = serve({"door": make_camera().url}, control=True)
    url = make_camera(login="user:hunter2").url.replace("//", "//user:hunter2@")
    table = {"name": "yard", "source": url, "max_age_ms": 900, "policy": "latest"}
    answer = site.client("POST", "/api/v1/sources", body=table)
    assert (answer.status, answer.json["name"]) == (201, "yard")
    site.until_up("yard")
    assert site.client("POST", "/api/v1/sources", body=table).status == 409
    unnamed = site.client("POST", "/api/v1/sources", body={"source": url})
    assert unnamed.status == 201
    assert unnamed.json["name"] == url.replace("user:hunter2", "***")
    for name in ("yard", unnamed.json["name"]):
        assert site.client("DELETE", "/api/v1/sources", query={"name": name}).status == 204
    assert site.client("DELETE", "/api/v1/sources", query={"name": "yard"}).status == 404
    assert [row["name"] for row in site.get("/api/v1/sources").json["sources"]] == ["door"]
    removed = site.until(lambda: [e for e in site.get("/api/v1/events").json["events"] if e["reason"] == "removed"])
    assert removed[0]["source"] == "yard"
    everything = b"".join(site.get(path).body for path in ("/api/v1/status", "/api/v1/events", "/metrics", "/readyz"))
    assert b"hunter2" not in everything


def test_a_change_that_finds_no_thread_is_refused_and_never_done(control_site: Any, refused: set[str]) -> None:
    site = control_site
    source = {"name": "yard", "source": "http://127.0.0.1:9/x"}
    refused |= {"edgerpn-change", *(f"asyncio_{number}" for number in range(64))}
    for method, options in (("POST", {"body": source}), ("DELETE", {"query": {"name": "yard"}})):
        answer = site.client(method, "/api/v1/sources", **options)
        assert answer.status == 503
        validate(answer.json, described("/api/v1/sources", method.lower(), 503))
        assert "cannot be started: can't start new thread. Raise the limit of threads" in answer.json["error"]
    refused.clear()
    assert site.client("DELETE", "/api/v1/sources", query={"name": "yard"}).status == 404
    assert site.get("/api/v1/sources").json["sources"] == []


def test_without_control_no_source_changes(down_site: Any) -> None:
    site = down_site
    assert site.client("POST", "/api/v1/sources", body={"source": "http://127.0.0.1:9/y"}).status == 403
    answer = site.client("DELETE", "/api/v1/sources", query={"name": "door"})
    assert answer.status == 403
    assert "http.control" in answer.json["error"]
    assert len(site.get("/api/v1/sources").json["sources"]) == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"source": "/etc/passwd"}, "files and pipelines"),
        ({"source": "file:///etc/passwd"}, "files and pipelines"),
        ({"source": "filesrc location=/etc/passwd ! appsink"}, "files and pipelines"),
        ({"source": "/dev/v4l/../../etc/passwd"}, "files and pipelines"),
        ({"source": '"http://host/\U0001f600"'}, "files and pipelines"),
        ({"source": "gopher://host/x"}, "unknown URL scheme"),
        ({"source": 0}, "expected a camera or a URL"),
        ({}, "expected a camera or a URL"),
        ({"source": "http://h/x", "ffmpeg_options": "a;b"}, "ffmpeg_options"),
        ({"source": "http://h/x", "slots": 100}, "slots"),
        ({"source": "rtsp://h/x", "decoder": "ffmpeg-process"}, "decoder"),
        ({"source": "tcp://0.0.0.0:9000?listen=1"}, "tcp cannot be added"),
        ({"source": "udp://0.0.0.0:9000"}, "udp cannot be added"),
        ({"source": "rtp://0.0.0.0:9000"}, "rtp cannot be added"),
        ({"source": "srt://0.0.0.0:9000?mode=listener"}, "mode=caller"),
        ({"source": "srt://h:9000?latency=9&MODE=Listener"}, "mode=caller"),
        ({"source": "srt://h:9000?mode=%6cistener"}, "mode=caller"),
        ({"source": "srt://h:9000#?mode=rendezvous"}, "mode=caller"),
        ({"source": "srt://h:9000?mode=caller2"}, "mode=caller"),
        ({"source": "srt://:9000"}, "with a host"),
        ({"source": "rtmp://h/x?listen=1"}, "take out listen"),
        ({"source": "rtmp://h/x listen=1"}, "take out listen"),
        ({"source": "rtsp://h/x?listen"}, "take out listen"),
        ({"source": "rtsp://[bad/x"}, "an IPv6 address in brackets"),
        ({"source": "http://h/x", "name": "a\nb"}, "printable"),
        ({"source": "http://user:hunter2@h/x", "max_fps": "fast"}, "max_fps"),
        ({"source": "http://user:hunter2@h/x", "policy": "sometimes"}, "policy"),
    ],
)
def test_a_source_from_the_network_is_a_camera_or_a_url(control_site: Any, table: dict[str, Any], words: str) -> None:
    site = control_site
    answer = site.client("POST", "/api/v1/sources", body=table)
    assert answer.status == 422
    assert words in answer.json["error"]
    assert "hunter2" not in answer.json["error"]
    assert site.hub.streams.stats() == {}


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://u:p@h/x?listener=1",
        "http://h/x?mode=video&listen=1",
        "srt://h:9000?mode=caller",
        "srt://h:1",
        "rtmp://h/x",
    ],
)
def test_a_url_that_this_machine_connects_to_may_be_added(source: str) -> None:
    check_added({"source": source})


def test_a_url_of_any_characters_is_kept_unchanged(control_site: Any) -> None:
    site = control_site
    body = {"name": "\U0001f600", "source": "http://127.0.0.1:9/\U0001f600"}
    assert site.client("POST", "/api/v1/sources", body=body).json["name"] == "\U0001f600"
    streams: Any = site.hub.streams
    assert streams._added["\U0001f600"].source == body["source"]
    assert site.client("DELETE", "/api/v1/sources", query={"name": "\U0001f600"}).status == 204


def test_prometheus_can_read_the_metrics(camera_site: Any, odd_name: str) -> None:
    site, name = camera_site, odd_name
    num_encoded = site.hub.pictures.num_encoded
    answer = site.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found = {
        (sample.name, sample.labels.get("source")): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert found["edgerpn_source_up", name] == 1
    assert found["edgerpn_source_up", "down"] == 0
    assert found["edgerpn_source_results_total", name] >= 2
    assert 0 <= found["edgerpn_age_seconds_count", name] - found["edgerpn_source_results_total", name] < 50
    assert found["edgerpn_web_pictures_encoded_total", None] == num_encoded
    opened = site.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert opened.body.rstrip().endswith(b"# EOF")


def test_a_hanging_model_is_reported_and_so_is_its_recovery(bright_model: Make, serve: Make, make_camera: Make) -> None:
    model = bright_model()
    site = serve({"door": make_camera().url}, model=model, hung_s=0.3)
    site.until_up("door")
    assert site.get("/healthz").json == {"status": "ok"}
    model.backend.gate.clear()
    answer = site.until(lambda: (a := site.get("/healthz")).status == 503 and a)
    assert answer.json == {"status": "model_hangs"}
    assert site.get("/readyz").status == 503
    model.backend.gate.set()
    site.until(lambda: site.get("/healthz").status == 200)


def test_nothing_is_ready_while_all_sources_are_down(down_site: Any) -> None:
    answer = down_site.get("/readyz")
    assert (answer.status, answer.json["ready"], answer.json["down"]) == (503, False, 1)


def test_the_charts_get_their_points_once(camera_site: Any) -> None:
    site = camera_site
    first = site.until(lambda: (state := site.get("/api/v1/status").json)["sources"][0]["samples"] and state)
    again = {"after_sample": first["sample"], "after_event": first["events"][-1]["id"]}
    later = site.until(
        lambda: (state := site.get("/api/v1/status", query=again).json)["sources"][0]["samples"] and state
    )
    numbers = [sample[0] for sample in later["sources"][0]["samples"]]
    assert min(numbers) > first["sample"]
    assert len(later["sources"][0]["samples"][0]) == len(later["sampled"]) + 1
    # The source that is down continues to fail.
    assert all(event["id"] > again["after_event"] for event in later["events"])
    assert site.get("/api/v1/status", query={"after_sample": "x"}).status == 400


def test_the_page_is_there_before_the_model_is_loaded(make_client: Make) -> None:
    page = open_page(HttpConfig(listen="127.0.0.1:0"))
    assert page is not None
    with closing(page):
        client = make_client(page.url)
        assert client.get("/healthz").json == {"status": "starting"}
        assert client.get("/readyz").status == 503
        assert client.get("/api/v1/status").json["sources"] == []
        assert client.get("/").status == 200

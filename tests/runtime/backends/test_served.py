"""Models that a server runs: the same proposals as here, over outages, and clear words for everything else."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn import manifest as manifests
from edgerpn.__main__ import main
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, InferenceError, ManifestError
from edgerpn.proposals import Outputs
from edgerpn.runtime import load
from edgerpn.runtime.backends.open_backend import open_backend
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.frame import Result
from tests.support import patience
from tests.support.classes import CLASS_NAMES
from tests.support.model_server import Graph, ModelServer, RefusedError, basic, configuration, serve_file

Make = Callable[..., Any]
QUICK = ServerConfig(timeout_s=5.0, outage_s=20.0, backoff_first_s=0.02, backoff_max_s=0.1)
HAS_GRPC = importlib.util.find_spec("tritonclient") is not None and importlib.util.find_spec("grpc") is not None
TRANSPORTS = ["http", pytest.param("grpc", marks=pytest.mark.skipif(not HAS_GRPC, reason="tritonclient is missing"))]


@pytest.fixture(scope="module")
def file(make_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of any batch."""
    return make_model(tmp_path_factory.mktemp("served"), batch=None)


@pytest.fixture
def serve() -> Iterator[Make]:
    """Starts servers of one graph, `bright`."""
    servers: list[ModelServer] = []

    def make(graph: Graph, **options: Any) -> ModelServer:
        servers.append(ModelServer({"bright": graph}, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def graph(file: Path) -> Graph:
    return serve_file(file)


def url_of(server: ModelServer, *, login: str = "") -> str:
    return f"{server.url}/bright".replace("://", f"://{login}@" if login else "://")


def assert_same(found: Outputs, expected: Outputs) -> None:
    for name, array in expected.present.items():
        np.testing.assert_array_equal(getattr(found, name), array)
        assert getattr(found, name).dtype == array.dtype
        assert getattr(found, name).flags.writeable


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("options", "max_batch", "batches"),
    [
        ({"batch": None}, 4, [4, 4, 1]),
        ({"batch": None}, 16, [9]),
        ({"batch": 2}, 0, [2, 2, 2, 2, 2]),
        ({"batch": None, "is_described": True, "class_names": CLASS_NAMES}, 16, [9]),
        ({"batch": None, "color_order": "BGRx"}, 16, [9]),
    ],
)
def test_a_served_model_gives_the_outputs_of_its_file(
    serve: Make,
    make_model: Make,
    painted: Any,
    tmp_path: Path,
    transport: str,
    options: dict[str, Any],
    max_batch: int,
    batches: list[int],
) -> None:
    file = make_model(tmp_path, **options)
    graph = serve_file(file, max_batch=max_batch)
    server = serve(graph, is_grpc=transport == "grpc")
    if "color_order" in options:
        painted = np.concatenate([painted, painted[..., :1]], axis=3)
    local, served = open_backend(file), open_backend(url_of(server))
    assert_same(served.infer(painted), local.infer(painted))
    assert graph.batches == batches
    assert served.manifest == local.manifest
    assert served.max_batch == (max_batch or None)
    assert served.name == f"triton 2.0-test ({server.url}/bright)"
    served.close()
    with pytest.raises(RuntimeError, match="closed"):
        served.infer(painted)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_run_writes_the_records_of_the_local_model(
    serve: Make, file: Path, graph: Graph, video_path: Path, tmp_path: Path, transport: str
) -> None:
    server = serve(graph, is_grpc=transport == "grpc")
    found: list[Any] = []
    for model in (str(file), f"{url_of(server)}/1"):
        lines = tmp_path / f"{len(found)}.jsonl"
        assert main(["run", model, str(video_path), "--jsonl", str(lines), "--set", "server.timeout_s=30"]) == 0
        found.append([json.loads(line)["proposals"] for line in lines.read_text().splitlines()])
    assert len(found[0]) == 40
    assert found[1] == found[0]


def test_threads_may_share_a_served_model(serve: Make, file: Path, graph: Graph, painted: Any) -> None:
    expected = open_backend(file).infer(painted)
    with load(url_of(serve(graph))) as model, ThreadPoolExecutor(3) as pool:
        for outputs in pool.map(model.backend.infer, [painted] * 12):
            assert_same(outputs, expected)


# --- the start


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("http://{at}/nothing", "404 Not Found: Request for unknown model: 'nothing' is not found"),
        ("http://{at}/bright/7", "version 7 is not found"),
        ("http://127.0.0.1:9/bright", "Connection refused"),
        ("http://127.0.0.1/bright", "expected http://"),
        ("http://{at}/", "expected http://"),
        ("http://{at}/bright/latest", "expected http://"),
        ("rtsp://{at}/bright", "expected http://"),
        ("http://{at}:0/bright", "not a URL"),
        ("https://{at}/bright", "SSL"),
    ],
)
def test_a_server_without_the_model_says_so(serve: Make, graph: Graph, path: str, text: str) -> None:
    at = serve(graph).url.removeprefix("http://")
    with pytest.raises(EngineLoadError) as caught:
        load(path.format(at=at))
    assert text in str(caught.value)


def test_a_port_of_another_server_says_so(serve: Make, graph: Graph) -> None:
    server = serve(graph)
    server.spoil = lambda body: b"<html>welcome</html>"
    with pytest.raises(EngineLoadError, match="GET /v2 is not JSON"):
        load(url_of(server))
    server.spoil = lambda body: b"[" * 100_000
    with pytest.raises(EngineLoadError, match="GET /v2 is not JSON"):
        load(url_of(server))
    server.spoil = lambda body: b'["KServe?"]'
    with pytest.raises(EngineLoadError, match="does not describe the model as KServe's protocol demands"):
        load(url_of(server))


@pytest.mark.parametrize(
    ("said", "spoilt"),
    [
        (b'"max_batch_size": 8', b'"max_batch_size": Infinity'),
        (b'"string_value": ', b'"string_value": 5, "other": '),
        (b'"shape": [-1, ', b'"shape": [1e400, '),
    ],
)
def test_a_server_that_describes_the_model_wrongly_is_one_error(
    serve: Make, graph: Graph, said: bytes, spoilt: bytes
) -> None:
    server = serve(graph)
    server.spoil = lambda body: body.replace(said, spoilt)
    with pytest.raises(EngineLoadError, match="does not describe the model as KServe's protocol demands"):
        load(url_of(server))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_without_a_whole_manifest_is_refused(serve: Make, graph: Graph, transport: str) -> None:
    server = serve(graph, is_grpc=transport == "grpc")
    parameter = graph.config["parameters"][manifests.METADATA_KEY]
    parameter["string_value"] = parameter["string_value"].replace('"bright"', '"dim"')
    with pytest.raises(ManifestError, match=r"bright \(parameter edgerpn.manifest\): the manifest was edited"):
        load(url_of(server))
    del graph.config["parameters"][manifests.METADATA_KEY]
    with pytest.raises(ManifestError, match=r"edgerpn package MODEL --for triton"):
        load(url_of(server))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["input"][0].update(dims=[96, 161, 3]),
        lambda config: config["input"][0].update(name="images"),
        lambda config: config["output"][0].update(data_type="TYPE_INT32"),
        lambda config: config["output"][2].update(dims=[2]),
        lambda config: config["output"].pop(),
    ],
)
def test_a_model_of_another_shape_than_its_manifest_is_refused(serve: Make, graph: Graph, change: Make) -> None:
    change(graph.config)
    with pytest.raises(ArtifactMismatchError, match=r"the manifest says that the model has '.*Package the model again"):
        load(url_of(serve(graph)))


@pytest.mark.parametrize("options", [{"providers": ["cpu"]}, {"verify": False}, {"self_test": True}])
def test_options_of_files_are_refused(serve: Make, graph: Graph, options: dict[str, Any]) -> None:
    with pytest.raises(EngineLoadError, match="server"):
        load(url_of(serve(graph)), **options)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"timeout_s": 0}, "timeout_s: expected above 0 s, to 600 s, got 0"),
        ({"backoff_max_s": 601}, "backoff_max_s: expected"),
        ({"outage_s": -1}, "outage_s: expected 0 to 86400 s, got -1"),
        ({"num_in_flight": 0}, "num_in_flight: expected 1 to 64, got 0"),
        ({"token_env": "A", "token_file": "b"}, "one of token_env and token_file"),
        ({"cert_file": "a"}, "cert_file and key_file"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ServerConfig(**settings)


# --- credentials and encryption


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_credentials_are_sent_and_never_shown(
    serve: Make,
    graph: Graph,
    painted: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    transport: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(graph, is_grpc=transport == "grpc")
    server.authorization = basic("ann", "s3cret/")
    url = url_of(server, login="ann:s3cret%2F")
    with load(url, server=QUICK) as model:
        model.backend.infer(painted)
        assert model.backend.name == f"triton 2.0-test ({url_of(server, login='***')})"
        server.authorization = basic("ann", "another")
        with pytest.raises(InferenceError, match="wrong or missing credentials") as caught:
            model.backend.infer(painted)
    assert "s3cret" not in f"{caught.value} {caplog.text}"
    with pytest.raises(EngineLoadError, match="wrong or missing credentials") as refused:
        load(url)
    assert "s3cret" not in str(refused.value)
    # A token, by a variable or a file.
    server.authorization = "Bearer 987"
    monkeypatch.setenv("MODEL_TOKEN", "Bearer 987\n")
    (tmp_path / "token").write_text("Bearer 987\n")
    for config in (ServerConfig(token_env="MODEL_TOKEN"), ServerConfig(token_file=str(tmp_path / "token"))):
        load(url_of(server), server=config).close()
        with pytest.raises(EngineLoadError, match="the settings have a token too"):
            load(url, server=config)
    monkeypatch.setenv("MODEL_TOKEN", "Bearer größer")
    with pytest.raises(EngineLoadError, match="expected ASCII characters"):
        load(url_of(server), server=ServerConfig(token_env="MODEL_TOKEN"))
    with pytest.raises(EngineLoadError, match="NOT_THERE is not set"):
        load(url_of(server), server=ServerConfig(token_env="NOT_THERE"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_checks_the_servers_certificate(serve: Make, graph: Graph, painted: Any, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    server = serve(graph, tls=(certificate, key))
    trusting = ServerConfig(ca_file=str(certificate), cert_file=str(certificate), key_file=str(key))
    with load(url_of(server), server=trusting) as model:
        assert len(model.backend.infer(painted).boxes) == 9
    with pytest.raises(EngineLoadError, match=r"the encrypted connection fails: self.signed certificate"):
        load(url_of(server))
    for config in (ServerConfig(ca_file="missing"), dataclasses.replace(trusting, key_file="missing")):
        with pytest.raises(EngineLoadError, match=r"missing: c(ertificates c)?annot be read"):
            load(url_of(server), server=config)


# --- outages


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_that_restarts_costs_no_frame_of_a_file(
    serve: Make, graph: Graph, file: Path, video_path: Path, caplog: pytest.LogCaptureFixture, transport: str
) -> None:
    caplog.set_level(logging.INFO)
    server = serve(graph, is_grpc=transport == "grpc")
    with load(file) as local:
        expected = [result.proposals for result in local.stream(video_path)]
    found: list[Result] = []
    with load(url_of(server), server=QUICK) as model:
        for result in model.stream(video_path):
            found.append(result)
            if len(found) == 10:
                server.kill()
                threading.Timer(0.5, server.start).start()
    assert [result.index for result in found] == list(range(40))
    for result, proposals in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result.proposals.boxes, proposals.boxes)
    assert "trying again for 20 s" in caplog.text
    assert "answers again after" in caplog.text


def test_a_connection_that_was_idle_for_too_long_is_no_outage(
    serve: Make, graph: Graph, painted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(graph)
    with load(url_of(server), server=dataclasses.replace(QUICK, outage_s=0)) as model:
        model.backend.infer(painted)
        server.kill()
        server.start()
        assert len(model.backend.infer(painted).boxes) == 9
    assert "trying again" not in caplog.text


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_outage_that_lasts_ends_with_an_error(serve: Make, graph: Graph, painted: Any, transport: str) -> None:
    server = serve(graph, is_grpc=transport == "grpc")
    with load(url_of(server), server=dataclasses.replace(QUICK, outage_s=0.3)) as model:
        server.kill()
        words = r"tried for (\d+\.\d) s\. Start the server, or raise server.outage_s"
        with pytest.raises(InferenceError, match=words) as caught:
            model.backend.infer(painted)
    tried = re.search(words, str(caught.value))
    assert tried is not None
    assert float(tried[1]) >= 0.3


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_that_hangs_is_given_up_in_time(serve: Make, graph: Graph, painted: Any, transport: str) -> None:
    server = serve(graph, is_grpc=transport == "grpc")
    with load(url_of(server), server=dataclasses.replace(QUICK, timeout_s=0.2, outage_s=0)) as model:
        graph.delay_s = 2.0
        start_s = time.monotonic()
        with pytest.raises(InferenceError, match=r"no answer within 0.2 s"):
            model.backend.infer(painted)
        patience.assert_within(time.monotonic() - start_s, 1.0)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_is_final_and_a_busy_server_is_not(
    serve: Make, graph: Graph, painted: Any, transport: str, status: int
) -> None:
    failures = [True, True]

    def fail() -> None:
        if failures and failures.pop():
            raise RefusedError(status, "no memory")

    graph.failure = fail
    with load(url_of(serve(graph, is_grpc=transport == "grpc")), server=QUICK) as model:
        if status == 503:
            assert len(model.backend.infer(painted).boxes) == 9
        else:
            with pytest.raises(InferenceError, match=r"the server refuses the frames: .*no memory"):
                model.backend.infer(painted)
            assert failures == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_is_being_loaded_is_waited_for(serve: Make, graph: Graph, painted: Any, transport: str) -> None:
    with load(url_of(serve(graph, is_grpc=transport == "grpc")), server=QUICK) as model:
        graph.is_ready = False
        threading.Timer(0.3, lambda: setattr(graph, "is_ready", True)).start()
        assert len(model.backend.infer(painted).boxes) == 9


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_is_ready_just_after_a_refusal_is_asked_again(
    serve: Make, graph: Graph, painted: Any, transport: str
) -> None:
    with load(url_of(serve(graph, is_grpc=transport == "grpc")), server=QUICK) as model:
        refusals = [RefusedError(400, "Request for unknown model: 'bright' has no available versions")]

        def refuse_once() -> None:
            if refusals:
                raise refusals.pop()

        graph.failure = refuse_once
        assert len(model.backend.infer(painted).boxes) == 9


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("restarts", [False, True])
def test_another_model_is_found_out_within_a_second(
    serve: Make, graph: Graph, file: Path, painted: Any, transport: str, restarts: bool
) -> None:
    server = serve(graph, is_grpc=transport == "grpc")
    manifest = manifests.read(file).replace(name="another")
    with load(url_of(server), server=QUICK) as model:
        model.backend.infer(painted)
        if restarts:
            server.kill()
        changed = configuration(manifest, manifest.to_json(), name="bright", max_batch=8)
        server.graphs["bright"] = Graph(file, changed)
        if restarts:
            server.start()
        time.sleep(1.1)
        with pytest.raises(InferenceError, match="the server now runs another model than at the start"):
            model.backend.infer(painted)
        server.graphs["bright"] = Graph(file, graph.config, version="2")
        assert len(model.backend.infer(painted).boxes) == 9


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda body: body.replace(b'"count"', b'"kount"'), "the answer lacks an output or its shape: 'count'"),
        (lambda body: body.replace(b'"INT32"', b'"INT99"'), "its answer is not one of KServe's protocol"),
        (
            lambda body: body.replace(
                b'"shape": [8, 10, 4], "parameters": {"binary_data_size": 1280}',
                b'"parameters": {"binary_data_size": 1280' + b"0" * 21 + b"}",
            ),
            "its answer is not one of KServe's protocol",
        ),
        (lambda body: body[:40], "its answer is not one of KServe's protocol"),
        (lambda body: body.replace(b"[8, 10, 4]", b"[8, 5, 4]"), "its answer is not one of KServe's protocol"),
        (lambda body: body[:-4] + b"\x63\0\0\0", "counts .* expected 0 to 10"),
    ],
)
def test_an_answer_that_breaks_the_interface_is_an_error(
    serve: Make, graph: Graph, painted: Any, spoil: Callable[[bytes], bytes], text: str
) -> None:
    server = serve(graph)
    with load(url_of(server), server=QUICK) as model:
        server.spoil = spoil
        with pytest.raises(InferenceError, match=text):
            model.backend.infer(painted)


def test_closing_ends_a_request_that_hangs(serve: Make, graph: Graph, painted: Any) -> None:
    model = load(url_of(serve(graph)), server=dataclasses.replace(QUICK, timeout_s=30))
    graph.delay_s = 10.0
    errors: list[Exception] = []

    def ask() -> None:
        try:
            model.backend.infer(painted)
        except InferenceError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    model.close()
    start_s = time.monotonic()
    thread.join(8.0)
    assert len(errors) == 1
    patience.assert_within(time.monotonic() - start_s, 1.0)


def test_a_missing_client_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ImportError, match=r"edgerpn\[triton\]"):
        load("triton+grpc://127.0.0.1:9/bright")


def test_a_model_on_a_server_needs_no_package(serve: Make, graph: Graph, painted: Any) -> None:
    code = """
import sys
for name in ("tritonclient", "grpc", "onnxruntime"):
    sys.modules[name] = None
from edgerpn.runtime import load
with load(sys.argv[1]) as model:
    print(model.backend.name)
"""
    command = [sys.executable, "-c", code, url_of(serve(graph))]
    assert "triton 2.0-test" in subprocess.run(command, check=True, capture_output=True, text=True).stdout

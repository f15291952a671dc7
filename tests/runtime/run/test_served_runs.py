"""Cameras on a model that a server runs: their frames share requests, and a result is fresh or no result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgerpn.runtime import Model, load
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.frame import Event, Result
from tests.support.model_server import Graph, ModelServer, serve_file

Make = Callable[..., Any]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def graph(make_model: Make, tmp_path: Path) -> Graph:
    return serve_file(make_model(tmp_path, batch=None), max_batch=2)


@pytest.fixture
def server(graph: Graph) -> Iterator[ModelServer]:
    started = ModelServer({"bright": graph})
    yield started
    started.kill()


@pytest.fixture
def served(server: ModelServer) -> Iterator[Model]:
    config = ServerConfig(timeout_s=10, outage_s=60, backoff_first_s=0.05, backoff_max_s=0.2)
    with load(f"{server.url}/bright", server=config) as model:
        yield model


def is_result(item: Result | Event) -> bool:
    return isinstance(item, Result)


def is_stale(item: Result | Event) -> bool:
    return isinstance(item, Event) and item.kind == "stale"


def test_frames_of_several_cameras_share_requests(
    served: Model, graph: Graph, make_camera: Make, live: Make, start: Make
) -> None:
    run = start(served, *(live(make_camera(fps=20).url, name) for name in "abc"))
    run.connected(*"abc")
    run.num_results(30)
    # The limit of the server is that of the batches.
    assert max(graph.batches) == 2
    assert graph.batches.count(2) > len(graph.batches) / 3


def test_a_slow_server_makes_stale_events_and_no_old_result(
    served: Model, graph: Graph, make_camera: Make, live: Make, start: Make
) -> None:
    run = start(served, live(make_camera(fps=20).url, "camera", max_age_ms=1500.0))
    run.until(is_result)
    graph.delay_s = 1.8
    run.until(is_stale)
    run.results.clear()
    run.until(is_stale)
    assert run.results == []
    graph.delay_s = 0.0
    run.num_results(3)
    assert max(age for _, _, age in run.results) <= 1500


def test_a_server_that_restarts_costs_old_frames_and_not_the_run(
    served: Model, server: ModelServer, make_camera: Make, live: Make, start: Make
) -> None:
    run = start(served, live(make_camera(fps=20).url, "camera", max_age_ms=1500.0))
    run.num_results(3)
    last = run.results[-1][1]
    server.kill()
    # Longer than a frame may live: the one that waits for the server is stale when it comes back.
    threading.Timer(2.5, server.start).start()
    run.until(is_stale)
    run.num_results(5)
    assert run.results[-1][1] > last
    assert max(age for _, _, age in run.results) <= 1500

"""A system that gives no more threads: one clear error, nothing left open, and nobody waits for a thread."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.__main__ import main
from edgerpn.errors import InferenceError, SinkError
from edgerpn.runtime import Model, load
from edgerpn.runtime.bench.sampler import Sampler
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.run.service import Notifier, Service
from edgerpn.runtime.run.session import run_streams
from edgerpn.runtime.sinks import QueuedSink, open_sinks, read_outputs
from edgerpn.runtime.threads import NoThreadError
from edgerpn.runtime.web import HttpConfig, open_page
from tests.runtime.bench.test_readings import ORIN_NX
from tests.runtime.bench.test_sampler import make_tool, repeat
from tests.support.encoders import write_colour_labels
from tests.support.patience import wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Fails when a test leaves a thread of ours or an open file of its folder behind."""
    # Tests before it may have left threads, with connections that come and go.
    others = set(threading.enumerate())

    def threads() -> list[str]:
        names = ("edgerpn", "sink", "mqtt")
        return [one.name for one in threading.enumerate() if one not in others and one.name.startswith(names)]

    yield
    wait_until(lambda: not threads() and not open_files(tmp_path))


def open_files(folder: Path) -> list[str]:
    # Some are closed by the collector alone.
    gc.collect()
    paths = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return [path for path in paths if path.startswith(f"{folder}/")]


def free_address() -> tuple[str, int]:
    # Not 127.0.0.1, where the connections of other programs may take the port meanwhile.
    with socket.create_server(("127.0.83.1", 0)) as server:
        address: tuple[str, int] = server.getsockname()
        return address


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[Model]:
    with load(model_path, threads=1) as loaded:
        yield loaded


def lines_to(path: Path) -> list[QueuedSink]:
    return open_sinks(read_outputs([{"kind": "jsonl", "path": str(path)}], source="test"), is_live=False)


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("kind", ["jsonl", "video", "classify"])
def test_an_output_without_its_thread_is_closed_and_so_are_those_before_it(
    refused: set[str], tmp_path: Path, kind: str
) -> None:
    write_colour_labels(tmp_path / "labels.npz")
    tables: list[dict[str, Any]] = [
        {"kind": "webhook", "url": "http://127.0.0.1:9/x"},
        {"kind": "video", "folder": str(tmp_path / "videos")},
        {
            "kind": "classify",
            "vectors": "embeddings",
            "labels": str(tmp_path / "labels.npz"),
            "to": {"kind": "jsonl", "path": str(tmp_path / "classes.jsonl")},
        },
        {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")},
    ]
    if kind == "classify":
        # Its own thread, and not that of its output.
        tables.pop()
    refused.add(f"sink {kind}")
    message = rf"the thread 'sink {kind}' cannot be started: can't start new thread\. Raise the limit of threads"
    with pytest.raises(NoThreadError, match=message):
        open_sinks(read_outputs(tables, source="test"), is_live=True)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_broker_without_a_thread_is_one_error(refused: set[str]) -> None:
    pytest.importorskip("paho.mqtt.client")
    refused.add("mqtt")
    with pytest.raises(NoThreadError, match="the thread 'mqtt' cannot be started"):
        open_sinks(read_outputs([{"kind": "mqtt", "url": "mqtt://127.0.0.1:9/x"}], source="test"), is_live=True)


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("name", ["edgerpn-web", "edgerpn-web-paint"])
def test_a_page_without_a_thread_frees_its_port(refused: set[str], name: str) -> None:
    config = HttpConfig(listen="{}:{}".format(*free_address()))
    refused.add(name)
    with pytest.raises(NoThreadError, match=f"the thread '{name}' cannot be started"):
        open_page(config)
    refused.clear()
    page = open_page(config)
    assert page is not None
    page.close()


@pytest.mark.usefixtures("nothing_is_left")
def test_a_page_that_fails_at_its_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("edgerpn.runtime.web.server.PageRoutes", fail)
    address = free_address()
    with pytest.raises(SinkError, match="the web page cannot be served: broken"):
        open_page(HttpConfig(listen="{}:{}".format(*address)))
    socket.create_server(address).close()


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("name", ["edgerpn-capture", "edgerpn-read", "edgerpn-infer-0", "edgerpn-infer-1"])
def test_a_run_without_a_thread_closes_its_outputs_and_is_one_error(
    refused: set[str], model: Model, video_path: Path, tmp_path: Path, name: str
) -> None:
    sinks = lines_to(tmp_path / "a.jsonl")
    refused.add(name)
    with pytest.raises(NoThreadError, match=f"the thread '{name}' cannot be started"):
        run_streams(model, StreamsConfig(sources=(SourceConfig(source=str(video_path)),)), sinks)
    assert [sink.is_closed for sink in sinks] == [True]


def test_the_command_names_the_thread_in_one_line(
    refused: set[str], model_path: Path, video_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused.add("edgerpn-infer-1")
    assert main(["run", str(model_path), str(video_path)]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: the thread 'edgerpn-infer-1' cannot be started: can't start new thread. Raise")
    )


def test_a_command_whose_pool_gets_no_thread_is_one_line_too(
    refused: set[str], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
    refused.add("map_0")
    assert main(["predict", str(model_path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 1
    message = "error: the system gives this process no more threads. Raise their limit"
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_run_that_ends_without_a_further_thread_keeps_its_records(
    refused: set[str], model: Model, video_path: Path, tmp_path: Path
) -> None:
    refused.add("edgerpn-close")
    config = StreamsConfig(sources=(SourceConfig(source=str(video_path)),))
    assert run_streams(model, config, lines_to(tmp_path / "a.jsonl")).num_frames == 40
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 40


def test_settings_that_find_no_thread_to_read_them_do_not_end_the_run(
    refused: set[str], model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = Service(StreamsConfig, Notifier({}))
    with StreamRunner(model, StreamsConfig(), stays=True) as runner:
        service.begin(runner)
        refused.add("edgerpn-reload")
        service.want_reload()
        service.tick()
        problem = "settings not taken over, the run continues as before: the thread 'edgerpn-reload' cannot be started"
        assert problem in caplog.text
        refused.clear()
        service.want_reload()
        service.tick()
        wait_until(lambda: "settings read again" in caplog.text)


@pytest.fixture
def frames() -> list[Frame]:
    return [
        Frame(
            image=np.zeros((48, 64, 3), np.uint8), source="door", index=index, media_time_s=None, captured_at=0.0,
            monotonic_s=0.0, decode_ms=0.0,
        )
        for index in range(2)
    ]  # fmt: skip


def test_a_pool_that_was_shut_down_is_not_a_lack_of_threads(
    make_model: Callable[..., Path], tmp_path: Path, frames: list[Frame]
) -> None:
    pool = ThreadPoolExecutor(2)
    pool.shutdown()
    with (
        load(make_model(tmp_path, batch=None), threads=1) as model,
        pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown") as raised,
    ):
        model.run_frames(frames, pool=pool)
    assert raised.type is RuntimeError


def test_a_pool_without_a_thread_is_one_error_of_the_model(
    refused: set[str], make_model: Callable[..., Path], tmp_path: Path, frames: list[Frame]
) -> None:
    refused.add("preprocess_0")
    with (
        load(make_model(tmp_path, batch=None), threads=1) as model,
        ThreadPoolExecutor(2, thread_name_prefix="preprocess") as pool,
        pytest.raises(InferenceError, match=r"cannot be started: can't start new thread\. .*preprocess_threads = 1"),
    ):
        model.run_frames(frames, pool=pool)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_tool_whose_output_finds_no_reader_is_ended(refused: set[str], tmp_path: Path) -> None:
    make_tool(tmp_path / "bin", "tegrastats", repeat(ORIN_NX))
    refused.add("edgerpn-bench-sampler")
    sampler = Sampler(50, sys_root=tmp_path, search_path=f"{tmp_path / 'bin'}:/bin:/usr/bin")
    with pytest.raises(NoThreadError, match="the thread 'edgerpn-bench-sampler' cannot be started"), sampler:
        pass
    (child,) = sampler._children
    assert child.returncode is not None
    assert child.stdout is not None
    assert child.stdout.closed

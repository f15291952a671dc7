"""Part `sinks`: results must come as fast with a dead consumer behind any output as without."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.streams.plan import Limit, Part, Plan, ratio
from edgerpn.errors import MissingDependencyError
from edgerpn.machine import available_cores
from edgerpn.runtime import load
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.sinks import (
    JsonLinesConfig,
    MqttConfig,
    Output,
    OutputConfig,
    QueuedSink,
    VideoConfig,
    WebhookConfig,
    close_sinks,
    open_sinks,
)
from edgerpn.runtime.sinks.contract import Sink

LIMIT = 0.95
"""The machine itself varies by some percent between turns; a stalled run returns no results."""

_SETTLE_S = 0.5
_DEAD_S = 60.0


class VideoTooShortError(Exception):
    """The video ended in the middle of a measurement."""


def sinks(plan: Plan) -> Part:
    """Turns without and with the dead consumer, in one run for each kind."""
    rows, limits, notes = [], [], []
    # The warnings about dead consumers are expected here.
    logger = logging.getLogger("edgerpn")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for kind in (name for name in CONSUMERS if plan.outputs.lower() in name.lower()):
            try:
                row = _measure(plan, kind)
            except (MissingConsumerError, VideoTooShortError) as error:
                notes.append(f"{kind}: left out, {error}")
                continue
            rows.append(row)
            limits += [
                Limit(what=f"{kind}: results/s over those without", value=row["median"], sign=">=", bound=LIMIT),
                Limit(what=f"{kind}: lost, so it was dead", value=row["lost"], sign=">=", bound=1),
            ]
    finally:
        logger.setLevel(level)
    notes.append(
        f"{plan.rounds} pairs of turns of {plan.seconds / 2:g} s in one run over a file, the first of a pair now the "
        "one, now the other; the outputs have the settings of a live run, short queues, and are opened for each turn. "
        "lost: records dropped, or bytes that a viewer has not read, in the turn with the fewest; a turn begins when "
        "there are some. longest_write_ms: the longest time for which an output has held the loop up."
    )
    notes.append("Not tried: a video file on a file system that hangs instead of being full.")
    return Part(name="sinks", rows=rows, limits=limits, notes=notes)


def _measure(plan: Plan, kind: str) -> dict[str, Any]:
    turns: list[dict[str, float]] = []
    totals: dict[str, Any] = {}
    config = StreamsConfig(sources=(SourceConfig(source=plan.video, name="file"),))
    with (
        load(plan.model, providers=["cpu"], threads=max(1, available_cores() - 1)) as model,
        StreamRunner(model, config) as runner,
    ):
        items = iter(runner)
        _turn(items, [], _SETTLE_S)
        for number in range(plan.rounds):
            pair: dict[str, float] = {}
            for name in ("without", "dead") if number % 2 else ("dead", "without"):
                is_dead = name == "dead"
                pair[name] = _dead_turn(plan, kind, runner, items, totals) if is_dead else _plain_turn(plan, items)
            turns.append(pair)
    return {"output": kind, **ratio(turns, "dead", "without"), **totals}


def _plain_turn(plan: Plan, items: Iterator[Result | Event]) -> float:
    _turn(items, [], _SETTLE_S)
    return _turn(items, [], plan.seconds / 2)[0]


def _dead_turn(
    plan: Plan, kind: str, runner: StreamRunner, items: Iterator[Result | Event], totals: dict[str, Any]
) -> float:
    """Results per second with the dead consumer; `totals` collects the worst figures of all turns."""
    with CONSUMERS[kind](plan.folder, runner) as dead:
        end_s = time.monotonic() + _DEAD_S
        _turn(items, dead.sinks, _SETTLE_S)
        while not dead.lost() and time.monotonic() < end_s:
            _turn(items, dead.sinks, _SETTLE_S / 5)
        fps, longest_s = _turn(items, dead.sinks, plan.seconds / 2)
        lost = dead.lost()
    totals["lost"] = min(totals.get("lost", lost), lost)
    totals["longest_write_ms"] = max(totals.get("longest_write_ms", 0.0), longest_s * 1e3)
    return fps


def _turn(items: Iterator[Result | Event], opened: Sequence[Sink], seconds: float) -> tuple[float, float]:
    """Results per second, and the longest time in the outputs, seconds.

    Raises:
        VideoTooShortError: The video ended.
    """
    start_s, number, longest_s = time.perf_counter(), 0, 0.0
    for item in items:
        before_s = time.perf_counter()
        if isinstance(item, Result):
            number += 1
            for sink in opened:
                sink.write(item)
        else:
            for sink in opened:
                sink.event(item)
        now_s = time.perf_counter()
        longest_s = max(longest_s, now_s - before_s)
        if number and now_s - start_s >= seconds:
            return number / (now_s - start_s), longest_s
    raise VideoTooShortError("the video is too short, and there is no ffmpeg to repeat it")


QUEUE = 20
"""Records that wait at most, so that the queue is soon full."""

_START_S = 20.0
_CLOSE_S = 0.2
_WINDOW_BYTES = 4096


class MissingConsumerError(Exception):
    """A consumer cannot be started here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dead:
    """An output whose consumer is dead."""

    sinks: Sequence[Sink]
    """Where results go."""
    lost: Callable[[], int]
    """The sign that it is dead: the number of dropped records or of unread bytes."""


@contextmanager
def pipe(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A pipe whose reader has opened it and does not read."""
    path = folder / "dead.fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with _opened("jsonl", JsonLinesConfig(path=str(path), queue=QUEUE)) as sink:
            yield _dead(sink)
    finally:
        # The writing thread gets an error now and ends.
        os.close(reader)
        path.unlink()


@contextmanager
def full_device(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A device that is always full."""
    with _opened("jsonl", JsonLinesConfig(path="/dev/full", queue=QUEUE)) as sink:
        yield _dead(sink)


@contextmanager
def full_disk(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A disk on which there is less room than must stay free."""
    with _opened("video", VideoConfig(folder=str(folder / "dead-video"), min_free_mb=1e12)) as sink:
        yield _dead(sink)


@contextmanager
def silent_server(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A web server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with _opened("webhook", WebhookConfig(url=url, batch_s=0.1, queue=QUEUE)) as sink:
            yield _dead(sink)


@contextmanager
def stopped_broker(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """An MQTT broker that is stopped when it has taken the connection."""
    command = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if command is None:
        raise MissingConsumerError("there is no mosquitto; apt-get install mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = subprocess.Popen([command, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait("mosquitto does not start", lambda: _is_taken(port))
        with _opened("mqtt", MqttConfig(url=f"mqtt://127.0.0.1:{port}/bench", queue=QUEUE)) as sink:
            _wait("mosquitto does not answer", lambda: not sink.stats().is_failing)
            broker.send_signal(signal.SIGSTOP)
            yield _dead(sink)
    finally:
        broker.kill()
        broker.wait()


@contextmanager
def picture_viewer(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A browser that asks the web page for live pictures and takes none."""
    with _viewer(runner, "/api/stream.mjpeg") as dead:
        yield dead


@contextmanager
def record_viewer(folder: Path, runner: StreamRunner) -> Iterator[Dead]:
    """A program that asks the web page for records as they come and takes none."""
    with _viewer(runner, "/api/proposals") as dead:
        yield dead


CONSUMERS: dict[str, Callable[[Path, StreamRunner], AbstractContextManager[Dead]]] = {
    "JSON lines, pipe that nobody reads": pipe,
    "JSON lines, device full": full_device,
    "MQTT, broker stopped": stopped_broker,
    "webhook, server silent": silent_server,
    "video, disk full": full_disk,
    "web page, live pictures not read": picture_viewer,
    "web page, records not read": record_viewer,
}
"""Dead consumers of each kind of output; each raises `MissingConsumerError` where it cannot be started."""


@contextmanager
def _opened(kind: str, config: OutputConfig) -> Iterator[QueuedSink]:
    """An output with the settings of a live run."""
    try:
        opened = open_sinks([Output(kind=kind, config=config)], is_live=True)
    except MissingDependencyError as error:
        raise MissingConsumerError(str(error)) from error
    try:
        yield opened[0]
    finally:
        close_sinks(opened, timeout_s=_CLOSE_S)


def _dead(sink: QueuedSink) -> Dead:
    return Dead(sinks=[sink], lost=lambda: sink.stats().dropped)


@contextmanager
def _viewer(runner: StreamRunner, path: str) -> Iterator[Dead]:
    """A client of the web page that sends a request and never reads."""
    from edgerpn.runtime.run.loading import load_source
    from edgerpn.runtime.run.service import RemoteStreams
    from edgerpn.runtime.web import HttpConfig, PageInfo, open_page

    try:
        page = open_page(HttpConfig(listen="127.0.0.1:0"))
    except MissingDependencyError as error:
        raise MissingConsumerError(str(error)) from error
    assert page is not None
    with closing(page), socket.socket() as viewer:
        page.begin(
            RemoteStreams(runner, [], lambda table: load_source(None, table), max_sources=1),
            PageInfo(model="benchmark", backend=""),
        )
        address = page.url.removeprefix("http://").strip("/")
        host, _, port = address.rpartition(":")
        # A small window, so that it is full before the measurement.
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
        viewer.connect((host, int(port)))
        viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode("ascii"))
        yield Dead(sinks=[page.hub], lost=lambda: _num_unread(viewer))


def _num_unread(connection: socket.socket) -> int:
    """Bytes beyond the head of an answer, and an error's short text, that wait in a connection."""
    number = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, number)
    return max(0, number[0] - _WINDOW_BYTES // 4)


def _is_taken(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _wait(problem: str, is_it: Callable[[], bool]) -> None:
    end_s = time.monotonic() + _START_S
    while not is_it():
        if time.monotonic() > end_s:
            raise MissingConsumerError(problem)
        time.sleep(0.02)

"""Consumers that are dead in the way in which each kind of output meets them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from edgerpn.runtime.sinks import JsonLinesConfig, MqttConfig, Output, VideoConfig, WebhookConfig

MOSQUITTO = "/usr/sbin/mosquitto"
QUEUE = 20
"""Records that wait at most, so that the queue is soon full."""

_START_S = 20.0

Kill = Callable[[], None]
"""Makes the consumer dead, after the output is open."""


class MissingConsumerError(Exception):
    """A consumer cannot be started here."""


@contextmanager
def fifo(folder: Path) -> Iterator[tuple[Output, Kill]]:
    """A pipe that somebody has opened and does not read."""
    path = folder / "dead.fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield Output(kind="jsonl", config=JsonLinesConfig(path=str(path), queue=QUEUE)), _nothing
    finally:
        # The thread that writes gets an error now, and ends.
        os.close(reader)
        path.unlink()


@contextmanager
def full_file(folder: Path) -> Iterator[tuple[Output, Kill]]:
    """A device that is always full."""
    yield Output(kind="jsonl", config=JsonLinesConfig(path="/dev/full", queue=QUEUE)), _nothing


@contextmanager
def full_disk(folder: Path) -> Iterator[tuple[Output, Kill]]:
    """A disk on which there is less room than must stay free."""
    config = VideoConfig(folder=str(folder / "dead-video"), min_free_mb=1e12)
    yield Output(kind="video", config=config), _nothing


@contextmanager
def silent_server(folder: Path) -> Iterator[tuple[Output, Kill]]:
    """A web server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        yield Output(kind="webhook", config=WebhookConfig(url=url, batch_s=0.1, queue=QUEUE)), _nothing


@contextmanager
def stopped_broker(folder: Path) -> Iterator[tuple[Output, Kill]]:
    """An MQTT broker that is stopped when it has taken the connection.

    Raises:
        MissingConsumerError: There is no broker on this machine.
    """
    if not Path(MOSQUITTO).exists() and shutil.which("mosquitto") is None:
        raise MissingConsumerError("there is no mosquitto; apt-get install mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = shutil.which("mosquitto") or MOSQUITTO
    broker = subprocess.Popen([command, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port)
        config = MqttConfig(url=f"mqtt://127.0.0.1:{port}/bench", queue=QUEUE)
        yield Output(kind="mqtt", config=config), lambda: broker.send_signal(signal.SIGSTOP)
    finally:
        broker.kill()
        broker.wait()


CONSUMERS: dict[str, Callable[[Path], AbstractContextManager[tuple[Output, Kill]]]] = {
    "JSON lines, pipe that nobody reads": fifo,
    "JSON lines, device full": full_file,
    "MQTT, broker stopped": stopped_broker,
    "webhook, server silent": silent_server,
    "video, disk full": full_disk,
}
"""A dead consumer for each kind of output."""


def _nothing() -> None:
    """It is dead from the beginning."""


def _wait_for_port(port: int) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.05)
    raise MissingConsumerError(f"mosquitto did not start within {_START_S:g} s")

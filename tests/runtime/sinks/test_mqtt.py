"""MQTT against a real broker: nothing within the buffer is lost, nothing arrives twice beyond QoS.

Needs mosquitto (Debian's package of that name) and paho-mqtt; skipped without them unless EDGERPN_REQUIRE_MQTT=1.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Result
from edgerpn.runtime.sinks import MqttConfig, QueuedSink, close_sinks, open_sinks, read_outputs
from edgerpn.runtime.sinks.contract import Record
from edgerpn.runtime.sinks.mqtt import MqttSink, topic_level
from tests.support.classes import classed

MakeResult = Callable[..., Result]

_MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
_WINDOW = 20


def _missing() -> str:
    if _MOSQUITTO is None:
        return "the broker mosquitto is not installed"
    return "" if importlib.util.find_spec("paho") else "paho-mqtt is not installed"


@pytest.fixture(autouse=True)
def _requirements() -> None:
    if _missing() and os.environ.get("EDGERPN_REQUIRE_MQTT") == "1":
        pytest.fail(f"EDGERPN_REQUIRE_MQTT=1, but {_missing()}")
    if _missing():
        pytest.skip(_missing())


class Broker:
    """A mosquitto that remembers its sessions when it is killed."""

    def __init__(self, folder: Path, *, options: str = "allow_anonymous true") -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n"
            f"autosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\nuser root\n{options}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert _MOSQUITTO is not None
        self._process = subprocess.Popen([_MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        pytest.fail("mosquitto does not start")

    def remembers(self, client_id: str) -> bool:
        """Returns whether the file of its sessions holds a client and its subscription."""
        file = self._config.parent / "mosquitto.db"
        return file.exists() and file.read_bytes().count(client_id.encode()) >= 2

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Subscriber:
    """Keeps the messages that the broker delivers, in a session that outlives connections."""

    def __init__(self, port: int, *, user: str = "", password: str = "") -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, bytes]] = []
        self.is_ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="reader", clean_session=False)
        if user:
            self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type]
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self.is_ready.set()
        self._client.on_message = lambda client, data, message: self.messages.append(
            (message.topic, bytes(message.payload))
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self.is_ready.wait(40)

    def frames(self) -> list[int]:
        return [json.loads(payload)["frame"] for topic, payload in self.messages if topic.endswith("/proposals")]

    def statuses(self) -> list[bytes]:
        return [payload for topic, payload in self.messages if topic.endswith("/status")]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    brokers: list[Broker] = []

    def make(**options: str) -> Broker:
        brokers.append(Broker(tmp_path / f"broker{len(brokers)}", **options))
        brokers[-1].start()
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.kill()


@pytest.fixture
def broker(make_broker: Callable[..., Broker]) -> Broker:
    return make_broker()


@pytest.fixture
def reader(broker: Broker, until: Any) -> Iterator[Subscriber]:
    reader = Subscriber(broker.port)
    # Otherwise a broker that is killed at once forgets the subscription, and what arrives first is lost.
    until(lambda: broker.remembers("reader"))
    yield reader
    reader.close()


def opened(broker: Broker, **settings: Any) -> QueuedSink:
    table = {"kind": "mqtt", "url": f"mqtt://127.0.0.1:{broker.port}/site/1", "backoff_first_s": 0.05,
             "backoff_max_s": 0.1, **settings}  # fmt: skip
    (sink,) = open_sinks(read_outputs([table], source="test"), is_live=True)
    return sink


@pytest.mark.parametrize("qos", [0, 1])
def test_results_and_events_arrive_under_their_topics(
    broker: Broker, reader: Subscriber, make_result: MakeResult, make_event: Any, until: Any, qos: int
) -> None:
    sink = opened(broker, qos=qos)
    for index in range(100):
        sink.write(make_result(index, source="yard/1"))
    sink.event(make_event("ended", source="yard/1"))
    sink.close()
    until(lambda: reader.statuses() == [b"online", b"offline"])
    until(lambda: len(reader.messages) == 103)
    assert reader.frames() == list(range(100))
    assert {topic for topic, _ in reader.messages} == {
        "site/1/yard%2F1/proposals", "site/1/yard%2F1/events", "site/1/status",
    }  # fmt: skip
    (event,) = [json.loads(payload) for topic, payload in reader.messages if topic.endswith("/events")]
    assert event["event"] == "ended"
    assert (sink.stats().written, sink.stats().dropped) == (101, 0)


def test_the_names_of_classes_arrive_with_their_boxes(
    broker: Broker, reader: Subscriber, make_result: MakeResult, until: Any
) -> None:
    result = make_result(source="reef")
    proposals = classed(result.proposals[[0, 0]], ["größte Muschel", "fish"], [0.75, 0.5])
    sink = opened(broker)
    sink.write(dataclasses.replace(result, proposals=proposals))
    until(lambda: reader.frames() == [0])
    sink.close()
    (record,) = [json.loads(payload) for topic, payload in reader.messages if topic == "site/1/reef/proposals"]
    assert (record["labels"], record["class_scores"]) == (["größte Muschel", "fish"], [0.75, 0.5])
    assert len(record["proposals"]) == 2


def test_a_killed_broker_costs_nothing_within_the_buffer(
    broker: Broker, reader: Subscriber, make_result: MakeResult, until: Any
) -> None:
    sink = opened(broker, queue=500)
    for index in range(50):
        sink.write(make_result(index))
    until(lambda: len(reader.frames()) == 50)
    until(lambda: sink.stats().queued == 0)
    broker.kill()
    for index in range(50, 350):
        sink.write(make_result(index))
    until(lambda: sink.stats().is_failing)
    assert "cannot be reached" in sink.stats().last_error or "connection lost" in sink.stats().last_error
    broker.start()
    for index in range(350, 400):
        sink.write(make_result(index))
    until(lambda: sink.stats().queued == 0)
    until(lambda: len(set(reader.frames())) == 400)
    frames = reader.frames()
    # Messages under way are repeated on both hops: to the broker, and from it to the reader.
    assert len(frames) - 400 <= 2 * _WINDOW
    assert sink.stats().dropped == 0
    sink.close()


def test_beyond_the_buffer_the_oldest_are_dropped_and_counted(
    broker: Broker, reader: Subscriber, make_result: MakeResult, until: Any
) -> None:
    broker.kill()
    sink = opened(broker, queue=30)
    for index in range(200):
        sink.write(make_result(index))
    broker.start()
    until(lambda: sink.stats().queued == 0)
    stats = sink.stats()
    assert stats.written + stats.dropped == 200
    assert 30 <= stats.written <= 30 + _WINDOW
    until(lambda: len(reader.frames()) == stats.written)
    assert reader.frames()[-30:] == list(range(170, 200))
    sink.close()


def test_cut_connections_lose_nothing_and_repeat_no_more_than_was_under_way(
    broker: Broker, reader: Subscriber, make_result: MakeResult, until: Any
) -> None:
    mqtt = MqttSink(MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}", backoff_first_s=0.02, backoff_max_s=0.05))
    config = MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}", queue=3000)
    sink = QueuedSink(mqtt, config, kind="mqtt", is_live=True)
    num_cuts = 0
    for index in range(600):
        sink.write(make_result(index))
        if index % 150 == 149:
            until(lambda: mqtt._is_connected)
            num_before = len(reader.messages)
            until(lambda: len(reader.messages) > num_before)  # noqa: B023 - called at once
            cut = mqtt._client.socket()
            cut.shutdown(socket.SHUT_RDWR)
            num_cuts += 1
            # Not the state in between, which may be too short to see.
            until(lambda: mqtt._client.socket() is not cut)  # noqa: B023 - called at once
    until(lambda: len(set(reader.frames())) == 600)
    until(lambda: sink.stats().queued == 0)
    assert len(reader.frames()) - 600 <= num_cuts * _WINDOW
    assert (sink.stats().written, sink.stats().dropped) == (600, 0)
    sink.close()


@pytest.mark.parametrize(("qos", "num_bytes"), [(1, 6_000), (0, 8_000_000)])
def test_a_record_above_the_brokers_limit_is_lost_alone_and_named(
    make_broker: Callable[..., Broker], until: Any, caplog: pytest.LogCaptureFixture, qos: int, num_bytes: int
) -> None:
    broker = make_broker(options="allow_anonymous true\nmax_packet_size 5000")
    reader = Subscriber(broker.port)
    sink = opened(broker, qos=qos)
    for index in range(40):
        line = json.dumps({"frame": index, "pad": "x" * (num_bytes if index == 5 else 10)}).encode() + b"\n"
        sink.pass_on(Record(source="door", kind="proposals", line=line))
    until(lambda: sink.stats().queued == 0)
    until(lambda: len(set(reader.frames())) == 39)
    assert 5 not in reader.frames()
    assert (sink.stats().written, sink.stats().dropped) == (39, 1)
    (message,) = [text for text in caplog.messages if " is lost: " in text]
    assert f"a record of door ({num_bytes + 24} bytes) is lost: 4 connections in turn broke when it was sent" in message
    assert "mosquitto: max_packet_size" in message
    sink.close()
    reader.close()


def test_a_broker_that_breaks_before_any_record_costs_none(make_result: MakeResult, until: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        table = {"kind": "mqtt", "url": f"mqtt://127.0.0.1:{server.getsockname()[1]}", "backoff_first_s": 0.05}
        sinks = open_sinks(read_outputs([table], source="test"), is_live=True)
        sinks[0].write(make_result(0))
        for _ in range(6):
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"\x20\x02\x00\x00")  # it accepts the client
            connection.recv(1000)
            connection.close()
        until(lambda: "connection lost" in sinks[0].stats().last_error)
        assert (sinks[0].stats().queued, sinks[0].stats().dropped) == (1, 0)
    close_sinks(sinks, timeout_s=0.2)


def test_writes_do_not_wait_for_a_frozen_broker(
    broker: Broker, reader: Subscriber, make_result: MakeResult, until: Any
) -> None:
    sink = opened(broker)
    sink.write(make_result(0))
    until(lambda: reader.frames() == [0])
    broker.signal(signal.SIGSTOP)
    for index in range(1, 200):
        sink.write(make_result(index))
    broker.signal(signal.SIGCONT)
    until(lambda: len(reader.frames()) == 200)
    sink.close()


def test_without_a_broker_closing_gives_up_and_counts_the_rest(make_result: MakeResult) -> None:
    table = {"kind": "mqtt", "url": f"mqtt://127.0.0.1:{free_port()}"}
    sinks = open_sinks(read_outputs([table], source="test"), is_live=True)
    for index in range(100):
        sinks[0].write(make_result(index))
    close_sinks(sinks, timeout_s=0.4)
    assert (sinks[0].stats().written, sinks[0].stats().dropped, sinks[0].stats().queued) == (0, 100, 0)


def test_the_broker_says_offline_when_the_process_is_killed(broker: Broker, reader: Subscriber, until: Any) -> None:
    program = f"""
import time
from edgerpn.runtime.sinks import MqttConfig
from edgerpn.runtime.sinks.contract import Record
from edgerpn.runtime.sinks.mqtt import MqttSink
sink = MqttSink(MqttConfig(url="mqtt://127.0.0.1:{broker.port}"))
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        until(lambda: reader.statuses() == [b"online"])
    finally:
        process.kill()
        process.wait()
    until(lambda: reader.statuses() == [b"online", b"offline"])
    assert {topic for topic, _ in reader.messages} == {"edgerpn/status"}


def test_a_password_is_used_and_a_wrong_one_is_reported_without_being_shown(
    tmp_path: Path,
    make_broker: Callable[..., Broker],
    make_result: MakeResult,
    until: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t/@:word"
    passwords = tmp_path / "passwords"
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("needs mosquitto_passwd")
    subprocess.run([tool, "-c", "-b", str(passwords), "cam", secret], check=True, capture_output=True)
    broker = make_broker(options=f"allow_anonymous false\npassword_file {passwords}")
    reader = Subscriber(broker.port, user="cam", password=secret)
    monkeypatch.setenv("BROKER_PASSWORD", secret)
    good = opened(broker, url=f"mqtt://cam@127.0.0.1:{broker.port}/a", password_env="BROKER_PASSWORD")
    inline = opened(broker, url=f"mqtt://cam:s3cr3t%2F%40%3Aword@127.0.0.1:{broker.port}/b")
    wrong = opened(broker, url=f"mqtt://cam:wr0ng@127.0.0.1:{broker.port}/c")
    for sink in (good, inline, wrong):
        sink.write(make_result(0))
    until(lambda: len(reader.frames()) == 2)
    until(lambda: "refuses" in wrong.stats().last_error)
    assert "Not authorized" in wrong.stats().last_error
    close_sinks([good, inline, wrong], timeout_s=1.0)
    told = caplog.text + repr([sink.stats() for sink in (good, inline, wrong)]) + repr(inline._config)
    for word in ("s3cr3t", "wr0ng"):
        assert word not in told
    reader.close()


# The client leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_checks_the_brokers_certificate(
    tmp_path: Path, make_broker: Callable[..., Broker], make_result: MakeResult, until: Any
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    options = f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}"
    broker = make_broker(options=options)
    trusting = opened(broker, url=f"mqtts://localhost:{broker.port}", ca_file=str(certificate))
    doubting = opened(broker, url=f"mqtts://localhost:{broker.port}/x")
    for sink in (trusting, doubting):
        sink.write(make_result(0))
    until(lambda: trusting.stats().written == 1)
    until(lambda: "certificate verify failed" in doubting.stats().last_error)
    close_sinks([trusting, doubting], timeout_s=0.5)
    until(lambda: not any(thread.name == "mqtt" for thread in threading.enumerate()))


def test_a_password_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="the environment variable NO_SUCH_THING is not set"):
        MqttSink(MqttConfig(url="mqtt://cam@broker", password_env="NO_SUCH_THING"))
    with pytest.raises(SinkError, match="none cannot be read: No such file"):
        MqttSink(MqttConfig(url="mqtt://cam@broker", password_file=str(tmp_path / "none")))


def test_every_name_of_a_source_is_one_level_of_its_own() -> None:
    names = [
        "door",
        "cars.mp4",
        "rtsp://***@camera:554/a?b=1",
        "a/b",
        "a%2Fb",
        "a+b",
        "a#b",
        "Tür",
        "\udcff",
        "a\0b",
        "",
    ]
    levels = [topic_level(name) for name in names]
    assert levels[0:2] == names[0:2]
    assert len(set(levels)) == len(names)
    assert not any(set("/+#\0") & set(level) or not level or not level.isascii() for level in levels)

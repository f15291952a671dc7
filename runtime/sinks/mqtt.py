"""Sends records to an MQTT broker, by paho-mqtt.

The sink's queue holds the records while the broker is away. A record counts as written when the broker has confirmed it
(QoS 1) or the system has taken it (QoS 0). When a connection breaks, the sink sends unconfirmed records again, so
with QoS 1 at most `_WINDOW` records of one break arrive twice.

A broker answers a record above its limit by closing the connection. The first record that a break leaves unconfirmed
is therefore sent alone, and lost if it breaks `_ATTEMPTS` more connections; others follow it.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from edgerpn.errors import check_setting, require
from edgerpn.files import printable
from edgerpn.runtime.endpoint import check_url, read_secret, tls_context
from edgerpn.runtime.redaction import redact, redact_url
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record
from edgerpn.runtime.sinks.sink_queue import OutputConfig
from edgerpn.runtime.threads import start_thread
from edgerpn.settings import PATH

_logger = logging.getLogger(__name__)

DEFAULT_PREFIX = "edgerpn"
"""First level of the topics when the URL names none."""

_WINDOW = 20
_ATTEMPTS = 3
_CONNECT_WAIT_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_GOODBYE_S = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttConfig(OutputConfig):
    """Records to an MQTT broker: PREFIX/SOURCE/proposals, /events and /classes, and PREFIX/status (online, offline)."""

    url: str = field(repr=False)
    """mqtt://USER:PASSWORD@HOST:PORT/PREFIX, or mqtts:// for TLS; the default prefix is `edgerpn`."""
    qos: Literal[0, 1] = 1
    """1: sends unconfirmed records again; 0: loses the records in transit when a connection breaks."""
    password_env: str = ""
    """Environment variable with the password, instead of one in the URL."""
    password_file: str = field(default="", metadata=PATH)
    """File with the password, instead of one in the URL."""
    client_id: str = ""
    """Name of this client at the broker; empty: a random one. Two clients of one name disconnect each other."""
    ca_file: str = field(default="", metadata=PATH)
    """File with the certificates to trust (mqtts); empty: the system's."""
    keepalive_s: int = 20
    """Seconds of silence after which the client tests the connection."""
    backoff_first_s: float = 1.0
    """Seconds before the first reconnect; doubled for each further attempt."""
    backoff_max_s: float = 30.0
    """Maximum seconds between attempts."""

    def __post_init__(self) -> None:
        OutputConfig.__post_init__(self)
        parts = check_url("url", self.url, ("mqtt", "mqtts"))
        prefix = parts.path.strip("/")
        # `urlsplit` drops a bare # or ? at the end.
        is_topic = not (set("+#\0") & set(unquote(prefix)) or set("#?") & set(self.url))
        check_setting(is_topic, "url", "a topic without + # ? behind the host", redact_url(self.url))
        secrets = [name for name in ("password_env", "password_file") if getattr(self, name)]
        check_setting(len(secrets) + (parts.password is not None) <= 1, "url", "one password", " and ".join(secrets))
        check_setting(not secrets or bool(parts.username), "url", "a user for the password", redact_url(self.url))
        check_setting(1 <= self.keepalive_s <= 65535, "keepalive_s", "1..65535", self.keepalive_s)
        check_setting(self.backoff_first_s > 0, "backoff_first_s", "more than 0", self.backoff_first_s)
        check_setting(
            self.backoff_max_s >= self.backoff_first_s, "backoff_max_s", "at least backoff_first_s", self.backoff_max_s
        )


class MqttSink:
    """Publishes each record under PREFIX/SOURCE/ and its kind.

    A source's name is percent-encoded where a topic cannot hold it. PREFIX/status is a retained "online" or "offline";
    the broker itself publishes "offline" when this client vanishes.
    """

    config_class = MqttConfig
    batch_records = _WINDOW
    is_lossy = True

    def __init__(self, config: MqttConfig) -> None:
        """Starts to connect; an absent broker is not an error.

        Raises:
            MissingDependencyError: paho-mqtt is not installed.
            SinkError: The password or the certificates cannot be read.
            NoThreadError: The system gives no more threads.
        """
        mqtt = require("paho.mqtt.client", extra="mqtt", purpose="MQTT")
        parts = urlsplit(config.url)
        self.target = redact_url(config.url)
        self.prefix = unquote(parts.path).strip("/") or DEFAULT_PREFIX
        self._qos = config.qos
        self._changed = threading.Condition()
        self._confirmed: set[int] = set()
        self._greeting = 0
        self._is_connected = False
        self._num_connections = 0
        self._is_interrupted = False
        self._is_closing = False
        self._suspect: Record | None = None
        self._num_breaks = 0
        self.trouble = "not connected yet"
        self._client = self._make_client(mqtt, config)
        is_tls = parts.scheme == "mqtts"
        if is_tls:
            self._client.tls_set_context(tls_context(config.ca_file))
        self._client.connect_async(parts.hostname, parts.port or (8883 if is_tls else 1883), config.keepalive_s)
        self._thread = threading.Thread(target=self._keep_connected, name="mqtt", daemon=True)
        start_thread(self._thread)

    def write_records(self, records: Sequence[Record]) -> None:
        """Publishes records and waits for their confirmation.

        Raises:
            NotDeliveredError: No connection, or it broke, or `interrupt` was called.
        """
        done = 0
        while done < len(records):
            is_alone = records[done] is self._suspect
            batch = records[done : done + 1] if is_alone else records[done:]
            num_confirmed = self._send(batch, done)
            done += num_confirmed
            if num_confirmed < len(batch):
                num_lost = int(self._is_given_up(records[done], is_alone))
                raise self._not_delivered(done, num_lost)

    def _send(self, records: Sequence[Record], num_done: int) -> int:
        """Publishes records and returns how many, from the first, were confirmed before the connection broke."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready() or self._is_interrupted, timeout=_CONNECT_WAIT_S)
            if not self._is_ready():
                raise self._not_delivered(num_done)
            self._confirmed.clear()
            connection = self._num_connections
        numbers = [self._publish(record) for record in records]
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled(numbers, connection))
            is_open = [number not in self._confirmed for number in numbers]
        return [*is_open, True].index(True)

    def _is_given_up(self, record: Record, was_alone: bool) -> bool:
        """Counts a break of the connection with `record` under way; returns whether the record is lost now."""
        if self._is_interrupted:
            return False
        self._num_breaks = self._num_breaks + 1 if was_alone else 0
        self._suspect = record
        if self._num_breaks < _ATTEMPTS:
            return False
        _logger.warning(
            "MQTT broker %s: a record of %s (%d bytes) is lost: %d connections in turn broke when it was sent. It is "
            "probably above the broker's limit; raise that (mosquitto: max_packet_size) or export fewer proposals",
            self.target, printable(record.source), len(record.line), _ATTEMPTS + 1,
        )  # fmt: skip
        return True

    def _not_delivered(self, num_done: int, num_lost: int = 0) -> NotDeliveredError:
        message = f"MQTT broker {self.target}: {self.trouble}"
        return NotDeliveredError(message, num_done=num_done, num_lost=num_lost, retry_s=0.0)

    def interrupt(self) -> None:
        """Makes `write_records` return soon."""
        with self._changed:
            self._is_interrupted = True
            self.trouble = "closed before the broker had confirmed"
            self._changed.notify_all()

    def close(self) -> None:
        """Publishes "offline" and disconnects."""
        if self._is_closing:
            return
        self._is_closing = True
        patience_s = 0.0 if self._is_interrupted else _GOODBYE_S
        if self._is_connected:
            with self._changed:
                self._confirmed.clear()
            number = self._client.publish(f"{self.prefix}/status", "offline", qos=1, retain=True).mid
            with self._changed:
                self._changed.wait_for(lambda: number in self._confirmed, timeout=patience_s)
        self._client.disconnect()
        # The thread ends by itself; while it connects that can take longer than closing may.
        self._thread.join(patience_s)

    def _make_client(self, mqtt: Any, config: MqttConfig) -> Any:
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=config.client_id, protocol=mqtt.MQTTv311, clean_session=True
        )
        parts = urlsplit(config.url)
        if parts.username:
            secret = read_secret(env=config.password_env, file=config.password_file, purpose="MQTT password")
            password = unquote(parts.password) if secret is None and parts.password else secret
            client.username_pw_set(unquote(parts.username), password)
        client.will_set(f"{self.prefix}/status", "offline", qos=1, retain=True)
        client.max_inflight_messages_set(_WINDOW + 1)
        client.connect_timeout = _CONNECT_TIMEOUT_S
        # Jitter: many devices that lose one broker should not all come back at the same moment.
        jitter = random.uniform(0.75, 1.25)
        client.reconnect_delay_set(config.backoff_first_s * jitter, config.backoff_max_s * jitter)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _publish(self, record: Record) -> int:
        topic = f"{self.prefix}/{topic_level(record.source)}/{record.kind}"
        return int(self._client.publish(topic, record.line.rstrip(b"\n"), qos=self._qos).mid)

    def _is_ready(self) -> bool:
        return self._is_connected and not self._greeting

    def _is_settled(self, numbers: Sequence[int], connection: int) -> bool:
        """Returns whether waiting is over."""
        is_broken = not self._is_connected or connection != self._num_connections
        return self._is_interrupted or is_broken or self._confirmed.issuperset(numbers)

    def _keep_connected(self) -> None:
        while not self._is_closing:
            self._loop()

    def _loop(self) -> None:
        try:
            self._client.loop_forever(retry_first_connection=True)
        except (OSError, ValueError) as error:
            # The client handles most errors of a connection itself, but not a malformed answer.
            self._lost(f"{type(error).__name__}: {error}")
            time.sleep(_CONNECT_WAIT_S)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._lost(f"the broker refuses the connection: {reason}")
            return
        client.drop_out_messages()  # the queue offers them again
        greeting = client.publish(f"{self.prefix}/status", "online", qos=1, retain=True).mid
        with self._changed:
            # Records follow its confirmation: a connection that breaks before it does not speak against a record.
            self._greeting = greeting
            self._is_connected = True
            self._num_connections += 1
            self.trouble = "it does not confirm the first message"
            self._changed.notify_all()
        _logger.info("MQTT broker %s: connected", self.target)

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        # Called while the client handles the exception, which it does not pass on.
        error = sys.exc_info()[1]
        self._lost(f"cannot be reached: {error}" if error else "cannot be reached")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        # If it never connected, `trouble` holds the better reason already.
        if self._is_connected:
            self._lost(f"connection lost: {reason}")

    def _on_publish(self, client: Any, userdata: Any, number: int, reason: Any, properties: Any) -> None:
        with self._changed:
            self._confirmed.add(number)
            if number == self._greeting:
                self._greeting, self.trouble = 0, ""
            self._changed.notify_all()

    def _lost(self, trouble: str) -> None:
        with self._changed:
            was_connected, self._is_connected = self._is_connected, False
            if not self._is_interrupted:
                self.trouble = redact(trouble)
            self._changed.notify_all()
        if was_connected and not self._is_closing:
            _logger.warning("MQTT broker %s: %s", self.target, self.trouble)


def topic_level(source: str) -> str:
    """Encodes a source's name as one level of a topic.

    Percent-encodes the characters that MQTT does not allow there (/ + # and control characters), those outside ASCII,
    and %, so that no two sources share a topic.
    """
    return quote(source, safe=" !\"$&'()*,:;<=>?@[\\]^`{|}~", errors="surrogateescape") or "%00"

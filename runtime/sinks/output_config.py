"""Settings of every kind of output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from edgerpn.runtime.draw import DEFAULT_TOP
from edgerpn.runtime.redaction import redact_url

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """What every output has: its own queue and thread. The base of the settings of sinks of one's own."""

    queue: int = 0
    """Results and events that wait at most; 0: 1000 records, or 8 results with pictures."""
    policy: Literal["auto", "block", "drop_oldest"] = "auto"
    """When the queue is full: block holds the run up for `block_s` at most, drop_oldest never does; auto: block where
    all sources are files and the sink is not a network, otherwise drop_oldest."""
    block_s: float = 30.0
    """Seconds that one result waits for room at most; then the oldest is dropped after all."""
    on_error: Literal["auto", "continue", "stop"] = "auto"
    """When a delivery fails: continue counts it, tries again where that can help, and says so in the log; stop ends
    the run; auto: stop where all sources are files and the sink is not a network, otherwise continue."""
    drain_s: float = 10.0
    """Seconds without progress after which the end of a run stops waiting for what is still queued."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self.queue >= 0, "queue", "0 or more", self.queue)
        _check(self.block_s >= 0, "block_s", "0 or more seconds", self.block_s)
        _check(self.drain_s >= 0, "drain_s", "0 or more seconds", self.drain_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLinesConfig(OutputConfig):
    """JSON lines in a file, with or without rotation, or on the standard output."""

    path: str
    """File; - is the standard output. A full file FILE.jsonl becomes FILE.20260131T120000.000Z.jsonl, by UTC."""
    rotate_mb: float = 0.0
    """Size from which a new file begins, millions of bytes; 0: size does not matter."""
    rotate_minutes: float = 0.0
    """Age from which a new file begins, minutes; 0: age does not matter."""
    keep: int = 10
    """Full files that are kept, the newest; 0: all."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        OutputConfig.__post_init__(self)
        _check(bool(self.path), "path", "a file, or -", self.path)
        _check(self.rotate_mb >= 0, "rotate_mb", "0 or more", self.rotate_mb)
        _check(self.rotate_minutes >= 0, "rotate_minutes", "0 or more", self.rotate_minutes)
        _check(self.keep >= 0, "keep", "0 or more", self.keep)
        _check(self.path != "-" or not self.is_rotating, "path", "a file, because of rotate_mb or rotate_minutes", "-")

    @property
    def is_rotating(self) -> bool:
        """Whether the file is ever full."""
        return bool(self.rotate_mb or self.rotate_minutes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttConfig(OutputConfig):
    """Records to an MQTT broker: PREFIX/SOURCE/proposals, PREFIX/SOURCE/events, and PREFIX/status (online, offline)."""

    url: str = field(repr=False)
    """mqtt://USER:PASSWORD@HOST:PORT/PREFIX, or mqtts:// for TLS; the prefix is `edgerpn` when left out."""
    qos: Literal[0, 1] = 1
    """1: what the broker has not confirmed is sent again; 0: what is under way while a connection breaks is lost."""
    password_env: str = ""
    """Environment variable with the password, instead of one in the URL."""
    password_file: str = ""
    """File with the password, instead of one in the URL."""
    client_id: str = ""
    """Name of this client at the broker; empty: a random one. Two clients of one name keep cutting each other off."""
    ca_file: str = ""
    """File with the certificates to trust (mqtts); empty: the system's."""
    keepalive_s: int = 20
    """Seconds of silence after which the connection is tested."""
    backoff_first_s: float = 1.0
    """Seconds before connecting again; doubled for each attempt."""
    backoff_max_s: float = 30.0
    """Seconds between attempts at most."""

    def __post_init__(self) -> None:
        """Checks the address and the ranges."""
        OutputConfig.__post_init__(self)
        parts = check_url("url", self.url, ("mqtt", "mqtts"))
        prefix = parts.path.strip("/")
        # A bare # or ? at the end leaves no trace in the parts.
        is_topic = not (set("+#\0") & set(unquote(prefix)) or set("#?") & set(self.url))
        _check(is_topic, "url", "a topic without + # ? behind the host", redact_url(self.url))
        secrets = [name for name in ("password_env", "password_file") if getattr(self, name)]
        _check(len(secrets) + (parts.password is not None) <= 1, "url", "one password", " and ".join(secrets))
        _check(not secrets or bool(parts.username), "url", "a user for the password", redact_url(self.url))
        _check(1 <= self.keepalive_s <= 65535, "keepalive_s", "1..65535", self.keepalive_s)
        _check(self.backoff_first_s > 0, "backoff_first_s", "more than 0", self.backoff_first_s)
        _check(
            self.backoff_max_s >= self.backoff_first_s, "backoff_max_s", "at least backoff_first_s", self.backoff_max_s
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookConfig(OutputConfig):
    """Records to a web server: POST of a JSON array of records."""

    url: str = field(repr=False)
    """http:// or https:// address; USER:PASSWORD@ becomes basic authentication."""
    batch: int = 100
    """Records of one request at most."""
    batch_s: float = 1.0
    """Seconds that the first record of a request waits for others at most."""
    timeout_s: float = 5.0
    """Seconds that the server may be silent."""
    header: str = "Authorization"
    """Header that carries the token."""
    token_env: str = ""
    """Environment variable with the header's value, such as "Bearer 123"; empty: none."""
    token_file: str = ""
    """File with the header's value, read anew for every connection; empty: none."""
    ca_file: str = ""
    """File with the certificates to trust (https); empty: the system's."""

    def __post_init__(self) -> None:
        """Checks the address and the ranges."""
        OutputConfig.__post_init__(self)
        parts = check_url("url", self.url, ("http", "https"))
        _check(1 <= self.batch <= 10_000, "batch", "1..10000", self.batch)
        _check(0 <= self.batch_s <= 60, "batch_s", "0..60 seconds", self.batch_s)
        _check(self.timeout_s > 0, "timeout_s", "more than 0 seconds", self.timeout_s)
        _check(bool(_HEADER_NAME.fullmatch(self.header)), "header", "the name of a header", self.header)
        secrets = [name for name in ("token_env", "token_file") if getattr(self, name)]
        is_basic = parts.username is not None and self.header.lower() == "authorization"
        _check(len(secrets) + is_basic <= 1, "url", "one of password, token_env and token_file", " and ".join(secrets))


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig(OutputConfig):
    """Annotated video: for each source a row of files SOURCE-20260131T120000.000Z.mp4, by UTC of the first picture."""

    folder: str
    """Folder of the files, made when missing."""
    suffix: Literal[".mp4", ".avi"] = ".mp4"
    """Kind of file: MPEG-4, or Motion JPEG."""
    minutes: float = 10.0
    """Length of a file at most, minutes."""
    max_mb: float = 0.0
    """Size from which a new file begins, millions of bytes; 0: size does not matter."""
    fps: float = 0.0
    """Pictures per second. Live sources: the video runs at the speed of the clock, pictures of a slow source are
    repeated and some of a fast one left out; 0: 10. Files: every picture once; 0: the rate of the file."""
    gap_s: float = 2.0
    """Seconds without pictures from which a live source gets a new file instead of a still."""
    top: int = DEFAULT_TOP
    """Boxes drawn at most."""
    min_free_mb: float = 200.0
    """Space to leave on the disk, millions of bytes: with less, the file at hand is finished and pictures wait."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        OutputConfig.__post_init__(self)
        _check(bool(self.folder), "folder", "a folder", self.folder)
        _check(self.minutes > 0, "minutes", "more than 0", self.minutes)
        _check(self.max_mb >= 0, "max_mb", "0 or more", self.max_mb)
        _check(0 <= self.fps <= 240, "fps", "0..240", self.fps)
        _check(self.gap_s > 0, "gap_s", "more than 0 seconds", self.gap_s)
        _check(self.top >= 1, "top", "1 or more", self.top)
        _check(self.min_free_mb >= 0, "min_free_mb", "0 or more", self.min_free_mb)


def check_url(name: str, url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of an address.

    Raises:
        ValueError: It is none of these schemes or has no host; the message holds no password.
    """
    expected = f"{' or '.join(f'{scheme}://' for scheme in schemes)} and a host"
    shown = redact_url(url) if "://" in url else "something else"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Of a careless password: its characters must be percent-encoded. Python's own message would show it.
        raise ValueError(f"{name}: expected {expected}, got {shown!r}, which is no URL") from None
    _check(is_good, name, expected, shown)
    return parts


def _check(is_good: bool, name: str, expected: str, value: object) -> None:
    if not is_good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")

"""Properties of source specifications."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgerpn.errors import EdgeRpnError, StreamOpenError
from edgerpn.runtime.run.loading import load_streams
from edgerpn.runtime.sources.file_sources import open_source
from edgerpn.runtime.sources.spec import parse_source


@pytest.mark.parametrize(
    ("text", "is_live", "is_rtsp", "has_clock"),
    [
        ("rtsp://host/x", True, True, True),
        ("RTSPS://host/x", True, True, True),
        ("http://host/x", True, False, False),
        ("rtspsrc location=rtsp://host/x ! decodebin ! appsink", True, False, False),
        ("csi://0", True, False, False),
        ("0", True, False, False),
        ("rtsp-recording.mp4", False, False, False),
    ],
)
def test_live_sources_and_their_clocks(text: str, is_live: bool, is_rtsp: bool, has_clock: bool) -> None:
    spec = parse_source(text)
    assert (spec.is_live, spec.is_rtsp, spec.has_clock) == (is_live, is_rtsp, has_clock)


def test_paths_and_devices() -> None:
    assert parse_source("file:///a%20b/c.mp4").path == "/a b/c.mp4"
    assert parse_source("file:///a/b?c#d.mp4").path == "/a/b?c#d.mp4"
    assert parse_source("file://localhost/caf%E9.mp4").path == "/caf\udce9.mp4"
    assert parse_source("a%20b.mp4").path == "a%20b.mp4"
    assert parse_source("2").device == "/dev/video2"
    assert parse_source("/dev/v4l/by-id/cam").device == "/dev/v4l/by-id/cam"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("rtsp://u:p@host/x", ("host", 554)),
        ("RTSPS://host/x", ("host", 322)),
        ("https://host:81/x", ("host", 81)),
        ("rtmp://host/x", ("host", 1935)),
    ],
)
def test_addresses_have_default_ports(url: str, address: tuple[str, int]) -> None:
    assert parse_source(url).address() == address


def test_a_stream_that_this_machine_listens_for_has_no_address() -> None:
    with pytest.raises(ValueError, match="no host"):
        parse_source("udp://:5000").address()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("rtsp://admin:pa#ss@cam/x", r"rtsp://\*\*\*@cam/x: the user name or the password holds .* # as %23"),
        ("rtsp://admin:pa?ss@cam/x", r"\? as %3F"),
        ("rtsp://admin:pa/ss@cam/x", "/ as %2F .*rtsp://USER:pass%2Fword@HOST/"),
        ("http://admin:p/a#ss@cam/x", "write # as %23, / as %2F"),
        ("rtsp://admin:12/34ss@cam", r"rtsp://\*\*\*@cam: .* / as %2F .*if they end before it, write the @ as %40"),
        ("rtsp://admin:/pss@10.0.0.9/x", "/ as %2F"),
        ("rtsp://admin:99?pss@cam/x", r"\? as %3F"),
        ("rtsp://admin:8/8#pss@[::1]/x", "write # as %23, / as %2F"),
        ("rtsp://admin:pa@ss@cam/x", "@ as %40"),
        ("rtsp://admin:pa[ss@cam/x", r"\[ as %5B"),
        ("rtsp://", "expected a host"),
        ("rtsp:///x", "expected a host"),
        ("rtsp://admin:pass@/x", "expected a host"),
        ("rtsp://cam:99999/x", "rtsp://cam:99999/x: expected a port from 1 to 65535"),
        ("rtsp://cam:0/x", "expected a port from 1 to 65535"),
        ("rtsp://admin:pass", r"rtsp://admin:\*\*\*: expected a port"),
        ("rtsp://[::1", "expected an IPv6 address in brackets"),
        ("rtsp://[cam]/x", "expected an IPv6 address in brackets"),
        ("rtsp://[::1]x/y", "expected an IPv6 address in brackets"),
        ("rtsp://fe80::1/x", r"an IPv6 address needs brackets: \[fe80::1\]"),
        ("rtsp://10.0.0.256/x", "10.0.0.256 is not an IPv4 address"),
        ("rtsp://front door/x", "holds a space"),
        ("http://cam/\ud800", "half of a surrogate pair"),
        ("http://pa\u2100ss@cam/x", "a character that stands for / "),
        ("http://c\uff0fam/x", "a character that stands for / "),
        ("tcp://host", "expected a port behind the host"),
        ("udp://@239.0.0.1", "expected a port behind the host"),
        ("file://clip.mp4", "an absolute path"),
    ],
)
def test_a_url_with_a_fault_is_refused_with_the_way_to_write_it(url: str, message: str) -> None:
    with pytest.raises(StreamOpenError, match=message) as caught:
        parse_source(url)
    assert not any(part in str(caught.value) for part in ("admin:p", "admin:1", "ss@"))


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:pa%23ss%40%2F%3F@cam:8554/x",
        "rtsp://cam/user@1/x?mail=a@b#@",
        "rtsp://cam:554/a@b",
        "rtsp://cam/12@x",
        "rtsp://10.0.0.9:5540/12@x",
        "rtsp://cam.local:12/34@host",
        "rtsp://cam:5540/room@2",
        "rtsp://cam:5540/feed@30fps",
        "http://cam:81/snapshot?mail=a@b",
        "rtsp://@cam:5540/a@b",
        "rtsp://[fe80::1%eth0]:554/x",
        "http://user:@10.0.0.255/x",
        "rtsp://cam:/x",
        "http://\xfcber.example/x",
        "udp://@239.0.0.1:5000",
        "srt://:9000?mode=listener",
    ],
)
def test_a_url_without_a_fault_is_taken_as_it_is(url: str) -> None:
    assert parse_source(url).kind == "url"


@pytest.mark.parametrize("name", ["0", "a ! b.mp4", "rtsp:/cam.mp4", "csi:/0", "gopher:/x", "file:/clip.mp4"])
def test_an_existing_file_wins_over_every_other_reading(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = name.replace(":/", "://")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    spec = parse_source(text)
    assert (spec.kind, spec.path, spec.is_live) == ("path", text, False)


def test_no_password_is_shown() -> None:
    for text in ("rtsp://u:hunter2@host/x", "rtspsrc location=rtsp://u:hunter2@host/x ! appsink"):
        spec = parse_source(text)
        assert "hunter2" not in f"{spec!r} {spec.shown}"
        assert "***" in spec.shown


_PIECES = (
    *("rtsp://", "http://", "udp://", "file://", "csi://", "foo://", "user:hunter2", "hunter#2", "@", "host", "/", ":"),
    *(
        "554",
        "99999",
        "[::1]",
        "[",
        "]",
        "?",
        "#",
        "%zz",
        "~",
        "$HOME",
        "${",
        "$X",
        " ! ",
        "0",
        "/dev/video0",
        "*",
        "..",
    ),
    "a" * 300,
    *("\udce9", "\ud800", "\0", "\n", "\xb2", "\u2100", "'", '"', "\\", "=", " ", "a.mp4", "10.0.0.300", "-"),
)


def test_every_text_is_a_source_or_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dice, leaks = random.Random(14), []
    for _ in range(1000):
        text = "".join(dice.choice(_PIECES) for _ in range(dice.randint(0, 7)))
        words = [f"sources.a.source={text}", text] if dice.random() < 0.3 else []
        try:
            config = load_streams(sources=[text], overrides=words)
            if not config.sources[-1].is_live:
                open_source(config.sources[-1].source)
        except EdgeRpnError as error:
            is_url = "://" in text and text.partition("://")[0] in ("rtsp", "http")
            if is_url and "@" in text and "hunter" in str(error).rpartition("@")[0]:
                leaks.append(text)
    assert not leaks

"""Properties of source specifications."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("url", ["rtsp://u:p/x@host/y", "rtsp:///x", "tcp://host"])
def test_urls_without_host_or_port_have_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_source(url).address()


def test_no_password_is_shown() -> None:
    for text in ("rtsp://u:hunter2@host/x", "rtspsrc location=rtsp://u:hunter2@host/x ! appsink"):
        spec = parse_source(text)
        assert "hunter2" not in f"{spec!r} {spec.shown}"
        assert "***" in spec.shown

"""Texts and the list of processes show no password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.redaction import (
    hide_passwords,
    redact,
    redact_arguments,
    redact_ffmpeg_options,
    redact_url,
)
from edgerpn.runtime.sources.file_sources import open_source

ANY_TEXT = st.text(min_size=1, max_size=20)
NO_SPACE = st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters="\"'<>"), min_size=1, max_size=20)


@given(user=ANY_TEXT, password=ANY_TEXT)
def test_a_url_loses_any_user_and_password(user: str, password: str) -> None:
    assert redact_url(f"rtsp://{user}:{password}@cam.example:554/live") == "rtsp://***@cam.example:554/live"


@given(password=NO_SPACE)
def test_running_text_loses_them_too(password: str) -> None:
    text = redact(f"could not open rtsp://admin:{password}@cam.example/live after 3 tries")
    assert text == "could not open rtsp://***@cam.example/live after 3 tries"


@given(value=st.text(st.characters(exclude_characters="@"), min_size=1, max_size=20))
@pytest.mark.parametrize("key", ["password", "token", "loginpas", "api_key", "X-Amz-Signature", "p%61ss", "user"])
def test_a_secret_query_value_is_hidden_even_with_separators_in_it(key: str, value: str) -> None:
    value = value.replace("=", "")
    redacted = redact_url(f"https://cam.example/video?channel=1&{key}={value}")
    assert redacted == f"https://cam.example/video?channel=1&{key}=***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://cam.example/video.mjpg?channel=1&subtype=0", "http://cam.example/video.mjpg?channel=1&subtype=0"),
        ("rtsp://10.0.0.5/user=admin_password=tlJw_channel=1.sdp", "rtsp://10.0.0.5/user=***"),
        ("rtsps://token@host/x", "rtsps://***@host/x"),
        ("http://h/v?auth=a&channel=2", "http://h/v?auth=***&channel=2"),
        ("folder/of=images", "folder/of=images"),
    ],
)
def test_the_parts_that_identify_a_camera_stay(text: str, expected: str) -> None:
    assert redact_url(text) == expected


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (
            'rtspsrc location="rtsp://u:p@h/s?token=abc" user-id=me user-pw="my pw" latency=0 ! fakesink',
            'rtspsrc location="rtsp://***@h/s?token=***" user-id=*** user-pw=*** latency=0 ! fakesink',
        ),
        ("x264enc key-int-max=30 ! avdec_h264 ! appsink", "x264enc key-int-max=30 ! avdec_h264 ! appsink"),
    ],
)
def test_gstreamer_properties_are_hidden(pipeline: str, expected: str) -> None:
    assert redact(pipeline) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sent Authorization: Basic aHVudGVyMg==\r\nHost: cam", "sent Authorization: ***\r\nHost: cam"),
        ('proxy-authorization: Digest username="me", response="1f"', "proxy-authorization: ***"),
        ("{'AUTHORIZATION': 'Bearer abc.def'}", "{'AUTHORIZATION': ***"),
        ("Cookie: session=abc; theme=dark\nnext line", "Cookie: ***\nnext line"),
        ("Set-Cookie: id=abc; HttpOnly", "Set-Cookie: ***"),
        ("x-api-key: abc", "x-api-key: ***"),
        ("headers;Authorization: Basic abc", "headers;Authorization: ***"),
        ("cookies;id=abc; path=/", "cookies;***"),
        ('extra-headers="a,Authorization=(string)abc def" ! x', 'extra-headers="a,Authorization=***'),
        ("401 Unauthorized (authorization failed)", "401 Unauthorized (authorization failed)"),
    ],
)  # fmt: skip
def test_headers_with_credentials_lose_them(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ""),
        ("rtsp_transport;tcp|max_delay;500000", "rtsp_transport;tcp|max_delay;500000"),
        ("max_delay;1|HEADERS;X-Mine: abc", "***"),
        ("headers;Authorization: Basic abc|max_delay;1", "***"),
        ("cookies;a=b", "***"),
        ("passphrase;abcdefghij", "***"),
        ("http_proxy;http://me:abc@proxy/", "http_proxy;http://***@proxy/"),
    ],
)
def test_options_of_ffmpeg_are_hidden_when_one_may_be_a_secret(options: str, expected: str) -> None:
    assert redact_ffmpeg_options(options) == expected


@pytest.mark.parametrize("piece", [
    "a", "key", "key=", "key='", "keyint", "x-", "x-key", "x-key-", "authorization", "cookie", "a-", "a.b-", "a://",
    "://", "user = ", " ",
])  # fmt: skip
def test_a_long_text_of_a_camera_is_searched_once(piece: str) -> None:
    # A search that begins again at every letter would look at a hundred million letters, or at far more.
    for text in (piece * (200_000 // len(piece)), f"x-{piece * (200_000 // len(piece))}!"):
        assert len(redact(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1rtsp://u:p@h/ x", "1rtsp://***@h/ x"),
        ("a-x-api-key: abc", "a-x-api-key: ***"),
        ("my-cookies; abc", "my-cookies; ***"),
        ("user-pw='a b", "user-pw=***"),
        ('pw="a" token="b', "pw=*** token=***"),
    ],
)
def test_secrets_are_found_within_words_and_behind_an_open_quote(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "rtsp://admin:hunter2@127.0.0.1:9/stream?token=hunter2",
        "http://127.0.0.1:9/video?pwd=hunter2",
        "rtsp://admin:hunter2/x@127.0.0.1:9/y",
        "rtsp://admin:hunter2@host:port/x",
        "ftp://admin:hunter2@127.0.0.1/x",
        "rtspsrc location=rtsp://127.0.0.1 user-pw=hunter2 ! appsink",
    ],
)
def test_no_error_of_a_source_shows_the_password(spec: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StreamOpenError) as caught:
        open_source(spec)
    printed = capfd.readouterr()
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__} {printed.out} {printed.err}"
    assert "***" in str(caught.value)


def test_a_command_shows_no_password_in_the_list_of_processes() -> None:
    # Replaces the command: prints its argument, and waits while the test looks at the process.
    words = ["doctor", "stream", "rtsp://viewer:hunter2@127.0.0.1:9/x?token=hunter3", "--set"]
    words += ["defaults.source=http://u:hunter4@host/"]
    words += ["--set", "defaults.ffmpeg_options=headers;Authorization: Basic hunter5"]
    code = "import sys, edgerpn.runtime.doctor.cli as cli; from edgerpn.__main__ import main\n"
    code += "cli.run = lambda arguments: print(arguments.source, flush=True) or sys.stdin.read() and 0\n"
    code += "main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # The command itself gets the password.
    assert process.stdout.readline() == "rtsp://viewer:hunter2@127.0.0.1:9/x?token=hunter3\n"
    shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(process.pid)], capture_output=True, text=True, check=True
    )
    process.communicate(timeout=30)
    assert b"hunter" not in shown
    assert "hunter" not in listed.stdout
    values = ("rtsp://***@127.0.0.1:9/x?token=***", "defaults.source=http://***@host/", "defaults.ffmpeg_options=***")
    for word in ("doctor", "stream", *values):
        assert word in listed.stdout


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (["edgerpn", "run", "m.onnx", "a.mp4"], ["edgerpn", "run", "m.onnx", "a.mp4"]),
        (["run", "rtsp://a:b@h/x"], ["run", "rtsp://***@h/x"]),
        (["--set", "sources.a.source=rtsp://user:pass@h"], ["--set", "sources.a.source=rtsp://***@h"]),
        (["a location=rtsp://u:pass@h ! x user-pw=secret ! y"], ["a location=rtsp://***@h ! x user-pw=*** ! y"]),
        (["--set", "a.ffmpeg_options=headers;Authorization: Basic abc"], ["--set", "a.ffmpeg_options=***"]),
        (["--set=a.ffmpeg_options=cookies;id=abc; path=/"], ["--set=a.ffmpeg_options=***"]),
        (["sources.a={ffmpeg_options = 'HEADERS;X: http://a:b@c'}"], ["sources.a={ffmpeg_options =***"]),
        (["a.ffmpeg_options=max_delay;500"], ["a.ffmpeg_options=max_delay;500"]),
        (["a.other=Cookie: abc http://h/"], ["a.other=Cookie: ***"]),
    ],
)  # fmt: skip
def test_hidden_arguments_keep_the_length_of_the_line(words: list[str], hidden: list[str]) -> None:
    line = b"".join(word.encode() + b"\0" for word in words)
    result = redact_arguments(line)
    assert len(result) == len(line)
    assert result.rstrip(b"\0").split(b"\0") == [word.encode() for word in hidden]


def test_a_line_that_would_become_longer_is_cut() -> None:
    line = b"http://h/?key=a&pw=b\0"
    result = redact_arguments(line)
    assert len(result) == len(line)
    assert result == b"http://h/?key=***&pw\0"


def test_without_a_password_nothing_is_written() -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    assert not hide_passwords()
    assert Path("/proc/self/cmdline").read_bytes() == before

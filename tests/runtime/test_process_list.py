"""Passwords in our own command line, as other users of the machine see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgerpn.runtime.redaction import hide_passwords, redact_arguments


def test_a_command_shows_no_password_in_the_list_of_processes() -> None:
    # In place of the command: says what it was given, and waits to be looked at.
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
    # It knows the password itself.
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
def test_what_is_hidden_keeps_its_length(words: list[str], hidden: list[str]) -> None:
    line = b"".join(word.encode() + b"\0" for word in words)
    result = redact_arguments(line)
    assert len(result) == len(line)
    assert result.rstrip(b"\0").split(b"\0") == [word.encode() for word in hidden]


def test_what_would_become_longer_is_cut() -> None:
    line = b"http://h/?key=a&pw=b\0"
    result = redact_arguments(line)
    assert len(result) == len(line)
    assert result == b"http://h/?key=***&pw\0"


def test_without_a_password_nothing_is_written() -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    assert not hide_passwords()
    assert Path("/proc/self/cmdline").read_bytes() == before

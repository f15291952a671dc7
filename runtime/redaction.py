"""Hides passwords in texts, and in the list of processes.

Cameras carry credentials in many forms: `rtsp://user:pass@host`, with `@`, `/` or `#` unescaped inside the
password; query keys (`?token=`); keys inside the path (`/user=admin_password=x_channel=1.sdp`); GStreamer
properties (`user-pw="..."`); headers (`Authorization: Basic ...`). In case of doubt these functions hide too much
rather than too little.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from urllib.parse import unquote

HIDDEN = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Cameras and web servers choose parts of these texts: every expression below takes time that grows with the length of
# its text, not faster. So a search starts at the beginning of a word only, and each decision about a word is one
# look-ahead, into which the engine does not backtrack.
_WORD = re.compile(r"[^\s\"'<>]+")
_SECRET_WORDS = (
    r"(?:pass|pwd|pw(?![a-z])|psw|token|key(?![-_]?(?:int|frame))|secret|auth|user|usr|login|signature|credential"
    r"|session|(?<![a-z])si[dg](?![a-z])|jwt|bearer|account|(?<![a-z])code(?![a-z]))"
)
_SECRET_KEY = re.compile(_SECRET_WORDS, re.IGNORECASE)
_SECRET_PAIR = re.compile(
    rf"(?<![\w%.\-\[\]])((?=[\w%.\-\[\]]*{_SECRET_WORDS})[\w%.\-\[\]]+\s*=\s*)"
    r"(?:\"[^\"]*\"?|'[^']*'?|[^\s&#\"']+)",
    re.IGNORECASE,
)
# The end of a header's value cannot be recognised, so the whole line goes.
_SECRET_HEADER = re.compile(
    r"(?<![\w-])("
    r"(?=[\w-]*(?:authorization|cookie[s2]?)(?![\w-])|(?=(?P<x>[\w-]*?\bx-))(?P=x)[\w-]*(?:key|token|auth))"
    r"[\w-]+(?:[\"']?\s*[:=]|(?<=cookies)\s*;)\s*"
    r")[^\s][^\r\n]*",
    re.IGNORECASE,
)
_SECRET_OPTION = re.compile(rf"headers|cookies|{_SECRET_WORDS}", re.IGNORECASE)

_SELF = Path("/proc/self")
# Numbers of the fields of /proc/PID/stat, counted from 1; see proc_pid_stat(5).
_ARG_START, _ARG_END = 48, 49
# --set SOURCE.ffmpeg_options=VALUE, also as one word, also within a table.
_FFMPEG_OPTIONS = re.compile(r".*?ffmpeg_options[\"']?\s*=", re.DOTALL)
_HEADER = re.compile(r"authorization|cookie", re.IGNORECASE)


def redact(text: str) -> str:
    """Hides credentials in any text: log lines, error messages, headers, GStreamer pipelines.

    A URL in running text ends at white space or a quote; for a single URL use `redact_url`.
    """
    without_headers = _SECRET_HEADER.sub(rf"\1{HIDDEN}", text)
    return _SECRET_PAIR.sub(rf"\1{HIDDEN}", _WORD.sub(_without_credentials, without_headers))


def _without_credentials(word: re.Match[str]) -> str:
    head, mark, rest = word.group().partition("://")
    # The last @ ends the credentials, because an unescaped password may hold one itself.
    return f"{head}{mark}{HIDDEN}@{rest.rpartition('@')[2]}" if "@" in rest else word.group()


def redact_ffmpeg_options(options: str) -> str:
    """Hides all FFmpeg options, key;value|key;value, when one of them may be secret, such as `headers`."""
    return HIDDEN if _SECRET_OPTION.search(options) else redact(options)


def redact_url(url: str) -> str:
    """Hides the credentials of one URL, whatever characters they hold, even spaces, quotes and line ends."""
    scheme = _SCHEME.match(url)
    if scheme is None:
        return redact(url)
    rest = url[scheme.end() :]
    if "@" in rest:
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    address, mark, query = rest.partition("?")
    return scheme.group() + _SECRET_PAIR.sub(rf"\1{HIDDEN}", address) + mark + _redact_query(query)


def _redact_query(query: str) -> str:
    parts = []
    after_secret = False
    for part in query.split("&"):
        key, equals, _ = part.partition("=")
        if equals:
            # Servers decode percent-encoded keys.
            after_secret = bool(_SECRET_KEY.search(unquote(key)))
            parts.append(f"{key}={HIDDEN}" if after_secret else part)
        elif not after_secret:
            # A part without "=" after a secret is the rest of a password with "&": left out.
            parts.append(part)
    return "&".join(parts)


def hide_passwords() -> bool:
    """Overwrites passwords in the arguments of this process, as `ps` shows them; `sys.argv` keeps them.

    Otherwise `edgerpn run model.onnx rtsp://user:password@camera/` would show the password to every user of the
    machine: `ps` reads the arguments from the memory of the process, which the process can overwrite. Until this call
    the password can be seen; a settings file (--config) never shows it.

    Returns:
        Whether there was a password and it is hidden now.
    """
    try:
        shown = (_SELF / "cmdline").read_bytes()
        # The second field, the name of the process, may hold spaces and parentheses.
        fields = (_SELF / "stat").read_bytes().rpartition(b")")[2].split()
        start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
    except (OSError, ValueError, IndexError):
        # Not Linux, or a system without /proc.
        return False
    hidden = redact_arguments(shown)
    if hidden == shown or start <= 0 or end - start != len(shown):
        return False
    ctypes.memmove(start, hidden, len(hidden))
    return True


def redact_arguments(line: bytes) -> bytes:
    """Hides the passwords of a command line (each argument ends with a zero byte); keeps its length."""
    arguments = [os.fsdecode(word) for word in line.removesuffix(b"\0").split(b"\0")]
    hidden = b"\0".join(os.fsencode(_redacted(argument)) for argument in arguments)
    # The last byte must stay zero, or the kernel also shows the environment behind it.
    return hidden[: len(line) - 1].ljust(len(line), b"\0")


def _redacted(argument: str) -> str:
    options = _FFMPEG_OPTIONS.match(argument)
    if options is not None:
        return options.group() + redact_ffmpeg_options(argument[options.end() :])
    if " ! " in argument or _HEADER.search(argument):
        return redact(argument)
    # In A.B=URL the key is not a secret.
    head, scheme, rest = argument.partition("://")
    key, equals, _ = head.rpartition("=")
    return f"{key}{equals}{redact_url(argument.removeprefix(key + equals))}" if scheme and rest else argument

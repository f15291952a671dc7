"""Keeps the passwords that stand in our command line out of the list of processes.

Who starts `edgerpn run model.onnx rtsp://user:password@camera/` shows the password to every user of the machine: `ps`
reads it from the memory of the process where the kernel put its arguments. That memory is ours to overwrite. Between
the start and this moment the password can be seen; a settings file (--config) never shows it.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from edgerpn.runtime.redaction import redact, redact_ffmpeg_options, redact_url

_SELF = Path("/proc/self")
# Numbers of the fields of /proc/PID/stat, counted from 1; see proc_pid_stat(5).
_ARG_START, _ARG_END = 48, 49
# --set SOURCE.ffmpeg_options=VALUE, also as one word, also within a table.
_FFMPEG_OPTIONS = re.compile(r".*?ffmpeg_options[\"']?\s*=", re.DOTALL)
_HEADER = re.compile(r"authorization|cookie", re.IGNORECASE)


def hide_passwords() -> bool:
    """Overwrites URLs with passwords in the arguments of this process, as others see them; `sys.argv` stays.

    Returns:
        Whether there was something to hide and it is hidden.
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
    """A command line, each argument with a zero behind it, without passwords and just as long."""
    arguments = [os.fsdecode(word) for word in line.removesuffix(b"\0").split(b"\0")]
    hidden = b"\0".join(os.fsencode(_redacted(argument)) for argument in arguments)
    # The last byte must stay zero, or the kernel shows the environment behind it too.
    return hidden[: len(line) - 1].ljust(len(line), b"\0")


def _redacted(argument: str) -> str:
    options = _FFMPEG_OPTIONS.match(argument)
    if options is not None:
        return options.group() + redact_ffmpeg_options(argument[options.end() :])
    if " ! " in argument or _HEADER.search(argument):
        return redact(argument)
    # Of A.B=URL the key is no secret.
    head, scheme, rest = argument.partition("://")
    key, equals, _ = head.rpartition("=")
    return f"{key}{equals}{redact_url(argument.removeprefix(key + equals))}" if scheme and rest else argument

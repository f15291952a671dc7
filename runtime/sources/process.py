"""The parent's side of one capture process: start, packets, messages, end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, suppress
from urllib.parse import unquote, urlsplit

from edgerpn.errors import StreamOpenError
from edgerpn.machine import child_environment, module_command, python_problem
from edgerpn.runtime.redaction import HIDDEN, redact
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import CaptureFailedError, is_noise
from edgerpn.runtime.sources.wire import MAX_PACKET_BYTES, STOP

_MAX_LINES = 100
_MAX_LINE_CHARS = 400
# A camera may cause lines of any length; no more of each is looked at.
_MAX_READ_BYTES = 2048
_PACKETS_AT_ONCE = 64
_READS_AT_ONCE = 16
# FFmpeg's H.264 decoder reports a new size at this level only, and OpenCV does not report it at all
# (opencv/opencv#27116): it continues with pictures scaled to the first size.
_CODED_SIZE = re.compile(r"Reinit context to (\d+x\d+)")
# Level, clock and place in a source file, which precede the messages of FFmpeg and GStreamer.
_PREFIX = re.compile(
    r"^(?:\[OPENCV:FFMPEG:\d+\] "
    r"|\d+:\d\d:\d\d\.\d+ +\d+ +0x[0-9a-f]+ [A-Z]+ +\S+ [^\s<]+:(?:<\S+>)? "
    r"|\[ ?[A-Z]+:\d+@[\d.]+\] global \S+ \(\d+\) \w+ OpenCV \| GStreamer(?: warning)?: )"
)
# Other messages of FFmpeg above the level of warnings, a description of the session included.
_CHATTER = re.compile(r"^\[OPENCV:FFMPEG:(?:3[2-9]|[4-9]\d)\]|^[a-z]=|^\[\w+ @ [^]]+\] (?:SDP|Reinit)")


class CaptureProcess:
    """A running `edgerpn.runtime.sources.child`; only the supervising thread uses it."""

    def __init__(self, config: CaptureConfig) -> None:
        """Starts the process and sends its settings.

        The calling thread must outlive the process: the kernel kills the process when that thread ends.

        Raises:
            StreamOpenError: No process can be started (no memory, too many processes or open files).
            CaptureFailedError: `sys.executable` is not a Python, so that no attempt can succeed.
        """
        problem = python_problem()
        if problem is not None:
            message = f"{config.label}: no capture process can be started: {problem}"
            raise CaptureFailedError(message, reason="dependency", is_final=True)
        self.lines: deque[str] = deque(maxlen=_MAX_LINES)
        self.num_lines = 0
        self.first_size = ""
        self.last_size = ""
        self.is_over = False
        self._secrets = _secrets(config.source)
        self._rest = b""
        self.output_fd = -1
        try:
            with ExitStack() as on_failure:
                self._start(config, on_failure)
                on_failure.pop_all()
        except OSError as error:
            raise StreamOpenError(f"{config.label}: no capture process can be started: {error}") from error

    def _start(self, config: CaptureConfig, on_failure: ExitStack) -> None:
        with ExitStack() as theirs:
            self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.callback(control.close)
            on_failure.callback(self.close)
            self.output_fd, output = os.pipe()
            theirs.callback(os.close, output)
            self._process = subprocess.Popen(
                [*module_command("edgerpn.runtime.sources.child"), str(control.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[control.fileno()],
                env=_environment(),
                # Ctrl-C in the terminal must reach the parent only, which then stops its processes in order.
                start_new_session=True,
            )
            request = json.dumps(dataclasses.asdict(config)).encode("ascii")
            # A blocking socket would hang when the process dies, so this one never blocks.
            self.control.setblocking(False)
            os.set_blocking(self.output_fd, False)
            with suppress(BrokenPipeError):
                self.control.send(request)

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def receive(self) -> list[tuple[bytes, int | None]]:
        """Returns the packets that have arrived, each with its file descriptor; sets `is_over` at the end."""
        packets: list[tuple[bytes, int | None]] = []
        while len(packets) < _PACKETS_AT_ONCE:
            try:
                packet, fds, _, _ = socket.recv_fds(self.control, MAX_PACKET_BYTES, 1)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The process ended with unread packets of ours. Linux reports this once, ahead of its last packets.
                continue
            except OSError:
                packet, fds = b"", []
            if not packet:
                self.is_over = True
                break
            packets.append((packet, fds[0] if fds else None))
        return packets

    def read_output(self) -> bool:
        """Collects the messages that have arrived, without passwords; returns False at their end."""
        data = b""
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(self.output_fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._keep(lines)
            # The beginning, in which a key stands before its secret; the byte after it says that the line goes on.
            self._rest = self._rest[: _MAX_READ_BYTES + 1]
        if not data:
            self._keep([self._rest])
            self._rest = b""
        return bool(data)

    def _keep(self, lines: list[bytes]) -> None:
        for data in lines:
            text = data[:_MAX_READ_BYTES].decode("utf-8", "replace")
            if len(data) > _MAX_READ_BYTES:
                # The last word may be half a secret, which is not recognised.
                text = text.rpartition(" ")[0]
            text = self.clean(text.strip())
            if changed := _CODED_SIZE.search(text):
                self.last_size = changed.group(1)
                self.first_size = self.first_size or self.last_size
            elif text and not _CHATTER.search(text):
                line = _PREFIX.sub("", text)[:_MAX_LINE_CHARS]
                self.num_lines += not is_noise(line)
                self.lines.append(line)

    def clean(self, text: str) -> str:
        """Hides the passwords of the source in a text of the process."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return redact(text)

    def stop(self) -> None:
        """Asks the process to close its source and end."""
        with suppress(OSError):
            self.control.send(STOP)

    def kill(self) -> None:
        """Kills the process and its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while the process runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> None:
        """Waits for the end of the process; one that hangs in a driver may outlast the time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def close(self) -> None:
        self.control.close()
        if self.output_fd >= 0:
            os.close(self.output_fd)
            self.output_fd = -1


def _environment() -> dict[str, str]:
    """Returns our environment with our module path, so that the process finds the same modules."""
    # Python skips entries that are not texts, such as a Path, and so does this.
    path = os.pathsep.join(entry for entry in sys.path if entry and isinstance(entry, str))
    return {**child_environment(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _secrets(source: str) -> list[str]:
    """Returns the password of a URL in every form in which a decoder may print it."""
    try:
        password = urlsplit(source).password or ""
    except ValueError:
        password = ""
    # Hiding one or two letters everywhere would make messages unreadable and protect nothing.
    found = {text for text in (password, unquote(password)) if len(text) > 2}
    return sorted(found, key=len, reverse=True)

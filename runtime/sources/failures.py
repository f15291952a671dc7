"""Failures of sources: reasons, advice for each, and the reason in the messages of a decoder, at a port or a device."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Reason
from edgerpn.runtime.sources.spec import SourceSpec

SUMMARIES: dict[Reason, str] = {
    "busy": "the camera is busy",
    "codec": "the video cannot be decoded",
    "crashed": "the capture process crashed",
    "dependency": "a program or package is missing",
    "end_of_stream": "the stream ended",
    "not_found": "the source does not exist",
    "permission": "access is denied",
    "picture": "the address gives one picture at a time",
    "refused": "the connection is refused",
    "server": "the server reports an error of its own",
    "slow": "pictures come too slowly",
    "timeout": "no answer or no video in time",
    "tls": "the encrypted connection fails",
    "unauthorised": "the user name or password is wrong or missing",
    "unreachable": "the host cannot be found or reached",
    "unknown": "the source delivers no video",
    "unsupported": "no decoder here can read it",
}
"""Each reason in a few words."""

FIXES: dict[Reason, str] = {
    "busy": "Close other programs that use the camera, or raise its limit of viewers.",
    "clock": "Synchronise the camera with NTP; frames continue, and are timed by this machine.",
    "codec": "Set the camera to H.264 or MJPEG, or try whether ffplay shows it; a file may be damaged.",
    "crashed": "It restarts. If it keeps crashing, try another decoder (decoder=ffmpeg-process) or codec.",
    "dependency": "Install the program or package that the message names.",
    "lost": "Use RTSP over TCP (transport=tcp), a lower bit rate or a better network.",
    "not_found": "Check the path or the device; the camera's manual or ONVIF has the paths of its streams.",
    "permission": "Give this user the right to read it (cameras: sudo usermod -aG video USER, then log in again).",
    "picture": "With decoder = auto or picture it is requested again and again, rate_hz times a second (1). A video "
    "stream of the same camera gives more.",
    "refused": "Check the port, and whether the camera's server is enabled.",
    "server": "Restart the camera, or look into its log; behind a gateway (502) check the camera itself.",
    "silence": "Check the camera's network and load if it happens often.",
    "slow": "A camera that sends a picture only now and then needs a larger stall_s; without this setting the limit "
    "adapts, up to 120 s. Otherwise check its power, load and network.",
    "timeout": "Check power, address and firewall; the camera may also be overloaded or restarting.",
    "tls": "Check the certificate, the clock of both sides, and whether the port speaks TLS at all.",
    "unauthorised": "Check user name and password; characters such as @ / # ? must be percent-encoded (@ is %40).",
    "unreachable": "Check the host name and this machine's network.",
    "unknown": "Try the source with ffplay or gst-launch-1.0; the message ends with the decoder's last line.",
    "unsupported": "Use another decoder (decoder=...), or an OpenCV build that supports it.",
}
"""Advice for each reason that needs some."""

NO_PYTHON_FIX = (
    "It needs a Python that has edgerpn; sys.executable is {}. A program in one file (PyInstaller) needs the lines of "
    "the section 'In one file' of docs/recipes.md."
)
"""Advice for a process that ended before it looked at its source."""
NO_ROOM_FIX = (
    "Free memory, or raise the limits of processes and threads (ulimit -u, TasksMax of systemd, --pids-limit of a "
    "container) and of open files (ulimit -n)."
)
"""Advice for a process that the system did not start, or did not give a thread."""

# A number alone may be a port or a time.
_STATUS = r"(?:failed: ?|error ?|returned ?|\()"
# The order matters: a line about a failed connection often follows one that names the cause.
_PATTERNS: tuple[tuple[Reason, str], ...] = (
    # OpenCV waits for ever for a pipeline without its source.
    ("dependency", r'no element "'),
    ("unauthorised", rf"{_STATUS}40[13]\b|unauthori[sz]ed|forbidden|not authori[sz]ed|authentication"),
    (
        "busy",
        rf"{_STATUS}(?:429|453|503)\b|too many requests|not enough bandwidth|service unavailable|resource busy"
        r"|device busy",
    ),
    ("not_found", rf"{_STATUS}(?:404|454|410)\b|not found|no such (?:file|device)"),
    ("server", rf"{_STATUS}5\d\d\b|internal server error|bad gateway"),
    ("tls", r"certificate|handshake|\bssl\b|\btls\b.*(?:error|fail)|(?:error|fail).*\btls\b"),
    ("refused", r"connection refused|could not connect"),
    (
        "unreachable",
        r"resolve|name or service not known|no route to host|network is unreachable|host is down"
        r"|temporary failure in name",
    ),
    ("permission", r"permission denied"),
    ("timeout", r"timed? ?out|timeout triggered|could not receive any udp packets"),
    (
        "codec",
        r"invalid data|could not find codec|unsupported codec|decoder .*not found|moov atom|codec not currently"
        r"|no decoder|could not (?:determine|demultiplex)|not-negotiated|missing (?:a )?plug-?in"
        r"|unspecified (?:size|pixel)",
    ),
)
# Messages of OpenCV, FFmpeg and GStreamer that say nothing about the cause.
_NOISE = re.compile(
    r"backend is generally available|global (?:obsensor|cap\.cpp)|unable to (?:start pipeline|query duration)"
    r"|pipeline have not been created|cannot query video position|CAP_PROP_POS_MSEC|trying to dispose element"
    r"|application or some element\.|you need to explicitly set|link has no (?:source|sink)|cannot find appsink"
    r"|deprecated pixel format used",
    re.IGNORECASE,
)


class CaptureFailedError(StreamOpenError):
    """A source delivers no frames.

    Attributes:
        reason: Class of the reason.
        is_final: Whether another attempt is pointless.
        is_slow: Whether the source answered, and may only need more time.
    """

    def __init__(self, message: str, *, reason: Reason, is_final: bool = False, is_slow: bool = False) -> None:
        self.reason = reason
        self.is_final = is_final
        self.is_slow = is_slow
        super().__init__(message)


def classify(lines: Iterable[str]) -> Reason:
    """Returns the reason that a decoder's messages name, or "unknown"."""
    text = "\n".join(lines)
    return next((reason for reason, pattern in _PATTERNS if re.search(pattern, text, re.IGNORECASE)), "unknown")


def is_noise(line: str) -> bool:
    """Returns whether a message of a capture process says nothing about its source."""
    return _NOISE.search(line) is not None


def relevant_line(lines: Sequence[str], reason: Reason) -> str:
    """Returns the last message that names the reason, else the last that is not noise, else an empty text."""
    messages = [line for line in reversed(lines) if not is_noise(line)]
    return next((line for line in messages if classify([line]) == reason), messages[0] if messages else "")


def probe_address(spec: SourceSpec) -> Reason:
    """Connects to the port of a URL that did not open; returns the reason, or "unknown" if the port answers."""
    if spec.scheme in ("udp", "rtp", "srt"):
        return "timeout"
    try:
        address = spec.address()
    except ValueError:
        return "unreachable"
    try:
        socket.create_connection(address, timeout=2.0).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError:
        return "unreachable"
    return "unknown"


def check_device(spec: SourceSpec) -> None:
    """Makes sure that the device file of a camera exists and may be opened.

    Raises:
        CaptureFailedError: It does not, or may not; it may come later.
    """
    if not Path(spec.device).exists():
        others = ", ".join(sorted(str(other) for other in Path("/dev").glob("video*"))) or "none"
        message = f"{spec.shown}: no such camera ({spec.device} does not exist); cameras here: {others}"
        raise CaptureFailedError(message, reason="not_found")
    if not os.access(spec.device, os.R_OK | os.W_OK):
        raise CaptureFailedError(f"{spec.shown}: this user may not open {spec.device}", reason="permission")

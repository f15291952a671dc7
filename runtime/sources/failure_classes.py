"""Why a source gave no frames: classes of reasons, what to do about each, and how messages of decoders are read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Reason

FIXES: dict[Reason, str] = {
    "busy": "Close other programs that use the camera, or raise its limit of viewers.",
    "clock": "Let the camera take its time from NTP; frames go on, and times of capture are ours.",
    "codec": "Set the camera to H.264 or MJPEG, or see whether ffplay can show it; a file may be damaged.",
    "crashed": "It is started again. If it keeps crashing, try another decoder (decoder=ffmpeg-process) or codec.",
    "dependency": "Install what the message names.",
    "lost": "Use RTSP over TCP (transport=tcp), a lower bit rate or a better network.",
    "not_found": "Check the path; that of a stream is in the camera's manual, or ONVIF tells it.",
    "permission": "Give this user the right to read it (cameras: sudo usermod -aG video USER, then log in again).",
    "refused": "Check the port, and whether the camera's server is switched on.",
    "silence": "Look at the camera's network and load, if it happens often.",
    "timeout": "Check power, address and firewall; the camera may also be overloaded or restarting.",
    "tls": "Check the certificate, the clock of both sides, and whether the port speaks TLS at all.",
    "unauthorised": "Check user name and password; characters such as @ / # ? must be percent-encoded (@ is %40).",
    "unreachable": "Check the host name and this machine's network.",
    "unknown": "Try the source with ffplay or gst-launch-1.0; the last lines of the decoder are in the message.",
    "unsupported": "Use another decoder (decoder=...), or an OpenCV that knows it.",
}
"""What to do, for each reason that asks for something."""

# A number alone may be a port or a time.
_STATUS = r"(?:failed: ?|error ?|returned ?|\()"
# In this order, because a line about a failed connection often follows from one that says why.
_PATTERNS: tuple[tuple[Reason, str], ...] = (
    # Without its source, OpenCV waits for the pipeline for ever.
    ("dependency", r'no element "'),
    ("unauthorised", rf"{_STATUS}40[13]\b|unauthori[sz]ed|forbidden|not authori[sz]ed|authentication"),
    ("busy", rf"{_STATUS}(?:453|503)\b|not enough bandwidth|service unavailable|resource busy|device busy"),
    ("not_found", rf"{_STATUS}(?:404|454|410)\b|not found|no such (?:file|device)"),
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


class CaptureFailedError(StreamOpenError):
    """A source gives no frames; knows the reason, and whether trying again can help.

    Attributes:
        reason: Class of the reason.
        is_final: Whether another attempt is pointless.
    """

    def __init__(self, message: str, *, reason: Reason, is_final: bool = False) -> None:
        """Keeps the reason beside the message."""
        self.reason = reason
        self.is_final = is_final
        super().__init__(message)


def classify(lines: Iterable[str]) -> Reason:
    """The reason that a decoder's messages tell, or "unknown"."""
    text = "\n".join(lines)
    return next((reason for reason, pattern in _PATTERNS if re.search(pattern, text, re.IGNORECASE)), "unknown")

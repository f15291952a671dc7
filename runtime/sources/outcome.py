"""How one capture process ended, and when to try again."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from edgerpn.runtime.frame import Reason
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failure_classes import classify

_WHAT: dict[Reason, str] = {
    "busy": "the camera is busy",
    "codec": "the video cannot be decoded",
    "crashed": "the capture process crashed",
    "dependency": "something is not installed",
    "end_of_stream": "the stream ended",
    "not_found": "there is no such source",
    "permission": "access is not permitted",
    "refused": "the connection is refused",
    "timeout": "no answer, or no video, in time",
    "tls": "the encrypted connection fails",
    "unauthorised": "user name or password is not accepted",
    "unreachable": "the host cannot be found or reached",
    "unknown": "it gives no video",
    "unsupported": "nothing here can read it",
}

_TOLD_IN_FULL = ("end_of_stream", "dependency", "unsupported", "permission", "resized")
# Remarks of OpenCV and GStreamer on what they do next, which say nothing about the cause.
_NOISE = re.compile(
    r"backend is generally available|global (?:obsensor|cap\.cpp)|unable to (?:start pipeline|query duration)"
    r"|pipeline have not been created|cannot query video position|CAP_PROP_POS_MSEC|trying to dispose element"
    r"|application or some element\.|you need to explicitly set|link has no (?:source|sink)|cannot find appsink",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Why there are no more frames from a process."""

    reason: Reason
    """Class of the reason."""
    message: str
    """For people, without passwords."""
    is_final: bool
    """Whether trying again is pointless."""

    @property
    def is_good(self) -> bool:
        """Whether this is the regular end of a file."""
        return self.is_final and self.reason == "end_of_stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class LastWord:
    """What a process says before it ends, or what its parent says for it."""

    reason: Reason
    """Class of the reason, as far as it knows."""
    message: str
    """For people; may be empty."""
    is_final: bool
    """Whether trying again is pointless."""


def outcome(
    config: CaptureConfig, last: LastWord | None, status: int | None, lines: Sequence[str], is_live: bool | None
) -> Outcome:
    """Puts together how a process ended.

    Args:
        config: Its source.
        last: Its last word; None: it ended without one.
        status: Its exit status.
        lines: Its messages, without passwords.
        is_live: Whether the source is live; None: it never connected.
    """
    if last is None:
        reason: Reason = "crashed"
        message = f"{_WHAT[reason]} ({_status_text(status)})"
        is_final = is_told = False
    else:
        reason, message, is_final = last.reason, last.message, last.is_final
        if is_live is None and reason in ("unknown", "timeout", "busy") and (told := classify(lines)) != "unknown":
            # The decoder knows better than what can be seen from outside.
            reason, message = told, ""
        elif is_live is None and (reason, message) == ("unknown", "") and config.spec.is_http:
            # Its port was tried and works, and nothing else was said: a page, for example of a login.
            reason, message = "codec", "the server answers, but not with a video"
        is_told = bool(message) and reason in _TOLD_IN_FULL
        message = message or _WHAT[reason]
    # A file that is read again from its beginning would give its frames twice.
    waits = is_live is False or (is_live is None and not config.spec.is_live)
    if message.startswith(f"{config.label}: "):
        message = message.removeprefix(f"{config.label}: ")
    if not (is_told or reason in ("end_of_stream", "resized")) and (line := _telling_line(lines, reason)):
        message = f"{message} [{line}]"
    return Outcome(reason=reason, message=f"{config.label}: {message}", is_final=is_final or waits)


class Backoff:
    """Time between attempts: doubled each time, jittered so that many sources do not come back in step."""

    def __init__(self, config: CaptureConfig) -> None:
        """Starts without failures."""
        self._config = config
        self.num_failures = 0

    def next_s(self, reason: Reason) -> float:
        """Counts a failure; seconds to wait before the next attempt."""
        self.num_failures += 1
        longest_s = self._config.backoff_max_s
        # Capped exponent: a camera may be down for weeks.
        delay_s = min(longest_s, self._config.backoff_first_s * 2 ** min(self.num_failures - 1, 30))
        if reason == "unauthorised":
            # Cameras lock an account after a few wrong passwords.
            delay_s = longest_s
        return delay_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Forgets the failures."""
        self.num_failures = 0


def is_remark(line: str) -> bool:
    """Whether a line of a capture process says nothing about the source."""
    return _NOISE.search(line) is not None


def _telling_line(lines: Sequence[str], reason: Reason) -> str:
    """The last message that tells the reason, or else the last that tells anything."""
    told = [line for line in reversed(lines) if not is_remark(line)]
    return next((line for line in told if classify([line]) == reason), told[0] if told else "")


def _status_text(status: int | None) -> str:
    if status is None:
        return "it does not end, even when killed: a driver hangs"
    if status == -signal.SIGKILL:
        return "SIGKILL: by somebody, or by the kernel when memory ran out"
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"

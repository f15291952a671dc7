"""Decisions after the end of a capture process: its cause, whether to reconnect, and the backoff before that."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgerpn.errors import StreamOpenError
from edgerpn.machine import NO_THREADS
from edgerpn.runtime.frame import Reason
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import NO_PYTHON_FIX, NO_ROOM_FIX, SUMMARIES, classify, relevant_line

# The messages of these reasons are complete without a line of the decoder.
_COMPLETE = ("end_of_stream", "dependency", "unsupported", "permission", "picture", "resized", "slow")

# The second is OpenBLAS's, which interrupts the process.
_NO_THREADS = (NO_THREADS, "pthread_create failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitReport:
    """The reason that a process reports before it ends, or that its supervisor records when it kills it."""

    reason: Reason
    """Class of the reason, as far as the process knows."""
    message: str
    """For people; may be empty."""
    is_final: bool
    """Whether another attempt is pointless."""
    is_slow: bool = False
    """Whether the source may only be slow: it had answered, or sent pictures, when a limit of time ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureOutcome:
    """The end of a capture process, as events report it."""

    reason: Reason
    """Class of the reason."""
    message: str
    """For people, without passwords."""
    is_final: bool
    """Whether another attempt is pointless."""
    fix: str = ""
    """Advice in place of that for the reason; empty: that one suits."""

    @property
    def is_good(self) -> bool:
        """Whether this is the regular end of a file."""
        return self.is_final and self.reason == "end_of_stream"


def judge_exit(
    config: CaptureConfig,
    report: ExitReport | None,
    status: int | None,
    lines: Sequence[str],
    is_live: bool | None,
    *,
    has_begun: bool = True,
) -> CaptureOutcome:
    """Determines why a process ended, and whether to reconnect.

    Args:
        config: Its source.
        report: Its report; None: the process ended without one.
        status: Its exit status; None: it still runs, although killed.
        lines: Its messages, without passwords.
        is_live: Whether the source is live; None: it never connected.
        has_begun: Whether it sent anything.
    """
    fix = ""
    if report is None:
        reason: Reason = "crashed"
        if any(text in line for line in lines for text in _NO_THREADS):
            fix = NO_ROOM_FIX
        elif not has_begun and status is not None and status >= 0:
            fix = NO_PYTHON_FIX.format(sys.executable)
        message = f"{SUMMARIES[reason]} ({_status_text(status)})"
        is_final = is_complete = False
    else:
        reason, message, is_final = report.reason, report.message, report.is_final
        # The device, or a limit of time, may have another cause; a web server's answer is the cause.
        is_answer = config.spec.is_http and bool(message) and not report.is_slow
        has_guess = reason in ("unknown", "timeout", "busy") and not is_answer
        known = ("unknown", "timeout") if report.is_slow else ("unknown",)
        if is_live is None and has_guess and (classified := classify(lines)) not in known:
            # The decoder knows the cause better than the process around it.
            reason, message = classified, ""
        # An answer needs no line of the decoder beside it, unless that says why it cannot decode.
        is_complete = bool(message) and (
            reason in _COMPLETE or (is_answer and reason != "codec") or (report.is_slow and reason == "timeout")
        )
        message = message or SUMMARIES[reason]
    # A file that is read again from its beginning would deliver its frames twice.
    is_file = (is_live is False and reason != "picture") or (is_live is None and not config.spec.is_live)
    message = message.removeprefix(f"{config.label}: ")
    if not (is_complete or reason in ("end_of_stream", "resized")) and (line := relevant_line(lines, reason)):
        message = f"{message} [{line}]"
    return CaptureOutcome(reason=reason, message=f"{config.label}: {message}", is_final=is_final or is_file, fix=fix)


def judge_start(error: StreamOpenError) -> CaptureOutcome:
    """Returns the outcome of a process that the system did not start."""
    cause = error.__cause__
    has_no_python = isinstance(cause, FileNotFoundError | PermissionError | NotADirectoryError)
    fix = NO_PYTHON_FIX.format(sys.executable) if has_no_python else NO_ROOM_FIX
    return CaptureOutcome(reason="crashed", message=str(error), is_final=False, fix=fix)


class Backoff:
    """Time between attempts: it doubles each time, with jitter so that many sources do not reconnect in step."""

    def __init__(self, config: CaptureConfig) -> None:
        self._config = config
        self.num_failures = 0

    def next_s(self, reason: Reason) -> float:
        """Counts a failure; returns the seconds to wait before the next attempt."""
        self.num_failures += 1
        if reason in ("resized", "picture") and self.num_failures == 1:
            # A camera that changes its size is not down, and neither is one that gives single pictures.
            return 0.0
        longest_s = self._config.backoff_max_s
        # The exponent is capped, because a camera may be down for weeks.
        delay_s = min(longest_s, self._config.backoff_first_s * 2 ** min(self.num_failures - 1, 30))
        if reason == "unauthorised":
            # Cameras lock an account after a few wrong passwords.
            delay_s = longest_s
        return delay_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self.num_failures = 0


def _status_text(status: int | None) -> str:
    if status is None:
        return "it does not end, even when killed: a driver hangs"
    if status == -signal.SIGKILL:
        return "SIGKILL: by a user, or by the kernel when memory ran out"
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"

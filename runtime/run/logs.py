"""The log of a run on the standard error: text or JSON, without passwords, and with a limit on repetition."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from edgerpn.files import printable
from edgerpn.runtime.frame import Event
from edgerpn.runtime.redaction import redact
from edgerpn.runtime.sinks.record import iso_utc

LogFormat = Literal["text", "json"]

REPEAT_S = 60.0
"""Seconds between two equal lines."""

_MAX_KEYS = 512
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# A camera's server chooses parts of messages, and must not reach the terminal through them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_logger = logging.getLogger(__name__)


def log_event(event: Event) -> None:
    """Logs an event with its advice; good news at the level info, tracks at debug."""
    is_good = event.kind in ("connected", "resized") or event.reason in ("end_of_stream", "removed")
    is_detail = event.kind == "started" or event.track is not None
    level = logging.DEBUG if is_detail else logging.INFO if is_good else logging.WARNING
    extra = {"source": event.source}
    _logger.log(level, "%s%s", event.message, f". {event.fix}" if event.fix else "", extra=extra)


class RepeatFilter(logging.Filter):
    """Passes the first of equal messages, and after `repeat_s` one with the count of those held back.

    Messages are equal when they differ in numbers only, and their `source` is the same: a name or an address, whose
    numbers count. Errors always pass.
    """

    def __init__(self, *, repeat_s: float = REPEAT_S) -> None:
        super().__init__()
        self._repeat_s = repeat_s
        # Time of the last that passed, and how many were held back since.
        self._seen: OrderedDict[tuple[str, str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the message passes; sets its `num_repeated`."""
        record.num_repeated = 0
        if record.levelno >= logging.ERROR:
            return True
        key = (getattr(record, "source", ""), record.name, record.levelno, _NUMBER.sub("#", record.getMessage()))
        now_s = time.monotonic()
        since_s, num_held = self._seen.pop(key, (-self._repeat_s, 0))
        is_due = now_s - since_s >= self._repeat_s
        self._seen[key] = (now_s, 0) if is_due else (since_s, num_held + 1)
        while len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        record.num_repeated = num_held if is_due else 0
        return is_due


class TextFormatter(logging.Formatter):
    """One line for people: time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower()}: {_message(record)}"
        num_repeated = getattr(record, "num_repeated", 0)
        return f"{line} (and {num_repeated} more like it)" if num_repeated else line


class JsonFormatter(logging.Formatter):
    """One JSON object for programs, ASCII: time, level, logger, message and repeated."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": iso_utc(record.created),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": _message(record),
                "repeated": getattr(record, "num_repeated", 0),
            }
        )


@contextmanager
def log_to_stderr(log_format: LogFormat, level: str) -> Iterator[None]:
    """Writes the package's log to the standard error inside the block, and restores the logger afterwards.

    Args:
        log_format: text or json.
        level: debug, info, warning or error.
    """
    logger = logging.getLogger("edgerpn")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RepeatFilter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
    return redact(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", printable(text)))

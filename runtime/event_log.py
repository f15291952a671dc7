"""What happens to sources, in the log."""

from __future__ import annotations

import logging

from edgerpn.runtime.frame import Event

_logger = logging.getLogger(__name__)


def log_event(event: Event) -> None:
    """Says an event, with what to do about it; good news at the level info."""
    is_good = event.kind in ("connected", "resized") or event.reason in ("end_of_stream", "removed")
    level = logging.DEBUG if event.kind == "started" else logging.INFO if is_good else logging.WARNING
    _logger.log(level, "%s%s", event.message, f". {event.fix}" if event.fix else "")

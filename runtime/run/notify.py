"""Tells systemd how a run is doing, when it was started by systemd (Type=notify).

Source: sd_notify(3) and systemd.service(5).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Sends states to the socket that NOTIFY_SOCKET names; does nothing without one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Looks for the socket and for the watchdog's patience."""
        address = environment.get("NOTIFY_SOCKET", "")
        # An abstract address is written with an @ for its leading zero.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout_us = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(timeout_us) / 1e6 if is_for_us and timeout_us.isdigit() else 0.0
        """Seconds without a ping after which systemd ends the run; 0: it does not watch."""

    def ready(self, status: str) -> None:
        """It runs."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """It reads its settings again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def alive(self) -> None:
        """It has done something lately."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What it is doing, in one line."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A run goes on, whatever becomes of who started it.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode("utf-8", "replace"), self._address)

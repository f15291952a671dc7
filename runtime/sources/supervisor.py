"""Supervision of one source: starts its process, kills it when it is silent, and reconnects with backoff."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import struct
import time
from typing import Any

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Reason, SourceState
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import FIXES, CaptureFailedError
from edgerpn.runtime.sources.pace import Pace
from edgerpn.runtime.sources.process import CaptureProcess
from edgerpn.runtime.sources.reconnect import Backoff, CaptureOutcome, ExitReport, judge_exit, judge_start
from edgerpn.runtime.sources.shared_memory import RingReader
from edgerpn.runtime.sources.wire import unpack_frame

# From the start of a process to its first packet: importing OpenCV from a memory card is slow.
_START_S = 60.0
# The process itself asks the server, once its own limit is over.
_OPEN_MARGIN_S = 6.0
_KILL_S = 1.0
_POLL_S = 0.02
# A damaged packet may announce a wrong size, which the next good one corrects.
_RESIZED_S = 0.6
_logger = logging.getLogger(__name__)


class SourceSupervisor:
    """The state of one source; all methods run in the supervising thread.

    `reconnect` decides why a process ended and when to try again; `failures` classifies messages.
    """

    def __init__(self, config: CaptureConfig, deliver: Any) -> None:
        """Prepares the source; the first `tick` starts its process.

        Args:
            config: The source.
            deliver: Called with each frame or event, and the number of frames that may wait (0: any number).
        """
        self.config = config
        self.process: CaptureProcess | None = None
        self.state: SourceState = "starting"
        self.is_stopping = False
        self.num_connections = 0
        self.num_frames = 0
        self.num_lines = 0
        self.last_frame_s = -math.inf
        self.pace = Pace(config)
        self.lines: tuple[str, ...] = ()
        self._deliver = deliver
        self._gives_pictures = False
        self._has_adapted = False
        self._backoff = Backoff(config)
        self._retry_s = 0.0
        self.ring: RingReader | None = None
        self._exit_report: ExitReport | None = None
        self._is_live: bool | None = None
        self._size_wh: tuple[int, int] | None = None
        self._first_index = 0
        self._next_index = 0
        self._started_s = 0.0
        self._connected_s = 0.0
        self._alive_s: float | None = None
        self._arrived_s = 0.0
        self._end_by_s = math.inf
        self._over_s = math.inf
        self._resized_s = math.inf

    @property
    def is_done(self) -> bool:
        """Whether the source has ended for good."""
        return self.process is None and (self.is_stopping or self.state == "ended")

    def tick(self, now_s: float) -> float:
        """Does the due work; returns the latest time of the next call."""
        process = self.process
        if process is None:
            if self.is_done:
                return math.inf
            if now_s < self._retry_s:
                return self._retry_s
            self._start(now_s)
            return now_s
        if process.is_over or now_s >= self._end_by_s:
            return self._reap(process, now_s)
        if self.is_stopping:
            if now_s >= self._over_s:
                self._kill(process, now_s)
            return min(self._over_s, self._end_by_s)
        deadline_s = min(self._silence_deadline_s(now_s), self._resized_s)
        if now_s >= self._resized_s and math.isinf(self._end_by_s):
            message = f"the video changed its size to {process.last_size}; a new connection follows"
            self._exit_report = ExitReport(reason="resized", message=message, is_final=False)
            self._kill(process, now_s)
        elif now_s >= deadline_s and math.isinf(self._end_by_s):
            self._give_up(process, now_s)
        return min(deadline_s, self._end_by_s) if math.isinf(self._end_by_s) else self._end_by_s

    def stop(self, now_s: float) -> None:
        """Stops the process; kills it if it does not end within a second."""
        if self.is_stopping:
            return
        self.is_stopping = True
        if self.process is not None:
            self.process.stop()
            self._over_s = now_s + _KILL_S

    def abandon(self) -> None:
        """Kills and releases the process without an event."""
        process, self.process, self.ring = self.process, None, None
        if process is not None:
            process.kill()
            process.wait(_KILL_S)
            process.close()

    def on_control(self, now_s: float) -> None:
        """Handles the packets that have arrived."""
        process = self.process
        if process is None:
            return
        for packet, fd in process.receive():
            self._take_packet(process, packet, fd, now_s)

    def on_output(self) -> bool:
        """Collects the messages that have arrived; returns False when the process has closed its output."""
        if self.process is None:
            return False
        num_before = self.process.num_lines
        is_open = self.process.read_output()
        self.num_lines += self.process.num_lines - num_before
        self.lines = tuple(self.process.lines)
        is_resized = bool(self._is_live) and self.process.last_size != self.process.first_size
        self._resized_s = min(self._resized_s, time.monotonic() + _RESIZED_S) if is_resized else math.inf
        return is_open

    def _start(self, now_s: float) -> None:
        self._exit_report, self._is_live, self._alive_s, self.ring = None, None, None, None
        self._end_by_s = self._over_s = self._resized_s = math.inf
        self._first_index = self._next_index
        self._started_s = now_s
        self.pace.restart()
        self.lines = ()
        if self.state == "starting":
            self._event("started", f"{self.config.label}: capture started")
        try:
            self.process = CaptureProcess(self._config_of_process())
        except CaptureFailedError as error:
            self._schedule(CaptureOutcome(reason=error.reason, message=str(error), is_final=error.is_final), now_s)
        except StreamOpenError as error:
            self._schedule(judge_start(error), now_s)

    def _config_of_process(self) -> CaptureConfig:
        """Returns the settings with the present limit of opening, and the decoder that suits the address."""
        decoder = "picture" if self._gives_pictures else self.config.decoder
        return dataclasses.replace(self.config, open_timeout_s=self.pace.open_s, decoder=decoder)

    def _take_packet(self, process: CaptureProcess, packet: bytes, fd: int | None, now_s: float) -> None:
        try:
            self._on_packet(packet, fd, now_s)
        except (struct.error, ValueError, KeyError, TypeError, OSError) as error:
            # A decoder that writes out of bounds can ruin packets too.
            self._exit_report = ExitReport(reason="crashed", message=f"garbled packet: {error}", is_final=False)
            self._kill(process, now_s)
        finally:
            if fd is not None:
                os.close(fd)

    def _on_packet(self, packet: bytes, fd: int | None, now_s: float) -> None:
        process = self.process
        self._alive_s = now_s
        kind = packet[:1]
        if kind in b"FA" and self._is_live:
            self._note_pace(now_s)
        if kind == b"F":
            self._on_frame(packet, now_s)
        elif kind == b"R" and process is not None and fd is not None:
            self.ring = RingReader(fd, process.control, **json.loads(packet[1:]))
        elif kind == b"E":
            self._on_event(json.loads(packet[1:]), now_s)
        elif kind == b"X":
            report = json.loads(packet[1:])
            self._exit_report = ExitReport(**report | {"message": self._clean(report["message"])})
        elif kind != b"A":
            raise ValueError(f"unknown kind of packet {kind!r}")

    def _note_pace(self, now_s: float) -> None:
        before_s, self._arrived_s = self._arrived_s, now_s
        if self.config.policy == "every" and self.ring is not None:
            # The process may have waited for us, and not we for it.
            before_s = max(before_s, self.ring.released_s)
        self.pace.add(max(0.0, now_s - before_s))
        if self.pace.is_adapted and not self._has_adapted:
            self._has_adapted = True
            _logger.info(
                "%s: pictures come %.1f s apart; without a setting the limits of silence adapt: stall_s is %.0f s now",
                self.config.label,
                self.pace.interval_s,
                self.pace.stall_s,
                extra={"source": self.config.label},
            )

    def _on_frame(self, packet: bytes, now_s: float) -> None:
        if self.ring is None:
            raise ValueError("a frame before its ring")
        frame = unpack_frame(
            packet,
            self.ring.image,
            source=self.config.label,
            connection=self.num_connections,
            first_index=self._first_index,
        )
        self._next_index = frame.index + 1
        self.num_frames += 1
        self.last_frame_s = now_s
        if self._backoff.num_failures and now_s - self._connected_s >= self.config.healthy_s:
            self._backoff.reset()
        self._deliver(frame, self._max_waiting())

    def _max_waiting(self) -> int:
        """Returns the number of frames that may wait for the consumer; 0: any number."""
        if self.config.policy == "queue":
            return self.config.queue_frames
        is_every = self.config.policy == "every" or (self.config.policy == "auto" and not self._is_live)
        return 0 if is_every else 1

    def _on_event(self, values: dict[str, Any], now_s: float) -> None:
        kind, message = values.pop("kind"), f"{self.config.label}: {self._clean(values.pop('message'))}"
        if values.get("size_wh") is not None:
            values["size_wh"] = tuple(values["size_wh"])
        if kind == "connected":
            self.num_connections += 1
            self.state = "connected"
            self._connected_s = now_s
            self._is_live = values["is_live"]
            values |= {"attempt": self.num_connections, "duration_s": now_s - self._started_s}
            values["decoder"] = self._clean(values["decoder"])
        reason: Reason = values.pop("reason", "none")
        self._event(kind, message, reason=reason, **values)
        before, self._size_wh = self._size_wh, values.get("size_wh", self._size_wh)
        if kind == "connected" and before not in (None, self._size_wh):
            text = f"{self.config.label}: the pictures have another size than those of the last connection"
            self._event("resized", text, size_wh=self._size_wh)

    def _silence_deadline_s(self, now_s: float) -> float:
        """Returns the time at which the process counts as silent for too long."""
        if self._alive_s is None:
            return self._started_s + _START_S
        if self._is_live is None:
            return self._alive_s + self.pace.open_s + _OPEN_MARGIN_S
        if self.ring is not None and self.ring.is_full:
            # The process waits for us, not we for it.
            return now_s + self.pace.stall_s
        released_s = self.ring.released_s if self.ring is not None else 0.0
        return max(self._alive_s, released_s) + self.pace.stall_s

    def _give_up(self, process: CaptureProcess, now_s: float) -> None:
        silent_s = now_s - (self._alive_s or self._started_s)
        reason: Reason = "timeout"
        message = f"no frame for {silent_s:.1f} s"
        if self._is_live is None:
            message = f"no frame within {now_s - self._started_s:.1f} s of the start"
        else:
            if self._is_live and self.pace.is_slow:
                reason, message = "slow", self._slow_in_words(message)
            text = f"{self.config.label}: {message}; its process is killed"
            self._event("stalled", text, reason=reason, duration_s=silent_s)
        # A server that does not answer at all is reported by the process itself, earlier. A driver that hangs needs no
        # more time, but another start.
        is_opening = self._is_live is None and self._alive_s is not None
        is_slow = reason == "slow" or (is_opening and self.config.spec.kind in ("url", "plugin"))
        self._exit_report = ExitReport(reason=reason, message=message, is_final=False, is_slow=is_slow)
        self._kill(process, now_s)

    def _slow_in_words(self, silence: str) -> str:
        pace = self.pace
        count = f"{pace.num_frames} picture{'s' if pace.num_frames > 1 else ''}"
        interval = f", {pace.interval_s:.1f} s apart" if pace.num_frames > 1 else ""
        setting = "" if self.config.stall_s is None else f" (stall_s is {self.config.stall_s:g})"
        return f"{count}{interval}, then {silence}{setting}"

    def _kill(self, process: CaptureProcess, now_s: float) -> None:
        process.kill()
        self._over_s = math.inf
        self._end_by_s = min(self._end_by_s, now_s + _KILL_S)

    def _reap(self, process: CaptureProcess, now_s: float) -> float:
        """Waits a little for a process that is ending; then plans the next one."""
        status = process.poll()
        if status is None and now_s < self._end_by_s:
            if math.isinf(self._end_by_s):
                # Its socket is closed, so it ends soon.
                self._end_by_s = now_s + _KILL_S
            return now_s + _POLL_S
        if status is None:
            process.kill()
        self.on_output()
        lines = self.lines
        process.close()
        self.process, self.ring = None, None
        if self._gives_pictures and self._exit_report is not None and self._exit_report.reason == "codec":
            # The address gives something else now.
            self._gives_pictures = False
        if not self.is_stopping:
            has_begun = self._alive_s is not None
            ended = judge_exit(self.config, self._exit_report, status, lines, self._is_live, has_begun=has_begun)
            self._schedule(ended, now_s)
        return now_s

    def _schedule(self, ended: CaptureOutcome, now_s: float) -> None:
        """Reports the end of a process, and schedules the next."""
        if ended.is_final:
            if not ended.is_good:
                self._event("error", ended.message, reason=ended.reason, fix=ended.fix)
            self._event("ended", ended.message, reason=ended.reason, fix=ended.fix)
            # Afterwards: a reader that sees the end of the source looks for no further event.
            self.state = "ended"
            return
        if ended.reason == "crashed":
            self._event("error", ended.message, reason="crashed", fix=ended.fix)
        if self._is_live is not None and now_s - self._connected_s >= self.config.healthy_s:
            self._backoff.reset()
        if ended.reason == "picture" and self.config.decoder == "auto":
            self._gives_pictures = True
        delay_s = self._backoff.next_s(ended.reason)
        self._retry_s = now_s + delay_s
        self.state = "reconnecting"
        message = f"{ended.message}; next attempt in {delay_s:.1f} s"
        if ended.reason in ("slow", "timeout") and self._exit_report is not None and self._exit_report.is_slow:
            limit_s = self.pace.widen(is_open=self._is_live is not None)
            message += f", with {limit_s:g} s for each picture" if limit_s is not None else ""
        attempt = self._backoff.num_failures
        self._event("reconnecting", message, reason=ended.reason, fix=ended.fix, attempt=attempt, delay_s=delay_s)

    def _clean(self, text: str) -> str:
        return self.process.clean(text) if self.process is not None else text

    def _event(self, kind: Any, message: str, *, reason: Reason = "none", fix: str = "", **values: Any) -> None:
        event = Event(
            kind=kind,
            source=self.config.label,
            message=message,
            reason=reason,
            fix=fix or FIXES.get(reason, ""),
            **values,
        )
        self._deliver(event, 0)

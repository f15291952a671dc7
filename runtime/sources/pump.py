"""The loop of a capture process: it moves frames from a reader into the ring, and measures their lag."""

from __future__ import annotations

import math
import time
from array import array
from typing import Any

from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.pace import Pace
from edgerpn.runtime.sources.parent_link import ParentLink
from edgerpn.runtime.sources.readers import Image, Reader
from edgerpn.runtime.tracing import span

_MAX_BROKEN = 100
_WINDOW_S = 60.0
_JUMP_S = 1.0
# Decoders repeat or reorder the first few time stamps by some frames.
_BACKWARD_S = 0.5


class Pump:
    """Moves frames until the source ends or the parent stops it."""

    def __init__(self, config: CaptureConfig, reader: Reader, link: ParentLink) -> None:
        """Reads from `reader`, which the caller closes."""
        self._config = config
        self._reader = reader
        self._link = link
        self._waits = config.policy == "every" or (config.policy == "auto" and not reader.is_live)
        self._meter = LagMeter()
        self._pace = Pace(config)
        self._has_clock = config.spec.has_clock
        self._cap = RateCap(config.max_fps)
        self._shape: tuple[int, ...] = ()
        self._ready_s = time.monotonic()
        self._last_media_s: float | None = None
        self._num_skipped = 0
        self._num_broken = 0
        self.num_grabbed = 0
        self.times_s = array("d")
        """Times of the frames of a file in it, seconds; NaN: unknown."""
        self.last_wait_s = 0.0

    def run(self) -> None:
        """Returns at the end of the source, or when the parent stops it."""
        reader = self._reader
        while not self._link.is_stopping:
            start_s = time.monotonic()
            has_frame = reader.grab()
            grabbed_s = time.monotonic()
            self.last_wait_s = grabbed_s - start_s
            if not has_frame:
                return
            self.num_grabbed += 1
            if not self._move(start_s, grabbed_s, time.time()) and self._num_broken >= _MAX_BROKEN:
                return
            self._ready_s = time.monotonic()

    def _move(self, start_s: float, grabbed_s: float, wall_s: float) -> bool:
        """Moves one frame; returns False when it could not be decoded."""
        media_s = self._reader.media_time_s()
        if not self._reader.is_live:
            self.times_s.append(math.nan if media_s is None else media_s)
        lag_s = self._note_time(media_s, grabbed_s) if self._reader.is_live else None
        if not self._cap.lets_through(grabbed_s if self._reader.is_live or media_s is None else media_s):
            self._num_skipped += 1
            self._link.send_alive()
            return True
        decode_start_s = time.monotonic() if self._reader.is_live else start_s
        placed = self._place()
        if placed is None:
            return self._num_broken == 0
        generation, slot, waited_s = placed
        frame = Frame(
            image=self._link.ring_for(0).image(slot, self._shape),
            source=self._config.label,
            index=self.num_grabbed - 1,
            media_time_s=media_s,
            captured_at=wall_s,
            monotonic_s=grabbed_s,
            decode_ms=(time.monotonic() - decode_start_s - waited_s) * 1e3,
            lag_ms=lag_s * 1e3 if lag_s is not None and self._has_clock else None,
            num_dropped=self._link.pop_drops(),
            num_skipped=self._num_skipped,
            camera_hw=self._reader.camera_hw,
        )
        self._num_skipped = 0
        self._link.send_frame(frame, generation=generation, slot=slot)
        return True

    def _place(self) -> tuple[int, int, float] | None:
        """Decodes into a free slot; returns ring, slot and seconds waited, or None without a slot or a good picture."""
        slot, view, waited_s = None, None, 0.0
        if self._shape:
            start_s = time.monotonic()
            slot = self._link.take_slot(waits=self._waits)
            waited_s = time.monotonic() - start_s
            if slot is None:
                self._link.count_drop()
                self._link.send_alive()
                return None
            ring = self._link.ring_for(0)
            view = ring.image(slot, self._shape)
        with span("decode"):
            image = self._reader.retrieve(view)
        if image is None:
            self._num_broken += 1
            if slot is not None:
                self._link.return_slot(slot)
            return None
        self._num_broken = 0
        if view is not None and image.shape == view.shape:
            # OpenCV decodes in place where it can.
            if image.ctypes.data != view.ctypes.data:
                view[...] = image
            return self._link.ring_for(0).generation, slot or 0, waited_s
        return self._place_new_size(image, slot, waited_s)

    def _place_new_size(self, image: Image, slot: int | None, waited_s: float) -> tuple[int, int, float] | None:
        """Places a picture whose size differs from the last one's."""
        is_first = not self._shape
        before, self._shape = self._shape, image.shape
        if slot is not None:
            self._link.return_slot(slot)
        ring = self._link.ring_for(image.nbytes)
        if is_first:
            self._report_connected()
        else:
            old, new = f"{before[1]}x{before[0]}", f"{image.shape[1]}x{image.shape[0]}"
            self._event("resized", message=f"the pictures are {new} now, {old} before", size_wh=self._size_wh)
        taken = self._link.take_slot(waits=self._waits)
        if taken is None:
            self._link.count_drop()
            return None
        ring.image(taken, image.shape)[...] = image
        return ring.generation, taken, waited_s

    def _note_time(self, media_s: float | None, now_s: float) -> float | None:
        """Reports gaps and clock jumps of a live source; returns the lag."""
        silence_s = now_s - self._ready_s
        lag_s, jump_s = self._meter.add(media_s, now_s) if media_s is not None else (None, 0.0)
        last_s, self._last_media_s = self._last_media_s, media_s
        gap_s = self._pace.gap_s
        self._pace.add(silence_s)
        if not self._shape:
            return lag_s
        hole_s = media_s - last_s if media_s is not None and last_s is not None and not jump_s else 0.0
        if jump_s:
            message = f"the camera's clock jumped by {jump_s:+.1f} s"
            self._event("gap", message=message, reason="clock", duration_s=jump_s)
        if silence_s >= gap_s:
            self._event("gap", message=f"no frame for {silence_s:.1f} s", reason="silence", duration_s=silence_s)
        elif hole_s >= gap_s:
            message = f"{hole_s:.1f} s of the stream were lost"
            self._event("gap", message=message, reason="lost", duration_s=hole_s)
        return lag_s

    @property
    def _size_wh(self) -> tuple[int, int]:
        height, width = self._reader.camera_hw or self._shape[:2]
        return width, height

    def _report_connected(self) -> None:
        reader = self._reader
        self._event(
            "connected",
            message=f"{self._size_wh[0]}x{self._size_wh[1]}; {reader.decoder}",
            size_wh=self._size_wh,
            fps=reader.fps,
            num_frames=reader.num_frames,
            decoder=reader.decoder,
            is_live=reader.is_live,
        )

    def _event(self, kind: str, **values: Any) -> None:
        self._link.send_event({"kind": kind, **values})


class LagMeter:
    """Compares the camera's clock with ours: the fastest frames of the last minutes count as on time.

    The minimum covers one to two minutes only, because the two clocks drift apart.
    """

    def __init__(self) -> None:
        self._previous_s = self._current_s = math.inf
        self._since_s = self._media_s = -math.inf

    def add(self, media_s: float, now_s: float) -> tuple[float, float]:
        """Adds a frame by its time stamp and its arrival.

        Returns:
            Its lag in seconds, 0 or more; and the jump of the camera's clock in seconds, mostly 0.
        """
        offset_s = now_s - media_s
        base_s = min(self._previous_s, self._current_s)
        jump_s = 0.0
        # No frame can be faster than the fastest one, unless the camera's clock jumped forward.
        if (offset_s < base_s - _JUMP_S and base_s < math.inf) or media_s < self._media_s - _BACKWARD_S:
            jump_s = base_s - offset_s
        self._media_s = media_s
        if jump_s or now_s - self._since_s > 2 * _WINDOW_S:
            self._reset(now_s)
        elif now_s - self._since_s > _WINDOW_S:
            self._previous_s, self._current_s, self._since_s = self._current_s, math.inf, now_s
        self._current_s = min(self._current_s, offset_s)
        return offset_s - min(self._previous_s, self._current_s), jump_s

    def _reset(self, now_s: float) -> None:
        self._previous_s = self._current_s = math.inf
        self._since_s = now_s


class RateCap:
    """Limits the frame rate, evenly spaced."""

    def __init__(self, max_fps: float) -> None:
        """Limits to `max_fps`; 0: no limit."""
        self._period_s = 1 / max_fps if max_fps > 0 else 0.0
        self._due_s = -math.inf

    def lets_through(self, time_s: float) -> bool:
        """Returns whether a frame of this time is due; a clock that jumps restarts the spacing."""
        if not self._period_s:
            return True
        if abs(time_s - self._due_s) > 2 * self._period_s:
            self._due_s = time_s
        # The tolerance keeps 30 of 60 frames from becoming 20 by rounding.
        if time_s < self._due_s - self._period_s * 1e-3:
            return False
        self._due_s += self._period_s
        return True

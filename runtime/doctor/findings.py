"""Judges the figures of a source: problems and hints in plain words, each with advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgerpn.runtime.doctor.clock import skew_in_words
from edgerpn.runtime.doctor.figures import NO_BREAKS, StreamFigures
from edgerpn.runtime.doctor.recording import Recording
from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.capture_config import GAP_S
from edgerpn.runtime.sources.http_pictures import DEFAULT_RATE_HZ
from edgerpn.runtime.sources.pace import Pace

_LONG_KEY_INTERVAL_S = 4.0
_LONG_FIRST_FRAME_S = 5.0
_MIN_RATE = 0.85
_MAX_MISSING = 0.005
_MAX_DROPPED = 0.01
_GROWTH_MS = 200.0
_GROWTH_MS_PER_S = 10.0
_BUSY_CORES = 0.7
_SKEW_S = 2.0
_JITTERY = 3.0
_JITTERY_MS = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One problem or hint."""

    kind: Literal["problem", "hint"]
    """problem: results are missing, late or wrong; hint: a possible improvement."""
    text: str
    """The observation."""
    advice: str
    """The change to make."""


def is_healthy(findings: list[Finding]) -> bool:
    """Returns whether there is no problem; hints do not count."""
    return not any(finding.kind == "problem" for finding in findings)


def findings_of(
    figures: StreamFigures, recording: Recording, *, network_hw: tuple[int, int] | None = None
) -> list[Finding]:
    """Judges a source; problems come before hints.

    Args:
        figures: The measurements.
        recording: The recording that they were computed from.
        network_hw: Height and width of the model's input; None: unknown.
    """
    if figures.state == "failed":
        return [_failed(recording)]
    config = recording.config
    found = [*_breaks(figures, recording), *_losses(figures, config)]
    if figures.is_live:
        found += [*(_lag(figures, config) or _rate(figures)), *_jitter(figures), *_key_frames(figures)]
        found += _clock(figures)
    found += [*_load(figures), *_size(figures, network_hw)]
    return sorted(found, key=lambda finding: finding.kind != "problem")


def _problem(text: str, advice: str) -> Finding:
    return Finding(kind="problem", text=text, advice=advice)


def _hint(text: str, advice: str) -> Finding:
    return Finding(kind="hint", text=text, advice=advice)


def _failed(recording: Recording) -> Finding:
    """Returns the problem of a source without frames."""
    config = recording.config
    failures = [event for event in recording.events if event.kind in ("error", "reconnecting", "ended")]
    if not failures:
        return _problem("the source delivered no frame", "Try again with more time (--seconds).")
    first = failures[0]
    text = first.message.removeprefix(f"{config.label}: ").partition("; next attempt in ")[0]
    advice = first.fix
    if first.reason == "timeout" and config.transport == "udp":
        advice = f"Use transport=tcp: with udp the video arrives at ports that firewalls close. {advice}"
    elif first.reason == "timeout" and config.spec.kind == "url":
        advice = f"{advice} If the camera is only slow, raise open_timeout_s (now {Pace(config).open_s:g})."
    return _problem(f"no video ({first.reason}): {text}", advice)


def _breaks(figures: StreamFigures, recording: Recording) -> Iterator[Finding]:
    """Yields connections that ended, and pictures that could not be read."""
    events = recording.events
    if figures.num_reconnects:
        last = [event for event in events if event.kind == "reconnecting" and event.reason not in NO_BREAKS][-1]
        text = f"the connection ended {_times(figures.num_reconnects)} ({last.reason})"
        advice = last.fix or "Check the camera's log, and its other viewers."
        is_slow = last.reason == "slow"
        if figures.num_stalls and not is_slow:
            stall_s = Pace(recording.config).stall_s
            text = f"{text}, {_times(figures.num_stalls)} because it froze for stall_s ({stall_s:g} s)"
            advice = "Check the camera's load and network. If the camera only pauses, raise stall_s."
        # Without the setting a run adapts to it.
        yield _hint(text, advice) if is_slow and recording.config.stall_s is None else _problem(text, advice)
    elif figures.num_unreadable:
        last = [event for event in events if event.kind == "error"][-1]
        yield _problem(last.message, last.fix)
    if recording.is_pictures:
        rate_hz = recording.config.rate_hz or DEFAULT_RATE_HZ
        yield _hint(
            f"the address gives one picture for each request; they are made {rate_hz:g} times a second (rate_hz)",
            "If the camera has a video stream (RTSP, Motion JPEG), use that: it is quicker and has a steady rate.",
        )
    if figures.num_resized:
        yield _hint(
            f"the picture changed its size {_times(figures.num_resized)}",
            "Turn off the camera setting that changes it; a model with a fixed --source-size refuses other sizes.",
        )
    if figures.num_clock_jumps:
        yield _hint(
            f"the camera's clock jumped {_times(figures.num_clock_jumps)}",
            "Synchronise the camera with NTP, at long intervals; frames continue, and are timed by this machine.",
        )


def _losses(figures: StreamFigures, config: CaptureConfig) -> Iterator[Finding]:
    """Yields silence, missing frames, damage, and frames that this machine dropped."""
    to_tcp = "Use transport=tcp. " if config.spec.is_rtsp and config.transport == "udp" else ""
    network = f"{to_tcp}Lower the bit rate, use the sub-stream, or a better network (cable instead of Wi-Fi)."
    interval_s = (figures.interval_p50_ms or 0.0) / 1e3
    if figures.num_gaps and interval_s > GAP_S and figures.longest_gap_s < 2 * interval_s:
        yield _hint(
            f"pictures come slowly and steadily, {interval_s:.1f} s apart",
            "If the camera is meant to be so slow: without gap_s and stall_s the limits of silence follow its pace. "
            "Otherwise check its frame rate and exposure.",
        )
    elif figures.num_gaps:
        longest_s = figures.longest_gap_s
        settings = f"gap_s={_above(longest_s)} avoids the events"
        limits = Pace(config)
        if 3 * longest_s > limits.stall_s:
            settings += f", and stall_s={_above(3 * longest_s)} avoids a reconnect"
        text = f"frames stopped {_times(figures.num_gaps)} for more than gap_s ({limits.gap_s:g} s)"
        yield _problem(f"{text}, {longest_s:.1f} s at most", f"{network} If such pauses are normal here: {settings}.")
    num_seen = max(figures.num_frames, 1)
    signs = []
    if figures.num_missing is not None and figures.num_missing > max(1, _MAX_MISSING * num_seen):
        signs.append(f"{figures.num_missing} of {num_seen + figures.num_missing} frames never arrived")
    if figures.num_messages and figures.is_live:
        signs.append(f"the decoder reported damage in {_lines(figures.num_messages)}")
    if signs:
        yield _problem(" and ".join(signs), network)
    # Frames that arrive in a burst after a silence are dropped on purpose: the newest frame wins.
    if not figures.num_gaps and figures.num_dropped > _MAX_DROPPED * num_seen:
        yield _problem(
            f"this machine was too slow for {figures.num_dropped} of {num_seen + figures.num_dropped} frames",
            "Use the sub-stream or a hardware decoder, or stop other programs on this machine.",
        )


def _rate(figures: StreamFigures) -> list[Finding]:
    stated, fps = figures.stated_fps, figures.fps
    if fps is None:
        return [_problem("only one frame arrived", "Measure longer (--seconds), and check the camera's frame rate.")]
    # Motion JPEG has no rate of its own: FFmpeg states 25.
    if not stated or figures.lag_p50_ms is None or fps >= _MIN_RATE * stated or figures.num_gaps or figures.num_missing:
        return []
    text = f"{fps:.1f} frames per second instead of {stated:g}"
    advice = "Check the camera's exposure (long shutter times at night lower the rate), its load and its bit rate."
    return [_problem(text, advice)]


def _jitter(figures: StreamFigures) -> Iterator[Finding]:
    p50, p99 = figures.interval_p50_ms, figures.interval_p99_ms
    if p50 is not None and p99 is not None and p99 > max(_JITTERY * p50, _JITTERY_MS) and not figures.num_gaps:
        yield _hint(
            f"frames arrive unevenly: half of them within {p50:.0f} ms, 1 in 100 after {p99:.0f} ms or more",
            f"Use a cable instead of Wi-Fi, or a shorter key frame interval; max_age_ms should be above {p99:.0f}.",
        )


def _lag(figures: StreamFigures, config: CaptureConfig) -> list[Finding]:
    growth_ms, span_s = figures.lag_growth_ms, figures.lag_span_s
    if growth_ms is None or growth_ms < max(_GROWTH_MS, _GROWTH_MS_PER_S * span_s):
        return []
    left = ""
    if config.spec.is_rtsp:
        left = " `edgerpn run` adds this lag to the age of a frame, so that results beyond max_age_ms become `stale`."
    rate = f", {figures.fps:.1f} frames per second" if figures.fps is not None else ""
    stated = f" instead of {figures.stated_fps:g}" if rate and figures.stated_fps is not None else ""
    text = f"the video falls behind by {growth_ms:.0f} ms in {span_s:.0f} s{rate}{stated}"
    advice = (
        "The network or the decoder is too slow: lower the camera's bit rate, use its sub-stream or a better network."
    )
    return [_problem(text, f"{advice}{left}")]


def _key_frames(figures: StreamFigures) -> Iterator[Finding]:
    keys, first_s = figures.key_frames, figures.first_frame_s
    advice = "Set the camera's key frame interval (GOP, I-frame interval) to 1 or 2 s."
    interval_s = keys.interval_s if keys.interval_s is not None else keys.longer_than_s
    if interval_s is not None and interval_s > _LONG_KEY_INTERVAL_S:
        more = "" if keys.interval_s is not None else "more than "
        text = f"{more}{interval_s:.1f} s from one key frame to the next: a start or a recovery may take that long"
        yield _hint(text, advice)
    elif first_s is not None and first_s > _LONG_FIRST_FRAME_S:
        yield _hint(f"the first frame took {first_s:.1f} s", f"{advice} A sleeping camera may be slow to wake.")


def _clock(figures: StreamFigures) -> Iterator[Finding]:
    skew_s = figures.clock.skew_s
    if skew_s is not None and abs(skew_s) >= _SKEW_S:
        yield _hint(
            f"the camera's clock is {skew_in_words(skew_s)}",
            "Synchronise the camera and this machine with NTP: times in the camera's pictures and recordings differ "
            "from those in our records, which come from this machine's clock.",
        )


def _load(figures: StreamFigures) -> Iterator[Finding]:
    if figures.is_live and figures.cpu_cores is not None and figures.cpu_cores > _BUSY_CORES:
        yield _hint(
            f"decoding keeps {figures.cpu_cores:.1f} cores busy",
            "Use the sub-stream, a lower frame rate, or a hardware decoder (see `edgerpn doctor`).",
        )


def _size(figures: StreamFigures, network_hw: tuple[int, int] | None) -> Iterator[Finding]:
    if network_hw is None or figures.size_wh is None:
        return
    (height, width), (frame_width, frame_height) = network_hw, figures.size_wh
    # The frame is scaled to fit, so the larger ratio decides.
    ratio = max(frame_width / width, frame_height / height)
    sizes = f"{frame_width}x{frame_height} pictures for a model that works at {width}x{height}"
    if ratio > 2:
        yield _hint(sizes, "The model does not see the finer detail; the sub-stream costs less to send and to decode.")
    elif ratio < 0.5:
        yield _hint(sizes, "Use a larger stream of the camera, or export the model at a smaller size.")


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number} lines"


def _above(seconds: float) -> str:
    """Returns a round setting well above a time."""
    return f"{max(1.0, float(int(1.5 * seconds) + 1)):g}"

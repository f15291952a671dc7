"""Reports of `edgerpn doctor`, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from edgerpn.runtime.doctor.check import SystemCheck
from edgerpn.runtime.doctor.clock import ClockSkew, skew_in_words
from edgerpn.runtime.doctor.figures import StreamFigures
from edgerpn.runtime.doctor.findings import Finding, is_healthy
from edgerpn.runtime.doctor.key_frames import KeyFrames

_WIDTH = 118
_INDENT = 15


def stream_text(figures: StreamFigures, findings: list[Finding]) -> str:
    """Returns the report on a source: figures, then problems and hints with advice."""
    rows = _failed_rows(figures, findings) if figures.state == "failed" else _rows(figures)
    lines = [line for name, value in rows for line in _wrapped(name, value)]
    lines.append("")
    for finding in findings:
        lines += _wrapped(finding.kind.upper() if finding.kind == "problem" else finding.kind, f"{finding.text}.")
        lines += _wrapped("  to do", finding.advice)
    hints = {0: "", 1: ", with 1 hint"}.get(len(findings), f", with {len(findings)} hints")
    lines.append(f"healthy{hints}" if is_healthy(findings) else "not healthy")
    return "\n".join(lines)


def stream_json(figures: StreamFigures, findings: list[Finding]) -> str:
    """Returns the same report as JSON."""
    report = {
        "is_healthy": is_healthy(findings),
        "figures": _rounded(dataclasses.asdict(figures)),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=2)


def system_text(checks: Sequence[SystemCheck]) -> str:
    """Returns the report on this machine."""
    lines = []
    for check in checks:
        mark = {"ok": "ok", "problem": "PROBLEM", "absent": "-"}[check.verdict]
        lines += _wrapped(mark, f"{check.name}: {check.found}", indent=9)
        if check.advice:
            lines += _wrapped("", check.advice, indent=11)
    problems = [check.name for check in checks if check.verdict == "problem"]
    lines += ["", f"to fix: {', '.join(problems)}" if problems else "no problems found"]
    return "\n".join(lines)


def system_json(checks: Sequence[SystemCheck]) -> str:
    """Returns the same report as JSON."""
    is_good = all(check.verdict != "problem" for check in checks)
    return json.dumps({"is_healthy": is_good, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2)


def _failed_rows(figures: StreamFigures, findings: list[Finding]) -> list[tuple[str, str]]:
    reported = " ".join(finding.text for finding in findings)
    lines = [message for message in figures.messages if message not in reported]
    return [("source", figures.source), *(("decoder log", message) for message in lines)]


def _rows(figures: StreamFigures) -> list[tuple[str, str]]:
    keys = figures.key_frames
    bit_rate = "" if keys.bits_per_s is None else f"{keys.bits_per_s / 1e6:.2g} Mbit/s"
    size = "" if figures.size_wh is None else f"{figures.size_wh[0]}x{figures.size_wh[1]}"
    cores = "" if figures.cpu_cores is None else f"; {100 * figures.cpu_cores:.0f} % of one core"
    rows = [
        ("source", figures.source),
        ("picture", ", ".join(word for word in (size, keys.codec, bit_rate) if word)),
        ("decoder", f"{figures.decoder}{cores}"),
        ("first frame", f"after {_number(figures.first_frame_s, 's', 1)}, including the start of its process"),
        ("frame rate", _frame_rate(figures)),
    ]
    if figures.is_live:
        rows += [("intervals", _intervals(figures)), ("lag", _lag(figures)), ("clock", _clock(figures.clock))]
    rows += [("key frames", _key_frames(keys)), ("lost", _lost(figures))]
    rows += [("decoder log", message) for message in figures.messages]
    return rows


def _frame_rate(figures: StreamFigures) -> str:
    stated = "no rate stated" if figures.stated_fps is None else f"{figures.stated_fps:g} stated"
    spent = f"{figures.num_frames} frames in {figures.elapsed_s:.1f} s"
    if not figures.is_live:
        return f"read {_number(figures.fps, 'frames/s', 1)}; {stated}; {spent}"
    return f"{_number(figures.fps, 'frames/s', 1)}; {stated}; {spent}"


def _intervals(figures: StreamFigures) -> str:
    values = (figures.interval_p50_ms, figures.interval_p99_ms, figures.interval_max_ms)
    return "p50 {}, p99 {}, longest {}".format(*(_number(value, "ms", 0) for value in values))


def _lag(figures: StreamFigures) -> str:
    if figures.lag_p50_ms is None or figures.lag_growth_ms is None:
        return "unknown: the source has no clock, its clock jumped, or too few frames arrived"
    lags = f"p50 {_number(figures.lag_p50_ms, 'ms', 0)}, p99 {_number(figures.lag_p99_ms, 'ms', 0)} behind the fastest"
    return f"{lags}; {figures.lag_growth_ms:+.0f} ms in {figures.lag_span_s:.0f} s (a backlog, or drifting clocks)"


def _clock(clock: ClockSkew) -> str:
    if clock.skew_s is None:
        return f"unknown: {clock.why_unknown}"
    return f"the camera's clock is {skew_in_words(clock.skew_s)}"


def _key_frames(keys: KeyFrames) -> str:
    if keys.interval_s is not None:
        return f"at most {keys.interval_s:.1f} s and {keys.interval_frames} frames apart"
    if keys.longer_than_s is not None:
        return f"fewer than two in {keys.longer_than_s:.1f} s"
    return f"unknown: {keys.why_unknown}"


def _lost(figures: StreamFigures) -> str:
    missing = "unknown number" if figures.num_missing is None else figures.num_missing
    counts = (
        (missing, "missing"),
        (figures.num_dropped, "dropped here"),
        (figures.num_gaps, "gaps"),
        (figures.num_stalls, "stalls"),
        (figures.num_reconnects, "reconnects"),
        (figures.num_clock_jumps, "clock jumps"),
        (figures.num_messages, "decoder messages"),
    )
    return ", ".join(f"{value} {name}" for value, name in counts)


def _number(value: float | None, unit: str, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f} {unit}".rstrip()


def _wrapped(name: str, value: str, *, indent: int = _INDENT) -> list[str]:
    head = f"{name:<{indent}}"
    # Addresses and messages of decoders stay in one piece.
    return textwrap.wrap(
        value or "-",
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value

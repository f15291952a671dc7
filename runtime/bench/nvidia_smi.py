"""Lines of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits --loop-ms=...`, for GPUs of workstations.

Source: `nvidia-smi --help-query-gpu`; the bits of the throttle reasons are NVML's nvmlClocksThrottleReasons and
nvmlClocksEventReasons, which newer drivers call them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from edgerpn.machine import run_tool
from edgerpn.runtime.bench.reading import GPU_RAIL, Reading

FIELDS = ("power.draw", "clocks.sm", "clocks.mem", "temperature.gpu", "utilization.gpu")
"""Fields of every version."""

REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""New and old name of the throttle reasons; a version may know one of them only."""

REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits that hold the clocks back; the others mean idle, clocks set by the user, or a GPU that waits for its group."""

_QUERY_S = 20.0


def command(program: str, interval_ms: int) -> tuple[list[str], list[str]]:
    """Returns the words that start the program, and the fields of each line; asks it for the names that it knows."""
    known = [name for name in REASON_FIELDS if query(program, [name])]
    fields = [*FIELDS, *known[:1]]
    return [*_words(program, fields), f"--loop-ms={interval_ms}"], fields


def query(program: str, fields: Sequence[str]) -> list[str]:
    """Returns the values of fields of the GPU once; empty if the program does not know one of them, or fails."""
    try:
        status, output = run_tool(_words(program, fields), timeout_s=_QUERY_S)
    except OSError:
        return []
    values = [value.strip() for value in output.decode("utf-8", "replace").strip().split(",")]
    return values if status == 0 and len(values) == len(fields) else []


def _words(program: str, fields: Sequence[str]) -> list[str]:
    # The GPU that CUDA calls 0; with several, CUDA's order may differ from that of nvidia-smi unless this names one.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return [program, f"--id={visible or 0}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def parse_line(line: str, fields: Sequence[str], at_s: float) -> Reading | None:
    """Returns the reading of one line; None if it holds none, as on a Jetson, where most fields are [N/A].

    Args:
        line: Values, separated by commas.
        fields: Their names, see `command`.
        at_s: `time.monotonic()` when it came.
    """
    values = dict(zip(fields, (value.strip() for value in line.split(",")), strict=False))

    def named(**names: str) -> dict[str, float]:
        found = {name: _number(values.get(field, "")) for name, field in names.items()}
        return {name: value for name, value in found.items() if value is not None}

    power_w = named(**{GPU_RAIL: "power.draw"})
    clock_mhz = named(GPU="clocks.sm", memory="clocks.mem")
    temperature_c = named(GPU="temperature.gpu")
    load_percent = named(GPU="utilization.gpu")
    mask = next((_mask(values[name]) for name in REASON_FIELDS if name in values), 0)
    if not (power_w or clock_mhz or temperature_c or load_percent):
        return None
    return Reading(
        at_s=at_s,
        power_w=power_w,
        clock_mhz=clock_mhz,
        temperature_c=temperature_c,
        load_percent=load_percent,
        throttling=tuple(f"GPU: {reason}" for bit, reason in REASONS.items() if mask & bit),
    )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _mask(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0

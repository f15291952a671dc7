"""Readings of power, clocks, temperatures and throttling, whichever tool or file they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

INPUT_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed a whole Jetson: Thor, modules of the size of Orin NX, Jetson Nano. An AGX Xavier or AGX Orin measures
no such rail."""

INNER_RAILS = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails that another rail feeds, whose power includes theirs: on an AGX Orin that of the memory (Jetson Linux Developer
Guide r36.4.3, Software-Based Power Consumption Modeling)."""

GPU_RAIL, CPU_RAIL = "GPU", "CPU package"
"""Names of the power of an NVIDIA GPU (nvidia-smi) and of the packages of a CPU (RAPL)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One look at a machine; a quantity that a tool does not know is missing."""

    at_s: float
    """`time.monotonic()` when it was read."""
    power_w: Mapping[str, float] = field(default_factory=dict)
    """Watts by rail."""
    clock_mhz: Mapping[str, float] = field(default_factory=dict)
    """Megahertz by unit: GPU, memory, CPU (its fastest core)."""
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    """Degrees Celsius by sensor."""
    load_percent: Mapping[str, float] = field(default_factory=dict)
    """Load by unit."""
    throttling: tuple[str, ...] = ()
    """Reasons for which clocks are held back at this moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A quantity over a span of time."""

    mean: float
    """Mean of its readings."""
    min: float
    """The smallest."""
    max: float
    """The largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """The readings of a phase of a run, summed up."""

    num_readings: int
    """Readings in the phase, of all tools."""
    power_w: dict[str, Range]
    """Watts by rail."""
    clock_mhz: dict[str, Range]
    """Megahertz by unit."""
    temperature_c: dict[str, Range]
    """Degrees Celsius by sensor."""
    load_percent: dict[str, Range]
    """Load by unit."""
    throttling: dict[str, int]
    """Number of readings by the reason for which clocks were held back; empty: never seen."""
    total_w: float | None
    """Mean power of what `total_of` names, watts; None: no reading."""
    total_of: tuple[str, ...]
    """Rails that the total is the sum of."""


def summarize(readings: Sequence[Reading], *, prefers_gpu: bool) -> Telemetry:
    """Sums up readings.

    Args:
        readings: Those of one phase.
        prefers_gpu: Whether the model runs on the GPU, whose power then counts where the machine's is unknown.
    """
    power_w = _ranges(reading.power_w for reading in readings)
    total_of = _total_of(power_w, prefers_gpu=prefers_gpu)
    reasons = sorted({reason for reading in readings for reason in reading.throttling})
    return Telemetry(
        num_readings=len(readings),
        power_w=power_w,
        clock_mhz=_ranges(reading.clock_mhz for reading in readings),
        temperature_c=_ranges(reading.temperature_c for reading in readings),
        load_percent=_ranges(reading.load_percent for reading in readings),
        throttling={reason: sum(reason in reading.throttling for reading in readings) for reason in reasons},
        total_w=round(sum(power_w[name].mean for name in total_of), 3) if total_of else None,
        total_of=total_of,
    )


def _total_of(rails: Iterable[str], *, prefers_gpu: bool) -> tuple[str, ...]:
    """Names the rails whose sum is the power that the run costs; those of a Jetson before GPU and CPU alone."""
    names = list(rails)
    for rail in INPUT_RAILS:
        if rail in names:
            return (rail,)
    of_board = tuple(name for name in names if name not in (GPU_RAIL, CPU_RAIL) and INNER_RAILS.get(name) not in names)
    if of_board:
        return of_board
    order = (GPU_RAIL, CPU_RAIL) if prefers_gpu else (CPU_RAIL,)
    return next(((name,) for name in order if name in names), ())


def _ranges(readings: Iterable[Mapping[str, float]]) -> dict[str, Range]:
    values: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in reading.items():
            values.setdefault(name, []).append(value)
    return {
        name: Range(mean=round(sum(found) / len(found), 3), min=round(min(found), 3), max=round(max(found), 3))
        for name, found in values.items()
    }

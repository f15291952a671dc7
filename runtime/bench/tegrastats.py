"""Lines of NVIDIA's tegrastats, of JetPack 4 to 7.

    09-01-2026 12:00:00 RAM 6982/7620MB (lfb 5x1MB) CPU [97%@1984,off] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713]
    cpu@65.5C tj@65.5C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW

A rail is its power now, then its mean (and, on Thor, its maximum) since the start; JetPack 4 leaves the unit out. A
temperature on Thor has its maximum behind a slash. Frequencies are missing without root. The GPU has one frequency, a
list of one for each of its clusters, or only that list.

Source: NVIDIA Jetson Linux Developer Guide, tegrastats Utility (releases r32.5, r35, r36 and r38).
"""

from __future__ import annotations

import re

from edgerpn.runtime.bench.reading import Reading

_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
_GPU = re.compile(r"(?<!\S)GR3D_FREQ\s+(?:(\d+)%)?(?:@(?:\[([^\]]*)\]|(\d+)))?")
_MEMORY = re.compile(r"(?<!\S)EMC_FREQ\s+(?:(\d+)%)?(?:@(\d+))?")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\](?:@(\d+))?")
_COLDEST_C = -50.0
_UNCONNECTED = ("PMIC", "NC")
"""A sensor that reports a constant 100 C, and channels that nothing is connected to."""


def parse_line(line: str, at_s: float) -> Reading | None:
    """Returns the reading of one line; None if it holds none.

    Args:
        line: A line of tegrastats.
        at_s: `time.monotonic()` when it came.
    """
    power_w = {name: int(power) / 1000 for name, power in _RAIL.findall(line) if name not in _UNCONNECTED}
    # A sensor that is switched off reports -256 C.
    temperature_c = {
        name: float(value)
        for name, value in _TEMPERATURE.findall(line)
        if name not in _UNCONNECTED and float(value) > _COLDEST_C
    }
    clock_mhz: dict[str, float] = {}
    load_percent: dict[str, float] = {}
    _read_gpu(line, clock_mhz, load_percent)
    if memory := _MEMORY.search(line):
        _put(load_percent, "memory", memory[1])
        _put(clock_mhz, "memory", memory[2])
    _read_cpu(line, clock_mhz, load_percent)
    if not (power_w or temperature_c or clock_mhz or load_percent):
        return None
    return Reading(
        at_s=at_s, power_w=power_w, clock_mhz=clock_mhz, temperature_c=temperature_c, load_percent=load_percent
    )


def _read_gpu(line: str, clock_mhz: dict[str, float], load_percent: dict[str, float]) -> None:
    found = _GPU.search(line)
    if found is None:
        return
    _put(load_percent, "GPU", found[1])
    clusters = re.findall(r"\d+", found[2] or found[3] or "")
    if clusters:
        clock_mhz["GPU"] = max(map(float, clusters))


def _read_cpu(line: str, clock_mhz: dict[str, float], load_percent: dict[str, float]) -> None:
    found = _CPU.search(line)
    if found is None:
        return
    loads = [float(load) for load in re.findall(r"(\d+)%", found[1])]
    clocks = [float(clock) for clock in re.findall(r"@(\d+)", f"{found[1]}@{found[2] or ''}")]
    if loads:
        load_percent["CPU"] = sum(loads) / len(loads)
    if clocks:
        clock_mhz["CPU"] = max(clocks)


def _put(values: dict[str, float], name: str, text: str | None) -> None:
    if text is not None:
        values[name] = float(text)

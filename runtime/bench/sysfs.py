"""Readings from the kernel's files: power rails, CPU energy, clocks, temperatures and throttling.

    class/hwmon/hwmonN/      name ina3221: inC_label, inC_input (mV), currC_input (mA); name ina238: power1_input (uW)
                             ocN_event_cnt: over-current events of a Jetson
    class/powercap/          intel-rapl:N: energy_uj, max_energy_range_uj; often for root only
    class/thermal/           thermal_zoneN: type, temp (mC); cooling_deviceN: type, cur_state (0: idle)
    class/devfreq/           the GPU of a Jetson: cur_freq, min_freq, max_freq (Hz)
    devices/system/cpu/      cpuN/cpufreq/scaling_cur_freq (kHz), cpuN/thermal_throttle/core_throttle_count
    /proc/cpuinfo            cpu MHz: the clock of each core where there is no cpufreq, as in virtual machines

Source: the kernel's documentation (hwmon/ina3221, hwmon/ina238, power/powercap, thermal, cpufreq) and NVIDIA's Jetson
Linux Developer Guide for the over-current events. Not run on a Jetson.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from edgerpn.runtime.bench.reading import CPU_RAIL, Reading

SYS, CPUINFO = Path("/sys"), Path("/proc/cpuinfo")

_POWER_CHIPS = re.compile(r"ina\d")
_GPU_NAMES = re.compile(r"gpu|ga10b|gv11b|gp10b|gpc")
_SLOWING = re.compile(r"cpufreq|devfreq|throttle|^Processor$")
"""Types of cooling devices that lower clocks; the others are fans and alerts."""
_COLDEST_C = -50.0
_CPU_FOLDERS = "devices/system/cpu/cpu[0-9]*/cpufreq"
_EVENTS = {
    "class/hwmon/hwmon*/oc*_event_cnt": "over-current",
    "devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count": "CPU: thermal",
}
"""Files that count events, and the reason that their growth shows."""


class SysfsProbe:
    """Reads the files of one machine; energy and counted events are compared with the previous reading."""

    def __init__(self, root: Path = SYS, *, cpuinfo: Path = CPUINFO, has_tegrastats: bool = False) -> None:
        """Finds the files.

        Args:
            root: Folder of the file system sysfs.
            cpuinfo: The kernel's list of cores.
            has_tegrastats: Whether rails, clocks and temperatures come from tegrastats.
        """
        self._rails = {} if has_tegrastats else dict(_find_rails(root))
        self._zones = [] if has_tegrastats else _found(root, "class/thermal/thermal_zone*")
        self._cpu_clocks = [] if has_tegrastats else _found(root, _CPU_FOLDERS)
        self._cpuinfo = None if has_tegrastats or self._cpu_clocks else cpuinfo
        self._gpus = [] if has_tegrastats else list(_gpu_folders(root))
        self._cooling = [
            (text, folder / "cur_state")
            for folder in _found(root, "class/thermal/cooling_device*")
            if _SLOWING.search(text := _text(folder / "type"))
        ]
        self._packages = [
            folder
            for folder in _found(root, "class/powercap/*rapl:*")
            # intel-rapl:0 is a package, intel-rapl:0:1 a part of it.
            if folder.name.count(":") == 1 and _number(folder / "energy_uj") is not None
        ]
        self._energy: dict[Path, tuple[float, float]] = {}
        self._events = {file: reason for pattern, reason in _EVENTS.items() for file in _found(root, pattern)}
        self._counted = {file: _number(file) for file in self._events}

    def read(self) -> Reading | None:
        """Returns a reading; None if this machine shows nothing."""
        at_s = time.monotonic()
        power_w = {name: watts for name, rail in self._rails.items() if (watts := rail.watts()) is not None}
        package_w = [watts for folder in self._packages if (watts := self._package_w(folder, at_s)) is not None]
        if package_w:
            power_w[CPU_RAIL] = sum(package_w)
        clock_mhz = self._clock_mhz()
        temperature_c = {
            _text(zone / "type"): celsius
            for zone in self._zones
            if (celsius := _scaled(zone / "temp", 1e-3)) is not None and celsius > _COLDEST_C
        }
        throttling = (*self._active_cooling(), *self._new_events())
        if not (power_w or clock_mhz or temperature_c or throttling or self._cooling):
            return None
        return Reading(
            at_s=at_s, power_w=power_w, clock_mhz=clock_mhz, temperature_c=temperature_c, throttling=throttling
        )

    def _clock_mhz(self) -> dict[str, float]:
        cpu = [mhz for folder in self._cpu_clocks if (mhz := _scaled(folder / "scaling_cur_freq", 1e-3)) is not None]
        if self._cpuinfo is not None:
            cpu = [
                float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*(\d+(?:\.\d+)?)", _text(self._cpuinfo), re.MULTILINE)
            ]
        gpu = [mhz for folder in self._gpus if (mhz := _scaled(folder / "cur_freq", 1e-6)) is not None]
        return {name: max(values) for name, values in (("CPU", cpu), ("GPU", gpu)) if values}

    def _package_w(self, folder: Path, at_s: float) -> float | None:
        """Watts of a CPU package since the previous reading; its counter of energy starts again at a maximum."""
        energy_uj = _number(folder / "energy_uj")
        if energy_uj is None:
            return None
        before = self._energy.get(folder)
        self._energy[folder] = (energy_uj, at_s)
        if before is None or at_s <= before[1]:
            return None
        grown_uj = energy_uj - before[0]
        if grown_uj < 0:
            grown_uj += _number(folder / "max_energy_range_uj") or 0.0
        return grown_uj * 1e-6 / (at_s - before[1]) if grown_uj >= 0 else None

    def _active_cooling(self) -> Iterator[str]:
        active = {kind for kind, file in self._cooling if (_number(file) or 0.0) > 0}
        yield from (f"cooling: {kind}" for kind in sorted(active))

    def _new_events(self) -> Iterator[str]:
        grown = set()
        for file, reason in self._events.items():
            count = _number(file)
            if count is not None and count > (self._counted[file] or 0.0):
                grown.add(reason)
            self._counted[file] = count
        yield from sorted(grown)


def has_pinned_clocks(root: Path = SYS) -> bool | None:
    """Whether CPU and GPU may run at one frequency only, as `jetson_clocks` sets them; None if unknown."""
    cpus = [(folder / "scaling_min_freq", folder / "scaling_max_freq") for folder in _found(root, _CPU_FOLDERS)]
    gpus = [(folder / "min_freq", folder / "max_freq") for folder in _gpu_folders(root)]
    limits = [(_number(least), _number(most)) for least, most in (*cpus, *gpus)]
    known = [(least, most) for least, most in limits if least is not None and most is not None]
    return all(least == most for least, most in known) if known else None


class _Rail:
    """One measured power rail."""

    def __init__(self, *, power: Path | None = None, volts: Path | None = None, amperes: Path | None = None) -> None:
        self._power, self._volts, self._amperes = power, volts, amperes

    def watts(self) -> float | None:
        if self._power is not None:
            return _scaled(self._power, 1e-6)
        assert self._volts is not None
        assert self._amperes is not None
        millivolts, milliamperes = _number(self._volts), _number(self._amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes * 1e-6


def _find_rails(root: Path) -> Iterator[tuple[str, _Rail]]:
    for chip in _found(root, "class/hwmon/hwmon*"):
        if not _POWER_CHIPS.match(_text(chip / "name")):
            continue
        for label in sorted(chip.glob("in[0-9]_label")):
            number, name = label.name[2], _text(label)
            current = chip / f"curr{number}_input"
            # Without a current it is the chip's own sum of shunt voltages.
            if name and name != "NC" and current.exists():
                yield name, _Rail(volts=chip / f"in{number}_input", amperes=current)
        if (chip / "power1_input").exists() and (name := _text(chip / "label")):
            yield name, _Rail(power=chip / "power1_input")


def _gpu_folders(root: Path) -> Iterator[Path]:
    return (folder for folder in _found(root, "class/devfreq/*") if _GPU_NAMES.search(folder.name))


def _found(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None


def _scaled(file: Path, factor: float) -> float | None:
    value = _number(file)
    return None if value is None else value * factor

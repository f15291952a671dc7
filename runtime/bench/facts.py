"""The artifact and the machine of a benchmark, as far as somebody who repeats it must know them."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgerpn
from edgerpn import files, settings
from edgerpn.machine import (
    available_bytes,
    available_cores,
    board_model,
    cpu_name,
    installed_packages,
    jetson_linux,
    kib_fields,
    power_mode,
    run_tool,
)
from edgerpn.manifest import Manifest
from edgerpn.runtime.bench import nvidia_smi
from edgerpn.runtime.bench.sysfs import has_pinned_clocks
from edgerpn.runtime.opencv import load_cv2

_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-lean-cu13", "tensorrt-rtx-cu13", "cuda-bindings",
    "faster-coco-eval",
)  # fmt: skip
_QUERY_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactFacts:
    """The measured file."""

    file: str
    """Its path, as given."""
    sha256: str
    """Hash of the file."""
    num_bytes: int
    """Its size."""
    manifest: dict[str, Any]
    """Its whole manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFacts:
    """The machine; None: unknown, or it has none."""

    board: str | None
    """Name of the board by the kernel's device tree."""
    cpu: str
    """Name of the processor."""
    cores: int
    """Cores that this process may use."""
    memory_mib: int
    """Memory in all."""
    gpu: str | None
    """Name, driver and power limit of the GPU by nvidia-smi."""
    system: str
    """Kernel and system library."""
    jetson_linux: str | None
    """Release of Jetson Linux."""
    power_mode: str | None
    """Number and name of the power mode by nvpmodel."""
    has_pinned_clocks: bool | None
    """Whether CPU and GPU may run at one frequency only, as jetson_clocks sets them."""
    load_average: float
    """Processes that ran or waited in the minute before."""
    python: str
    """Version of Python."""
    versions: dict[str, str]
    """Versions of the installed libraries that take part."""

    @property
    def title(self) -> str:
        """Board or GPU, else the processor."""
        return self.board or self.gpu or f"{self.cpu}, {self.cores} cores"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFacts:
    """The memory that the run took, decoded frames included."""

    process_peak_mib: int
    """Most resident memory of this process."""
    machine_growth_mib: int | None
    """Decrease of the memory that is available on the machine, from before loading to the end of the timed phases; on
    a Jetson it includes that of the GPU. Other programs are in it. None: unknown."""


class MemoryWatch:
    """Measures the memory of a run from its start."""

    def __init__(self) -> None:
        self._before = available_bytes()

    def finish(self) -> MemoryFacts:
        """Returns the memory at this moment, when the model is still loaded."""
        now = available_bytes()
        return MemoryFacts(
            process_peak_mib=kib_fields(Path("/proc/self/status")).get("VmHWM", 0) >> 10,
            machine_growth_mib=None if self._before is None or now is None else (self._before - now) >> 20,
        )


def describe_artifact(path: Path, manifest: Manifest) -> ArtifactFacts:
    """Describes a file; `manifest` is the one that was checked when it was loaded."""
    return ArtifactFacts(
        file=os.fspath(path),
        sha256=files.sha256(path),
        num_bytes=path.stat().st_size,
        manifest=settings.to_dict(manifest),
    )


def describe_machine() -> MachineFacts:
    """Describes this machine, at rest: before the run."""
    installed = installed_packages()
    return MachineFacts(
        board=board_model(),
        cpu=cpu_name(),
        cores=available_cores(),
        memory_mib=kib_fields(Path("/proc/meminfo")).get("MemTotal", 0) >> 10,
        gpu=_gpu(),
        system=platform.platform(),
        jetson_linux=jetson_linux(),
        power_mode=power_mode() or _queried_power_mode(),
        has_pinned_clocks=has_pinned_clocks(),
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        versions={
            "edgerpn": edgerpn.__version__,
            "OpenCV": load_cv2().__version__,
            **{package: installed[package] for package in _PACKAGES if package in installed},
        },
    )


def parse_power_mode(text: str) -> str | None:
    """Returns number and name of the mode in the output of `nvpmodel -q`: "NV Power Mode: 15W", then "0"."""
    name = re.search(r"NV Power Mode:\s*(\S+)", text)
    number = re.search(r"^\s*(\d+)\s*$", text, re.MULTILINE)
    words = [found[1] for found in (number, name) if found is not None]
    return " ".join(words) or None


def _queried_power_mode() -> str | None:
    program = shutil.which("nvpmodel", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        _, output = run_tool([program, "-q"], timeout_s=_QUERY_S)
    except OSError:
        return None
    return parse_power_mode(output.decode("utf-8", "replace"))


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    values = nvidia_smi.query(program, ["name", "driver_version", "power.limit"]) if program else []
    if not values:
        return None
    name, driver, limit = values
    return f"{name}, driver {driver}" + (f", power limit {limit} W" if re.match(r"\d", limit) else "")

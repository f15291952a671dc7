"""The report of a benchmark: everything that was measured, and the row of it that people compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgerpn.runtime.bench.config import BenchConfig
from edgerpn.runtime.bench.facts import ArtifactFacts, MachineFacts, MemoryFacts
from edgerpn.runtime.bench.phases import Distribution, Phase
from edgerpn.runtime.bench.reading import Reading, Telemetry

SCHEMA = 1
"""Schema number of the report; raised when a field changes its name or meaning."""

MADE_UP = "made-up"
"""Origin of frames that are no photographs."""

_FEW_READINGS = 3
_SHARE_OF_CORES = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallFacts:
    """Recall of the very run."""

    data: str
    """The data set, as given."""
    data_sha256: str
    """Hash of its annotations."""
    num_images: int
    """Images."""
    metrics: dict[str, float]
    """AR@10, AR@100, ..., 0..1; without those at more proposals than the model gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFacts:
    """The frames of a benchmark."""

    origin: str
    """made-up, or the folder or data set of the photographs."""
    num_images: int
    """Different pictures."""
    num_kept: int
    """Pictures that were in memory and took part in the timed phases."""
    sizes_hw: tuple[tuple[int, int], ...]
    """Heights and widths of those, at most ten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseReport:
    """One timed phase, and the machine meanwhile."""

    phase: Phase
    """Rates and durations."""
    telemetry: Telemetry
    """Power, clocks, temperatures, throttling."""
    frames_per_joule: float | None
    """Frames per second over watts; None: the power is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """A benchmark of one artifact on one machine."""

    schema: int = SCHEMA
    """Schema number."""
    created: str
    """End of the run, UTC."""
    command: str
    """Command line that repeats it."""
    artifact: ArtifactFacts
    """The measured file."""
    machine: MachineFacts
    """The machine."""
    memory: MemoryFacts
    """Memory of the run."""
    backend: str
    """Library, version and device that ran the model."""
    is_cpu: bool
    """Whether the CPU ran it."""
    slots: int
    """Callers of the model in the throughput phase."""
    settings: BenchConfig
    """Durations and limits."""
    frames: FrameFacts
    """The frames."""
    serial: PhaseReport
    """One frame after the other."""
    throughput: PhaseReport
    """The runner with every slot busy."""
    parts_ms: dict[str, Distribution] = field(default_factory=dict)
    """Upload, inference and download of an engine, each waited for and without a CUDA graph; empty for other models."""
    recall: RecallFacts | None = None
    """Recall; None without a data set."""
    tools: tuple[str, ...] = ()
    """Tools that gave readings: tegrastats, nvidia-smi, sysfs."""
    readings: tuple[Reading, ...] = ()
    """All readings of the timed phases; `at_s` counts from the start of the serial phase."""

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the figures, a line each."""
        return [*_about_machine(self), *_about_phase("serial", self), *_about_phase("throughput", self)]

    @property
    def row(self) -> dict[str, str | float | None]:
        """The figures to compare, with what identifies them."""
        metrics = self.recall.metrics if self.recall is not None else {}
        manifest = self.artifact.manifest
        height, width = manifest["input"]["network_hw"]
        return {
            "model": manifest["name"],
            "sha256": self.artifact.sha256[:12],
            "precision": manifest["precision"],
            "input": f"{height}x{width}",
            "device": self.machine.title,
            "power_mode": self.machine.power_mode,
            "backend": self.backend,
            **{name: metrics.get(name) for name in ("AR@10", "AR@100", "AR@1000")},
            "latency_p50_ms": self.serial.phase.stage_ms["total"].p50,
            "latency_p99_ms": self.serial.phase.stage_ms["total"].p99,
            "frames_per_s": self.throughput.phase.frames_per_s,
            "watts": self.throughput.telemetry.total_w,
            "frames_per_joule": self.throughput.frames_per_joule,
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON takes it, the row and the warnings first."""
        return {"schema": self.schema, "row": self.row, "warnings": self.warnings, **dataclasses.asdict(self)}

    def text(self) -> str:
        """Returns the report for people, without the readings."""
        return "\n".join([*self._heading(), *self._stages(), *self._rates(), *self._recall(), *self._warnings()])

    def _heading(self) -> list[str]:
        row = self.row
        mode = f", power mode {self.machine.power_mode}" if self.machine.power_mode else ""
        return [
            f"{row['model']}, {row['precision']}, {row['input']}, sha256 {row['sha256']}",
            f"{self.machine.title}{mode}; {self.backend}",
            f"frames: {self.frames.origin}, {self.frames.num_kept} of {self.frames.num_images} in memory",
        ]

    def _stages(self) -> list[str]:
        lines = ["", f"{'one frame after the other, ms':<32}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}"]
        stages = {**self.serial.phase.stage_ms, **{f"{name} (alone)": ms for name, ms in self.parts_ms.items()}}
        for name, ms in stages.items():
            lines.append(f"  {name:<30}{ms.p50:>9.2f}{ms.p90:>9.2f}{ms.p99:>9.2f}{ms.max:>9.2f}")
        return [*lines, ""]

    def _rates(self) -> list[str]:
        lines = []
        for name, report in (("serial", self.serial), ("throughput", self.throughput)):
            lines.append(
                f"{name:<11}{report.phase.frames_per_s:8.1f} frames/s, drift {report.phase.drift_percent:+.1f} %"
                f"{power_text(report)}"
            )
        return [*lines, f"memory     {memory_text(self.memory)}"]

    def _recall(self) -> list[str]:
        if self.recall is None:
            return []
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.recall.metrics.items())
        return [f"recall on {self.recall.num_images} images: {shown}"]

    def _warnings(self) -> list[str]:
        return [f"warning: {line}" for line in self.warnings]


def memory_text(memory: MemoryFacts) -> str:
    """Returns the memory as text."""
    growth = memory.machine_growth_mib
    # Below zero other programs have freed more than the run took, so that it says nothing about the run.
    machine = "" if growth is None or growth < 0 else f", {growth:,} MiB less available on the machine"
    return f"{memory.process_peak_mib:,} MiB at most in this process{machine}"


def power_text(report: PhaseReport) -> str:
    """Returns power and frames per joule behind a comma; empty when the power is unknown."""
    telemetry = report.telemetry
    if telemetry.total_w is None or report.frames_per_joule is None:
        return ""
    return f", {telemetry.total_w:.2f} W ({' + '.join(telemetry.total_of)}), {report.frames_per_joule:.2f} frames/J"


def make_phase_report(phase: Phase, telemetry: Telemetry) -> PhaseReport:
    """Joins a phase and the readings meanwhile."""
    watts = telemetry.total_w
    per_joule = phase.frames_per_s / watts if watts is not None and watts > 0 else None
    return PhaseReport(phase=phase, telemetry=telemetry, frames_per_joule=per_joule)


def _about_machine(report: BenchReport) -> Sequence[str]:
    machine, lines = report.machine, []
    if machine.load_average > _SHARE_OF_CORES * machine.cores:
        lines.append(
            f"other programs used this machine before the run (load average {machine.load_average}, {machine.cores} "
            "cores); end them"
        )
    if machine.jetson_linux is not None and machine.has_pinned_clocks is False:
        lines.append("the clocks follow the load; for figures that repeat: sudo jetson_clocks")
    if report.throughput.telemetry.total_w is None:
        lines.append("the power is unknown: no tool or file here shows it to this user")
    return lines


def _about_phase(name: str, report: BenchReport) -> Sequence[str]:
    measured: PhaseReport = getattr(report, name)
    phase, telemetry, lines = measured.phase, measured.telemetry, []
    for reason, count in telemetry.throttling.items():
        lines.append(f"{name}: throttled in {count} of {telemetry.num_readings} readings ({reason})")
    if abs(phase.drift_percent) > report.settings.max_drift_percent:
        remedy = "cool the machine" if phase.drift_percent < 0 else "raise warm_up_s"
        lines.append(
            f"{name}: the rate changed by {phase.drift_percent:+.1f} % from the first to the last third; {remedy}, or "
            "end other programs"
        )
    if telemetry.total_w is not None and telemetry.num_readings < _FEW_READINGS:
        lines.append(f"{name}: only {telemetry.num_readings} readings; raise {name}_s")
    return lines

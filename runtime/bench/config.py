"""Settings of `edgerpn bench`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgerpn.errors import check_setting
from edgerpn.runtime.backends.contract import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Durations and limits of a benchmark."""

    warm_up_s: float = 10.0
    """Seconds with every slot busy before anything counts; clocks and temperature settle."""
    serial_s: float = 20.0
    """Seconds of one frame after the other: the latency that one live camera sees."""
    throughput_s: float = 30.0
    """Seconds through the runner with every slot busy."""
    sources: int = 1
    """Sources at once in the throughput phase; their frames share batches."""
    frame_hw: tuple[int, int] = (1080, 1920)
    """Height and width of made-up frames, for a model that takes frames of any size."""
    frames_mib: int = 512
    """Memory for decoded frames; the other images of a data set run after the clock has stopped."""
    sample_ms: int = 500
    """Time between two readings of power, clocks and temperature, milliseconds."""
    max_drift_percent: float = 5.0
    """Change of the rate from the first to the last third of a phase that causes a warning, percent."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """A loaded engine."""

    def __post_init__(self) -> None:
        for name in ("warm_up_s", "serial_s", "throughput_s"):
            check_setting(0 <= getattr(self, name) <= 86_400, name, "0 to 86400", getattr(self, name))
        check_setting(1 <= self.sources <= 64, "sources", "1 to 64", self.sources)
        check_setting(all(1 <= side <= 16_384 for side in self.frame_hw), "frame_hw", "1 to 16384", self.frame_hw)
        check_setting(1 <= self.frames_mib <= 1 << 20, "frames_mib", "1 to 1048576", self.frames_mib)
        check_setting(50 <= self.sample_ms <= 60_000, "sample_ms", "50 to 60000", self.sample_ms)
        check_setting(
            math.isfinite(self.max_drift_percent) and self.max_drift_percent > 0,
            "max_drift_percent",
            "above 0",
            self.max_drift_percent,
        )

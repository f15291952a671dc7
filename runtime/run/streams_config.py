"""Settings of a run: its sources, its batches, and the limits of its results."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from edgerpn.errors import check_setting
from edgerpn.runtime.backends.contract import EngineConfig
from edgerpn.runtime.backends.served.config import ServerConfig
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.zones import Outline, ZoneConfig, ZoneMap, check_areas

MAX_SOURCES = 100
"""Sources of one run at most: each live one has a process, each file a thread."""
_MAX_AGE_MS = 2000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(CaptureConfig):
    """One source of a run: its capture, the largest age of its results, and the parts of its picture."""

    max_age_ms: float | None = None
    """Age at emission above which a frame of a live source becomes an event `stale` instead of a result, milliseconds;
    0: no limit. None: 2000, and no limit under the policy `every`. Images and video files have no limit, those of a web
    server included."""
    zones: tuple[ZoneConfig, ...] = ()
    """Parts of the picture with names, tables of `name`, `points` and `anchor`: records name the zones in which each
    proposal stands."""
    masks: tuple[Outline, ...] = ()
    """Outlines of parts of the picture without proposals."""
    mask_share: float = 0.5
    """Share of its area in one mask from which a proposal is left out, above 0, to 1."""
    zones_wh: tuple[int, int] | None = None
    """Width and height of the frame in whose pixels the points of zones and masks are; None: the points are shares of
    the frame, 0 to 1. Frames may have any size in both cases."""

    def __post_init__(self) -> None:
        # By name: a dataclass with slots is a second class, and super() without arguments knows the first only.
        CaptureConfig.__post_init__(self)
        is_age = self.max_age_ms is None or (math.isfinite(self.max_age_ms) and self.max_age_ms >= 0)
        check_setting(is_age, "max_age_ms", "0 or more", self.max_age_ms)
        check_setting(self.network_hw is None, "network_hw", "no value; the run sets it", self.network_hw)
        check_setting(0 < self.mask_share <= 1, "mask_share", "above 0, to 1", self.mask_share)
        is_size = self.zones_wh is None or (len(self.zones_wh) == 2 and min(self.zones_wh) > 0)
        check_setting(is_size, "zones_wh", "two positive sizes", self.zones_wh)
        check_areas(self.zones, self.masks, self.zones_wh)

    @property
    def is_live(self) -> bool:
        """Whether the source continues when the run does not read it; a URL counts as live, even that of a file."""
        return self.spec.is_live

    @property
    def is_read_here(self) -> bool:
        """Whether a thread of this process reads the source; a capture process reads all others.

        So it is for files and images, unless their settings ask for a decoder or a policy of capture processes.
        """
        return not self.is_live and self.policy in ("auto", "every") and self.decoder == "auto"

    @property
    def capture(self) -> CaptureConfig:
        """The settings of its capture process."""
        return CaptureConfig(**{item.name: getattr(self, item.name) for item in fields(CaptureConfig)})

    @property
    def zone_map(self) -> ZoneMap | None:
        """The zones and masks, ready for frames; a new object each time. None: there are none."""
        if not (self.zones or self.masks):
            return None
        return ZoneMap(self.zones, self.masks, mask_share=self.mask_share, size_wh=self.zones_wh)

    @property
    def age_limit_ms(self) -> float:
        """Age above which a frame of a live connection is stale, milliseconds; infinity: no limit."""
        limit_ms = self.max_age_ms
        if limit_ms is None:
            limit_ms = 0.0 if self.policy == "every" else _MAX_AGE_MS
        return limit_ms if self.is_live and limit_ms > 0 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """Settings of batches: frames of several sources in one inference."""

    max_batch: int = 0
    """Maximum number of frames in one inference, each of another source; 0: the batch that the model is made for, and
    1 on a CPU, where a batch takes as long as its frames one by one."""
    batch_wait_ms: float = 5.0
    """Maximum time that a frame waits for those of other sources, milliseconds; 0: no wait."""
    preprocess_threads: int = 0
    """Threads that prepare the frames of a batch; 0: half of the cores, at most 4."""

    def __post_init__(self) -> None:
        check_setting(0 <= self.max_batch <= 256, "max_batch", "0 to 256", self.max_batch)
        check_setting(
            math.isfinite(self.batch_wait_ms) and 0 <= self.batch_wait_ms <= 10_000,
            "batch_wait_ms",
            "0 to 10000",
            self.batch_wait_ms,
        )
        check_setting(0 <= self.preprocess_threads <= 64, "preprocess_threads", "0 to 64", self.preprocess_threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamsConfig:
    """Settings of a run; it keeps `batching.preprocess_threads`, `track`, `engine`, `server` and `http` to its end."""

    sources: tuple[SourceConfig, ...] = ()
    """The sources, with different names."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    """Batches."""
    min_score: float = 0.0
    """Proposals scored below this are left out everywhere, 0 to 1."""
    track: TrackConfig | None = None
    """Tracks; None: the run follows no objects."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """A loaded engine."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """A server that runs the model."""
    http: HttpConfig = field(default_factory=HttpConfig)
    """Web page and API."""

    def __post_init__(self) -> None:
        for source in self.sources:
            if not isinstance(source, SourceConfig):
                raise TypeError(f"sources: expected SourceConfig objects, got a {type(source).__name__} among them")
        kinds = {"batching": BatchingConfig, "engine": EngineConfig, "server": ServerConfig, "http": HttpConfig}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}: expected a {kind.__name__}, got {getattr(self, name)!r}")
        if not (self.track is None or isinstance(self.track, TrackConfig)):
            raise TypeError(
                f"track: expected a TrackConfig or None, got {self.track!r}; TrackConfig() of "
                "edgerpn.runtime.tracking.config has the defaults"
            )
        check_setting(0 <= self.min_score <= 1, "min_score", "0 to 1", self.min_score)
        names = [source.label for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: expected different names, got {', '.join(map(repr, twice))} twice")

    @property
    def has_control(self) -> bool:
        """Whether sources may be added and removed by HTTP."""
        return bool(self.http.listen) and self.http.control

    @property
    def is_live(self) -> bool:
        """Whether the run continues until a signal ends it: a source is live, or may be added by HTTP."""
        return self.has_control or any(source.is_live for source in self.sources)

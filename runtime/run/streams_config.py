"""Settings of a run of streams: its sources, how frames are put together, and what counts as a result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.web.http_config import HttpConfig

MAX_SOURCES = 100
"""Sources of one run at most: each has a process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(CaptureConfig):
    """One source of a run: how it is captured, and how fresh its results must be."""

    max_age_ms: float = 2000.0
    """Age at emission above which a frame of a live source is an event `stale` and not a result, milliseconds; 0: no
    limit. Pictures and video files have none."""

    def __post_init__(self) -> None:
        """Checks what can be checked without opening the source."""
        # By name: a class with slots is made twice, and super() without arguments knows the first one only.
        CaptureConfig.__post_init__(self)
        if not (math.isfinite(self.max_age_ms) and self.max_age_ms >= 0):
            raise ValueError(f"max_age_ms: expected 0 or more, got {self.max_age_ms!r}")

    @property
    def is_live(self) -> bool:
        """Whether time goes on when nobody reads; a URL counts as live, though it may turn out to be a file."""
        return self.spec.is_live

    @property
    def capture(self) -> CaptureConfig:
        """What its capture process needs to know."""
        return CaptureConfig(**{item.name: getattr(self, item.name) for item in fields(CaptureConfig)})

    @property
    def age_limit_ms(self) -> float:
        """Age above which a frame is stale, milliseconds; infinity: it never is."""
        return self.max_age_ms if self.is_live and self.max_age_ms > 0 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How frames of several sources are put together for one inference."""

    max_batch: int = 0
    """Frames in one inference at most, each of another source; 0: what the model is made for, and on a CPU one,
    because there a batch takes as long as its frames one after the other."""
    batch_wait_ms: float = 5.0
    """Time that a frame waits at most for those of other sources, milliseconds; 0: not at all."""
    preprocess_threads: int = 0
    """Threads that lay the frames of a batch into the network's input; 0: up to 4, as the cores allow."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 <= self.max_batch <= 256:
            raise ValueError(f"max_batch: expected 0 to 256, got {self.max_batch!r}")
        if not (math.isfinite(self.batch_wait_ms) and 0 <= self.batch_wait_ms <= 10_000):
            raise ValueError(f"batch_wait_ms: expected 0 to 10000, got {self.batch_wait_ms!r}")
        if not 0 <= self.preprocess_threads <= 64:
            raise ValueError(f"preprocess_threads: expected 0 to 64, got {self.preprocess_threads!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamsConfig:
    """Everything about a run of streams; all but `batching.preprocess_threads` and `http` can change while it runs."""

    sources: tuple[SourceConfig, ...] = ()
    """The sources; each has another name."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    """How frames are put together."""
    min_score: float = 0.0
    """Proposals scored below this are left out everywhere, 0 to 1."""
    http: HttpConfig = field(default_factory=HttpConfig)
    """The web page."""

    def __post_init__(self) -> None:
        """Checks that names differ, and ranges."""
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score: expected 0 to 1, got {self.min_score!r}")
        names = [source.label for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: expected different names, got {', '.join(map(repr, twice))} twice")
